from __future__ import annotations

import importlib.metadata
import logging
import re
import tomllib
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers.utils import logging as transformers_logging

from aegir_adapters.train import load_preset
from aegir_adapters.train.libraries import (
    MINIMUMS,
    check_libraries,
    hub_offline,
    quiet_libraries,
    required_libraries,
    torch_threads,
)

ROOT = Path(__file__).parents[3]


def test_the_minimums_are_those_of_the_extras() -> None:
    """What a preset is checked for is what `pip install aegir-stream[trainer,sae]` brings."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = extras["optional-dependencies"]["trainer"] + extras["optional-dependencies"]["sae"]
    assert dict(re.split(">=", requirement) for requirement in wanted) == MINIMUMS


def test_a_library_that_is_missing_or_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, with what is there and the command that installs them."""
    installed = dict.fromkeys(MINIMUMS, "99.0") | {"trl": "0.24.1"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = check_libraries(load_preset("9b-local-l0-50"))
    assert check.verdict == "missing"
    assert check.detail == "trl>=1.0 (0.24.1), peft>=0.15 (not installed)"
    assert check.remedy == "pip install 'trl>=1.0' 'peft>=0.15'"
    monkeypatch.setitem(installed, "trl", "1.0+local")
    assert check_libraries(load_preset("tiny")).verdict == "ok"
    assert "peft" not in required_libraries(load_preset("9b-fsdp-l0-50"))


def test_libraries_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Being offline, quiet and on one thread ends with the run."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    bars, threads = transformers_logging.is_progress_bar_enabled(), torch.get_num_threads()
    filters = list(logging.getLogger("transformers.trainer").filters)
    with hub_offline(), quiet_libraries(), torch_threads(threads + 1):
        assert constants.is_offline_mode()
        assert not transformers_logging.is_progress_bar_enabled()
        assert torch.get_num_threads() == threads + 1
    assert not constants.is_offline_mode()
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert torch.get_num_threads() == threads
    assert logging.getLogger("transformers.trainer").filters == filters


def test_notes_that_nobody_could_act_on_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A tied output layer is in no checkpoint and not missed; another key would be."""
    logger, heard = logging.getLogger("transformers.trainer"), list[str]()
    # Other libraries silence transformers when they are imported.
    caplog.set_level(logging.WARNING, logger=logger.name)
    monkeypatch.setattr(logger, "callHandlers", lambda record: heard.append(record.getMessage()))
    note = "There were missing keys in the checkpoint model loaded: "
    with quiet_libraries():
        logger.warning("%s['lm_head.weight'].", note)
        logger.warning("%s['norm.weight'].", note)
    assert heard == [f"{note}['norm.weight']."]
