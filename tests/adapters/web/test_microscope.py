"""One completion under the microscope."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web.microscope import Look, Microscope, Records, look_of
from aegir_adapters.web.microscope_view import View
from aegir_adapters.web.token_shades import LEVELS, STYLE
from aegir_stream.events import SAELogRecord

TEXTS = ["the", " cat", "\n", "<eos>"]


def record(token: int, layer: int, latents: dict[int, float], loss: float = 1.0) -> SAELogRecord:
    """Return what was recorded of a token at a layer."""
    return SAELogRecord(
        step=1,
        token_index=token,
        layer_index=layer,
        top_feature_indices=tuple(latents),
        top_feature_activations=tuple(latents.values()),
        reconstruction_loss=loss,
        completion=0,
    )


def of(*records: SAELogRecord, pass_: Any = "loss") -> Records:
    """Return records as a shelf hands them out."""
    tokens: dict[int, dict[int, SAELogRecord]] = {}
    for one in records:
        tokens.setdefault(one.token_index, {})[one.layer_index] = one
    return {pass_: tokens}


RECORDS = of(
    record(0, 2, {448: 2.0, 7: 1.0}, loss=4.0),
    record(1, 2, {7: 3.0}, loss=8.0),
    record(2, 2, {448: 1.0}, loss=math.nan),
    record(0, 5, {9: 0.5}, loss=2.0),
)


def view(query: dict[str, str] | None = None, **options: Any) -> View:
    """Look at the completion as an address asks for it."""
    return Microscope(TEXTS, RECORDS, look_of(query or {}), **options).view()


def shades(seen: View) -> list[str]:
    """Return the colours of the tokens."""
    return [token.shade for token in seen.line]


def test_tokens_are_coloured_by_a_latent() -> None:
    """The deeper the stronger; a token that does not have it among its strongest has no colour."""
    seen = view({"latent": "2:448"})
    assert shades(seen) == ["t10", "t0", "t5", "t0"]
    assert seen.legend.startswith("Activation of latent 448 of layer 2: at most 2, at token 0")
    assert [colour.name for colour in seen.colours if colour.chosen] == ["latent 2:448"]


def test_tokens_are_coloured_by_the_loss() -> None:
    """From the lowest to the highest; what is no number or was not recorded has no colour."""
    seen = view({"loss": "2"})
    assert shades(seen) == ["t1", "t10", "t0", "t0"]
    assert "from 4 to 8, at token 1" in seen.legend
    titles = [token.title for token in seen.line]
    assert titles[2:] == ["token 2: \N{EN DASH}", "token 3: not recorded"]


def test_without_a_choice_the_last_layer_is_looked_at() -> None:
    """Likewise with a choice that means nothing, which is no error."""
    assert "layer 5" in view().legend
    for query in ({"loss": "9"}, {"latent": "x"}, {"latent": "2"}, {"token": "-1"}, {"pass": "?"}):
        assert view(query) == view()
    assert look_of({"latent": " 2:7 ", "token": "3"}) == Look(latent=(2, 7), token=3)


def test_a_latent_that_no_token_has_is_said_so() -> None:
    """And it stays among what can be chosen."""
    seen = view({"latent": "5:1"})
    assert shades(seen) == ["t0"] * 4
    assert "on none of these tokens" in seen.legend
    assert seen.colours[-1].name == "latent 5:1"


def test_the_strongest_latents_can_be_chosen() -> None:
    """Of each layer, the strongest on any token first; addresses keep what else was chosen."""
    seen = view({"token": "1"})
    assert [colour.name for colour in seen.colours] == [
        "loss, layer 2",
        "loss, layer 5",
        "latent 2:7",
        "latent 2:448",
        "latent 5:9",
    ]
    assert seen.colours[2].address == "?latent=2%3A7&token=1"
    assert seen.line[3].address == "?loss=5&token=3#token-3"


def test_each_token_has_its_latents() -> None:
    """At each layer, strongest first; where nothing was recorded that is seen."""
    rows = view().rows
    assert [row.text for row in rows] == ["the", " cat", "\u21b5\n", "<eos>"]
    assert [row.following for row in rows] == [" cat", "\u21b5\n", "<eos>", None]
    first, other = rows[0].layers
    assert [(one.latent, one.activation) for one in first.latents] == [(448, "2"), (7, "1")]
    assert (first.loss, other.loss) == ("4", "2")
    assert rows[3].layers[0].loss == ""


def test_a_token_that_is_looked_at_shows_all_of_its_latents() -> None:
    """Others show the strongest, and how many more there are."""
    many = of(
        record(0, 2, {n: 9.0 - n for n in range(8)}), record(1, 2, dict.fromkeys(range(8), 1.0))
    )
    rows = Microscope(TEXTS, many, Look(token=0)).view().rows
    assert [(len(row.layers[0].latents), row.layers[0].more) for row in rows[:2]] == [
        (8, 0),
        (5, 3),
    ]
    assert [row.chosen for row in rows] == [True, False, False, False]


def test_latents_have_a_button_where_they_can_be_tested() -> None:
    """At layers whose SAE is there, and not at the last token, which says why."""
    buttons = of(record(2, 2, {448: 1.0}), record(2, 5, {9: 1.0}), record(3, 2, {448: 1.0}))
    rows = Microscope(TEXTS, buttons, Look(), testable={2}).view().rows
    assert [one.test for at in rows[2].layers for one in at.latents] == ["2:2:448", ""]
    assert [one.test for one in rows[3].layers[0].latents] == [""]
    assert "No token follows" in (rows[3].note or "")
    assert rows[2].note is None
    untested = Microscope(TEXTS, buttons, Look()).view().rows
    assert not [one for row in untested for at in row.layers for one in at.latents if one.test]
    assert untested[3].note is None


def test_passes_are_told_apart() -> None:
    """Records of one pass are shown, the usual one unless another is asked for."""
    both = RECORDS | of(record(0, 2, {1: 1.0}), pass_="decode")
    names = [(one.name, one.chosen) for one in Microscope(TEXTS, both, Look()).view().passes]
    assert names == [("loss", True), ("decode", False)]
    seen = Microscope(TEXTS, both, Look(pass_="decode")).view()
    assert [one.latent for one in seen.rows[0].layers[0].latents] == [1]
    assert "pass=decode" in seen.line[0].address
    only = Microscope(TEXTS, of(record(0, 2, {1: 1.0}), pass_="decode"), Look()).view()
    assert only.layers == (2,)


def test_a_completion_without_records_is_its_text() -> None:
    """Nothing can be chosen, and the page says so."""
    seen = Microscope(TEXTS, {}, Look()).view()
    assert [token.text for token in seen.line][:2] == ["the", " cat"]
    assert (seen.layers, seen.colours, seen.passes) == ((), (), ())
    assert seen.legend == "No SAE records of this completion."
    assert Microscope([], {}, Look(token=4)).view().rows == ()


def test_a_long_completion_is_shown_in_parts() -> None:
    """The part with the token that is looked at, and the way to those before and behind it."""
    texts = [f" {at}" for at in range(5000)]
    seen = Microscope(texts, {}, Look(token=2100)).view()
    assert (seen.first, len(seen.line), len(seen.rows)) == (2000, 2000, 24)
    assert seen.rows[0].index <= 2100 <= seen.rows[-1].index
    walked = [at.index for at in seen.rows]
    while seen.later:
        token = re.search(r"token=(\d+)", seen.later)
        assert token
        seen = Microscope(texts, {}, Look(token=int(token[1]))).view()
        walked += [at.index for at in seen.rows]
    assert walked == list(range(walked[0], 5000))
    assert Microscope(texts, {}, Look(token=9999)).view().rows[0].index == 0


floats = st.floats(width=32)
drawn = st.lists(
    st.builds(
        record,
        st.integers(0, 5),
        st.integers(0, 3),
        st.dictionaries(st.integers(0, 9), floats, max_size=4),
        floats,
    ),
    max_size=12,
)
looks = st.fixed_dictionaries(
    {},
    optional={
        "latent": st.sampled_from(["0:0", "3:9", "9:9"]),
        "loss": st.sampled_from(["0", "7"]),
        "token": st.sampled_from(["0", "5", "99"]),
    },
)


@given(records=drawn, query=looks, texts=st.lists(st.text(max_size=3), max_size=5))
def test_any_numbers_can_be_looked_at(
    records: list[SAELogRecord], query: dict[str, str], texts: list[str]
) -> None:
    """What is not finite is text like the rest, and every colour is one of the style's."""
    seen = Microscope(texts, of(*records), look_of(query), testable={0, 1}).view()
    known = {f"t{level}" for level in range(LEVELS + 1)}
    assert {token.shade for token in seen.line} <= known
    assert msgspec.json.decode(msgspec.json.encode(seen), type=View) == seen


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
def test_every_colour_has_a_style(level: int) -> None:
    """In a light and in a dark one."""
    assert STYLE.count(f".t{level}{{background:rgb(") == 2
