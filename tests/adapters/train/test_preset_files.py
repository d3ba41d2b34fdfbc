from __future__ import annotations

from pathlib import Path

import pytest

from aegir_adapters.train import Preset, load_preset, preset_names
from aegir_stream.errors import OptionError

# name: devices, sharding, layers, active latents
PUBLISHED = {
    "tiny": (1, "none", 4, 16),
    "9b-local-l0-50": (1, "none", 40, 50),
    "9b-local-l0-100": (1, "none", 40, 100),
    "9b-fsdp-l0-50": (2, "fsdp", 40, 50),
    "9b-fsdp-l0-100": (2, "fsdp", 40, 100),
    "27b-fsdp-l0-100": (6, "fsdp", 64, 100),
}


def preset_of(directory: Path, text: str) -> Preset:
    """Return the preset that a file with this text holds."""
    path = directory / "mine.toml"
    path.write_text(text, "utf-8")
    return load_preset(str(path))


def test_the_presets_are_those_that_were_promised() -> None:
    """Each name stands for its devices, its layers and its SAEs; the smallest comes first."""
    assert preset_names()[0] == "tiny"
    found = {name: load_preset(name) for name in preset_names()}
    assert {
        name: (p.devices.count, p.devices.sharding, p.policy.layers, p.sae.l0)
        for name, p in found.items()
    } == PUBLISHED
    assert all(preset.summary for preset in found.values())
    assert {preset.sae.hooked for preset in found.values()} == {2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1", r"`colour` at the top of `.*mine\.toml`\. Known there are: .*policy.*grpo"),
        ("[grpo]\nstep = 1", r"`step` in table `grpo` of `.*mine\.toml`.*: steps, learning_rate"),
        ("[policy.lora]\nranks = 1", r"`ranks` in table `policy\.lora`.*: rank, alpha"),
        (
            '[grpo]\nsteps = "many"',
            r"Expected `int`, got `str` - at `\$\.grpo\.steps` - in `.*mine",
        ),
        ("[grpo]\nsteps = 0", r"Expected `int` >= 1 - at `\$\.grpo\.steps`"),
        ('[devices]\nkind = "tpu"', r"Invalid enum value 'tpu' - at `\$\.devices\.kind`"),
        ("grpo = 3", r"Expected `object`, got `int` - at `\$\.grpo`"),
        ("[grpo\n", r"Expected '\]' .* - in `.*mine\.toml`"),
    ],
)
def test_what_a_preset_cannot_say_is_named(tmp_path: Path, text: str, message: str) -> None:
    """An unknown key is named with its file and the keys there are; a wrong value with its key."""
    with pytest.raises(OptionError, match=message):
        preset_of(tmp_path, text)


@pytest.mark.parametrize("name", ["huge", "nowhere/mine.toml", "."])
def test_a_preset_that_is_not_there_is_named(name: str) -> None:
    """The error names what was asked for and the presets there are."""
    with pytest.raises(OptionError, match="9b-local-l0-50") as caught:
        load_preset(name)
    assert name in str(caught.value)


def test_paths_count_from_where_the_preset_lies(tmp_path: Path) -> None:
    """A user's preset can be moved with its files; an id of the hub is no path."""
    (tmp_path / "model").mkdir()
    preset = preset_of(
        tmp_path,
        '[policy]\nmodel = "model"\n[sae]\npath = "saes"\n[prompts]\npath = "/far/prompts.jsonl"',
    )
    assert preset.policy.model == str(tmp_path / "model")
    assert preset.sae.path == str(tmp_path / "saes")
    assert preset.prompts.path == "/far/prompts.jsonl"
    assert preset_of(tmp_path, '[policy]\nmodel = "some/model"').policy.model == "some/model"
    assert preset_of(tmp_path, '[policy]\nmodel = "./gone"').policy.model == str(tmp_path / "gone")


@pytest.mark.parametrize("path", ["saes/layer-{layer}", "saes", "./some/saes", "a/b/c"])
def test_what_cannot_be_an_id_of_the_hub_is_a_path(tmp_path: Path, path: str) -> None:
    """A set of SAEs on the hub has an owner and a name; what exists beside the file is the file."""
    anchored = preset_of(tmp_path, f'[sae]\npath = "{path}"').sae.path
    assert anchored == str(tmp_path / path)
    assert preset_of(tmp_path, '[sae]\npath = "some/saes"').sae.path == "some/saes"
    (tmp_path / "some/saes").mkdir(parents=True)
    assert preset_of(tmp_path, '[sae]\npath = "some/saes"').sae.path == str(tmp_path / "some/saes")
