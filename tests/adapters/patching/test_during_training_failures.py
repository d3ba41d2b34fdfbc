from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch
from torch import nn

from adapters.patching.trained import (
    CIRCUIT,
    Trained,
    Witness,
    differences,
    plain,
    state_of,
    sweeps_of,
)
from adapters.trainer.tiny import model
from aegir_adapters.cli.sweep_picture import draw
from aegir_adapters.patching.during_training import SweepCallback
from aegir_adapters.patching.limits import Limits
from aegir_adapters.patching.request import RequestError
from aegir_stream.aside import is_aside
from aegir_stream.errors import OptionError
from aegir_stream.testing import ManualClock
from aegir_stream.writer import SegmentWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a token that there is not": ({"prompt": [3, 99]}, "token ids within 0..11"),
    "text without a tokenizer": ({"prompt": "w1 w2"}, "has no tokenizer"),
    "a hook that there is not": ({"hooks": ["resid_pre", "z.9"]}, "heads are 0..1"),
    "a layer that there is not": ({"layers": [3]}, "within 0..2"),
    "too many cells": ({"limits": {"cells": 3}}, "a grid of at most 3 cells"),
    "too many tokens": ({"prompt": [3] * 6}, "at most 5 tokens long"),
    "a run of before": (
        {"clean_prompt": None, "source_run": "before"},
        "the name of a captured run: none",
    ),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a training comes to that nobody watches."""
    return Trained(plain(tmp_path_factory.mktemp("alone")))()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the project warned of."""
    return [record.getMessage() for record in caplog.records if record.name == "aegir_stream"]


