from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from aegir_adapters.trainer.split_pass import GeneratedColumns, SplitPass
from aegir_adapters.trainer.tokens import Tokens
from aegir_adapters.trainer.turns import Turn, fed_back, owners

if TYPE_CHECKING:
    from collections.abc import Sequence

words = st.lists(st.integers(0, 1), min_size=1, max_size=3)
"""Of two words, so that rows are often alike."""

UNREAD = SplitPass(
    GeneratedColumns([1], width=1, completion=torch.arange(1), asked=()),
    step=1,
    thin=lambda tokens, **_: tokens,
    token_bytes=1,
    limit_bytes=1,
)


def every_token(generated: Sequence[Sequence[int]]) -> Tokens:
    """Return what a turn reads: one column after the other, rows that have ended included."""
    rows, columns = len(generated), max(map(len, generated))
    index = torch.arange(columns).repeat_interleave(rows)
    return Tokens(
        rows=torch.arange(rows).repeat(columns),
        columns=torch.zeros_like(index),
        token_index=index,
        completion=None,
        shape=(rows, 1),
    )


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_of_a_single_turn_all_but_the_last_token_of_each_row_were_fed_back(
    rows: list[tuple[list[int], list[int]]],
) -> None:
    """Rows that had ended while others went on are not taken for longer than they are."""
    prompts, completions = [p for p, _ in rows], [c for _, c in rows]
    turn = Turn(prompts=prompts, read=UNREAD, generated=completions)
    kept = fed_back(
        every_token(completions), turn, of=range(len(rows)), first=turn, completions=completions
    )
    assert kept.completion is not None
    assert sorted(zip(kept.completion.tolist(), kept.token_index.tolist(), strict=True)) == [
        (row, index) for row, tokens in enumerate(completions) for index in range(len(tokens) - 1)
    ]


class Call(NamedTuple):
    """What became of a prompt.

    Attributes:
        prompt: token ids.
        begun: what was generated first.
        answer: what a tool answered, `None` if none was called.
        more: what was generated then.
    """

    prompt: list[int]
    begun: list[int]
    answer: list[int] | None
    more: list[int]


@given(
    st.lists(st.builds(Call, words, words, st.none() | words, words), min_size=1, max_size=6),
    st.integers(3, 7),
)
@example(calls=[Call([1], [1], [1, 1], [1, 0]), Call([1, 1], [1, 1, 1], None, [0])], longest=3).via(
    "cut off, and then alike to what begins later"
)
def test_later_turns_are_given_to_the_completions_that_they_go_on_with(
    calls: list[Call], longest: int
) -> None:
    """Whichever rows called a tool, each token that was kept and fed back is found once."""
    first = Turn(prompts=[c.prompt for c in calls], read=UNREAD, generated=[c.begun for c in calls])
    called = [c for c in calls if c.answer is not None and len(c.begun + c.answer) <= longest]
    turn = Turn(
        prompts=[c.prompt + c.begun + (c.answer or []) for c in called],
        read=UNREAD,
        generated=[c.more for c in called],
    )
    completions = [
        (c.begun + (c.answer or []) + c.more)[:longest] if c in called else c.begun for c in calls
    ]
    wholes = [c.prompt + completion for c, completion in zip(calls, completions, strict=True)]
    of = owners(turn, wholes, begun=first.rows_of(range(len(calls))))
    assert None not in of
    assert len(set(of)) == len(of)
    if not called:
        return
    kept = fed_back(every_token(turn.generated), turn, of=of, first=first, completions=completions)
    assert kept.completion is not None
    found = list(zip(kept.completion.tolist(), kept.token_index.tolist(), strict=True))
    assert len(set(found)) == len(found)
    # A residual is that of the tokens up to its own: two with the same tokens are the same.
    up_to = Counter(tuple(wholes[o][: len(first.prompts[o]) + i + 1]) for o, i in found)
    assert up_to == Counter(
        (*prompt, *c.more[: t + 1])
        for prompt, c in zip(turn.prompts, called, strict=True)
        for t in range(len(c.more) - 1)
        if len(prompt) - len(c.prompt) + t < longest
    )
