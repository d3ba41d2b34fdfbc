from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from aegir_adapters.sae import save_sae
from aegir_adapters.train import (
    Plan,
    TrainOptions,
    UnmetRequirementsError,
    load_preset,
    plan,
    require_all,
)
from aegir_adapters.train.machine import Machine, check_devices, check_memory
from aegir_adapters.train.memory import MemoryEstimate
from aegir_adapters.train.preset import Devices

from .small import SAVED, save_all, top_k_sae, write_preset

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


def planned(preset: Path | str, output_dir: Path, **options: Any) -> Plan:
    """Return the plan of a preset."""
    chosen = TrainOptions(policy_preset=str(preset), output_dir=output_dir, **options)
    return plan(chosen, environment={})


def faults(found: Plan) -> dict[str, str]:
    """Return what is missing, by name."""
    return {c.name: c.detail for c in found.checks if c.verdict not in {"ok", "unknown"}}


def test_a_preset_that_has_everything_lacks_nothing(saved: Path, tmp_path: Path) -> None:
    """Every check is ok, the model's own layers are counted, and nothing is written."""
    preset = write_preset(tmp_path, SAVED).rename(saved / "whole.toml")
    found = planned(preset, tmp_path / "run")
    assert faults(found) == {}
    assert {check.verdict for check in found.checks} == {"ok"}
    assert found.layers == (0, 1)
    assert found.memory is not None
    assert not (tmp_path / "run").exists()


def test_everything_that_is_missing_stands_in_one_message(tmp_path: Path) -> None:
    """A large preset on a small machine: each lack with its remedy, all in one error."""
    output_dir = tmp_path / "file" / "run"
    (tmp_path / "file").touch()
    found = planned("27b-fsdp-l0-100", output_dir, model=str(tmp_path / "gone"))
    assert found.layers == (0, 32)
    with pytest.raises(UnmetRequirementsError) as caught:
        require_all(found.checks, what="The preset `27b-fsdp-l0-100`")
    message = str(caught.value)
    for word in ("6 wanted", "gone: no such directory", "--sae", "layer-0, layer-32", "--prompts"):
        assert word in message
    for word in ("--reward MODULE:FUNCTION", "cannot be written", "AEGIR_P5_OUTPUT_DIR"):
        assert word in message
    assert {check.name for check in caught.value.unmet} >= {"devices", "model", "SAEs", "reward"}


def test_a_hub_model_is_fetched_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the cache is missing; with leave it would be fetched, unless the hub is off."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    without = planned("9b-local-l0-50", tmp_path / "run")
    allowed = planned("9b-local-l0-50", tmp_path / "run", allow_download=True)
    assert "not in the hub's cache" in faults(without)["model"]
    assert "model" not in faults(allowed)
    assert allowed.source is not None
    assert allowed.source.fetch
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = planned("9b-local-l0-50", tmp_path / "run", allow_download=True)
    remedies = {check.name: check.remedy for check in offline.checks}
    assert "HF_HUB_OFFLINE forbids" in remedies["model"]


def test_saes_are_checked_layer_by_layer(tmp_path: Path) -> None:
    """A layer without an SAE, one of another width and one that is cut short are each named."""
    directory = save_all(tmp_path, layers=(0,))
    save_sae(top_k_sae(seed=1, d_model=16), tmp_path / "saes" / "layer-1")
    save_sae(top_k_sae(seed=1), tmp_path / "saes" / "layer-2")
    weights = tmp_path / "saes" / "layer-2" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    found = planned(write_preset(directory, SAVED), tmp_path / "run", sae_num_layers=3)
    detail = faults(found)["SAEs"]
    assert found.layers == (0, 1, 2)
    assert "layer-0" not in detail
    assert "layer-1 reads vectors of 16, the model's are of 32" in detail
    assert "sae_weights.safetensors is missing or damaged" in detail
    (tmp_path / "saes" / "layer-2" / "cfg.json").unlink()
    again = planned(directory / "preset.toml", tmp_path / "run", sae_num_layers=3)
    assert "got no cfg.json" in faults(again)["SAEs"]


