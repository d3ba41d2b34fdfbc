"""Which forward passes were asked for, what each gave, and why one gave nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

if TYPE_CHECKING:
    from aegir_adapters.trainer.capture import CapturedPass
    from aegir_stream.events import PassName

__all__ = ["PassAccount", "PassTally"]

_SILENT: Final = "Nothing of this pass was seen during the first step"


class PassTally(Struct, frozen=True, kw_only=True):
    """What one pass has given so far.

    Attributes:
        tokens: tokens read, by layer.
        why: why there are none, or not all; `None` where nothing is known to be missing.
    """

    tokens: dict[int, int]
    why: str | None = None

    def detail(self) -> dict[str, Any]:
        """Return it as JSON can hold it, `why` only where something is missing."""
        tokens = {str(layer): count for layer, count in self.tokens.items()}
        return {"tokens": tokens} | ({"why": self.why} if self.why else {})


class PassAccount:
    """Counts the tokens of each pass that was asked for.

    Args:
        asked: names of the passes, in the order of `RecordingOptions.passes`.
    """

    def __init__(self, asked: tuple[PassName, ...]) -> None:
        self.asked = asked
        self._tokens: dict[PassName, Counter[int]] = {name: Counter() for name in asked}
        self._why: dict[PassName, str] = {}
        self._cut: dict[PassName, str] = {}

    def count(self, captured: CapturedPass) -> None:
        """Count what a pass gave."""
        read = dict.fromkeys(captured.latents, captured.tokens.count)
        self._tokens.setdefault(captured.pass_, Counter()).update(read)

    def explain(self, name: PassName, why: str | None) -> None:
        """Remember why a pass gives nothing, should it give nothing; `None` if that is unknown."""
        self._why[name] = why or _SILENT

    def cut(self, name: PassName, why: str) -> None:
        """Remember why a pass does not give everything."""
        self._cut[name] = why

    def tallies(self) -> dict[str, PassTally]:
        """Return what each pass that was asked for has given so far."""
        return {name: self._tally(name) for name in self.asked}

    def _tally(self, name: PassName) -> PassTally:
        tokens = dict(self._tokens[name])
        why = self._cut.get(name) if tokens else self._why.get(name, _SILENT)
        return PassTally(tokens=tokens, why=why)
