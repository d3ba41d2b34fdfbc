"""A pass that comes in several forwards: chunks of rows, or one column after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import torch

from aegir_adapters.trainer.capture import CapturedPass, LatentRows
from aegir_adapters.trainer.tokens import Tokens, completion_tokens
from aegir_stream.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from aegir_stream.events import PassName

__all__ = ["ChunkedRows", "Forward", "Forwards", "GeneratedColumns", "SplitPass", "merged"]

_TOKEN_BYTES: Final = 32
"""What says which token it is: four int64."""


class Forward(NamedTuple):
    """What one of the forwards brings.

    Attributes:
        pass_: the pass that it is part of; `None` if it is not recorded.
        tokens: its tokens.
        advance: by how much it brings the layer forward (rows or columns).
        whole: whether it holds every token of the completions that it holds.
    """

    pass_: PassName | None
    tokens: Tokens | None
    advance: int
    whole: bool


class Forwards(Protocol):
    """Knows the tokens of each forward by how far a layer has come before it."""

    def forward(self, seen: int, shape: torch.Size) -> Forward:
        """Return what a forward brings whose layer output has this shape.

        Raises:
            ShapeError: no forward of this shape can follow.
        """
        ...


class ChunkedRows:
    """Forwards that each take the next rows of a batch, as log-probabilities are computed.

    Args:
        pass_: the pass.
        mask: bool (B, C) on the CPU, the completion tokens.
        offset: columns in front of them.
        completion: int64 (B,), completion ids.
    """

    def __init__(self, pass_: PassName, mask: Tensor, *, offset: int, completion: Tensor) -> None:
        self._pass: PassName = pass_
        self._mask = mask
        self._offset = offset
        self._completion = completion

    def forward(self, seen: int, shape: torch.Size) -> Forward:
        """Return the completion tokens of the next rows."""
        end = seen + shape[0]
        if end > len(self._mask):
            raise _unexpected(shape, f"at most {len(self._mask) - seen} rows")
        mask, completion = self._mask[seen:end], self._completion[seen:end]
        tokens = completion_tokens(mask, offset=self._offset, completion=completion)
        return Forward(self._pass, tokens, advance=shape[0], whole=True)


class GeneratedColumns:
    """Forwards that generate: the prompts, left-padded, and then a column for every new token.

    Without a cache each of the latter runs over everything once more; its last column is new.

    Args:
        lengths: tokens of each prompt.
        width: columns of the padded prompts.
        completion: int64 (B,), what the rows are known by.
        asked: which of `prefill` and `decode` are recorded.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        width: int,
        completion: Tensor,
        asked: Iterable[PassName],
    ) -> None:
        self._padding = width - torch.tensor(lengths)
        self._width = width
        self._completion = completion
        self._asked = frozenset(asked)

    def forward(self, seen: int, shape: torch.Size) -> Forward:
        """Return the tokens of the prompts' next columns, or of the next generated column."""
        rows, columns = shape[0], shape[1]
        if rows != len(self._completion):
            raise _unexpected(shape, f"{len(self._completion)} rows")
        if seen < self._width:
            return self._prefill(seen, shape)
        if columns not in (1, seen + 1):
            raise _unexpected(shape, f"1 or {seen + 1} columns")
        if "decode" not in self._asked:
            return Forward(None, None, advance=1, whole=False)
        tokens = Tokens(
            rows=torch.arange(rows),
            columns=torch.full((rows,), columns - 1),
            token_index=torch.full((rows,), seen - self._width),
            completion=self._completion,
            shape=(rows, columns),
        )
        return Forward("decode", tokens, advance=1, whole=False)

    def _prefill(self, seen: int, shape: torch.Size) -> Forward:
        rows, columns = shape[0], shape[1]
        end = seen + columns
        if end > self._width:
            raise _unexpected(shape, f"at most {self._width - seen} columns")
        if "prefill" not in self._asked:
            return Forward(None, None, advance=columns, whole=False)
        place = torch.arange(seen, end)
        row, column = (place >= self._padding[:, None]).nonzero(as_tuple=True)
        tokens = Tokens(
            rows=row,
            columns=column,
            token_index=column + seen - self._padding[row],
            completion=self._completion[row],
            shape=(rows, columns),
        )
        return Forward("prefill", tokens, advance=columns, whole=columns == self._width)


