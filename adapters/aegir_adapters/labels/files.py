"""The layouts in which explanations of latents are published, read one explanation at a time."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from aegir_stream.errors import SAEFormatError

LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
SUFFIXES = (*LINES, ".json", *TABLES)

_DELPHI_FILE = re.compile(r"(?P<hook>.+)_latent(?P<latent>\d+)\.txt")
_DELPHI_EMPTY = ("Explanation could not be parsed.", "No explanation found")
_INDEX_COLUMNS = ("index", "latent", "feature", "feature_id")
_TEXT_COLUMNS = ("label", "description", "explanation")
_NUMBER = re.compile(r"\d+")


class Explanation(Struct, frozen=True):
    """What somebody, or some model, said about a latent.

    Attributes:
        latent: the latent.
        text: what was said, without blanks around it.
        source: name of the SAE that the latent belongs to, where the file has it.
        created: when, as the file writes it; sorts as text. Empty where the file does not say.
    """

    latent: int
    text: str
    source: str | None = None
    created: str = ""


class Unreadable(Struct, frozen=True):
    """A line or file that holds no explanation, and why."""

    reason: str


class _Entry(Struct):
    """An object in JSON: of Neuronpedia's exports and API, or of a plain list of labels."""

    index: int | str | None = None
    latent: int | str | None = None
    feature: int | str | None = None
    description: str | None = None
    label: str | None = None
    explanation: str | None = None
    layer: int | str | None = None
    model: str | None = field(default=None, name="modelId")
    created: Any = field(default=None, name="createdAt")
    explanations: list[_Entry] | None = None


def read_explanations(path: Path) -> Iterator[Explanation | Unreadable]:
    """Give all explanations of a file or folder, in the order of its files and lines.

    Raises:
        SAEFormatError: there is no such file, or it is of no known layout.
    """
    if not path.is_dir():
        yield from _read_file(path)
        return
    folder = path / "explanations" if (path / "explanations").is_dir() else path
    named = [(file, _DELPHI_FILE.fullmatch(file.name)) for file in folder.iterdir()]
    delphi = {file: name for file, name in named if name}
    others = [file for file in folder.iterdir() if _kind(file) in SUFFIXES]
    if bool(delphi) == bool(others):
        raise _no_labels(folder, both=bool(delphi))
    for file in sorted(delphi, key=_natural):
        yield _read_delphi(file, delphi[file])
    for file in sorted(others, key=_natural):
        yield from _read_file(file)


def _read_file(path: Path) -> Iterator[Explanation | Unreadable]:
    if not path.is_file():
        raise SAEFormatError(
            f"Expected a file or folder of labels, got none - {path}",
            hint="Fetch the `explanations` of your SAE from Neuronpedia's data sets, or write a"
            " table of `index,label`",
        )
    kind = _kind(path)
    if kind in LINES:
        yield from _read_lines(path)
    elif kind in TABLES:
        yield from _read_table(path, delimiter="\t" if kind == ".tsv" else ",")
    elif kind == ".json":
        yield from _read_document(path)
    elif name := _DELPHI_FILE.fullmatch(path.name):
        yield _read_delphi(path, name)
    else:
        raise _no_labels(path)


def _read_lines(path: Path) -> Iterator[Explanation | Unreadable]:
    number = 0
    try:
        with _opened(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield from _decoded(line, f"{path.name}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        yield Unreadable(f"{path.name}: breaks off after line {number} ({error})")


def _decoded(line: bytes, where: str) -> Iterator[Explanation | Unreadable]:
    try:
        entry = msgspec.json.decode(line, type=_Entry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        yield Unreadable(f"{where}: {error}")
        return
    yield from _explanations(entry, where)


def _explanations(
    entry: _Entry, where: str, *, within: _Entry | None = None
) -> Iterator[Explanation | Unreadable]:
    """Give what an object says; a feature of the API holds its explanations in a list."""
    if entry.explanations is not None:
        for inner in entry.explanations:
            yield from _explanations(inner, where, within=entry)
        return
    outer = within or entry
    latent = _first(entry.index, entry.latent, entry.feature, outer.index)
    text = _first(entry.description, entry.label, entry.explanation)
    if latent is None or not _NUMBER.fullmatch(str(latent)):
        yield Unreadable(f"{where}: Expected an index, got {latent!r}")
    else:
        source = _source(_first(entry.model, outer.model), _first(entry.layer, outer.layer))
        created = entry.created if isinstance(entry.created, str) else ""
        yield Explanation(int(latent), str(text or "").strip(), source, created)


def _read_document(path: Path) -> Iterator[Explanation | Unreadable]:
    with _opened(path) as file:
        content = file.read()
    try:
        entries = msgspec.json.decode(content, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        entries = [msgspec.Raw(content)]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        yield Unreadable(f"{path.name}: {error}")
        return
    for number, entry in enumerate(entries):
        yield from _decoded(bytes(entry), f"{path.name}[{number}]")


def _read_table(path: Path, *, delimiter: str) -> Iterator[Explanation | Unreadable]:
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter=delimiter)
        columns = (0, 1)
        for row in rows:
            if rows.line_num == 1 and row and not _NUMBER.fullmatch(row[0].strip()):
                columns = _columns(row, path)
            elif row:
                yield _cell(row, columns, f"{path.name}:{rows.line_num}")


def _columns(header: list[str], path: Path) -> tuple[int, int]:
    names = [name.strip().lower() for name in header]
    index = next((names.index(name) for name in _INDEX_COLUMNS if name in names), None)
    text = next((names.index(name) for name in _TEXT_COLUMNS if name in names), None)
    if index is None or text is None:
        raise SAEFormatError(
            f"Expected columns `index` and `label`, got {header} - {path}",
            hint=f"Name them by one of {_INDEX_COLUMNS} and one of {_TEXT_COLUMNS}, or leave the"
            " header out and put the index first",
        )
    return index, text


def _cell(row: list[str], columns: tuple[int, int], where: str) -> Explanation | Unreadable:
    if len(row) <= max(columns):
        return Unreadable(f"{where}: Expected {max(columns) + 1} columns, got {len(row)}")
    latent, text = row[columns[0]].strip(), row[columns[1]].strip()
    if not _NUMBER.fullmatch(latent):
        return Unreadable(f"{where}: Expected an index, got {latent!r}")
    return Explanation(int(latent), text)


def _read_delphi(path: Path, name: re.Match[str]) -> Explanation | Unreadable:
    try:
        text = msgspec.json.decode(path.read_bytes(), type=str).strip()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Unreadable(f"{path.name}: {error}")
    return Explanation(int(name["latent"]), "" if text in _DELPHI_EMPTY else text, name["hook"])


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort by the numbers in a name, so that batch-2 comes before batch-10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _first(*values: int | str | None) -> int | str | None:
    return next((value for value in values if value is not None), None)


def _source(model: int | str | None, layer: int | str | None) -> str | None:
    parts = [str(part) for part in (model, layer) if part is not None]
    return "/".join(parts) if layer is not None else None


def _no_labels(path: Path, *, both: bool = False) -> SAEFormatError:
    folders = (
        sorted(inner.name for inner in path.iterdir() if inner.is_dir()) if path.is_dir() else ()
    )
    got = "both layouts" if both else f"folders {folders[:12]}" if folders else "none of them"
    return SAEFormatError(
        f"Expected labels as `batch-*.jsonl.gz` or as `<hook>_latent<N>.txt`, got {got} - {path}",
        hint=f"Give one folder of one layout, or a file that ends in one of {SUFFIXES}",
    )
