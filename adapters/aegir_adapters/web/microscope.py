"""One completion under the microscope: its tokens in colour, and what each of them activated. Pure.

What is looked at is in the address of the page: by what the tokens are coloured, which token is
looked at closely, which pass the records are of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias
from urllib.parse import urlencode

import msgspec

from aegir_adapters.web.ablation import LAST_TOKEN, Ablation
from aegir_adapters.web.amounts import number
from aegir_adapters.web.microscope_view import (
    Colour,
    LatentMark,
    LayerMark,
    TokenMark,
    TokenRow,
    View,
)
from aegir_adapters.web.spelling import shown_token
from aegir_adapters.web.token_shades import shade_of
from aegir_stream.events import PassName, SAELogRecord

__all__ = ["Look", "Microscope", "Records", "look_of"]

Records: TypeAlias = dict[PassName, dict[int, dict[int, SAELogRecord]]]
"""Records of one completion by pass, token and layer."""

_PASSES: tuple[PassName, ...] = ("loss", "decode", "logprob", "reference", "eval")
"""Passes whose tokens are those of the completion, the usual one first."""

_LINE = 2000
_ROWS = 24
_LATENTS = 5
_STRONGEST = 6
_SHOWN = re.compile(r"(\d{1,4}):(\d{1,9})")
_NUMBER = re.compile(r"\d{1,7}")


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at.

    Attributes:
        latent: layer and index of the latent that colours the tokens.
        loss: layer whose reconstruction loss does, where no latent is chosen.
        token: index of the token that is looked at closely.
        pass_: pass that the records are of; the usual one if absent.
    """

    latent: tuple[int, int] | None = None
    loss: int | None = None
    token: int | None = None
    pass_: PassName | None = None


def look_of(query: Mapping[str, str]) -> Look:
    """Return what an address asks to look at; what cannot be read is not asked for."""
    latent = _SHOWN.fullmatch(query.get("latent", "").strip())
    asked = query.get("pass", "")
    return Look(
        latent=(int(latent[1]), int(latent[2])) if latent else None,
        loss=_number(query.get("loss", "")),
        token=_number(query.get("token", "")),
        pass_=next((name for name in _PASSES if name == asked), None),
    )


