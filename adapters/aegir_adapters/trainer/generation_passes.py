"""The passes of one generation beside its loss: prefill, decode, logprob, reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch

from aegir_adapters.trainer.obstacles import obstacle
from aegir_adapters.trainer.split_pass import ChunkedRows, GeneratedColumns, SplitPass
from aegir_adapters.trainer.turns import Turn, fed_back, owners

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from aegir_adapters.trainer.capture import Capture, CapturedPass
    from aegir_adapters.trainer.split_pass import Forwards
    from aegir_adapters.trainer.tokens import Tokens
    from aegir_stream.events import PassName

__all__ = ["GenerationPasses"]

_GENERATED: Final[tuple[PassName, ...]] = ("prefill", "decode")
_SCORED: Final[tuple[PassName, ...]] = ("logprob", "reference")


class GenerationPasses:
    """Reads the forwards between two ends of a trainer's `_generate_and_score_completions`.

    Which completion a row belongs to is known from the start, but not which of its tokens are
    recorded: what was read is held, within a bound, until the completions are.

    Args:
        trainer: the GRPO trainer.
        capture: what is armed.
        asked: the passes that are recorded.
        limit_bytes: bound on the device memory that is held.

    Attributes:
        wanted: whether any of the passes is recorded.
    """

    def __init__(
        self,
        trainer: Any,
        capture: Capture,
        *,
        asked: Iterable[PassName],
        limit_bytes: int,
    ) -> None:
        self._trainer = trainer
        self._capture = capture
        self._asked = frozenset(asked)
        self._generated = [
            name for name in _GENERATED if name in self._asked and not obstacle(trainer, name)
        ]
        self.wanted = not self._asked.isdisjoint(_GENERATED + _SCORED)
        self._limit_bytes = limit_bytes
        self._ids: Tensor | None = None
        self._step = -1
        self._turns: list[Turn] = []
        self._scored: dict[PassName, SplitPass] = {}

    def begin(self, ids: Tensor, *, step: int) -> None:
        """Start to read a generation whose rows will be these completions, int64 (B,)."""
        self.abandon()
        self._ids, self._step = ids, step

    def abandon(self) -> None:
        """Let go of what was read, and read no more."""
        self._ids, self._turns, self._scored = None, [], {}

    # -- the forwards ------------------------------------------------------------------------------

    def turn_begin(self, call: Mapping[str, Any]) -> None:
        """Read the prompts and what is generated from them."""
        if self._ids is None or not self._generated:
            return
        prompts, first = call["prompt_ids"], not self._turns
        lengths = [len(ids) for ids in prompts]
        read = self._reading(
            GeneratedColumns(
                lengths,
                width=_padded(max(lengths), getattr(self._trainer, "pad_to_multiple_of", None)),
                # Whose rows a later turn goes on with is seen when it has ended.
                completion=self._ids if first else torch.arange(len(prompts)),
                asked=[name for name in self._generated if first or name == "decode"],
            ),
            sampled=first,
        )
        self._turns.append(Turn(prompts=prompts, read=read))
        self._capture.arm_parts(read)

    def turn_end(self, result: Any) -> None:
        """Stop reading."""
        if self._ids is None or not self._turns:
            return
        self._capture.disarm()
        if result is not None:
            # A copy: the trainer puts the whole completions into this very list later.
            self._turns[-1].generated = tuple(result[0])
        else:
            self._turns.pop()

    def scoring_begin(self, call: Mapping[str, Any]) -> None:
        """Read a forward that computes log-probabilities, the first of its pass."""
        if self._ids is None:
            return
        name: PassName = "reference" if self._is_reference(call["model"]) else "logprob"
        self._capture.phase = name
        if name not in self._asked or name in self._scored:
            return
        columns = call["attention_mask"].shape[1] - call["logits_to_keep"]
        mask = call["attention_mask"][:, columns:].bool().cpu()
        chunks = ChunkedRows(name, mask, offset=columns, completion=self._ids)
        self._scored[name] = self._reading(chunks)
        self._capture.arm_parts(self._scored[name])

    def scoring_end(self, result: Any) -> None:  # noqa: ARG002 - Listener's signature
        """Stop reading."""
        if self._ids is not None:
            self._capture.disarm()
            self._capture.phase = "generation"

    def _reading(self, forwards: Forwards, *, sampled: bool = True) -> SplitPass:
        return SplitPass(
            forwards,
            step=self._step,
            thin=self._capture.thinned if sampled else _unthinned,
            token_bytes=self._capture.token_bytes,
            limit_bytes=self._limit_bytes - sum(read.held_bytes for read in self._read),
        )

    @property
    def _read(self) -> list[SplitPass]:
        return [*(turn.read for turn in self._turns), *self._scored.values()]

    def _is_reference(self, model: Any) -> bool:
        reference = getattr(self._trainer, "ref_model", None)
        return model is reference if reference is not None else _without_adapters(model)

    # -- the end -----------------------------------------------------------------------------------

    def left_out(self) -> dict[PassName, int]:
        """Return how many tokens of each pass the bound has cost."""
        cost: dict[PassName, int] = {}
        for read in self._read:
            for name, tokens in read.left_out.items():
                cost[name] = cost.get(name, 0) + tokens
        return cost

    def end(self, completions: Sequence[Sequence[int]], recorded: Tensor) -> list[CapturedPass]:
        """Return what was read of the tokens that are recorded.

        Args:
            completions: token ids of the finished completions, row by row.
            recorded: bool (B, C) on the CPU, which of them the loss would take.
        """
        ids, turns, scored = self._ids, self._turns, self._scored
        self.abandon()
        if ids is None:
            return []
        passes = [*self._of_turns(turns, ids, completions), *_of_scored(scored, ids, recorded)]
        return [captured for captured in passes if captured.tokens.count]

    def _of_turns(
        self, turns: Sequence[Turn], ids: Tensor, completions: Sequence[Sequence[int]]
    ) -> Iterator[CapturedPass]:
        if not turns:
            return
        whole = _wholes(turns[0], completions) if len(turns) > 1 else []
        of: Sequence[int | None] = range(len(ids))
        for turn, before in zip(turns, [None, *turns], strict=False):
            if before is not None:
                of = owners(turn, whole, begun=before.rows_of(of))
            for captured in turn.read.captured():
                if captured.pass_ == "prefill":
                    yield captured
                    continue
                kept = fed_back(
                    captured.tokens, turn, of=of, first=turns[0], completions=completions
                )
                kept = msgspec.structs.replace(kept, completion=ids[kept.completion])
                if before is not None:
                    kept = self._capture.thinned(kept, step=captured.step, whole=False)
                yield captured.keep(kept.columns, kept)


def _wholes(first: Turn, completions: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    return [[*p, *c] for p, c in zip(first.prompts, completions, strict=True)]


def _of_scored(
    scored: Mapping[PassName, SplitPass], ids: Tensor, recorded: Tensor
) -> Iterator[CapturedPass]:
    for read in scored.values():
        for captured in read.captured():
            tokens = captured.tokens
            if tokens.completion is not None:
                row = tokens.completion - ids[0]
                chosen = recorded[row, tokens.token_index].nonzero().squeeze(1)
                yield captured.keep(chosen, tokens.keep(chosen))


def _unthinned(tokens: Tokens, **_: Any) -> Tokens:
    return tokens


def _padded(length: int, multiple: int | None) -> int:
    return length if not multiple else -(-length // multiple) * multiple


def _without_adapters(model: nn.Module) -> bool:
    """Tell whether a PEFT model runs as its own reference: adapters off, or the copy in place."""
    for module in model.modules():
        off = getattr(module, "disable_adapters", None)
        if isinstance(off, bool):  # a layer's property; a model has a method of that name
            return off or "ref" in getattr(module, "active_adapters", ())
    return False
