"""The run that an attempt writes: its log, its checkpoints, what stands beside them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from aegir_adapters.trainer.health import references_in
from aegir_adapters.trainer.identity import (
    git_commit,
    hyper_parameters,
    library_versions,
)
from aegir_adapters.trainer.sampling import Sampler
from aegir_stream.feed_reader import progress_trajectory
from aegir_stream.manifest import look_at_manifest
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink, TeeSink

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import TrainingArguments

    from aegir_adapters.trainer.health import HealthReference
    from aegir_adapters.trainer.options import RecordingOptions
    from aegir_stream.layout import RunDirectory
    from aegir_stream.typing import Sealed, Sink

__all__ = ["Recording", "completions_per_step", "resumed_checkpoint"]

_SEAL_FIELDS = ("segment", "records", "bytes", "crc32")


class Recording:
    """A recorder over a run directory, and the sidecars of its checkpoints.

    Rank 0 writes the sidecars; every rank writes its own log.

    Args:
        run: the run directory.
        args: the trainer's arguments.
        identity: what is recorded, see `run_identity`.
        options: how it is recorded.
        resumed_step: global step that the trainer resumed from, 0 for a start from scratch.
        last_step: global step at which training will end.

    Attributes:
        run: the run directory.
        options: how it is recorded.
        rank: process index.
        recorder: where batches go.
        sampler: leaves tokens out as the options ask for.
        sampling: the rule that it follows, as the log tells it; `None` where none are left out.
        references: what each layer's health is measured against, if the run began before.
        best: best score of the steps that it was resumed behind, as the progress feed tells.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        args: TrainingArguments,
        identity: Mapping[str, Any],
        options: RecordingOptions,
        resumed_step: int,
        last_step: int,
    ) -> None:
        self.run = run
        self.options = options
        self.rank: int = args.process_index
        self._identity = identity
        self._continues = resumed_checkpoint(resumed_step)
        rule = options.sampling(completions_per_step=completions_per_step(args))
        self.sampling = rule.describe() if rule.thins else None
        self.sampler = Sampler(
            rule,
            forwards_per_step=args.gradient_accumulation_steps * args.world_size,
            horizon=getattr(args, "max_completion_length", None),
            rank=self.rank,
        )
        self.references = _references_at(run, self._continues)
        self._description = self._describe(args)
        self.best = _best_until(run, resumed_step) if resumed_step and self.rank == 0 else None
        journal = JournalSink(
            run,
            rank=self.rank,
            world_size=args.world_size,
            continues=self._continues,
            identity={
                **identity,
                "world_size": args.world_size,
                "passes": options.passes,
                "sampling": self.sampling,
            },
            total=last_step,
            control_lines=options.control_lines,
            precision=options.precision.by_field(),
            durability=options.durability,
        )
        sink: Sink = TeeSink(journal, *options.sinks) if options.sinks else journal
        self.recorder = Recorder(
            sink,
            queue_bytes=options.queue_bytes,
            overflow=options.overflow,
            flush_every_s=options.flush_every_s,
        )

    def open(self) -> None:
        """Begin the log without waiting for it, so that readers see a run before its first step.

        Where tokens are left out, its first line says by which rule.
        """
        if self.sampling:
            self.recorder.note("sampling", self.sampling)
        self.recorder.flush(timeout_s=0)

    def seal(self, step: int, *, references: Mapping[int, HealthReference]) -> None:
        """Make what was recorded since the last checkpoint this one's snapshot; describe it.

        Args:
            step: global step of the checkpoint.
            references: what each layer's health is measured against, for who resumes from it.
        """
        checkpoint = f"checkpoint-{step}"
        sealed = self.recorder.seal(
            checkpoint=checkpoint, step=step, timeout_s=self.options.seal_timeout_s
        )
        if self.rank == 0:
            self.run.write_metadata(checkpoint, self._metadata(step, sealed, references))

    def note_drift(self, drift: Mapping[str, Any]) -> None:
        """Tell every reader in what the resumed run is another one than was recorded."""
        if self.rank == 0:
            detail = {"checkpoint": self._continues, "fields": drift}
            self.recorder.note("identity_drift", detail)

    def _describe(self, args: TrainingArguments) -> dict[str, Any]:
        return {
            **self.options.metadata,
            **self._identity,
            "libraries": library_versions(),
            "git_commit": git_commit(),
            "world_size": args.world_size,
            "sampling": self.sampling,
            "hyper_parameters": hyper_parameters(args),
            "started_at": self.options.clock.time(),
        }

    def _metadata(
        self, step: int, sealed: Sealed | None, references: Mapping[int, HealthReference]
    ) -> dict[str, Any]:
        answer = {} if sealed is None else msgspec.structs.asdict(sealed)
        return {
            "run_id": look_at_manifest(self.run).get("run_id"),
            **self._description,
            "last_checkpoint_at": self.options.clock.time(),
            "last_checkpoint_step": step,
            "seal": {name: answer[name] for name in _SEAL_FIELDS} if answer else None,
            "health_reference": msgspec.to_builtins(references, str_keys=True),
        }


def completions_per_step(args: TrainingArguments) -> int | None:
    """Return how many completions an optimizer step trains on over all ranks, where it does."""
    if not hasattr(args, "num_generations"):
        return None
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def resumed_checkpoint(step: int) -> str | None:
    """Return the name of the checkpoint that a trainer at `step` resumed from, if it did."""
    return f"checkpoint-{step}" if step else None


def _references_at(run: RunDirectory, checkpoint: str | None) -> dict[int, HealthReference]:
    """Return the references that a checkpoint's sidecar holds; without one, the first step is."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return references_in(run.read_metadata(checkpoint)) if checkpoint else {}
    return {}


def _best_until(run: RunDirectory, step: int) -> float | None:
    """Return the best score of the steps up to one; the steps behind it will be done again."""
    with contextlib.suppress(OSError):
        bests = [score for at, score in progress_trajectory(run).bests if at <= step]
        return bests[-1] if bests else None
    return None
