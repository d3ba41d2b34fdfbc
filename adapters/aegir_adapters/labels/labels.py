"""What latents stand for, in the words of those who looked: labels from published files.

    labels = load_labels("v1/gpt2-small/6-res-jb/explanations")
    labels[204], labels.get(205)

Read are the batches that Neuronpedia exports, the JSON of its API, the folder that delphi writes
its explanations into, and plain tables of `index,label`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from aegir_adapters.labels.files import Explanation, Unreadable, read_explanations
from aegir_stream.errors import SAEFormatError

NAMED = 20
"""How many of the unreadable lines `Labels.unreadable` names."""

_LAYER = re.compile(r"(?:^|[._/-])(\d+)(?=$|[._/-])")


class Labels(Struct, frozen=True, kw_only=True):
    """A label for each latent that has one; reads like a dictionary of them.

    Attributes:
        by_latent: labels, by latent.
        source: name of the SAE they belong to, as the file has it: `gpt2-small/6-res-jb` or
            `layers.6.mlp`; nothing in plain tables.
        path: file or folder they came from.
        n_replaced: explanations that gave way to another one of the same latent.
        n_empty: explanations without a word in them.
        n_unreadable: lines, or files of one label each, that could not be read.
        unreadable: the first `NAMED` of those and what is wrong with them.
    """

    by_latent: dict[int, str]
    source: str | None
    path: str
    n_replaced: int = 0
    n_empty: int = 0
    n_unreadable: int = 0
    unreadable: tuple[str, ...] = ()

    def __getitem__(self, latent: int) -> str:
        """Return the label of a latent; KeyError where it has none."""
        return self.by_latent[latent]

    def __contains__(self, latent: object) -> bool:
        """Return whether a latent has a label."""
        return latent in self.by_latent

    def __iter__(self) -> Iterator[int]:
        """Give the latents that have a label, ascending."""
        return iter(self.by_latent)

    def __len__(self) -> int:
        """Return how many latents have a label."""
        return len(self.by_latent)

    def get(self, latent: int, default: str | None = None) -> str | None:
        """Return the label of a latent, or the default where it has none."""
        return self.by_latent.get(latent, default)


def load_labels(
    path: str | os.PathLike[str], *, layer: int | None = None, source: str | None = None
) -> Labels:
    """Read the labels of one SAE's latents.

    A latent may have several explanations. The one created last is its label, for a later one was
    written because an earlier one did not do; where that does not decide (plain tables have no
    dates, nor do all exports), the one that stands first. Batches are read by their number. What
    cannot be read is counted and left out.

    Args:
        path: a file (`.jsonl`, `.json`, `.csv`, `.tsv`, each also with `.gz` behind), a folder of
            `batch-*.jsonl.gz`, a folder of delphi's `<hook>_latent<N>.txt`, or a folder with either
            in its `explanations`.
        layer: which layer's labels to keep, where there are several.
        source: which SAE's labels to keep, by the name in the file, where a layer has several.

    Raises:
        SAEFormatError: there is no such file, it is of no known layout, nothing in it can be read,
            or it holds the labels of several SAEs and nothing says which.
    """
    pile = _Pile()
    for entry in read_explanations(Path(path)):
        pile.add(entry)
    chosen = _chosen_source(pile.by_source, path, layer=layer, source=source, pile=pile)
    best = pile.by_source[chosen]
    return Labels(
        by_latent={latent: best[latent].text for latent in sorted(best)},
        source=chosen,
        path=str(path),
        n_replaced=pile.n_replaced.get(chosen, 0),
        n_empty=pile.n_empty,
        n_unreadable=pile.n_unreadable,
        unreadable=tuple(pile.unreadable),
    )


class _Pile:
    """Explanations, the best of each latent kept, apart by the SAE they belong to."""

    def __init__(self) -> None:
        self.by_source: dict[str | None, dict[int, Explanation]] = {}
        self.n_replaced: dict[str | None, int] = {}
        self.n_empty = 0
        self.n_unreadable = 0
        self.unreadable: list[str] = []

    def add(self, entry: Explanation | Unreadable) -> None:
        if isinstance(entry, Unreadable):
            self.n_unreadable += 1
            if len(self.unreadable) < NAMED:
                self.unreadable.append(entry.reason)
        elif not entry.text:
            self.n_empty += 1
        else:
            self._keep(entry)

    def _keep(self, entry: Explanation) -> None:
        best = self.by_source.setdefault(entry.source, {})
        before = best.get(entry.latent)
        if before is not None:
            self.n_replaced[entry.source] = self.n_replaced.get(entry.source, 0) + 1
        # Stamps of one export are of one form, so they sort as text.
        if before is None or entry.created > before.created:
            best[entry.latent] = entry


def _chosen_source(
    sources: Iterable[str | None],
    path: str | os.PathLike[str],
    *,
    layer: int | None,
    source: str | None,
    pile: _Pile,
) -> str | None:
    found = list(sources)
    if not found:
        raise SAEFormatError(
            f"Expected labels, got {pile.n_empty} empty ones and {pile.n_unreadable} lines that"
            f" cannot be read{_first(pile.unreadable)} - {path}",
            hint="Each line holds an index and a description, as Neuronpedia exports them; or give"
            " a table of `index,label`",
        )
    fitting = [name for name in found if _fits(name, layer=layer, source=source)]
    if len(fitting) == 1:
        return fitting[0]
    wish = " and ".join(
        [f"layer {layer}"] * (layer is not None) + [f"source `{source}`"] * (source is not None)
    )
    raise SAEFormatError(
        f"Expected labels of one SAE{f', of {wish}' if wish else ''}, got those of"
        f" {_listed(fitting or found)}{'' if fitting else ', none of which is it'} - {path}",
        hint="Choose one with layer=, or with source= and its name",
    )


def _fits(name: str | None, *, layer: int | None, source: str | None) -> bool:
    if name is None:
        return source is None
    if source is not None and source not in {name, name.rpartition("/")[2]}:
        return False
    return layer is None or layer_of(name) == layer


def layer_of(source: str) -> int | None:
    """Return the layer in the name of a source: 6 in `gpt2-small/6-res-jb` and `layers.6.mlp`."""
    found = _LAYER.search(source.rpartition("/")[2])
    return int(found[1]) if found else None


def _listed(names: list[str | None], most: int = 12) -> str:
    shown = ", ".join("a table" if name is None else f"`{name}`" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _first(reasons: list[str]) -> str:
    return f" (first: {reasons[0]})" if reasons else ""
