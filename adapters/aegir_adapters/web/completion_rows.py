"""Completions as they are listed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from aegir_adapters.web.amounts import number
from aegir_adapters.web.spelling import shown_token
from aegir_stream.events import Completion

__all__ = ["Group", "Listed", "Spell", "groups_of", "listed", "numbers"]

_LONGEST = 160
_MOST_IDS = 48

Spell: TypeAlias = Callable[[Sequence[int]], list[str]]
"""Returns the text of each token."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One completion, as it is listed.

    Attributes:
        address: of its page.
        name: step and id.
        reward: as text, like what follows.
        advantage: likewise.
        length: tokens, and whether it was cut off.
        text: how it begins, on one line.
        evaluated: whether it is one of an evaluation.
        chosen: whether it is the one whose page this is.
    """

    address: str
    name: str
    reward: str
    advantage: str
    length: str
    text: str
    evaluated: bool = False
    chosen: bool = False


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The completions of one prompt.

    Attributes:
        group: its number in the step.
        prompt: how its text begins; empty if it is not known.
        completions: the best rewarded first.
        evaluated: whether they are those of an evaluation.
    """

    group: int
    prompt: str
    completions: tuple[Listed, ...]
    evaluated: bool = False


def groups_of(completions: Iterable[Completion], spell: Spell, *, root: str) -> list[Group]:
    """Return completions by prompt, in the order in which they come.

    Args:
        completions: those of a prompt together.
        spell: tells the text of tokens.
        root: of the addresses.
    """
    groups: list[Group] = []
    for completion in completions:
        row = listed(completion, spell, root=root)
        last = groups[-1] if groups else None
        if last and (last.group, last.evaluated) == (completion.group, row.evaluated):
            groups[-1] = msgspec.structs.replace(last, completions=(*last.completions, row))
            continue
        prompt = _excerpt(None, completion.prompt_ids, spell)
        groups.append(
            Group(
                group=completion.group,
                prompt=prompt,
                completions=(row,),
                evaluated=row.evaluated,
            )
        )
    return groups


def listed(completion: Completion, spell: Spell, *, root: str = "", chosen: bool = False) -> Listed:
    """Return a completion as it is listed."""
    evaluated = completion.pass_ == "eval"
    name = f"{completion.step}-{completion.completion}"
    return Listed(
        address=f"{root}{name}{'?pass=eval' * evaluated}",
        name=name,
        reward=number(completion.reward),
        advantage=number(completion.advantage),
        length=f"{completion.length:,}{'' if completion.terminated else ', cut off'}",
        text=_excerpt(completion.text, completion.token_ids, spell),
        evaluated=evaluated,
        chosen=chosen,
    )


def numbers(token_ids: Sequence[int]) -> list[str]:
    """Return the tokens by their ids, where nothing tells their text (a `Spell`)."""
    return [f"{token} " for token in token_ids]


def _excerpt(text: str | None, token_ids: Sequence[int] | None, spell: Spell) -> str:
    """Return how a text begins, on one line."""
    if text is None and token_ids:
        text = "".join(spell(token_ids[:_MOST_IDS]))
    line = " ".join((text or "")[: 4 * _LONGEST].split())
    return shown_token(line[:_LONGEST]) + "\N{HORIZONTAL ELLIPSIS}" * (len(line) > _LONGEST)
