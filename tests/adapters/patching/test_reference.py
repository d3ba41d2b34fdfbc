from __future__ import annotations

from pathlib import Path

import pytest

from aegir_adapters.patching.request import PatchSweepRequest, PromptPair
from aegir_adapters.patching.response import (
    CellEvent,
    MetricGrid,
    PairGrid,
    PatchSweepResponse,
    Skipped,
    StartEvent,
)

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "patching-api.md"


@pytest.mark.parametrize(
    ("kind", "section"),
    [
        (PatchSweepRequest, "What a sweep is asked"),
        (PromptPair, "What a sweep is asked"),
        (PatchSweepResponse, "What it answers"),
        (MetricGrid, "What it answers"),
        (PairGrid, "What it answers"),
        (Skipped, "What it answers"),
        (CellEvent, "What it streams"),
    ],
)
def test_every_field_is_in_the_reference(kind: type, section: str) -> None:
    """With its meaning, in the section of what it is part of."""
    text = PAGE.read_text("utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]

    assert [name for name in kind.__struct_fields__ if f"`{name}`" not in text] == []  # type: ignore[attr-defined]


def test_a_start_has_the_fields_of_an_answer() -> None:
    """But for those that are known at the end, and with all that was asked for."""
    more = {*StartEvent.__struct_fields__} - {*PatchSweepResponse.__struct_fields__}
    assert more == {"hooks", "metrics", "pairs"}
