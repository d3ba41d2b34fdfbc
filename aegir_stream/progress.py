"""What any iterative job holds to be watched: one line for every iteration it completes."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from aegir_stream import codec
from aegir_stream.accounting import RecorderStatistics
from aegir_stream.clock import SystemClock
from aegir_stream.errors import OptionError
from aegir_stream.feed_reader import progress_trajectory
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks.progress import STREAM, ProgressSink
from aegir_stream.typing import Clock

__all__ = ["ProgressFeed"]

_ROW_BYTES = 1024
_INTEGERS = range(-(2**63), 2**64)


class ProgressFeed:
    """Appends to the progress feed of a run: `progress.jsonl` in its directory.

    Nothing that fails here reaches the loop, and nothing waits: rows are queued and written at once
    by another thread. A killed process loses the rows that were queued. As a context manager it
    closes itself, as `failed` if an exception passes through; else the end of the interpreter
    closes it as `stopped`. In a forked child it does nothing.

    Thread safety: every method may be called from any thread.

    Args:
        output_dir: the run directory, made when missing. A feed that is there is continued.
        total: how many iterations the job means to make; viewers show the time that is left.
        clock: where time stamps come from.
    """

    def __init__(
        self, output_dir: str | Path, *, total: int | None = None, clock: Clock | None = None
    ) -> None:
        run = RunDirectory.at(output_dir)
        self._clock = clock or SystemClock()
        self._best = _Best(run)
        self._recorder = Recorder(ProgressSink(run, total=total, clock=self._clock))
        # Not waited for: whoever looks sees that the run began, before its first row.
        self._recorder.flush(timeout_s=0)

    def append(
        self,
        *,
        iter: int,  # noqa: A002 - as the row calls it
        score: float | None = None,
        best: float | None = None,
        program_id: str | None = None,
        model: str | None = None,
        ts: float | None = None,
        **extra: Any,
    ) -> bool:
        """Append the row of a completed iteration; `False` if it was refused. Never raises.

        Args:
            iter: number of the iteration, a 64-bit integer.
            score: how good it was, higher being better. May be missing or not finite.
            best: best score so far; the highest finite score of the feed if absent.
            program_id: which program, candidate or configuration was scored.
            model: which model was used.
            ts: wall-clock seconds since the epoch; the present if absent.
            **extra: whatever else the row should say. `cost` and `calls`, running totals, are
                shown by viewers. What JSON has no form for is written as its text.
        """
        named = {"score": score, "best": best, "program_id": program_id, "model": model, "ts": ts}
        return bool(self._recorder.shield(self._append, iter, named, extra))

    def close(self, *, status: str = "finished", timeout_s: float = 10.0) -> bool:
        """Write what is queued and the end marker; `False` if that took longer. Idempotent.

        Args:
            status: how the job ended, such as `finished` or `failed`.
            timeout_s: how long to wait.
        """
        return self._recorder.close(status=status, timeout_s=timeout_s)

    def statistics(self) -> RecorderStatistics:
        """Return what was written, dropped and failed so far."""
        return self._recorder.statistics()

    def __enter__(self) -> Self:
        """Return the feed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the feed, as `failed` if an exception passes through."""
        self.close(status="failed" if kind else "finished")

    def _append(self, iteration: Any, named: dict[str, Any], extra: dict[str, Any]) -> bool:
        plain = {key: self._recorder.shield(_plain, value) for key, value in extra.items()}
        for name in ("score", "best", "ts"):
            named[name] = self._recorder.shield(_number, named[name])
        if named["ts"] is None:
            named["ts"] = self._clock.time()
        for name in ("program_id", "model"):
            named[name] = None if named[name] is None else self._recorder.shield(_text, named[name])
        fields = {"iter": _iteration(iteration), **named, **plain}
        return self._recorder.emit(_Row(fields, self._best))


class _Best:
    """The best score so far. Known to the recorder's thread, which reads what the feed holds."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._continued = False
        self._best: float | None = None

    def after(self, score: float | None) -> float | None:
        """Take a score; return the best."""
        if not self._continued:
            self._continued = True
            with contextlib.suppress(OSError):
                self._best = progress_trajectory(self._run).best
        if score is not None and math.isfinite(score):
            self._best = score if self._best is None else max(self._best, score)
        return self._best


class _Row(msgspec.Struct, frozen=True):
    """A batch of one row (see `aegir_stream.typing.EventBatch`)."""

    fields: dict[str, Any]
    running: _Best
    stream: str = STREAM
    records: int = 1
    size_bytes: int = _ROW_BYTES
    step: int | None = None
    pass_: str | None = None

    def encode(self) -> bytes:
        """Return the row as a JSON line, with the best score so far."""
        best = self.running.after(self.fields["score"])
        fields = self.fields | ({"best": best} if self.fields["best"] is None else {})
        named = ("score", "best", "program_id", "model")
        return codec.encode({k: v for k, v in fields.items() if v is not None or k not in named})

    def release(self) -> None:
        """Do nothing: a row holds no pooled buffers."""


def _iteration(value: Any) -> int:
    """Return an iteration as an integer.

    Raises:
        OptionError: it is none that fits 64 bits.
    """
    value = _unwrapped(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not hasattr(value, "__index__") or abs(value) >= 1 << 63:
        raise OptionError(
            f"Expected a 64-bit integer as `iter`, got `{value!r:.60}`",
            hint="Count the iterations of the job",
        )
    return operator.index(value)


def _number(value: Any) -> float | None:
    value = _unwrapped(value)
    if value is None:
        return None
    if isinstance(value, str | bool):
        raise OptionError(
            f"Expected a number, got `{value!r:.60}`", hint="Name other things in keys of their own"
        )
    return float(value)


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode()


def _plain(value: Any) -> Any:
    """Return what JSON can hold: the value, or its text."""
    value = _unwrapped(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value in _INTEGERS:
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return _text(value)


def _unwrapped(value: Any) -> Any:
    """Return the number or the lists that an array or a scalar of one holds."""
    unwrap = getattr(value, "tolist", None)
    return unwrap() if callable(unwrap) else value
