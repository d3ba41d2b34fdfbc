"""The sweep that tests one latent."""

from __future__ import annotations

from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web.ablation import (
    Ablation,
    AblationError,
    layers_with_sae,
    order_of,
    read_ablation,
)
from aegir_adapters.web.sweep_form import read_form
from aegir_adapters.web.sweep_order import SweepOrder
from aegir_stream.events import Completion

COMPLETION = Completion(
    step=3,
    completion=7,
    rank=0,
    group=1,
    rewards={},
    reward=1.0,
    advantage=0.0,
    length=3,
    terminated=True,
    prompt_ids=(5, 6),
    token_ids=(11, 12, 13),
)
CHECKPOINTS = ("checkpoint-20", "checkpoint-4")


def asked(token: int, *, checkpoint: str = "") -> Ablation:
    """Return what a button of the latent 448 at layer 2 asks for."""
    return Ablation(token=token, layer=2, latent=448, checkpoint=checkpoint)


def test_the_next_token_is_measured() -> None:
    """The prompt ends with the token at which the latent was read, and no later one."""
    assert order_of(asked(1), COMPLETION, CHECKPOINTS) == SweepOrder(
        checkpoint="checkpoint-20",
        prompt_ids="5,6,11,12",
        answer_ids="13",
        latent="2:448",
        hooks=(),
        layers="",
        positions="all",
        metric="logprob",
    )
    assert order_of(asked(0), COMPLETION, CHECKPOINTS).answer_ids == "12"
    older = order_of(asked(0, checkpoint="checkpoint-4"), COMPLETION, CHECKPOINTS)
    assert older.checkpoint == "checkpoint-4"


def test_of_a_long_prompt_the_end_is_swept() -> None:
    """A cell for each of thousands of tokens is more than one click should cost."""
    long = msgspec.structs.replace(COMPLETION, prompt_ids=tuple(range(400)))
    assert order_of(asked(0), long, CHECKPOINTS).positions == "-256:"


@pytest.mark.parametrize(
    ("changes", "ablation", "checkpoints", "error"),
    [
        ({"token_ids": None}, asked(0), CHECKPOINTS, "record_token_ids=True"),
        ({"prompt_ids": None}, asked(0), CHECKPOINTS, "record_token_ids=True"),
        ({}, asked(2), CHECKPOINTS, "No token follows"),
        ({}, asked(9), CHECKPOINTS, "No token follows"),
        ({}, asked(0), (), "no checkpoint yet"),
        ({}, asked(0, checkpoint="../x"), CHECKPOINTS, "Choose one"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    changes: dict[str, object], ablation: Ablation, checkpoints: tuple[str, ...], error: str
) -> None:
    """With the reason."""
    completion = msgspec.structs.replace(COMPLETION, **changes)
    with pytest.raises(AblationError, match=error):
        order_of(ablation, completion, checkpoints)


def test_a_button_says_what_it_asks_for() -> None:
    """What it sends is read as what it stands for, and the form of sweeps takes the order."""
    ablation = asked(1, checkpoint="checkpoint-4")
    body = urlencode({"checkpoint": "checkpoint-4", "ablate": ablation.value}).encode()
    assert read_ablation(body) == ablation
    order = order_of(ablation, COMPLETION, CHECKPOINTS)
    fields = {name: getattr(order, name) for name in SweepOrder.__struct_fields__}
    fields["preview"] = ""
    form = read_form(urlencode(fields, doseq=True).encode(), CHECKPOINTS)
    assert (form.errors, form.order) == ({}, order)


@given(
    st.one_of(st.binary(max_size=80), st.text(max_size=40).map(lambda t: f"ablate={t}".encode()))
)
def test_what_no_button_sends_is_nothing(body: bytes) -> None:
    """And no failure."""
    found = read_ablation(body)
    assert found is None or found.value in body.decode()


@pytest.mark.parametrize(
    ("sae", "layers"),
    [
        ({"0": {"path": "a"}, "2": {"repository": "b"}}, {0, 2}),
        ({"0": {}, "2": {"path": ""}, "x": {"path": "c"}, "3": "d"}, set()),
        (None, set()),
        ([1], set()),
    ],
)
def test_where_saes_lie(sae: object, layers: set[int]) -> None:
    """Only layers whose SAE has a path count, whatever else stands there."""
    assert layers_with_sae({"sae": sae}) == layers
