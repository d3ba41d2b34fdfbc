"""Groups of positions as they are typed: `subject=3:5;last=-1`. Pure."""

from __future__ import annotations

import re
from typing import Any

from aegir_adapters.cli.indices import indices
from aegir_stream.errors import OptionError

__all__ = ["Groups", "read_groups"]

_GROUP = re.compile(r'\s*([^=;"]*[^=;"\s])\s*=((?:"[^"]*"|[^;"])+)(?:;|$)')
_PLACE = re.compile(r'\s*(?:"([^"]+)"|([^,"]+?))\s*(?:,|$)')


class Groups:
    """Groups by name, whose positions are known once the length of a prompt is.

    Args:
        places: by name, what was typed: pieces of text in quotation marks, indices without.
    """

    def __init__(self, places: dict[str, tuple[str, ...]]) -> None:
        self._places = places

    def within(self, count: int, *, option: str = "groups") -> dict[str, list[Any]]:
        """Return the field `groups` of a request.

        Args:
            count: tokens of the prompt.
            option: what the prompt's groups are called, for the error.

        Raises:
            OptionError: one of them is not there.
        """
        return {
            name: [position for place in places for position in _resolved(place, count, option)]
            for name, places in self._places.items()
        }


def read_groups(text: str) -> Groups:
    """Return the groups that a text names.

    Args:
        text: `NAME=PLACES`, several of them with semicolons between. Places are indices and ranges
            as Python has them, or pieces of the prompt's text in quotation marks, with commas
            between.

    Raises:
        OptionError: it is none of that, or names a group twice.
    """
    groups: dict[str, tuple[str, ...]] = {}
    at = 0
    while at < len(text):
        found = _GROUP.match(text, at)
        if found is None or found[1] in groups:
            raise _refusal(text, "which names one twice" if found else "")
        groups[found[1]] = _places(found[2].strip(), text)
        at = found.end()
    if not groups:
        raise _refusal(text)
    return Groups(groups)


def _places(text: str, whole: str) -> tuple[str, ...]:
    places = []
    at = 0
    while at < len(text):
        found = _PLACE.match(text, at)
        if found is None:
            raise _refusal(whole)
        places.append(f'"{found[1]}' if found[1] else found[2])
        at = found.end()
    if not places:
        raise _refusal(whole)
    return tuple(places)


def _resolved(place: str, count: int, option: str) -> list[Any]:
    if place.startswith('"'):
        return [{"span": place[1:]}]
    return list(indices(place, count=count, option=option))


def _refusal(text: str, why: str = "") -> OptionError:
    return OptionError(
        f"Expected `groups` to be NAME=POSITIONS with semicolons between, got `{text}`"
        f"{f', {why}' if why else ''}",
        hint='For example subject=3:5;last=-1, or by the text: subject="John Smith";last=-1',
    )
