"""Streams that are made as they are read, cut into chunks that follow each other."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from msgspec import Struct

__all__ = ["VOCABULARY", "Chunk", "SyntheticStreams"]

VOCABULARY = 32


class Chunk(Struct, frozen=True, kw_only=True):
    """A part of a stream.

    Attributes:
        key: the stream.
        starts: whether it is the first of its stream.
        tokens: one more than are predicted.
    """

    key: str
    starts: bool
    tokens: list[int]


class SyntheticStreams(Struct, frozen=True):
    """What a reader opens: each shard has every n-th stream, one behind the other.

    A stream counts up by a stride of its own. Which one that is can be seen in any two of its
    tokens, and is what a state has to carry from chunk to chunk.

    Attributes:
        name: of the reader; keeps its streams apart from those of others.
        streams: how many there are over all shards.
        chunks: of each stream.
        tokens: that are predicted in each chunk.
    """

    name: str
    streams: int
    chunks: int
    tokens: int

    def __call__(self, shard: int, shards: int) -> Iterator[Chunk]:
        """Begin a pass over the streams of a shard."""
        for number in range(shard, self.streams, shards):
            key = f"{self.name}/{number}"
            seed = zlib.crc32(key.encode())
            first, stride = seed % VOCABULARY, 1 + (seed >> 8) % (VOCABULARY - 1)
            for chunk in range(self.chunks):
                places = range(chunk * self.tokens, (chunk + 1) * self.tokens + 1)
                tokens = [(first + stride * place) % VOCABULARY for place in places]
                yield Chunk(key=key, starts=chunk == 0, tokens=tokens)
