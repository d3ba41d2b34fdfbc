from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from aegir_adapters.train.checkpoints import Resumption, resumption
from aegir_stream.errors import OptionError
from aegir_stream.layout import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path


def save(root: Path, step: int) -> Path:
    """Write a checkpoint as a trainer does, its sidecar last."""
    directory = root / f"checkpoint-{step}"
    directory.mkdir()
    save_file({"weight": torch.ones(4)}, directory / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (directory / name).touch()
    (directory / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (directory / "aegir_metadata.json").write_text("{}")
    return directory


def newest(root: Path) -> Resumption:
    """Return where a run goes on by itself."""
    return resumption(RunDirectory.at(root), "latest")


def test_a_run_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    """The highest step counts, not the order of names."""
    for step in (20, 100, 80):
        save(tmp_path, step)
    assert newest(tmp_path) == Resumption(checkpoint=tmp_path / "checkpoint-100", step=100)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("model.safetensors", b"", "model.safetensors is missing or damaged"),
        ("optimizer.pt", None, "optimizer is missing"),
        ("rng_state.pth", None, "rng_state is missing"),
        ("trainer_state.json", None, "trainer_state.json is missing or damaged"),
        ("trainer_state.json", b'{"global_', "trainer_state.json is missing or damaged"),
        ("trainer_state.json", b'{"global_step": 7}', "trainer_state.json is of step 7"),
        ("aegir_metadata.json", None, "aegir_metadata.json is missing or damaged"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    tmp_path: Path, name: str, content: bytes | None, fault: str
) -> None:
    """A trainer that was killed while it saved is resumed from the one before, and says why."""
    save(tmp_path, 20)
    path = save(tmp_path, 40) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    found = newest(tmp_path)
    assert found.checkpoint == tmp_path / "checkpoint-20"
    assert found.skipped == {"checkpoint-40": [fault]}
    with pytest.raises(OptionError, match=f"`checkpoint-40` is not whole: {fault}"):
        resumption(RunDirectory.at(tmp_path), "checkpoint-40")


def test_weights_that_are_cut_short_are_found(tmp_path: Path) -> None:
    """The header says how long the file has to be."""
    save(tmp_path, 20)
    weights = save(tmp_path, 40) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert newest(tmp_path).step == 20


def test_adapters_and_shards_are_weights_as_well(tmp_path: Path) -> None:
    """LoRA saves adapters only, FSDP a directory of shards."""
    (save(tmp_path, 20) / "model.safetensors").rename(
        tmp_path / "checkpoint-20" / "adapter_model.safetensors"
    )
    assert newest(tmp_path).step == 20
    sharded = save(tmp_path, 40)
    (sharded / "model.safetensors").unlink()
    (sharded / "pytorch_model_fsdp_0").mkdir()
    assert newest(tmp_path).step == 20
    (sharded / "pytorch_model_fsdp_0" / ".metadata").touch()
    assert newest(tmp_path).step == 40


def test_a_checkpoint_can_be_named(tmp_path: Path) -> None:
    """By name or by path; one of another run is refused, for its steps are not in this log."""
    run = RunDirectory.at(tmp_path / "run")
    for root in (run.root, tmp_path / "other"):
        root.mkdir()
        save(root, 20)
        save(root, 40)
    expected = Resumption(checkpoint=run.root / "checkpoint-20", step=20)
    assert resumption(run, "checkpoint-20") == expected
    assert resumption(run, str(run.root / "checkpoint-20")) == expected
    for chosen in ("checkpoint-30", str(tmp_path / "other" / "checkpoint-20"), "20"):
        with pytest.raises(OptionError, match=r"checkpoint-20, checkpoint-40.*--resume alone"):
            resumption(run, chosen)


def test_without_a_checkpoint_a_run_begins_again(tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint has nothing to go on from."""
    assert newest(tmp_path) == Resumption()
