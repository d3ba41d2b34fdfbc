from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from adapters.patching.trained import CIRCUIT, adapted, grpo, plain, recorded_cells, sweeps_of
from adapters.trainer.tiny import TOP_K, Recorded, saes
from aegir_adapters.patching.during_training import SweepCallback
from aegir_adapters.trainer import SidecarCallback
from aegir_stream.events import Note

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import TrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

EVERY_PASS = ("loss", "prefill", "decode", "logprob", "reference")


def trained(trainer: Any, callbacks: list[TrainerCallback]) -> None:
    """Train, with callbacks in their order; one that records follows the trainer."""
    for callback in callbacks:
        trainer.add_callback(callback)
        if isinstance(callback, SidecarCallback) and hasattr(trainer, "reward_funcs"):
            callback.attach(trainer)
    trainer.train()


def told(output_dir: Path) -> dict[str, Any]:
    """Return what a recorder wrote, but for times."""
    recorded = Recorded(output_dir)
    notes = [line for line in recorded.control() if isinstance(line, Note)]
    return {
        "records": recorded.records,
        "notes": [(note.kind, note.detail) for note in notes],
        "completions": recorded.completions if recorded.run.lanes("completions") else [],
        "rewards": [(m.step, m.reward_mean, m.errors) for m in recorded.metrics],
    }


TRAINERS = {
    "GRPO": (partial(grpo, beta=0.1, policy=adapted), EVERY_PASS),
    "any other": (plain, ("loss",)),
}


@pytest.mark.parametrize(("make", "passes"), TRAINERS.values(), ids=TRAINERS.keys())
def test_a_recording_and_sweeps_do_not_see_each_other(
    make: Any, passes: Any, tmp_path: Path
) -> None:
    """In either order: the record has no forward of a sweep, not as a count; cells are the same."""

    def recorder() -> SidecarCallback:
        return SidecarCallback(sae=saes(), top_k=TOP_K, passes=passes)

    def sweeps() -> SweepCallback:
        return SweepCallback({"circuit": CIRCUIT}, every_steps=1)

    trained(make(tmp_path / "recorded"), [recorder()])
    trained(make(tmp_path / "swept"), [sweeps()])
    expected = told(tmp_path / "recorded")
    cells = [recorded_cells(sweep) for sweep in sweeps_of(tmp_path / "swept")]
    assert expected["records"]
    assert len(cells) == 3
    for name, order in ("before", [recorder(), sweeps()]), ("behind", [sweeps(), recorder()]):
        trained(make(tmp_path / name), order)
        assert told(tmp_path / name) == expected
        assert [recorded_cells(sweep) for sweep in sweeps_of(tmp_path / name)] == cells
