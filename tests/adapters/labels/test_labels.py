"""Labels of latents, from files as Neuronpedia, delphi and people with a spreadsheet write them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.labels import Labels, load_labels
from aegir_stream.errors import SAEFormatError


def entry(index: int | str, description: str | None, **more: Any) -> dict[str, Any]:
    """Return a line of a Neuronpedia export."""
    return {
        "id": f"cl{index}",
        "modelId": "gpt2-small",
        "layer": "6-res-jb",
        "index": index,
        "description": description,
        "authorId": "a",
        "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini",
        "embedding": "[0.1, 0.2]",
        **more,
    }


def lines(*entries: Any) -> bytes:
    """Return entries as JSON lines; text stands as it is."""
    texts = (e if isinstance(e, str) else json.dumps(e) for e in entries)
    return "".join(f"{text}\n" for text in texts).encode()


def batch(folder: Path, number: int, *entries: Any) -> Path:
    """Write a batch of a Neuronpedia export."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"batch-{number}.jsonl.gz"
    path.write_bytes(gzip.compress(lines(*entries)))
    return path


def explained(root: Path, hook: str, latent: int, content: object) -> Path:
    """Write an explanation as delphi does."""
    folder = root / "explanations"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hook}_latent{latent}.txt"
    path.write_bytes(json.dumps(content).encode())
    return path


def test_an_export_of_neuronpedia_is_read(tmp_path: Path) -> None:
    """Indices are text or numbers, descriptions have blanks around them and some are empty."""
    folder = tmp_path / "v1" / "gpt2-small" / "6-res-jb"
    batch(folder / "explanations", 0, entry("204", " time-related phrases"), entry(7, ""))
    batch(folder / "explanations", 1, entry(3, "names"), entry("9", None))
    for path in (folder, folder / "explanations"):
        labels = load_labels(path)
        assert labels.by_latent == {3: "names", 204: "time-related phrases"}
        assert labels.source == "gpt2-small/6-res-jb"
        assert labels.path == str(path)
        assert (labels.n_empty, labels.n_replaced, labels.n_unreadable) == (2, 0, 0)


def test_labels_read_like_a_dictionary(tmp_path: Path) -> None:
    """Latents without a label are absent, not empty."""
    labels = load_labels(batch(tmp_path, 0, entry(9, "nine"), entry(2, "two")))
    assert labels[9] == "nine"
    assert labels.get(3) is None
    assert labels.get(3, "?") == "?"
    assert 2 in labels
    assert 3 not in labels
    assert list(labels) == [2, 9]
    assert len(labels) == 2
    with pytest.raises(KeyError):
        labels[3]


def test_batches_are_read_by_their_number(tmp_path: Path) -> None:
    """batch-10 comes after batch-2, so of two undated explanations the one in batch-2 is first."""
    batch(tmp_path, 10, entry(1, "later"))
    batch(tmp_path, 2, entry(1, "earlier"))
    labels = load_labels(tmp_path)
    assert labels[1] == "earlier"
    assert labels.n_replaced == 1


def test_a_later_explanation_replaces_an_earlier_one(tmp_path: Path) -> None:
    """The date decides before the place in the file does; an empty text replaces nothing."""
    old = entry(1, "old", createdAt="2024-05-01T10:00:00.000Z")
    new = entry(1, "new", createdAt="2025-01-01T10:00:00.000Z")
    empty = entry(1, " ", createdAt="2026-01-01T10:00:00.000Z")
    for number, order in enumerate([(old, new, empty), (new, empty, old)]):
        labels = load_labels(batch(tmp_path, number, *order))
        assert labels[1] == "new"
        assert (labels.n_replaced, labels.n_empty) == (1, 1)


def test_a_date_of_another_kind_costs_no_label(tmp_path: Path) -> None:
    """Only dates in text are compared; whatever else stands there is no date."""
    stamps = [entry(1, "one", createdAt=None), entry(1, "two", createdAt=1735689600)]
    assert load_labels(batch(tmp_path, 0, *stamps))[1] == "one"


DATED = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 10**6)),
    unique_by=lambda pair: pair[1],
    min_size=1,
)


@given(dated=DATED, data=st.data(), cuts=st.integers(1, 3))
def test_the_order_of_dated_explanations_is_of_no_account(
    tmp_path_factory: pytest.TempPathFactory,
    dated: list[tuple[int, int]],
    data: st.DataObject,
    cuts: int,
) -> None:
    """Of each latent the explanation created last is its label, however lines and files lie."""
    shuffled = data.draw(st.permutations(dated))
    folder = tmp_path_factory.mktemp("labels")
    for number in range(cuts):
        part = shuffled[number::cuts]
        made = [entry(latent, f"at {time}", createdAt=f"{time:07}") for latent, time in part]
        batch(folder, number, *made)
    latest = {latent: max(t for other, t in dated if other == latent) for latent, _ in dated}
    labels = load_labels(folder)
    assert labels.by_latent == {latent: f"at {latest[latent]}" for latent in sorted(latest)}
    assert labels.n_replaced == len(dated) - len(latest)


