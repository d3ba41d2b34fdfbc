from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from aegir_adapters.mixing import (
    LEDGER_METRICS,
    SCALARS,
    MixObservation,
    Reader,
    StateLedger,
    StoreLimits,
    StreamMixer,
)
from aegir_adapters.mixing.callback import MixingCallback, observe_mix
from aegir_adapters.trainer import SidecarCallback
from aegir_stream.batch import Events
from aegir_stream.errors import OptionError
from aegir_stream.events import StepMetrics
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events

BATCH = 4
STEPS = 6


class Line(nn.Module):
    """A model that learns to tell readers apart."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss."""
        return {"loss": ((x - self.weight) ** 2).mean()}


class MixedTrainer(Trainer):
    """A trainer that reads from a mixer, which deals its items to the ranks by itself."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the mixer in batches."""
        return DataLoader(self.train_dataset, batch_size=BATCH)  # type: ignore[arg-type]


class LedgerCallback(TrainerCallback):
    """Writes one state for each step, under three keys in turn, as a recurrent model would."""

    def __init__(self, ledger: StateLedger) -> None:
        self._ledger = ledger

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a state."""
        self._ledger.write([state.global_step % 3], torch.zeros(1, 2))


class Tracker(TrainerCallback):
    """What is reported to a tracker."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what is logged."""
        self.logged.append(dict(kwargs["logs"]))


def numbers(value: float) -> Any:
    """Return a reader's items: the same number for ever."""

    def opened(_shard: int, _shards: int) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield {"x": torch.tensor([value])}

    return opened


def trainer_in(directory: Path, mixer: StreamMixer, **options: Any) -> MixedTrainer:
    """Return a trainer that logs every second step."""
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=STEPS,
        logging_steps=2,
        per_device_train_batch_size=BATCH,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **options,
    )
    return MixedTrainer(model=Line(), args=arguments, train_dataset=mixer)


def mixed() -> StreamMixer:
    """Return two endless readers, one picked three times as often."""
    readers = [
        Reader(name="text/a", weight=3, open=numbers(0.0)),
        Reader(name="sound/b", weight=1, open=numbers(1.0)),
    ]
    return StreamMixer(readers, seed=1, shards=1)


def picks_by_hand() -> list[float]:
    """Return what is picked in the order of the picks, as numbers."""
    stream = iter(mixed())
    return [float(next(stream)["x"]) for _ in range(BATCH * STEPS)]


def test_what_the_trainer_logs_is_in_the_log_and_in_every_tracker(tmp_path: Path) -> None:
    """One line for each logged step, equal to what was picked and written in its window."""
    mixer = mixed()
    ledger = StateLedger(StoreLimits(capacity=2, ring=4), shape=[2])
    trainer = trainer_in(tmp_path, mixer)
    trainer.add_callback(tracker := Tracker())
    trainer.add_callback(LedgerCallback(ledger))
    observe_mix(trainer, MixObservation(mixer=mixer, ledger=ledger))
    trainer.train()

    lines = list(read_events(RunDirectory.at(tmp_path), "step_metrics"))
    assert [line.step for line in lines] == [2, 4, 6]
    picks = picks_by_hand()
    for number, line in enumerate(lines):
        window = picks[number * 2 * BATCH : (number + 1) * 2 * BATCH]
        share = sum(window) / len(window)
        assert line.metrics["stream_mixing/mix_tv"] == pytest.approx(abs(share - 0.25))
        assert line.metrics["stream_mixing/staleness_max_steps"] == _staleness(picks, line.step)
        assert {*SCALARS, *LEDGER_METRICS} <= set(line.metrics)
        assert {f"{name}_max" for name in LEDGER_METRICS} <= set(line.metrics)
        assert set(SCALARS) <= set(line.bands)
        logged = next(each for each in tracker.logged if "stream_mixing/mix_tv" in each)
        tracker.logged.remove(logged)
        values = {name: value for name, value in line.metrics.items() if value is not None}
        assert values.items() <= logged.items()
    # Steps write the keys 0, 1, 2, 0, 1, 2 into two places: all but the first two evict, and from
    # the fourth on each key was evicted just before it came again.
    counted = [[line.metrics[name] for name in LEDGER_METRICS] for line in lines]
    assert counted == [[0, 0, 2, 2], [2, 1, 2, 2], [2, 2, 2, 2]]
    history = [each for each in trainer.state.log_history if "stream_mixing/mix_tv" in each]
    assert [each["step"] for each in history] == [2, 4, 6]
    assert json.dumps(history)


def _staleness(picks: list[float], step: int) -> int:
    """Return for how many steps the reader that waited longest was not picked at a step's end."""
    last = {0.0: 0, 1.0: 0}
    for number, pick in enumerate(picks[: step * BATCH]):
        last[pick] = number // BATCH + 1
    return step - min(max(1, each) for each in last.values())


def test_the_lines_join_those_of_the_callback_that_records(tmp_path: Path) -> None:
    """One journal, one attempt: who records takes the lines of others, while it records."""
    mixer = mixed()
    trainer = trainer_in(tmp_path, mixer)
    sidecar = SidecarCallback()
    assert not sidecar.emit(_batch())
    observe_mix(trainer, MixObservation(mixer=mixer), emit=sidecar.emit)
    trainer.add_callback(sidecar)
    trainer.train()

    run = RunDirectory.at(tmp_path)
    assert [line.step for line in read_events(run, "step_metrics")] == [2, 4, 6]
    assert len(run.read_manifest()["attempts"]) == 1
    assert run.lanes("step_metrics") == ["rank0"]
    assert not sidecar.emit(_batch())


def _batch() -> Events:
    return Events("step_metrics", (StepMetrics(step=1, ts=0.0, metrics={}),), step=1)


def test_what_fails_does_not_reach_the_training_loop(tmp_path: Path) -> None:
    """It is counted, and the next step is tried again."""
    mixer = mixed()
    trainer = trainer_in(tmp_path, mixer)

    class Failing(MixObservation):
        def collect(self, step: int, **options: Any) -> StepMetrics:
            if step == 2:
                raise RuntimeError("lost a rank")
            return super().collect(step, **options)

    callback = observe_mix(trainer, Failing(mixer=mixer))
    trainer.train()

    assert trainer.state.global_step == STEPS
    assert callback.recorder.statistics().errors == 1
    lines = read_events(RunDirectory.at(tmp_path), "step_metrics")
    assert [line.step for line in lines] == [4, 6]


def test_training_that_was_broken_off_leaves_its_file_to_the_next(tmp_path: Path) -> None:
    """The next training of the same trainer writes where the first one did."""

    class BreakingOff(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    mixer = mixed()
    trainer = trainer_in(tmp_path, mixer)
    trainer.add_callback(breaking := BreakingOff())
    observe_mix(trainer, MixObservation(mixer=mixer))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(breaking)
    trainer.train()

    run = RunDirectory.at(tmp_path)
    assert run.lanes("step_metrics") == ["rank0"]
    assert [line.step for line in read_events(run, "step_metrics")] == [2, 4, 6]


def test_it_comes_before_the_trackers_and_after_the_flow(tmp_path: Path) -> None:
    """Trackers report what it adds; the flow has said whether the step is logged."""
    mixer = mixed()
    trainer = trainer_in(tmp_path, mixer)
    callback = observe_mix(trainer, MixObservation(mixer=mixer))

    assert trainer.callback_handler.callbacks[1] is callback
    assert isinstance(callback, MixingCallback)


def test_there_must_be_something_to_observe() -> None:
    """Neither mixer nor ledger is an error at once."""
    with pytest.raises(OptionError, match="neither"):
        MixObservation()
