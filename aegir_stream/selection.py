"""Which records of a stream a reader asks for. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aegir_stream.chunk import Chunk

__all__ = ["Selection"]


class _Place(msgspec.Struct, rename={"pass_": "pass"}):
    step: int
    token_index: int
    layer_index: int
    completion: int | None = None
    pass_: str = "loss"


class _Features(_Place):
    top_feature_indices: tuple[int, ...] = ()


_place = msgspec.json.Decoder(_Place)
_features = msgspec.json.Decoder(_Features)


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What has to hold for a record to be sent; an empty set asks for everything.

    Attributes:
        layers: hooked layers.
        ranks: ranks of the writing process.
        features: latents of which at least one has to be among the record's top ones.
        passes: forward passes, see `aegir_stream.events.PassName`.
        step_min: first step.
        step_max: last step, included.
        every: keep every N-th token of a completion, at all layers. The phase moves on by one
            from completion to completion and from step to step, so no position is favoured; it
            depends on the record alone, so a resumed reader gets the same ones.
    """

    layers: frozenset[int] = frozenset()
    ranks: frozenset[int] = frozenset()
    features: frozenset[int] = frozenset()
    passes: frozenset[str] = frozenset()
    step_min: int | None = None
    step_max: int | None = None
    every: int = 1

    @property
    def looks_into_records(self) -> bool:
        """Whether a record has to be decoded to tell if it is wanted."""
        return msgspec.structs.replace(self, ranks=frozenset()) != Selection()

    def of(self, chunk: Chunk) -> Chunk | None:
        """Return the part of a chunk that is wanted, or `None` if nothing is."""
        indices = self.indices(chunk.records, rank=chunk.rank)
        if len(indices) == len(chunk.records):
            return chunk
        if not indices:
            return None
        return msgspec.structs.replace(
            chunk,
            records=tuple(chunk.records[index] for index in indices),
            heads=tuple(chunk.heads[index] for index in indices),
            ends=tuple(chunk.ends[index] for index in indices),
        )

    def indices(self, records: Sequence[bytes], *, rank: int) -> Sequence[int]:
        """Return the positions of the wanted ones among `records`, all written by `rank`.

        A record that lacks the fields of `SAELogRecord` is not wanted by any condition.
        """
        if self.ranks and rank not in self.ranks:
            return ()
        if not self.looks_into_records:
            return range(len(records))
        return [index for index, record in enumerate(records) if self._wants(record)]

    def _wants(self, record: bytes) -> bool:
        try:
            place = (_features if self.features else _place).decode(record)
        except msgspec.DecodeError:
            return False
        return self._has_place(place) and self._has_feature(place) and self._in_turn(place)

    def _has_place(self, place: _Place) -> bool:
        return (
            (not self.layers or place.layer_index in self.layers)
            and (not self.passes or place.pass_ in self.passes)
            and (self.step_min is None or place.step >= self.step_min)
            and (self.step_max is None or place.step <= self.step_max)
        )

    def _has_feature(self, place: _Place) -> bool:
        return not isinstance(place, _Features) or not self.features.isdisjoint(
            place.top_feature_indices
        )

    def _in_turn(self, place: _Place) -> bool:
        phase = place.step + (place.completion or 0)
        return self.every == 1 or (place.token_index + phase) % self.every == 0
