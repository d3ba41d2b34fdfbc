from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aegir_adapters.trainer import Precision, observe
from aegir_stream import codec
from aegir_stream.events import SAELogRecord
from aegir_stream.layout import RunDirectory

from .tiny import LATENTS, LAYERS, Recorded, grpo_trainer, model, saes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from .tiny import TinySAE

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

Residuals = dict[tuple[int, int], list["NDArray[np.float64]"]]


class Listening:
    """An SAE that keeps what it is shown, in float64, by the step that is running."""

    def __init__(self, sae: TinySAE, layer: int, kept: Residuals, trainer: object) -> None:
        self._sae, self._layer, self._kept, self._trainer = sae, layer, kept, trainer

    def __getattr__(self, name: str) -> Any:
        """Be the SAE otherwise."""
        return getattr(self._sae, name)

    def to(self, device: object, /) -> Listening:
        """Return itself."""
        return self

    def top(self, x: Tensor, *, k: int) -> object:
        """Keep the residuals and pass them on."""
        step = self._trainer.state.global_step + 1  # type: ignore[attr-defined]
        self._kept.setdefault((self._layer, step), []).append(x.double().numpy())
        return self._sae.top(x, k=k)


def test_health_is_that_of_all_recorded_tokens_also_behind_a_resume(tmp_path: Path) -> None:
    """Several micro-batches, two layers, a checkpoint: each figure is the plain formula's.

    The reference is the run's first step for ever, whoever resumes it.
    """
    saving: dict[str, Any] = {
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "learning_rate": 3e-2,
    }
    kept: Residuals = {}
    records: list[SAELogRecord] = []
    for resume in (None, tmp_path / "checkpoint-2"):
        args = saving | {"max_steps": 4, "save_strategy": "no"} if resume else saving
        trainer = grpo_trainer(tmp_path, policy=model(), **args)
        listening = {n: Listening(s, n, kept, trainer) for n, s in saes().items()}
        observe(trainer, sae=listening, top_k=LATENTS, precision=Precision.exact())  # type: ignore[arg-type]
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if not resume:
            snapshot = RunDirectory.at(tmp_path).snapshot("checkpoint-2")
            records += [
                codec.decode(line, SAELogRecord)
                for line in snapshot.read_bytes().splitlines()
                if not codec.is_control(line)
            ]
    records += Recorded(tmp_path).records
    metrics = Recorded(tmp_path).metrics
    assert [m.step for m in metrics] == [1, 2, 3, 4]

    for layer in LAYERS:
        steps = {m.step: np.concatenate(kept[layer, m.step]) for m in metrics}
        first = steps[1]
        variance = np.square(first - first.mean(0)).sum() / len(first)
        first_norm = np.linalg.norm(first, axis=1).mean()
        fired: set[int] = set()
        for m in metrics:
            mine = [r for r in records if (r.step, r.layer_index) == (m.step, layer)]
            assert len(mine) == len(steps[m.step]) > 0
            if m.step == 3:  # dead since the attempt began
                fired = set()
            fired |= {i for r in mine for i in r.top_feature_indices}
            (health,) = (h for h in m.health if h.layer_index == layer)
            losses = np.array([r.reconstruction_loss for r in mine], np.float64)
            norms = np.linalg.norm(steps[m.step], axis=1)
            assert health.fvu == pytest.approx(losses.mean() / variance, rel=1e-4)
            assert health.l0 == pytest.approx(mean(len(r.top_feature_indices) for r in mine))
            assert health.dead_share == pytest.approx(1 - len(fired) / LATENTS, abs=1e-6)
            assert health.norm_drift == pytest.approx(norms.mean() / first_norm - 1, abs=1e-5)
    assert abs(metrics[3].health[1].norm_drift) > 1e-3


def mean(values: Iterable[int]) -> float:
    """Return the mean."""
    return float(np.mean(list(values)))
