"""The characters that a display is drawn with: those that its encoding has."""

from __future__ import annotations

import msgspec

__all__ = ["ASCII", "BLOCKS", "Glyphs", "glyphs_for"]


class Glyphs(msgspec.Struct, frozen=True, kw_only=True):
    """Characters of a display, all one cell wide.

    Attributes:
        levels: of a sparkline, lowest first.
        flat: of a sparkline of equal scores.
        bullet: before the word of a badge; empty for none.
        ellipsis: where text was left out.
        encoding: of the terminal; what it lacks is replaced.
    """

    levels: str
    flat: str
    bullet: str
    ellipsis: str
    encoding: str = "utf-8"

    def printable(self, text: str) -> str:
        """Return text that does nothing but show: no control characters, nothing unencodable.

        Names come from a disk that others write to, and a terminal obeys what it is sent.
        """
        shown = "".join(c if c.isprintable() else "?" for c in text)
        return shown.encode(self.encoding, "replace").decode(self.encoding)


BLOCKS = Glyphs(levels="▁▂▃▄▅▆▇█", flat="▄", bullet="● ", ellipsis="…")
ASCII = Glyphs(levels="_.-~=+*#", flat="-", bullet="", ellipsis="~", encoding="ascii")


def glyphs_for(encoding: str | None) -> Glyphs:
    """Return the characters for an encoding, such as `sys.stdout.encoding`."""
    used = encoding or "ascii"
    try:
        (BLOCKS.levels + BLOCKS.bullet + BLOCKS.ellipsis).encode(used)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return msgspec.structs.replace(BLOCKS, encoding=used)
