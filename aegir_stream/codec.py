r"""Bytes to events and back. Pure.

A line is one JSON object, UTF-8, ended by exactly one ``\n``. Two rules go beyond what JSON gives:

* non-finite floats are the strings ``"NaN"``, ``"Infinity"``, ``"-Infinity"``: JSON has no spelling
  for them, and `null` could not be told from a missing value;
* U+2028, U+2029 and U+0085 are escaped, since many tools split lines at them.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec

from aegir_stream.errors import MalformedEventError
from aegir_stream.events import (
    Batch,
    Close,
    Control,
    Gap,
    Note,
    Open,
    Progress,
    SAELogRecord,
    Seal,
)

__all__ = [
    "CONTROL_PREFIX",
    "RecordHead",
    "decode",
    "decode_control",
    "decode_opening",
    "encode",
    "head",
    "is_control",
    "is_readable_control",
]

T = TypeVar("T")

CONTROL_PREFIX = b'{"$log":'
"""How every control line begins, and no data line does."""

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_LINE_BREAKS = (
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
    (b"\xc2\x85", rb"\u0085"),
)

_encoder = msgspec.json.Encoder()
_control_decoder: msgspec.json.Decoder[Control] = msgspec.json.Decoder(
    Open | Batch | Gap | Note | Seal | Close
)
# msgspec lets these two through, where a string is not UTF-8 and where brackets nest too deep.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_KINDS = {kind.__struct_config__.tag for kind in (Open, Batch, Gap, Note, Seal, Close)}


class _Tag(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="$log")


_tag_decoder = msgspec.json.Decoder(_Tag)


class RecordHead(msgspec.Struct, frozen=True, kw_only=True):
    """The scalars of a data line that readers route and filter by; the rest is skipped unread."""

    step: int
    layer_index: int | None = None


class _SAEHead(RecordHead, frozen=True, kw_only=True):
    layer_index: int
    token_index: int


class _ProgressHead(RecordHead, frozen=True, kw_only=True, rename={"step": "iter"}):
    """An iteration is the step of a job that is not a trainer."""

    step: int


_heads: dict[type, msgspec.json.Decoder[RecordHead]] = {
    SAELogRecord: msgspec.json.Decoder(_SAEHead),
    Progress: msgspec.json.Decoder(_ProgressHead),
}
_any_head = msgspec.json.Decoder(RecordHead)


def encode(event: msgspec.Struct | dict[str, Any]) -> bytes:
    r"""Return the event, or the fields of one, as one JSON line, ``\n`` included."""
    line = _encoder.encode(event)
    if b"null" in line:
        # msgspec writes non-finite floats as null; absent fields are left out, so this is rare.
        line = _encoder.encode(_spell_non_finite(msgspec.to_builtins(event)))
    for raw, escaped in _LINE_BREAKS:
        if raw in line:
            line = line.replace(raw, escaped)
    return line + b"\n"


def decode(line: bytes, kind: type[T]) -> T:
    """Return the event of type `kind` that a data line holds.

    Raises:
        MalformedEventError: the line is no JSON object of that shape.
    """
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.ValidationError:
        return _decode_non_finite(line, kind)
    except _UNREADABLE as error:
        raise MalformedEventError(f"Expected a JSON object, got {line[:60]!r}: {error}") from error


def is_control(line: bytes) -> bool:
    """Tell a control line from a data line."""
    return line.startswith(CONTROL_PREFIX)


def decode_control(line: bytes) -> Control | None:
    """Return the control event of a line, or `None` if its kind is unknown or it is damaged.

    Kinds that a later version may add are skipped, not errors.
    """
    try:
        return _control_decoder.decode(line)
    except _UNREADABLE:
        return None


def is_readable_control(line: bytes) -> bool:
    """Tell whether a control line is whole: of a known kind, or of one that a later version adds.

    What a kill or damage left of a control line is not.
    """
    if decode_control(line) is not None:
        return True
    try:
        return _tag_decoder.decode(line).kind not in _KINDS
    except _UNREADABLE:
        return False


def decode_opening(head: bytes) -> Open | None:
    """Return the `Open` line that a file's first bytes begin with, or `None`."""
    line, newline, _ = head.partition(b"\n")
    event = decode_control(line) if newline else None
    return event if isinstance(event, Open) else None


def head(line: bytes, kind: type) -> RecordHead:
    """Return the routing scalars of a data line; the whole line is checked to be valid JSON.

    Raises:
        MalformedEventError: the line is no JSON object, or lacks what every event of type `kind`
            has.
    """
    try:
        if not line.isascii():
            line.decode()  # msgspec does not look into strings that it skips
        return _heads.get(kind, _any_head).decode(line)
    except _UNREADABLE as error:
        raise MalformedEventError(f"{error} - in {line[:60]!r}") from error


def _spell_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _spell_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell_non_finite(item) for item in value]
    return value


def _decode_non_finite(line: bytes, kind: type[T]) -> T:
    try:
        fields = _revive(msgspec.json.decode(line), msgspec.inspect.type_info(kind))
        return msgspec.convert(fields, kind)
    except _UNREADABLE as error:
        raise MalformedEventError(f"{error} - in {line[:60]!r}") from error


def _revive(value: Any, kind: msgspec.inspect.Type) -> Any:
    """Turn the three spellings back into floats, wherever `kind` has a float."""
    if isinstance(kind, msgspec.inspect.UnionType):
        # The unions of our events are of one type and None.
        kind = next(t for t in kind.types if not isinstance(t, msgspec.inspect.NoneType))
    match kind, value:
        case msgspec.inspect.FloatType(), str():
            return _NON_FINITE.get(value, value)
        case msgspec.inspect.StructType(fields=fields), dict():
            kinds = {field.encode_name: field.type for field in fields}
            return {k: _revive(v, kinds[k]) if k in kinds else v for k, v in value.items()}
        case msgspec.inspect.DictType(value_type=item), dict():
            return {k: _revive(v, item) for k, v in value.items()}
        case msgspec.inspect.VarTupleType(item_type=item), list():
            return [_revive(v, item) for v in value]
        case msgspec.inspect.TupleType(item_types=items), list() if len(items) == len(value):
            return [_revive(v, item) for v, item in zip(value, items, strict=True)]
    return value