def _unexpected(shape: torch.Size, expected: str) -> ShapeError:
    return ShapeError(
        f"Expected {expected} in the next forward, got a residual stream of {tuple(shape)}",
        hint="Speculative decoding and packed or reordered batches cannot be captured",
    )


class SplitPass:
    """Reads every forward of a pass, in the order of each layer's calls (see `Armed`).

    What was read stays on its device until `captured`, within a bound; behind it, nothing more is
    read.

    Args:
        forwards: which tokens each forward brings.
        step: optimizer step of the pass.
        thin: leaves out what is not sampled (see `Capture.thinned`).
        token_bytes: memory that one token takes at all layers.
        limit_bytes: bound on what is held.

    Attributes:
        held_bytes: memory that is held.
        left_out: tokens of each pass that the bound has cost.
    """

    def __init__(
        self,
        forwards: Forwards,
        *,
        step: int,
        thin: Callable[..., Tokens],
        token_bytes: int,
        limit_bytes: int,
    ) -> None:
        self.held_bytes = 0
        self.left_out: dict[PassName, int] = {}
        self._forwards = forwards
        self._step = step
        self._token_bytes = token_bytes + _TOKEN_BYTES
        self._limit_bytes = limit_bytes
        self._thin = thin
        self._seen: dict[int, int] = {}
        self._parts: dict[int, tuple[int, CapturedPass | None]] = {}
        self._lost = False

    def awaits(self, layer: int) -> bool:  # noqa: ARG002 - Armed's
        """Tell whether the forwards are still as they were expected."""
        return not self._lost

    def part(self, layer: int, shape: torch.Size) -> CapturedPass | None:
        """Return what a layer's next call brings.

        Raises:
            ShapeError: the forwards are not those that were expected; no more are read.
        """
        seen = self._seen.get(layer, 0)
        if seen not in self._parts:
            self._lost = True  # and stays so if the next line raises
            self._parts[seen] = self._begun(seen, shape)
            self._lost = False
        advance, part = self._parts[seen]
        self._seen[layer] = seen + advance
        return part

    def _begun(self, seen: int, shape: torch.Size) -> tuple[int, CapturedPass | None]:
        pass_, tokens, advance, whole = self._forwards.forward(seen, shape)
        if pass_ is None or tokens is None:
            return advance, None
        tokens = self._thin(tokens, step=self._step, whole=whole)
        size = tokens.count * self._token_bytes
        if self.left_out or self.held_bytes + size > self._limit_bytes:
            self.left_out[pass_] = self.left_out.get(pass_, 0) + tokens.count
            return advance, None
        self.held_bytes += size
        return advance, CapturedPass(tokens=tokens, step=self._step, pass_=pass_) if size else None

    def captured(self) -> list[CapturedPass]:
        """Return what was read of each pass, the layers that read the same tokens together."""
        parts = [part for _, part in self._parts.values() if part is not None and part.latents]
        names = dict.fromkeys(part.pass_ for part in parts)
        return [whole for name in names for whole in merged([p for p in parts if p.pass_ == name])]


def merged(parts: Sequence[CapturedPass]) -> list[CapturedPass]:
    """Return parts of one pass as one; as several, where not all layers read all of them."""
    by_layers: dict[tuple[int, ...], list[CapturedPass]] = {}
    for part in parts:
        by_layers.setdefault(tuple(part.latents), []).append(part)
    return [_joined(layers, same) for layers, same in by_layers.items()]


def _joined(layers: tuple[int, ...], parts: Sequence[CapturedPass]) -> CapturedPass:
    first = parts[0]
    return CapturedPass(
        tokens=_joined_tokens([part.tokens for part in parts]),
        step=first.step,
        pass_=first.pass_,
        latents={
            layer: LatentRows.joined([part.latents[layer] for part in parts]) for layer in layers
        },
    )


def _joined_tokens(parts: Sequence[Tokens]) -> Tokens:
    completions = [part.completion for part in parts if part.completion is not None]
    return Tokens(
        rows=torch.cat([part.rows for part in parts]),
        columns=torch.cat([part.columns for part in parts]),
        token_index=torch.cat([part.token_index for part in parts]),
        completion=torch.cat(completions) if len(completions) == len(parts) else None,
        shape=parts[0].shape,
    )
