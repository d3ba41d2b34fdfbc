from __future__ import annotations

import threading
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import pytest

from aegir_adapters.trainer import SidecarCallback, observe
from aegir_stream.config import P5Cfg
from aegir_stream.events import Batch, Gap, Note
from aegir_stream.sinks import MemorySink

from .tiny import LAYERS, TOP_K, Recorded, grpo_trainer, saes

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import TrainerState

    from aegir_stream.typing import Append

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def test_a_step_reports_rewards_log_cost_and_health(tmp_path: Path) -> None:
    """One line per step joins what was earned, what the trainer logged and what we cost."""
    trainer = grpo_trainer(tmp_path, gradient_accumulation_steps=2)
    observe(trainer, sae=saes(), top_k=TOP_K)
    trainer.train()
    recorded = Recorded(tmp_path)

    logged = {row["step"]: row for row in trainer.state.log_history if "loss" in row}
    assert [m.step for m in recorded.metrics] == [1, 2]
    for metrics in recorded.metrics:
        mine = [c for c in recorded.completions if c.step == metrics.step]
        rewards = [c.reward for c in mine]
        assert metrics.reward_mean == pytest.approx(fmean(rewards))
        assert metrics.reward_mean == pytest.approx(logged[metrics.step]["reward"])
        assert metrics.reward_std == pytest.approx(pstdev(rewards))
        assert (metrics.reward_min, metrics.reward_max) == (min(rewards), max(rewards))
        assert metrics.length_mean == pytest.approx(fmean(c.length for c in mine))
        assert metrics.zero_variance_groups == logged[metrics.step]["frac_reward_zero_std"]
        assert metrics.loss == logged[metrics.step]["loss"]
        assert metrics.entropy == pytest.approx(logged[metrics.step]["entropy"])
        assert metrics.learning_rate == 0.0
        assert metrics.records == sum(c.length for c in mine) * len(LAYERS)
        assert metrics.errors == metrics.dropped == 0
        assert metrics.step_ms is not None
        assert metrics.capture_ms is not None
        assert 0 < metrics.capture_ms < metrics.step_ms
        assert [h.layer_index for h in metrics.health] == list(LAYERS)
        assert all(h.fvu > 0 and h.l0 > 0 and 0 <= h.dead_share < 1 for h in metrics.health)
    assert [h.norm_drift for h in recorded.metrics[0].health] == [0.0, 0.0]


def test_every_step_has_a_line_when_the_trainer_logs_rarely(tmp_path: Path) -> None:
    """Rewards come from our own join; the loss stands in the line of the step that logged it."""
    trainer = grpo_trainer(tmp_path, max_steps=3, logging_steps=2)
    observe(trainer, sae=saes(), top_k=TOP_K)
    trainer.train()
    metrics = Recorded(tmp_path).metrics
    assert [m.step for m in metrics] == [1, 2, 3]
    assert [m.loss is None for m in metrics] == [True, False, True]
    assert all(m.reward_mean is not None for m in metrics)


def test_a_step_that_trains_on_known_completions_has_no_score(tmp_path: Path) -> None:
    """A reward is reported in the step that first trains on it, and the best so far is kept."""
    trainer = grpo_trainer(tmp_path, num_iterations=2, max_steps=4)
    observe(trainer, sae=saes(), top_k=TOP_K)
    trainer.train()
    recorded = Recorded(tmp_path)
    assert [m.reward_mean is None for m in recorded.metrics] == [False, True, False, True]
    assert [m.records == 0 for m in recorded.metrics] == [False, True, False, True]
    scores = [p.score for p in recorded.progress]
    assert [score is None for score in scores] == [False, True, False, True]
    first, third = (score for score in scores if score is not None)
    best = max(first, third)
    assert [p.best for p in recorded.progress] == [first, first, best, best]


def test_steps_are_appended_together_when_asked_for(tmp_path: Path) -> None:
    """With a spill every two steps, the third step's records wait for the end."""
    trainer = grpo_trainer(tmp_path, max_steps=3)
    cfg = P5Cfg(output_dir=str(tmp_path), sae_live_spill_every_n_steps=2)
    observe(trainer, sae=saes(), output_dir=cfg, top_k=TOP_K)
    trainer.train()
    recorded = Recorded(tmp_path)
    assert {r.step for r in recorded.records} == {1, 2, 3}
    control = [line for line in recorded.control() if isinstance(line, Batch | Note)]
    # The self-test is written when the first step ends, before anything was spilled.
    assert [getattr(line, "step", "note") for line in control] == ["note", 1, 2, 3]


def test_the_first_step_says_what_is_captured_and_joined(tmp_path: Path) -> None:
    """A reader learns which passes reached the hooks, how many tokens, and the join keys."""
    trainer = grpo_trainer(tmp_path, num_iterations=2)
    observe(trainer, sae=saes(), top_k=TOP_K)
    trainer.train()
    recorded = Recorded(tmp_path)
    (note,) = (line for line in recorded.control() if isinstance(line, Note))
    tokens = sum(c.length for c in recorded.completions if c.step == 1)
    assert note.kind == "self_test"
    assert note.detail["tokens_per_layer"] == {"0": tokens, "1": tokens}
    assert note.detail["joined"] == ["completion", "rewards", "advantage"]
    assert note.detail["layer_calls"]["loss"] == len(LAYERS)
    assert note.detail["layer_calls"]["generation"] > len(LAYERS)


def test_a_run_without_saes_still_reports(tmp_path: Path) -> None:
    """Completions, metrics and progress need no SAE."""
    trainer = grpo_trainer(tmp_path)
    callback = observe(trainer)
    trainer.train()
    recorded = Recorded(tmp_path)
    assert callback.statistics().errors == 0
    assert not recorded.records
    assert len(recorded.completions) == 16
    assert [m.health for m in recorded.metrics] == [(), ()]


class Gate(MemorySink):
    """A sink that takes nothing before it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()

    async def write(self, append: Append) -> None:
        """Wait for the gate."""
        self.opened.wait()
        await super().write(append)


def test_a_queue_that_is_full_drops_and_says_so(tmp_path: Path) -> None:
    """While nothing can be written training goes on; afterwards the log names the gap."""
    gate = Gate()

    def opening(completion_ids: list[list[int]], trainer_state: TrainerState, **_: Any) -> Any:
        if trainer_state.global_step == 2:
            gate.opened.set()
        return [float(len(ids)) for ids in completion_ids]

    trainer = grpo_trainer(tmp_path, max_steps=3)
    trainer.reward_funcs[1] = opening
    callback = observe(trainer, sae=saes(), top_k=TOP_K, queue_bytes=1, sinks=(gate,))
    trainer.train()
    gaps = [mark for _, mark in gate.marks if isinstance(mark, Gap)]
    assert trainer.state.global_step == 3
    assert callback.statistics().errors == 0
    assert callback.statistics().records_dropped == sum(gap.records for gap in gaps) > 0


def test_unknown_options_are_refused() -> None:
    """A misspelt option is an error where it is written."""
    with pytest.raises(TypeError, match="record_txt"):
        SidecarCallback(record_txt=True)