def test_a_published_set_of_saes_is_as_good(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in another format holds the layers by its own names; a lack is told in them."""
    published = tmp_path / "SAE-Res-Tiny-W1K-L0_4"
    published.mkdir()
    for layer in (0, 1):
        (published / f"layer{layer}.sae.pt").touch()
    preset, options = write_preset(tmp_path, SAVED).rename(saved / "other.toml"), tmp_path / "run"
    assert "SAEs" not in faults(planned(preset, options, sae=str(published)))
    (published / "layer1.sae.pt").unlink()
    detail = faults(planned(preset, options, sae=str(published)))["SAEs"]
    assert "SAE of layer 1, got `layer0.sae.pt`" in detail
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    unknown = faults(planned(preset, options, sae="Qwen/SAE-Res-Tiny-W1K-L0_4"))["SAEs"]
    assert "Nor is there a directory of that name" in unknown
    assert "hf download Qwen/SAE-Res-Tiny-W1K-L0_4" in unknown


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": 3}', "prompts.jsonl:2"),
        ('{"text": "a"}', "missing required field `prompt`"),
        ('{"prompt": "a"}\n{"prompt": "b", "answer": 1}', "at prompt 2"),
        ("", "empty file"),
        ('{"prompt": "a"}', "1 in .*, a step takes 2"),
    ],
)
def test_prompts_are_read_before_anything_heavy(
    saved: Path, tmp_path: Path, lines: str, message: str
) -> None:
    """A line that holds no prompt is named; too few for a step are counted."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(lines)
    preset = write_preset(tmp_path, SAVED)
    found = planned(preset, tmp_path / "run", model=str(saved / "model"), prompts=str(prompts))
    with pytest.raises(UnmetRequirementsError, match=message):
        require_all(found.checks, what="It")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("graded", "Expected MODULE:FUNCTION, got `graded`"),
        ("no_such_module:graded", "`no_such_module` cannot be imported"),
        ("adapters.trainer.tiny:no_such", "`adapters.trainer.tiny` holds no function `no_such`"),
        ("adapters.trainer.tiny:WORDS", "holds no function `WORDS`"),
    ],
)
def test_a_reward_has_to_be_a_function(tmp_path: Path, reward: str, message: str) -> None:
    """What cannot be imported or called is told before training."""
    found = planned("tiny", tmp_path / "run", reward=reward)
    assert message in faults(found)["reward"]


def test_a_batch_has_to_be_of_whole_groups_and_arguments_known(tmp_path: Path) -> None:
    """Both would fail in the trainer, minutes later."""
    text = SAVED.replace("device_batch = 8", "device_batch = 6")
    text += '[grpo.trainer]\nmax_steps = 3\nno_such = 1\nloss_type = "grpo"\n'
    found = faults(planned(write_preset(tmp_path, text), tmp_path / "run"))
    assert "6 completions a step are no multiple of 4" in found["batch"]
    assert found["grpo.trainer"] == "max_steps, no_such cannot be set there"


def test_devices_and_their_memory_are_compared_with_what_is_wanted() -> None:
    """Too few devices and too little memory are missing; what cannot be told is unknown."""
    estimate = MemoryEstimate(**dict.fromkeys(MemoryEstimate.__struct_fields__, 0))
    large = msgspec.structs.replace(estimate, weights=50 * GIB)
    two = Devices(count=2, sharding="fsdp")
    machine = Machine(accelerators=("H100", "H100"), free_bytes=(79 * GIB, 40 * GIB))
    assert check_devices(two, machine).verdict == "ok"
    assert check_devices(Devices(count=6, sharding="fsdp"), machine).detail == (
        "6 wanted, found 2 (H100)"
    )
    assert (
        check_memory(two, machine, large).detail == "50.0 GiB wanted on each device, 40.0 GiB free"
    )
    assert check_memory(Devices(), machine, large).verdict == "ok"
    assert check_memory(two, Machine(accelerators=("mps",)), large).verdict == "unknown"
    assert check_memory(two, machine, None).verdict == "unknown"
    assert check_devices(two, Machine(accelerators=None)).verdict == "unknown"
    host = Machine(accelerators=(), host_free_bytes=60 * GIB)
    assert check_memory(Devices(kind="cpu"), host, large).verdict == "ok"
    assert check_memory(Devices(kind="cpu", count=2), host, large).verdict == "missing"


def test_disk_that_would_not_be_enough_is_missing(tmp_path: Path) -> None:
    """A run that would fill the disk is told so before it starts."""
    found = planned("tiny", tmp_path / "run", steps=10**12)
    assert "wanted" in faults(found)["output directory"]
    assert found.preset.grpo.steps == 10**12
    assert load_preset("tiny").grpo.steps == 80
