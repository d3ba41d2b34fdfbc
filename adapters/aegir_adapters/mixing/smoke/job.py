"""One rank: a small model trained on a mix, with the states of its streams in the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from msgspec import to_builtins
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from aegir_adapters.mixing.ledger import StateLedger
from aegir_adapters.mixing.mixer import StreamMixer
from aegir_adapters.mixing.observation import MixObservation
from aegir_adapters.mixing.smoke.config import SmokeConfig
from aegir_adapters.mixing.smoke.model import STATE_SHAPE, StreamModel
from aegir_adapters.mixing.smoke.streams import VOCABULARY, Chunk
from aegir_adapters.mixing.smoke.working_set import ledger_bands
from aegir_stream.batch import Events
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink

__all__ = ["serve_rank"]

_LEARNING_RATE = 1e-2


def serve_rank(rank: int, ranks: int, config: SmokeConfig, output_dir: Path, meeting: Path) -> None:
    """Train as one of several ranks; rank 0 writes the log.

    Args:
        rank: this one.
        ranks: how many there are.
        config: what is run.
        output_dir: where the log goes.
        meeting: a file that does not exist, by which the ranks find each other.
    """
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    distributed.init_process_group(
        "gloo", init_method=meeting.as_uri(), rank=rank, world_size=ranks
    )
    try:
        recorder = _recorder(config, output_dir, ranks) if rank == 0 else None
        _Rank(config, ranks, recorder).train()
        if recorder is not None:
            _finish(recorder)
    finally:
        distributed.destroy_process_group()


def _recorder(config: SmokeConfig, output_dir: Path, ranks: int) -> Recorder:
    identity = {"smoke": to_builtins(config)}
    run = RunDirectory.at(output_dir)
    sink = JournalSink(run, world_size=ranks, identity=identity, total=config.steps)
    # A window that is missing would be judged as a healthy one.
    return Recorder(sink, overflow="block", block_s=10.0)


def _finish(recorder: Recorder) -> None:
    closed, statistics = recorder.close(), recorder.statistics()
    if not closed or statistics.errors:
        raise RuntimeError(f"The log could not be written: {statistics.last_error}")


class _Rank:
    """What a rank holds while it trains."""

    def __init__(self, config: SmokeConfig, ranks: int, recorder: Recorder | None) -> None:
        self._config = config
        self._ranks = ranks
        self._recorder = recorder
        self._mixer = StreamMixer(config.mixed, seed=config.seed, shards=config.shards)
        self._ledger = StateLedger(config.limits, shape=STATE_SHAPE)
        self._observation = MixObservation(
            mixer=self._mixer,
            ledger=self._ledger,
            targets=config.targets,
            false_alarm=config.false_alarm,
            ledger_bands=lambda step: ledger_bands(config, ranks=ranks, step=step),
        )
        self._model = DistributedDataParallel(StreamModel(VOCABULARY))
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=_LEARNING_RATE)
        self._losses: list[float] = []

    def train(self) -> None:
        loader = DataLoader(
            self._mixer, batch_size=self._config.batch(self._ranks), collate_fn=_as_it_is
        )
        batches: Iterator[list[Chunk]] = iter(loader)
        for step in range(1, self._config.steps + 1):
            self._observation.begin_step(step)
            self._train_on(next(batches))
            if step % self._config.log_every == 0:
                self._log(step)

    def _train_on(self, chunks: list[Chunk]) -> None:
        keys = [chunk.key for chunk in chunks]
        starts = torch.tensor([chunk.starts for chunk in chunks])
        states = self._ledger.read(keys).states
        # A stream that is read once more begins without what its last pass has left.
        states[starts] = 0
        tokens = torch.tensor([chunk.tokens for chunk in chunks])
        self._optimizer.zero_grad()
        loss, states = self._model(tokens, states)
        loss.backward()
        self._optimizer.step()
        self._ledger.write(keys, states, starts=starts)
        self._losses.append(loss.item())

    def _log(self, step: int) -> None:
        """Bring the window of all ranks together, and write it down on one of them."""
        metrics = self._observation.collect(step, values={"loss": fmean(self._losses)})
        self._losses = []
        if self._recorder is not None:
            self._recorder.emit(Events("step_metrics", (metrics,), step=step))


def _as_it_is(chunks: list[Any]) -> list[Any]:
    return chunks