@given(latents=st.lists(st.integers(0, 5), min_size=1))
def test_of_undated_explanations_the_first_is_the_label(
    tmp_path_factory: pytest.TempPathFactory, latents: list[int]
) -> None:
    """In a table each row counts once, and a repeated index changes nothing."""
    path = tmp_path_factory.mktemp("labels") / "table.csv"
    path.write_text("".join(f"{latent},row {row}\n" for row, latent in enumerate(latents)))
    expected = {latent: f"row {latents.index(latent)}" for latent in sorted(set(latents))}
    assert load_labels(path).by_latent == expected


def test_what_cannot_be_read_is_counted_and_named(tmp_path: Path) -> None:
    """Damaged lines are left out; a blank line is none."""
    path = tmp_path / "batch-0.jsonl"
    good, torn = entry(1, "one"), json.dumps(entry(2, "two"))[:30]
    path.write_bytes(
        lines(good, "", torn, "[1]", entry("x", "?"), entry(-1, "?"), {"description": "?"})
        + b'{"index": 3, "description": "\xff"}\n'
    )
    labels = load_labels(path)
    assert labels.by_latent == {1: "one"}
    assert labels.n_unreadable == 6
    starts = [reason.partition(": ")[0] for reason in labels.unreadable]
    assert starts == [f"batch-0.jsonl:{number}" for number in (3, 4, 5, 6, 7, 8)]
    assert "Expected an index, got 'x'" in labels.unreadable[2]


def test_only_the_first_unreadable_lines_are_named(tmp_path: Path) -> None:
    """A file with a million bad lines gives a number, not a million messages."""
    labels = load_labels(batch(tmp_path, 0, entry(1, "one"), *["{"] * 1000))
    assert labels.n_unreadable == 1000
    assert len(labels.unreadable) == 20


def test_a_file_that_breaks_off_gives_what_it_has(tmp_path: Path) -> None:
    """A download that ended early is named, and the lines before its end are kept."""
    whole = batch(tmp_path, 0, *(entry(n, f"{n:09}" * 50) for n in range(2000)))
    whole.write_bytes(whole.read_bytes()[:-2000])
    labels = load_labels(whole)
    assert 0 < len(labels) < 2000
    assert labels.n_unreadable == 1
    assert labels.unreadable[0].startswith("batch-0.jsonl.gz: breaks off after line ")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{\n", b'{"index": 1, "description": ""}\n'])
def test_nothing_left_is_refused(tmp_path: Path, content: bytes) -> None:
    """Malformed lines are fatal only where no label remains, and the first is named."""
    path = tmp_path / "batch-0.jsonl"
    path.write_bytes(content)
    with pytest.raises(SAEFormatError, match=r"Expected labels, got . empty ones and . lines"):
        load_labels(path)


def test_the_export_of_the_api_is_read(tmp_path: Path) -> None:
    """A list of explanations, one feature with its explanations, or a list of such features."""
    exported = tmp_path / "export.json"
    exported.write_bytes(json.dumps([entry("4691", "LaTeX"), entry(1, "one")]).encode())
    assert load_labels(exported).by_latent == {1: "one", 4691: "LaTeX"}
    explanations = [{"description": "Marvel", "explanationModelName": "x"}, {"description": "DC"}]
    feature = {
        "modelId": "gpt2-small",
        "layer": "6-res-jb",
        "index": "14057",
        "explanations": explanations,
        "activations": [],
        "pos_str": ["a"],
    }
    exported.write_bytes(json.dumps(feature).encode())
    labels = load_labels(exported)
    assert labels.by_latent == {14057: "Marvel"}
    assert labels.source == "gpt2-small/6-res-jb"
    exported.write_bytes(json.dumps([feature, "damaged", entry(2, "two")]).encode())
    labels = load_labels(exported)
    assert labels.by_latent == {2: "two", 14057: "Marvel"}
    assert labels.unreadable[0].startswith("export.json[1]: Expected `object`, got `str`")
    exported.write_bytes(b"[{")
    with pytest.raises(SAEFormatError, match=r"\(first: export\.json: Input data was truncated\)"):
        load_labels(exported)


def test_the_folder_of_delphi_is_read(tmp_path: Path) -> None:
    """One file for each latent, a string in JSON; what could not be explained has no label."""
    explained(tmp_path, "layers.6", 12, "Tokens of time")
    explained(tmp_path, "layers.6", 3, "Explanation could not be parsed.")
    explained(tmp_path, "layers.6", 4, ["no text"])
    damaged = explained(tmp_path, "layers.6", 5, "")
    damaged.write_text("no JSON")
    labels = load_labels(tmp_path)
    assert labels == Labels(
        by_latent={12: "Tokens of time"},
        source="layers.6",
        path=str(tmp_path),
        n_empty=1,
        n_unreadable=2,
        unreadable=labels.unreadable,
    )
    assert [reason.partition(":")[0] for reason in labels.unreadable] == [
        "layers.6_latent4.txt",
        "layers.6_latent5.txt",
    ]
    assert load_labels(tmp_path / "explanations" / "layers.6_latent12.txt")[12] == "Tokens of time"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "1,one\n2,two words\n"),
        ("labels.csv", "index,label\n1,one\n2,two words\n"),
        ("labels.csv", '\ufefflayer,Label,Index,density\n6,one,1,0.1\n6,"two words",2,\n'),
        ("labels.tsv", "feature\texplanation\n1\tone\n2\ttwo words\n"),
        ("labels.jsonl", '{"index": 1, "label": "one"}\n{"latent": "2", "label": "two words"}\n'),
        (
            "labels.json",
            '[{"feature": 1, "explanation": "one"}, {"index": 2, "label": "two words"}]',
        ),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_plain_tables_are_read(tmp_path: Path, name: str, text: str, *, packed: bool) -> None:
    """An index and a label are enough, with a header or without, packed or not."""
    content = text.encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    labels = load_labels(path, layer=6)
    assert labels.by_latent == {1: "one", 2: "two words"}
    assert labels.source is None


