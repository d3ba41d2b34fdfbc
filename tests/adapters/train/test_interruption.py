from __future__ import annotations

import signal

import pytest

from aegir_adapters.train import Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_insists(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """While training, one signal lets the step end and says so; another ends it there and then."""
    interruption = Interruption()
    with interruption.heard(), interruption.orderly():
        before = interruption.asked
        signal.raise_signal(number)
        assert not before
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interruption.exit_code == 128 + number
    assert "once more stops at once" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_training_a_signal_ends_everything(number: signal.Signals) -> None:
    """There is nothing to bring to an orderly end yet; the exit code names the signal."""
    interruption = Interruption()
    with interruption.heard(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert interruption.exit_code == 128 + number


def test_signals_are_as_before_afterwards() -> None:
    """Who embeds a run keeps his own handlers."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption().heard():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
