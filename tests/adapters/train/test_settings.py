from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegir_adapters.train import TrainOptions, load_preset
from aegir_adapters.train.record import TrainingRecord, record_path, write_record
from aegir_adapters.train.settings import Resolved, resolve
from aegir_stream.config import P5Cfg
from aegir_stream.errors import OptionError, UnreadableRunError

from .small import PREPARED, write_preset


def resolved(environment: dict[str, str] | None = None, **options: Any) -> Resolved:
    """Return what holds under these options."""
    return resolve(TrainOptions(**options), environment or {})


def origins(found: Resolved) -> dict[str, str]:
    """Return where each value came from."""
    return {setting.name: setting.origin for setting in found.settings}


def test_every_value_says_where_it_came_from() -> None:
    """Options go before the preset, and each says which of them it was."""
    found = resolved(
        policy_preset="tiny", steps=7, seed=3, sae_num_layers=4, sae_live_spill_every_n_steps=5
    )
    grpo, said = found.preset.grpo, origins(found)
    assert (grpo.steps, found.preset.seed, found.preset.sae.hooked) == (7, 3, 4)
    assert found.run.sae_live_spill_every_n_steps == 5
    assert said["grpo.steps"] == "--steps"
    assert said["sae.hooked"] == "--sae-num-layers"
    assert said["recording.spill_every_n_steps"] == "--sae-live-spill-every-n-steps"
    assert said["grpo.learning_rate"] == "preset tiny"
    assert said["policy_preset"] == "--policy-preset"
    assert {setting.name: setting.value for setting in found.settings}["grpo.steps"] == 7


@pytest.mark.parametrize(
    ("environment", "option", "directory", "origin"),
    [
        ({}, None, P5Cfg().output_dir, "default"),
        ({"AEGIR_P5_OUTPUT_DIR": ""}, None, P5Cfg().output_dir, "default"),
        ({"AEGIR_P5_OUTPUT_DIR": "there"}, None, "there", "AEGIR_P5_OUTPUT_DIR"),
        ({"AEGIR_P5_OUTPUT_DIR": "there"}, Path("here"), "here", "--output-dir"),
    ],
)
def test_the_directory_is_the_one_that_the_server_looks_at(
    environment: dict[str, str], option: Path | None, directory: str, origin: str
) -> None:
    """The option, then the variable unless it is empty, then the default of `P5Cfg`."""
    found = resolved(environment, output_dir=option)
    assert found.run.output_dir == directory
    assert origins(found)["output_dir"] == origin


def test_a_resumed_run_goes_by_its_own_record(tmp_path: Path) -> None:
    """What it was started with holds again, unless it is said anew; a new run ignores it."""
    started = resolved(policy_preset="tiny", steps=7, seed=3)
    write_record(tmp_path, TrainingRecord(policy_preset="tiny", preset=started.preset))
    found = resolved(output_dir=tmp_path, resume="latest", steps=9)
    assert found.policy_preset == "tiny"
    assert (found.preset.seed, found.preset.grpo.steps) == (3, 9)
    assert origins(found)["seed"] == str(record_path(tmp_path))
    assert origins(found)["grpo.steps"] == "--steps"
    assert resolved(output_dir=tmp_path).policy_preset == "9b-local-l0-50"
    named = resolved(output_dir=tmp_path, resume="latest", policy_preset="tiny")
    assert named.preset == load_preset("tiny")


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    """It is named, with what to do; nothing else is trained instead."""
    record_path(tmp_path).write_text('{"policy_preset": 3}')
    with pytest.raises(UnreadableRunError, match=r"aegir_train\.json.*--policy-preset"):
        resolved(output_dir=tmp_path, resume="latest")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers = 4\n", "", "how many layers it has.*Add `layers`"),
        ('kind = "cpu"', 'kind = "cpu"\ncount = 2\nsharding = "ddp"', "got 2 devices"),
        ('kind = "cpu"', 'kind = "cpu"\ncount = 2', "2 devices with sharding `none`"),
        ('kind = "cpu"', 'kind = "cpu"\ncount = 2\nsharding = "fsdp"', "shards over CPUs"),
    ],
)
def test_a_preset_that_contradicts_itself_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    """Before anything is made; the error says what to change."""
    path = write_preset(tmp_path, PREPARED.replace(old, new))
    with pytest.raises(OptionError, match=message):
        resolved(policy_preset=str(path))


def test_a_preset_that_makes_its_own_model_takes_no_other() -> None:
    """What a preparation would make cannot be named as well."""
    with pytest.raises(OptionError, match=r"`tiny` makes its own.*--model, --prompts"):
        resolved(policy_preset="tiny", model="mine", prompts="mine.jsonl")