def test_rows_of_a_table_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """A row with too few cells, or without an index, is left out."""
    path = tmp_path / "labels.csv"
    path.write_text("index,label\n1,one\n2\nthree,3\n\n4,\n")
    labels = load_labels(path)
    assert labels.by_latent == {1: "one"}
    assert labels.unreadable == (
        "labels.csv:3: Expected 2 columns, got 1",
        "labels.csv:4: Expected an index, got 'three'",
    )
    assert labels.n_empty == 1
    path.write_text("a,b\n1,one\n")
    with pytest.raises(SAEFormatError, match=r"columns `index` and `label`, got \['a', 'b'\]"):
        load_labels(path)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({}, r"labels of one SAE, got those of `gpt2-small/6-res-jb`, `gpt2-small/7-mlp`, `gpt2"),
        ({"layer": 7}, r"of layer 7, got those of `gpt2-small/7-mlp`, `gpt2-small/7-res-jb`"),
        ({"layer": 5}, r"of layer 5, got those of .*, none of which is it"),
        ({"source": "8-res-jb"}, r"of source `8-res-jb`, got those of .*, none of which is it"),
        ({"layer": 6, "source": "7-mlp"}, r"of layer 6 and source `7-mlp`, got those of .*none"),
    ],
)
def test_labels_of_several_saes_are_not_mixed(
    tmp_path: Path, choice: dict[str, Any], words: str
) -> None:
    """Index 1 means something else in each; a choice that leaves one is needed."""
    sources = ("6-res-jb", "7-mlp", "7-res-jb")
    path = batch(tmp_path, 0, *(entry(1, name, layer=name) for name in sources))
    with pytest.raises(SAEFormatError, match=words):
        load_labels(path, **choice)
    assert load_labels(path, layer=6)[1] == "6-res-jb"
    assert load_labels(path, source="7-mlp")[1] == "7-mlp"
    assert load_labels(path, layer=7, source="gpt2-small/7-res-jb")[1] == "7-res-jb"


def test_a_hook_of_delphi_has_a_layer(tmp_path: Path) -> None:
    """The number in the name of a hook is the layer."""
    for layer in (6, 16):
        explained(tmp_path, f"model.layers.{layer}.mlp", 1, f"of {layer}")
    labels = load_labels(tmp_path, layer=6)
    assert labels[1] == "of 6"
    assert labels.source == "model.layers.6.mlp"


def test_what_is_of_no_known_layout_is_refused(tmp_path: Path) -> None:
    """What is there instead stands in the message."""
    with pytest.raises(SAEFormatError, match="a file or folder of labels, got none"):
        load_labels(tmp_path / "absent.jsonl")
    (tmp_path / "6-res-jb").mkdir()
    with pytest.raises(SAEFormatError, match=r"got folders \['6-res-jb'\]"):
        load_labels(tmp_path)
    with pytest.raises(SAEFormatError, match="got none of them"):
        load_labels(tmp_path / "6-res-jb")
    (tmp_path / "labels.parquet").write_bytes(b"")
    with pytest.raises(SAEFormatError, match="got none of them"):
        load_labels(tmp_path / "labels.parquet")
    explained(tmp_path, "layers.6", 1, "one")
    batch(tmp_path / "explanations", 0, entry(1, "one"))
    with pytest.raises(SAEFormatError, match="got both layouts"):
        load_labels(tmp_path)
