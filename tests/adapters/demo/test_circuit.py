"""Where the demo's policy keeps a byte, as a patch sweep shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aegir_adapters.demo.policy import build_policy, fine_tune
from aegir_adapters.demo.task import WINDOW, bytes_of, gold, prompt_of
from aegir_adapters.demo.tokenizer import build_tokenizer
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.request import PatchSweepRequest
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.sweep_result import results_by_hook
from aegir_adapters.train.libraries import torch_threads

if TYPE_CHECKING:
    from aegir_adapters.patching.sweep_result import SweepResult

STEPS = 150
"""Half of the demo's own supervised phase: enough for the circuit, and fifteen seconds."""

SWAPPED = 4
CLEAN = prompt_of(b"A\n9\xe3 z")
PATCHED = prompt_of(b"A\n9\xe3bz")


@pytest.fixture(scope="module")
def service() -> PatchService:
    """A service that has a policy which was taught for a while."""
    tokenizer = build_tokenizer()
    with torch_threads(1):
        policy = build_policy(tokenizer, seed=0)
        fine_tune(policy, tokenizer, seed=0, steps=STEPS)
    return PatchService(PatchableModel(policy, tokenizer))


def swept(service: PatchService) -> dict[str, SweepResult]:
    """Sweep a swapped byte, when its own term is the next word of the answer."""
    assert bytes_of(CLEAN)[-WINDOW:][SWAPPED] != bytes_of(PATCHED)[-WINDOW:][SWAPPED]
    clean, patched = gold(CLEAN).split(), gold(PATCHED).split()
    assert clean[:SWAPPED] == patched[:SWAPPED]
    before = " ".join(clean[:SWAPPED])
    request = PatchSweepRequest(
        prompt=f"{PATCHED} {before}",
        clean_prompt=f"{CLEAN} {before}",
        answer_token=clean[SWAPPED],
        foil_token=patched[SWAPPED],
        layers="all",
        hooks=("resid_pre", "attn_out"),
        metric="recovered_logit_diff",
    )
    with service.sweep(request) as running:
        for _ in running.batches():
            pass
        return results_by_hook(running.summary())


def test_the_byte_is_at_its_place_first_and_at_the_last_place_later(
    service: PatchService,
) -> None:
    """Early the swapped byte's own position brings the answer back, late the last position."""
    found = swept(service)["resid_pre"]
    assert found.response.clean is not None
    assert found.response.corrupt is not None
    assert found.response.clean > 1.0
    assert found.response.corrupt < -1.0
    at_byte = [row[SWAPPED] or 0.0 for row in found.grid]
    at_last = [row[-1] or 0.0 for row in found.grid]
    assert at_byte[0] == pytest.approx(1.0, abs=1e-4)
    assert at_last[0] == pytest.approx(0.0, abs=1e-4)
    assert at_byte == sorted(at_byte, reverse=True)
    assert at_last == sorted(at_last)
    assert at_last[-1] > 0.5 > at_byte[-1]


def test_the_byte_is_nowhere_else(service: PatchService) -> None:
    """No other position brings anything back, in any layer: it moves in one step."""
    grid = swept(service)["resid_pre"].grid
    last = len(grid[0]) - 1
    others = [
        abs(value or 0.0)
        for row in grid
        for position, value in enumerate(row)
        if position not in {SWAPPED, last}
    ]
    assert max(others) < 0.05


def test_attention_moves_it(service: PatchService) -> None:
    """What brings it to the last position is attention, in a layer above the first."""
    found = swept(service)["attn_out"]
    at_last = [row[-1] or 0.0 for row in found.grid]
    assert max(at_last[1:]) > 0.2
    assert abs(at_last[0]) < 0.1
