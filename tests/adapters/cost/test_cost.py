from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aegir_adapters.cli.plan import plan
from aegir_adapters.cost import (
    CaptureLoad,
    Probe,
    calibrated,
    disk_cost,
    memory_cost,
    record_bytes,
    time_cost,
)
from aegir_adapters.sae import StandardSAE, Weights, autoencoder
from aegir_adapters.trainer.columns import ColumnPool
from aegir_adapters.trainer.rows import RowEncoder
from aegir_stream.errors import OptionError
from aegir_stream.sampling import SamplingRule


def load(**changes: object) -> CaptureLoad:
    """Return a small load with some of its fields changed."""
    plain = {"d_model": 64, "n_latents": 512, "layers": 2, "tokens": 512, "completions": 64}
    return CaptureLoad(**plain | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_latents", [512, 65_536, 1_000_000, 1_000_001])
@pytest.mark.parametrize("top_k", [1, 16, 64])
def test_the_length_of_a_record_is_that_of_the_log(n_latents: int, top_k: int) -> None:
    """A line that is really written has the length that is foretold, to the byte."""
    columns, _ = ColumnPool().take(8, top_k, step=50)
    columns.token_index[:] = np.arange(8)
    columns.layer_index[:] = 20
    columns.indices[:] = n_latents - 1
    columns.activations[:] = 1.5
    columns.reconstruction_loss[:] = 3.25
    assert columns.completion is not None
    columns.completion[:] = 3
    lines = RowEncoder().encode(columns).splitlines(keepends=True)
    told = record_bytes(load(n_latents=n_latents, top_k=top_k, steps=50))
    assert {len(line) for line in lines} == {told}


def test_a_budget_makes_a_recording_cheaper_in_proportion() -> None:
    """A tenth of the tokens costs a tenth of the records, their bytes and their time."""
    whole, tenth = load(tokens=64_000), load(tokens=64_000, sampling=SamplingRule(token_share=0.1))
    assert tenth.records == pytest.approx(whole.records / 10)
    assert whole.records == 128_000
    measured = calibrated(PROBES, forward_s=0.0, record_s=1e-6)
    assert time_cost(tenth, measured).training_ms == pytest.approx(
        time_cost(whole, measured).training_ms / 10
    )
    assert time_cost(tenth, measured).recorder_ms == pytest.approx(12.8)
    fixed = disk_cost(load(tokens=64_000, sampling=SamplingRule(token_share=1e-9))).step
    assert disk_cost(tenth).step - fixed == pytest.approx(
        (disk_cost(whole).step - fixed) / 10, rel=1e-3
    )


@pytest.mark.parametrize(
    "rule",
    [
        SamplingRule(max_tokens_per_completion=3),
        SamplingRule(max_tokens_per_step=128, completions_per_step=64),
        SamplingRule(record_every_n_tokens=3),
    ],
)
def test_recorded_tokens_are_the_sum_of_all_chances(rule: SamplingRule) -> None:
    """What is foretold on average is what the rule says token by token."""
    chances = sum(rule.probability(i, length=8) for i in range(8))
    assert load(sampling=rule).recorded_tokens == pytest.approx(64 * chances, rel=0.05)


PROBES = (
    Probe(d_model=100, n_latents=1000, token_s=1e-6 + 1000 * 1e-9 + 1e5 * 1e-11),
    Probe(d_model=100, n_latents=4000, token_s=1e-6 + 4000 * 1e-9 + 4e5 * 1e-11),
    Probe(d_model=400, n_latents=4000, token_s=1e-6 + 4000 * 1e-9 + 16e5 * 1e-11),
)


def test_a_calibration_finds_what_timings_were_made_from() -> None:
    """Three timings give back the cost of a token, of a latent and of a weight."""
    found = calibrated(PROBES, forward_s=2e-4, record_s=1e-6)
    assert found.token_s == pytest.approx(1e-6)
    assert found.latent_s == pytest.approx(1e-9)
    assert found.weight_s == pytest.approx(1e-11)
    cost = time_cost(load(d_model=400, n_latents=4000, forwards=4, passes=2), found)
    per_token = PROBES[2].token_s
    assert cost.training_ms == pytest.approx(1e3 * (2 * 2 * 512 * per_token + 16 * 2e-4))


def test_timings_that_do_not_tell_latents_from_width_are_refused() -> None:
    """The message says which three are needed."""
    with pytest.raises(OptionError, match="one with more latents, and one that is wider"):
        calibrated(PROBES[:1] * 3, forward_s=0, record_s=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"layers": 0}, "`layers` of at least 1, got 0"), ({"top_k": 513}, "at most 512, got 513")],
)
def test_an_impossible_load_is_refused(changes: dict[str, int], message: str) -> None:
    """The message names the field and its value."""
    with pytest.raises(OptionError, match=message):
        load(**changes)


