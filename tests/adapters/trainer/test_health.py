from __future__ import annotations

import pytest
import torch

from aegir_adapters.trainer.health import HealthMeter

from .tiny import HIDDEN, LATENTS, TinySAE


def test_health_is_that_of_the_plain_formulas() -> None:
    """Micro-batches give what one batch of the whole step gives, against the first step."""
    sae, meter = TinySAE(seed=2), HealthMeter(3)
    generator = torch.Generator().manual_seed(0)
    # A mean far from the origin: a variance from sums of squares would be lost in float32.
    steps = [
        torch.randn(60, HIDDEN, generator=generator) * scale + 1000.0 * (scale == 1)
        for scale in (1, 2)
    ]
    fired = torch.zeros(LATENTS, dtype=torch.bool)
    first = steps[0].double()
    variance = (first - first.mean(0)).square().sum() / len(first)
    for x in steps:
        for part in torch.split(x, [7, 33, 20]):
            meter.add(part, sae.top(part, k=4))
        reading = meter.close_step()
        assert reading is not None
        health, top = reading.read(), sae.top(x, k=4)
        fired |= top.fired
        assert health.layer_index == 3
        fvu = (top.reconstruction_loss.mean() / variance).item()
        assert health.fvu == pytest.approx(fvu, rel=1e-4)
        assert health.l0 == pytest.approx(top.l0.float().mean().item())
        assert health.dead_share == pytest.approx(1 - fired.float().mean().item())
        ratio = x.norm(dim=1).mean() / steps[0].norm(dim=1).mean()
        assert health.norm_drift == pytest.approx(ratio.item() - 1, abs=1e-6)


def test_a_step_without_tokens_has_no_reading() -> None:
    """A step that only repeats known completions says nothing about the SAE."""
    assert HealthMeter(0).close_step() is None
