from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from aegir_adapters.trainer import observe
from aegir_adapters.trainer.capture import CapturedPass
from aegir_adapters.trainer.pass_account import PassTally
from aegir_adapters.trainer.self_test import SelfTest
from aegir_adapters.trainer.tokens import completion_tokens
from aegir_stream.events import Note

from .tiny import TOP_K, Recorded, TinySAE, Top, grpo_trainer, saes

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def told(test: SelfTest, **changes: Any) -> dict[str, Any]:
    """Return what a self-test says of two layers, told as usual."""
    usual: dict[str, Any] = {
        "layers": (0, 1),
        "calls": {"loss": 2},
        "attached": True,
        "passes": {"loss": PassTally(tokens={0: 6})},
        "heard": {0: 1, 1: 1},
    }
    detail = test.tell_once(**usual | changes)
    assert detail is not None
    return detail


def test_it_is_told_once() -> None:
    """The note is that of the first step; later steps change nothing."""
    test = SelfTest()
    told(test)
    assert test.tell_once(layers=(), calls={}, attached=True, passes={}) is None


def test_a_layer_without_tokens_is_named_with_what_is_known_of_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A hook that never fired is told from one that fired and brought nothing."""
    test = SelfTest()
    tokens = completion_tokens(torch.ones(2, 3), offset=0, completion=None)
    test.count(CapturedPass(tokens=tokens, step=1, latents={0: None}))  # type: ignore[dict-item]
    detail = told(test, layers=(0, 1, 2), heard={0: 1, 1: 1})
    assert detail["tokens_per_layer"] == {"0": 6, "1": 0, "2": 0}
    assert set(detail["silent_layers"]) == {"1", "2"}
    assert "was called, but never for a token" in detail["silent_layers"]["1"]
    assert "never called" in detail["silent_layers"]["2"]
    assert "layers 1, 2" in caplog.text


def test_it_says_whether_records_can_be_joined() -> None:
    """Attached and readable, attached and not, not attached: three answers."""
    readable = SelfTest()
    readable.joined = True
    assert told(readable)["joined"] == ["completion", "rewards", "advantage"]
    assert "could not be read" in told(SelfTest())["why"]
    assert "not attached" in told(SelfTest(), attached=False)["why"]


class Deaf(TinySAE):
    """An SAE that fails at its layer."""

    def top(self, x: Tensor, *, k: int) -> Top:
        """Fail."""
        raise RuntimeError("nothing")


def test_a_first_step_tells_passes_layers_and_sampling(tmp_path: Path) -> None:
    """What a reader finds in the log of a run in which much is asked for and something fails."""
    trainer = grpo_trainer(tmp_path, max_steps=2)
    broken = saes() | {1: Deaf(seed=1)}
    observe(trainer, sae=broken, top_k=TOP_K, passes=("loss", "reference"), token_share=0.5)
    trainer.train()
    recorded = Recorded(tmp_path)
    notes = {n.kind: n.detail for n in recorded.control() if isinstance(n, Note)}
    detail = notes["self_test"]
    of_step = sum(r.step == 1 for r in recorded.records)
    assert detail["passes"]["loss"]["tokens"] == {"0": of_step}
    assert detail["passes"]["reference"]["tokens"] == {}
    assert "beta is 0" in detail["passes"]["reference"]["why"]
    assert set(detail["silent_layers"]) == {"1"}
    assert detail["sampling"] == notes["sampling"]
    assert detail["sampling"]["token_share"] == 0.5
