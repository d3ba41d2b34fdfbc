"""What a page shows of the tokens of a completion. Pure."""

from __future__ import annotations

import msgspec

__all__ = ["Colour", "LatentMark", "LayerMark", "TokenMark", "TokenRow", "View"]


class Colour(msgspec.Struct, frozen=True, kw_only=True):
    """Something to colour the tokens by: what it is called, where it is, whether it is chosen."""

    name: str
    address: str
    chosen: bool = False


class TokenMark(msgspec.Struct, frozen=True, kw_only=True):
    """One token in the text.

    Attributes:
        text: the token, as it can be shown.
        shade: class of its colour.
        title: what is said of it.
        address: where it is looked at closely.
        chosen: whether it is.
    """

    text: str
    shade: str
    title: str
    address: str
    chosen: bool


class LatentMark(msgspec.Struct, frozen=True, kw_only=True):
    """One latent at one token.

    Attributes:
        latent: its index.
        activation: as text.
        address: where it colours the tokens.
        chosen: whether it does.
        test: what the button sends that tests it; empty where it cannot be tested.
    """

    latent: int
    activation: str
    address: str
    chosen: bool
    test: str


class LayerMark(msgspec.Struct, frozen=True, kw_only=True):
    """One token at one layer.

    Attributes:
        layer: the layer.
        loss: reconstruction loss as text; empty where nothing was recorded.
        latents: the strongest.
        more: how many more there are.
    """

    layer: int
    loss: str = ""
    latents: tuple[LatentMark, ...] = ()
    more: int = 0


class TokenRow(msgspec.Struct, frozen=True, kw_only=True):
    """One token, closely.

    Attributes:
        index: in its completion.
        text: the token, as it can be shown.
        following: the token after it; `None` for the last one.
        layers: what was recorded of it, by layer.
        address: where it is looked at with all its latents.
        chosen: whether it is.
        note: why its latents cannot be tested, though others can.
    """

    index: int
    text: str
    following: str | None
    layers: tuple[LayerMark, ...]
    address: str
    chosen: bool
    note: str | None = None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What a page shows of the tokens of a completion.

    Attributes:
        legend: what the colours mean.
        colours: what else the tokens can be coloured by.
        line: the text, or a part of it.
        first: index of the first token in it.
        rows: tokens with what they activated.
        layers: layers that have records.
        passes: passes that have records.
        earlier: where the tokens before these are.
        later: where those behind them are.
        tokens: how many there are.
    """

    legend: str
    colours: tuple[Colour, ...]
    line: tuple[TokenMark, ...]
    first: int
    rows: tuple[TokenRow, ...]
    layers: tuple[int, ...]
    passes: tuple[Colour, ...]
    earlier: str | None
    later: str | None
    tokens: int