class Microscope:
    """Looks at the tokens of one completion.

    Args:
        texts: the token texts; numbers stand for them where there are none.
        records: what was recorded of them.
        look: what is looked at.
        testable: layers whose latents can be tested.
    """

    def __init__(
        self,
        texts: Sequence[str],
        records: Records,
        look: Look,
        *,
        testable: Collection[int] = (),
    ) -> None:
        passes = [name for name in _PASSES if name in records]
        pass_ = look.pass_ if look.pass_ in records else next(iter(passes), None)
        self._passes = passes
        self._tokens = records.get(pass_, {}) if pass_ else {}
        self._texts = [shown_token(text) for text in texts]
        self._testable = testable
        self._layers = tuple(sorted({layer for at in self._tokens.values() for layer in at}))
        token = look.token if look.token is not None and look.token < len(texts) else None
        self._look = msgspec.structs.replace(look, token=token, pass_=pass_)
        if self._look.latent is None and self._look.loss not in self._layers:
            loss = self._layers[-1] if self._layers else None
            self._look = msgspec.structs.replace(self._look, loss=loss)

    def view(self) -> View:
        """Return what the page shows."""
        token = self._look.token or 0
        first, begin = token - token % _ROWS, token - token % _LINE
        values = self._values()
        return View(
            legend=self._legend(values),
            colours=self._colours(),
            line=tuple(self._line(values, begin)),
            first=begin,
            rows=tuple(self._row(at) for at in range(first, min(first + _ROWS, len(self._texts)))),
            layers=self._layers,
            passes=self._pass_links(),
            earlier=self._address(token=first - _ROWS) if first else None,
            later=self._address(token=first + _ROWS) if first + _ROWS < len(self._texts) else None,
            tokens=len(self._texts),
        )

    # -- colours -----------------------------------------------------------------------------------

    def _values(self) -> dict[int, float]:
        """Return what colours the tokens, where that is a finite number."""
        values = {at: self._value(layers) for at, layers in self._tokens.items()}
        return {at: value for at, value in values.items() if value is not None}

    def _value(self, layers: Mapping[int, SAELogRecord]) -> float | None:
        if self._look.latent is not None:
            layer, latent = self._look.latent
            found = dict(_activations(layers[layer])).get(latent) if layer in layers else None
        else:
            record = layers.get(self._look.loss) if self._look.loss is not None else None
            found = record.reconstruction_loss if record else None
        return found if found is not None and math.isfinite(found) else None

    def _legend(self, values: Mapping[int, float]) -> str:
        if not self._tokens:
            return "No SAE records of this completion."
        highest = max(values, key=lambda at: values[at], default=None)
        name = self._colour_name()
        if highest is None:
            return f"{name}: on none of these tokens."
        most = f"{number(values[highest])}, at token {highest}"
        if self._look.latent is None:
            return f"{name}: from {number(min(values.values()))} to {most}, in deeper colours."
        return f"{name}: at most {most}; no colour where it is not among a token's strongest."

    def _colour_name(self) -> str:
        if self._look.latent is not None:
            layer, latent = self._look.latent
            return f"Activation of latent {latent} of layer {layer}"
        return f"Reconstruction loss at layer {self._look.loss}"

    def _colours(self) -> tuple[Colour, ...]:
        losses = [
            Colour(
                name=f"loss, layer {layer}",
                address=self._address(latent=None, loss=layer),
                chosen=self._look.latent is None and layer == self._look.loss,
            )
            for layer in self._layers
        ]
        latents = [
            Colour(
                name=f"latent {layer}:{latent}",
                address=self._address(latent=(layer, latent), loss=None),
                chosen=(layer, latent) == self._look.latent,
            )
            for layer, latent in self._strongest()
        ]
        return (*losses, *latents)

    def _strongest(self) -> list[tuple[int, int]]:
        """Return the latents that are strongest on any token, of each layer, and the chosen one."""
        found: list[tuple[int, int]] = []
        for layer in self._layers:
            peaks: dict[int, float] = {}
            for layers in self._tokens.values():
                for latent, activation in _activations(layers.get(layer)):
                    peaks[latent] = max(activation, peaks.get(latent, -math.inf))
            ranked = sorted(peaks, key=lambda latent: (-peaks[latent], latent))
            found += [(layer, latent) for latent in ranked[:_STRONGEST]]
        chosen = self._look.latent
        return found if chosen is None or chosen in found else [*found, chosen]

    def _pass_links(self) -> tuple[Colour, ...]:
        return tuple(
            Colour(name=name, address=self._address(pass_=name), chosen=name == self._look.pass_)
            for name in self._passes
        )

    # -- tokens ------------------------------------------------------------------------------------

    def _line(self, values: Mapping[int, float], begin: int) -> Iterable[TokenMark]:
        bottom = min(values.values(), default=0.0) if self._look.latent is None else 0.0
        top = max(values.values(), default=0.0)
        for at in range(begin, min(begin + _LINE, len(self._texts))):
            value = values.get(at)
            told = "not recorded" if at not in self._tokens else number(value)
            yield TokenMark(
                text=self._texts[at],
                shade=shade_of(value, bottom, top),
                title=f"token {at}: {told}",
                address=f"{self._address(token=at)}#token-{at}",
                chosen=at == self._look.token,
            )

    def _row(self, at: int) -> TokenRow:
        is_last = at + 1 >= len(self._texts)
        return TokenRow(
            index=at,
            text=self._texts[at],
            following=None if is_last else self._texts[at + 1],
            layers=tuple(self._layer(at, layer, is_last=is_last) for layer in self._layers),
            address=f"{self._address(token=at)}#token-{at}",
            chosen=at == self._look.token,
            note=LAST_TOKEN if is_last and self._testable else None,
        )

    def _layer(self, at: int, layer: int, *, is_last: bool) -> LayerMark:
        record = self._tokens.get(at, {}).get(layer)
        if record is None:
            return LayerMark(layer=layer)
        active = list(_activations(record))
        shown = active if at == self._look.token else active[:_LATENTS]
        can_test = layer in self._testable and not is_last
        return LayerMark(
            layer=layer,
            loss=number(record.reconstruction_loss),
            latents=tuple(
                LatentMark(
                    latent=latent,
                    activation=number(activation),
                    address=self._address(latent=(layer, latent), loss=None),
                    chosen=(layer, latent) == self._look.latent,
                    test=Ablation(token=at, layer=layer, latent=latent).value if can_test else "",
                )
                for latent, activation in shown
            ),
            more=len(active) - len(shown),
        )

    def _address(self, **changes: object) -> str:
        """Return the address of another look at the same completion."""
        look = msgspec.structs.replace(self._look, **changes)
        parts = {
            "latent": ":".join(map(str, look.latent)) if look.latent else None,
            "loss": look.loss if look.latent is None else None,
            "token": look.token,
            "pass": look.pass_ if len(self._passes) > 1 or look.pass_ == "eval" else None,
        }
        return "?" + urlencode({name: part for name, part in parts.items() if part is not None})


def _activations(record: SAELogRecord | None) -> Iterable[tuple[int, float]]:
    if record is None:
        return ()
    pairs = zip(record.top_feature_indices, record.top_feature_activations, strict=False)
    return ((latent, activation) for latent, activation in pairs if not math.isnan(activation))


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None
