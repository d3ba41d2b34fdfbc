"""Which position of the source run belongs to which position of the patched prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher

import msgspec

__all__ = ["Alignment", "Unaligned", "align", "align_as", "common_prefix_len"]


class Unaligned(msgspec.Struct, frozen=True):
    """A position of the patched prompt that has no counterpart.

    Attributes:
        position: the position.
        reason: why.
    """

    position: int
    reason: str


class Alignment(msgspec.Struct, frozen=True, kw_only=True):
    """Two prompts, position by position.

    Attributes:
        n_clean: tokens of the source run's prompt.
        n_corrupt: tokens of the patched prompt.
        prefix_len: tokens that both begin with.
        suffix_len: tokens that both end with, the common beginning left aside.
        sources: the source run's position for each aligned position, ascending.
        unaligned: the other positions, ascending.
        warnings: what the caller should know.
    """

    n_clean: int
    n_corrupt: int
    prefix_len: int
    suffix_len: int
    sources: Mapping[int, int]
    unaligned: tuple[Unaligned, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether every position belongs to the same one of the source run."""
        return not self.unaligned and all(p == source for p, source in self.sources.items())

    def shift(self, position: int) -> int | None:
        """Return how far the source run's position lies behind; `None` for an unaligned one."""
        source = self.sources.get(position)
        return None if source is None else source - position


def align(clean: Sequence[int], corrupt: Sequence[int]) -> Alignment:
    """Return the alignment of two prompts by their tokens.

    Prompts of equal length are aligned position by position: that is the usual pair in which words
    are exchanged one for one. Otherwise every block of tokens that both have is aligned, however
    many there are, and so is a stretch that was exchanged for another of the same length. What was
    inserted, or exchanged for a stretch of another length, is not.

    Args:
        clean: tokens of the source run's prompt.
        corrupt: tokens of the patched prompt.
    """
    prefix = common_prefix_len(clean, corrupt)
    suffix = common_prefix_len(clean[prefix:][::-1], corrupt[prefix:][::-1])
    stretches = list(_stretches(clean, corrupt, prefix=prefix, suffix=suffix))
    sources: dict[int, int] = {}
    unaligned: list[Unaligned] = []
    warnings: tuple[str, ...] = ()
    if len(clean) == len(corrupt):
        sources = {position: position for position in range(len(corrupt))}
        warnings = _moved(stretches)
    else:
        for stretch in stretches:
            sources.update(stretch.sources())
            unaligned += stretch.unaligned()
    return Alignment(
        n_clean=len(clean),
        n_corrupt=len(corrupt),
        prefix_len=prefix,
        suffix_len=suffix,
        sources=sources,
        unaligned=tuple(unaligned),
        warnings=warnings,
    )


def align_as(clean: Sequence[int], corrupt: Sequence[int], sources: Mapping[int, int]) -> Alignment:
    """Return an alignment that was given; every position that it does not name is unaligned.

    Args:
        clean: tokens of the source run's prompt.
        corrupt: tokens of the patched prompt.
        sources: the source run's position for positions of the patched prompt, all of them valid.
    """
    prefix = common_prefix_len(clean, corrupt)
    return Alignment(
        n_clean=len(clean),
        n_corrupt=len(corrupt),
        prefix_len=prefix,
        suffix_len=common_prefix_len(clean[prefix:][::-1], corrupt[prefix:][::-1]),
        sources=dict(sorted(sources.items())),
        unaligned=tuple(
            Unaligned(position, "the given alignment does not name it")
            for position in range(len(corrupt))
            if position not in sources
        ),
    )


class _Stretch(msgspec.Struct, frozen=True):
    """A stretch of the patched prompt, and the one of the clean prompt that it stands for."""

    clean: range
    corrupt: range

    def sources(self) -> dict[int, int]:
        if len(self.clean) != len(self.corrupt):
            return {}
        return dict(zip(self.corrupt, self.clean, strict=True))

    def unaligned(self) -> list[Unaligned]:
        if len(self.clean) == len(self.corrupt):
            return []
        where = f"positions {self.corrupt.start}..{self.corrupt.stop - 1}"
        if len(self.corrupt) == 1:
            where = f"position {self.corrupt.start}"
        reason = f"{where} inserted: the clean prompt has nothing there"
        if self.clean:
            reason = (
                f"{where} exchanged: the clean prompt has {len(self.clean)} there, not "
                f"{len(self.corrupt)}"
            )
        return [Unaligned(position, reason) for position in self.corrupt]


def _stretches(
    clean: Sequence[int], corrupt: Sequence[int], *, prefix: int, suffix: int
) -> Iterator[_Stretch]:
    """Cut both prompts into stretches that belong together.

    The common ends are taken first: a source run at an equal prefix is equal to the patched one, so
    nothing else may be aligned there, however well it matches.
    """
    middle = (clean[prefix : len(clean) - suffix], corrupt[prefix : len(corrupt) - suffix])
    yield _Stretch(range(prefix), range(prefix))
    for _, a, b, c, d in SequenceMatcher(None, *middle, autojunk=False).get_opcodes():
        yield _Stretch(range(prefix + a, prefix + b), range(prefix + c, prefix + d))
    yield _Stretch(
        range(len(clean) - suffix, len(clean)), range(len(corrupt) - suffix, len(corrupt))
    )


def _moved(stretches: Sequence[_Stretch]) -> tuple[str, ...]:
    """Warn of prompts that are equally long by coincidence."""
    moved = next((s for s in stretches if s.sources() and s.clean != s.corrupt), None)
    if moved is None:
        return ()
    here = f"{moved.corrupt.start}..{moved.corrupt.stop - 1}"
    there = f"{moved.clean.start}..{moved.clean.stop - 1}"
    warning = (
        f"The prompts are equally long and are aligned position by position, but the tokens at "
        f"{here} also stand at {there} of the clean prompt; give an `alignment` if these belong "
        "together"
    )
    return (warning,)


def common_prefix_len(a: Sequence[object], b: Sequence[object]) -> int:
    """Return how many items both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