def test_a_refused_study_is_told_of_once_and_the_others_go_on(
    alone: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For each one warning that names study, step and reason, and one file that says so."""
    studies = {name: CIRCUIT | changed for name, (changed, _) in REFUSED.items()}
    callback = SweepCallback(studies | {"right": CIRCUIT}, every_steps=1, limits=Limits(tokens=5))
    swept = Trained(plain(tmp_path), callback)
    assert list(differences(swept(), alone)) == []
    assert (callback.statistics().sweeps, callback.statistics().failed) == (3, 3 * len(REFUSED))
    *refused, right = [sweep.grids for sweep in sweeps_of(tmp_path)[: len(REFUSED) + 1]]
    assert right.ended is not None
    assert right.ended.status == "finished"
    assert len(sweeps_of(tmp_path)) == len(REFUSED) + 3
    warned = warnings_in(caplog)
    for (name, (_, told)), warning, grids in zip(REFUSED.items(), warned, refused, strict=True):
        assert "training goes on" in warning
        assert f"The sweep `{name}` of the policy at step 0 failed: RequestError: " in warning
        assert told in warning
        assert grids.started is not None
        assert (grids.started.study, grids.started.step) == (name, 0)
        assert grids.ended is not None
        assert grids.ended.status == "failed"
        assert told in (grids.ended.reason or "")
        # Though there is no cell, it can be shown.
        shown = " ".join(line.plain for line in draw(grids, width=200))
        assert f"policy at step 0, study {name}" in shown
        assert told in shown


def failing(output_dir: Path, error: BaseException) -> Callable[[], nn.Module]:
    """Return how to make the tiny model that fails in a sweep of which some cells are known."""

    def fail(*_: Any) -> None:
        if is_aside() and any(s.grids.cells and not s.grids.ended for s in sweeps_of(output_dir)):
            raise error

    def make() -> nn.Module:
        policy = model()
        policy.model.layers[2].mlp.register_forward_pre_hook(fail)
        return policy

    return make


def test_a_forward_that_fails_ends_its_sweep_only(
    alone: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The files say why, with the cells that were known; the model is left as it was."""
    error = torch.OutOfMemoryError("no memory")
    callback = SweepCallback({"circuit": CIRCUIT}, every_steps=1, start=False)
    swept = Trained(plain(tmp_path, policy=failing(tmp_path, error)), callback)
    assert list(differences(swept.before.ends, swept.after.ends)) == []
    assert list(differences(swept.after.gradients, alone["after"]["gradients"])) == []
    assert callback.statistics().failed == 2
    (warning,) = warnings_in(caplog)
    assert "OutOfMemoryError: no memory" in warning
    begun, _ = sweeps_of(tmp_path)
    assert begun.status() == "failed"
    assert begun.grids.ended is not None
    assert begun.grids.ended.reason == "no memory"
    assert begun.grids.ended.cells > 0


def test_an_interruption_passes(tmp_path: Path) -> None:
    """Ctrl-C in a sweep ends the training, as elsewhere; the sweep's file says `cancelled`."""
    trainer = plain(tmp_path, policy=failing(tmp_path, KeyboardInterrupt()))
    policy: Any = trainer.model
    witness = Witness()
    for callback in (witness, SweepCallback({"circuit": CIRCUIT})):
        trainer.add_callback(callback)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    (sweep,) = sweeps_of(tmp_path)
    assert sweep.status() == "cancelled"
    assert sweep.grids.cells
    assert list(differences(witness.ends[0], state_of(policy))) == []
    assert not is_aside()


def no_space(*_: Any, **__: Any) -> NoReturn:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("when", ["at the start", "at the end"])
def test_a_full_disk_is_told_of(
    when: str,
    alone: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Files that cannot be made or written cost the record, and nothing else."""
    if when == "at the start":
        (tmp_path / "sweeps").write_text("no directory")
    callback = SweepCallback({"circuit": CIRCUIT}, every_steps=1)
    trainer = plain(tmp_path)
    if when == "at the end":
        append = SegmentWriter.append
        began = itertools.count()
        monkeypatch.setattr(
            SegmentWriter, "append", lambda *a, **k: no_space() if next(began) else append(*a, **k)
        )
    swept = Trained(trainer, callback)
    assert list(differences(swept(), alone)) == []
    assert callback.statistics().failed == 3
    (warning,) = warnings_in(caplog)
    assert "The sweep `circuit` of the policy at step 0 failed" in warning


class Bag(nn.Module):
    """A model without layers, and with a loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(12, 12)

    def forward(self, input_ids: Any, labels: Any) -> dict[str, Any]:
        """Predict each token by itself."""
        logits = self.embedding(input_ids)
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def test_a_model_that_cannot_be_swept_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning when training begins; then nothing is tried, and nothing is written."""
    callback = SweepCallback({"circuit": CIRCUIT}, every_steps=1)
    swept = Trained(plain(tmp_path / "swept", policy=Bag), callback)
    assert list(differences(swept(), Trained(plain(tmp_path / "alone", policy=Bag))())) == []
    (warning,) = warnings_in(caplog)
    assert "in one list" in warning
    assert "in one list" in (callback.statistics().last_error or "")
    assert (callback.statistics().sweeps, callback.statistics().failed) == (0, 0)
    assert sweeps_of(tmp_path / "swept") == []


class Hasty(ManualClock):
    """A clock on which a second goes by whenever somebody looks."""

    def monotonic(self) -> float:
        """Return the time, a second later."""
        self.advance(1.0)
        return super().monotonic()


def test_sweeps_keep_to_their_share_of_the_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where another sweep would exceed it, the occasion is left out, which is said once."""
    callback = SweepCallback({"circuit": CIRCUIT}, every_steps=1, share=0.5, clock=Hasty())
    trainer = plain(tmp_path, max_steps=8)
    Trained(trainer, callback)
    statistics = callback.statistics()
    assert statistics.left_out > 0
    assert statistics.sweeps == len(sweeps_of(tmp_path)) == 9 - statistics.left_out
    (warning,) = warnings_in(caplog)
    assert "share=0.5" in warning


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"studies": {}}, "`studies` to hold one, got none"),
        ({"studies": {"circuit": {"prompt": [3], "heads": 1}}}, "`heads` to be left out"),
        ({"studies": {"circuit": {"prompt": 3}}}, "`prompt` to be text or a list"),
        ({"every_steps": 0}, "`every_steps` >= 1, got 0"),
        ({"steps": (4, -1)}, "`steps` >= 1, got -1"),
        ({"every_steps": None, "start": False}, "an occasion to sweep at, got none"),
        ({"share": 0.0}, "`share` in (0, 1], got 0.0"),
        ({"share": 1.5}, "`share` in (0, 1], got 1.5"),
    ],
)
def test_what_the_constructor_refuses(options: dict[str, Any], told: str) -> None:
    """What is wrong by itself raises before there is a training to break."""
    with pytest.raises(OptionError) as raised:
        SweepCallback(**{"studies": {"circuit": CIRCUIT}} | options)
    assert told in str(raised.value)
    assert isinstance(raised.value, RequestError) == ("circuit" in str(options.get("studies")))
