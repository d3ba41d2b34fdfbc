"""The completions of one run, read a step at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from aegir_adapters.web.microscope import Records
from aegir_stream import codec
from aegir_stream.errors import MalformedEventError
from aegir_stream.events import Completion, SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.step_reader import StepReader

__all__ = [
    "CompletionShelf",
    "Neighbours",
    "SeenCompletion",
    "SeenStep",
    "has_completions",
]

T = TypeVar("T")

_STREAM = "completions"
_PAGE_SIZE = 256
_MOST_RECORDS = 50_000
_TRIES = 3


class _Head(msgspec.Struct, rename={"pass_": "pass"}):
    """What of a line decides whether, and where, it is shown."""

    completion: int | None = None
    group: int = 0
    reward: float | str | None = None
    iteration: int = 0
    pass_: str | None = None

    @property
    def is_evaluated(self) -> bool:
        return self.pass_ == "eval"

    @property
    def told_later(self) -> tuple[int, bool]:
        """Of several lines of a completion in a step, the one that comes first in this order."""
        return self.iteration, self.pass_ is not None


_head = msgspec.json.Decoder(_Head)


class Neighbours(msgspec.Struct, frozen=True, kw_only=True):
    """The steps around one; `None` where there is none."""

    oldest: int
    older: int | None
    newer: int | None
    newest: int


class SeenStep(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the completions of one step.

    Attributes:
        step: the step.
        around: the steps around it.
        completions: by group, those of an evaluation last, the best rewarded first.
        count: how many there are in the step.
        page: number of the part, from 1.
        pages: how many parts there are.
    """

    step: int
    around: Neighbours
    completions: tuple[Completion, ...]
    count: int
    page: int
    pages: int


class SeenCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """One completion, the others of its prompt, and what its tokens activated.

    Attributes:
        completion: the completion.
        group: all completions of the prompt, the best rewarded first.
        records: its records.
        is_cut: whether there are more records than were read.
    """

    completion: Completion
    group: tuple[Completion, ...]
    records: Records
    is_cut: bool = False


class CompletionShelf:
    """Reads the completions of a run, and their SAE records. Safe to use from several threads.

    Args:
        run: the run directory; it need not exist yet.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._lines = StepReader(run, _STREAM)
        self._records = StepReader(run, "sae_features")
        self._turn = threading.Lock()

    def step(self, wanted: int | None, *, page: int = 1) -> SeenStep | None:
        """Return the completions of a step, or of the nearest before it; `None` if there are none.

        Args:
            wanted: the step; the newest if absent.
            page: number of the part; one that is not there is the nearest that is.

        Raises:
            OSError: a file cannot be read.
        """
        return self._tried(lambda: self._step(wanted, page))

    def completion(self, step: int, number: int, *, evaluated: bool) -> SeenCompletion | None:
        """Return a completion; `None` if there is none.

        Args:
            step: the step.
            number: its id in the step.
            evaluated: whether it is one of an evaluation, whose ids are counted apart.

        Raises:
            OSError: a file cannot be read.
        """
        return self._tried(lambda: self._completion(step, number, evaluated=evaluated))

    def _tried(self, read: Callable[[], T]) -> T:
        """Return what is read; once more where a checkpoint moved a file away meanwhile."""
        with self._turn:
            for _ in range(_TRIES - 1):
                try:
                    return read()
                except FileNotFoundError:
                    continue
            return read()

    # -- one step ----------------------------------------------------------------------------------

    def _step(self, wanted: int | None, page: int) -> SeenStep | None:
        steps = self._lines.steps()
        if not steps:
            return None
        at = max((at for at, one in enumerate(steps) if wanted is None or one <= wanted), default=0)
        around = Neighbours(
            oldest=steps[0],
            older=steps[at - 1] if at else None,
            newer=steps[at + 1] if at + 1 < len(steps) else None,
            newest=steps[-1],
        )
        heads = self._heads(steps[at])
        order = sorted(heads, key=lambda key: (key[1], heads[key].group, _worth(heads[key]), key))
        pages = max(1, -(-len(order) // _PAGE_SIZE))
        page = min(max(1, page), pages)
        part = order[(page - 1) * _PAGE_SIZE : page * _PAGE_SIZE]
        chosen = {key: heads[key] for key in part}
        whole = {_key(head): line for head, line in self._whole(steps[at], chosen)}
        return SeenStep(
            step=steps[at],
            around=around,
            completions=tuple(whole[key] for key in part if key in whole),
            count=len(order),
            page=page,
            pages=pages,
        )

    def _heads(self, step: int) -> dict[tuple[int, bool], _Head]:
        """Return, of every completion of a step, the line that is shown."""
        heads: dict[tuple[int, bool], _Head] = {}
        for line in self._lines.lines(step):
            head = _head_of(line)
            if head is None or head.completion is None:
                continue
            known = heads.get(_key(head))
            if known is None or head.told_later < known.told_later:
                heads[_key(head)] = head
        return heads

    def _whole(
        self, step: int, heads: dict[tuple[int, bool], _Head]
    ) -> Iterator[tuple[_Head, Completion]]:
        for line in self._lines.lines(step):
            head = _head_of(line)
            if head is None or head.completion is None:
                continue
            chosen = heads.get(_key(head))
            if chosen is not None and chosen.told_later == head.told_later:
                try:
                    yield head, codec.decode(line, Completion)
                except MalformedEventError:
                    continue

    # -- one completion ----------------------------------------------------------------------------

    def _completion(self, step: int, number: int, *, evaluated: bool) -> SeenCompletion | None:
        heads = self._heads(step)
        head = heads.get((number, evaluated))
        if head is None:
            return None
        of_group = {
            key: one for key, one in heads.items() if (one.group, key[1]) == (head.group, evaluated)
        }
        lines = {_key(one): line for one, line in self._whole(step, of_group)}
        if (number, evaluated) not in lines:
            return None
        records, is_cut = self._records_of(step, number, evaluated=evaluated)
        best_first = sorted(lines, key=lambda key: (_worth(of_group[key]), key))
        return SeenCompletion(
            completion=lines[number, evaluated],
            group=tuple(lines[key] for key in best_first),
            records=records,
            is_cut=is_cut,
        )

    def _records_of(self, step: int, number: int, *, evaluated: bool) -> tuple[Records, bool]:
        records: Records = {}
        count = 0
        for line in self._records.lines(step):
            head = _head_of(line)
            if head is None or head.completion != number or head.is_evaluated != evaluated:
                continue
            try:
                record = codec.decode(line, SAELogRecord)
            except MalformedEventError:
                continue
            if count == _MOST_RECORDS:
                return records, True
            count += 1
            tokens = records.setdefault(record.pass_ or "loss", {})
            tokens.setdefault(record.token_index, {})[record.layer_index] = record
        return records, False


def has_completions(run: RunDirectory) -> bool:
    """Tell whether a run has completions. Lists the directory; never fails."""
    try:
        return bool(run.lanes(_STREAM))
    except OSError:
        return False


def _head_of(line: bytes) -> _Head | None:
    try:
        return _head.decode(line)
    except msgspec.DecodeError:
        return None


def _key(head: _Head) -> tuple[int, bool]:
    return head.completion or 0, head.is_evaluated


def _worth(head: _Head) -> float:
    """Return what to sort by: the best rewarded first, those without a number last."""
    reward = head.reward
    return -reward if isinstance(reward, float) and not math.isnan(reward) else math.inf