MEASURE = """
import sys, torch
from aegir_adapters.sae import GatedSAE, JumpReLUSAE, StandardSAE, TopKSAE, Weights

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1])

torch.set_num_threads(1)
n, d, m = int(sys.argv[1]), 64, 65_536
draws = torch.Generator().manual_seed(0)
noise = lambda *shape: torch.randn(*shape, generator=draws) / 8
weights = Weights(noise(d, m), torch.full((m,), -2.0), noise(m, d), noise(d))
x = 8 * noise(n, d)
saes = {
    "topk": TopKSAE(weights, k=32),
    "standard": StandardSAE(weights),
    "jumprelu": JumpReLUSAE(weights, threshold=torch.full((m,), 0.5)),
    "gated": GatedSAE(weights, b_mag=noise(m), r_mag=noise(m)),
}
for name, sae in saes.items():
    sae.top(x[:8], k=16)
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak until now
    before = peak()
    sae.top(x, k=16)
    print(name, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="The peak is Linux's")
def test_wide_saes_take_no_more_memory_than_foretold() -> None:
    """65,536 latents, many chunks: the measured peak of each architecture is below the estimate.

    Unchunked it would be 256 MiB for each of several copies. It does not grow with the tokens, so
    8,192 of them stay below 1 GiB too.
    """
    tokens = 512
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tokens)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = memory_cost(CaptureLoad(d_model=64, n_latents=65_536, layers=1, tokens=tokens))
    measured = dict(line.split() for line in done.stdout.splitlines())
    assert set(measured) == {"topk", "standard", "jumprelu", "gated"}
    assert max(int(kib) for kib in measured.values()) * 1024 < told.transient < 200 << 20
    large = memory_cost(CaptureLoad(d_model=64, n_latents=65_536, layers=1, tokens=8192))
    assert large.transient < 1 << 30


def test_the_estimate_knows_the_sizes_of_the_saes() -> None:
    """Weights, and how many pre-activations are held at once, are those of the SAEs themselves."""
    shapes = ((64, 512), (512,), (512, 64), (64,))
    sae = StandardSAE(Weights(*(torch.zeros(shape) for shape in shapes)))
    held = {id(t): t.numel() * t.element_size() for t in sae.buffers()}
    assert memory_cost(load()).saes == 2 * sum(held.values())
    wide: dict[str, Any] = {
        "d_model": 1,
        "n_latents": 1 << 20,
        "tokens": 1 << 20,
        "layers": 1,
        "top_k": 1,
    }
    for device, elements in (
        ("cpu", autoencoder.CHUNK_ELEMENTS),
        ("cuda", autoencoder.GPU_CHUNK_ELEMENTS),
    ):
        small = (1 << 20) * 5 * 4
        codes = memory_cost(CaptureLoad(**wide), device=device).transient - small
        assert codes == 9 * 4 * elements


def test_the_command_reports_bytes_memory_and_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """A preset's numbers, some of them overridden, with a budget."""
    plan(preset="tiny", steps=10, max_tokens_per_step=128, timing=False)
    report = json.loads(capsys.readouterr().out)
    assert report["load"]["n_latents"] == 512
    assert report["load"]["records"] == 256
    assert report["load"]["sampling"]["tokens_per_completion"] == 2
    assert report["disk_bytes"]["run"] == pytest.approx(10 * report["disk_bytes"]["step"], rel=1e-4)
    assert report["milliseconds"] is None
    assert "not measured" in report["origin"]


def test_the_command_times_this_machine_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Milliseconds come from a calibration, and a wider SAE takes longer."""
    plan(d_model=64, n_latents=512, layers=2, tokens=512)
    report = json.loads(capsys.readouterr().out)
    assert report["milliseconds"]["training_ms"] > 0
    assert report["milliseconds"]["recorder_ms"] > 0
    assert "smaller TopK SAEs on this machine" in report["origin"]


def test_what_the_command_lacks_is_named_with_its_option() -> None:
    """Without a preset, four numbers decide."""
    with pytest.raises(OptionError, match=r"Expected --n-latents, --tokens .*--preset .*tiny"):
        plan(d_model=64, layers=2)
    with pytest.raises(OptionError, match="cpu or cuda, got 'tpu'"):
        plan(preset="tiny", device="tpu", timing=False)


def test_the_table_names_every_cost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal a step and the run stand side by side, in units that people read."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    plan(d_model=4096, n_latents=65_536, layers=2, tokens=8192, steps=1000, timing=False)
    shown = capsys.readouterr().out
    for part in ("8,192 of 8,192 tokens", "16,384", "6.7 MiB", "4.0 GiB", "held", "not measured"):
        assert part in shown
