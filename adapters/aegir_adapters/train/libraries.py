"""Which libraries a preset needs, which are there, and how they behave while a run trains."""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from contextlib import contextmanager
from logging import LogRecord, getLogger
from typing import TYPE_CHECKING

from aegir_adapters.train.checks import Check, missing, ok

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegir_adapters.train.preset import Preset

__all__ = [
    "check_libraries",
    "hub_offline",
    "quiet_libraries",
    "required_libraries",
    "torch_threads",
]

MINIMUMS = {
    "accelerate": "1.4",
    "datasets": "3.0",
    "huggingface-hub": "0.30",
    "numpy": "2.0",
    "safetensors": "0.5",
    "torch": "2.6",
    "transformers": "5.0",
    "trl": "1.0",
}
"""What the extras `trainer` and `sae` ask for."""

_NOTED_BY = ("transformers.trainer", "transformers.trainer_utils")
_NO_NEWS = (
    # Tied to the embedding: it is in no checkpoint, and not missed.
    "There were missing keys in the checkpoint model loaded: ['lm_head.weight']",
    # Said where checkpoints follow within a second.
    "mtime may not be reliable on this filesystem",
)
"""How notes begin that a user could not act on."""

_LORA = {"peft": "0.15"}
_VLLM = {"vllm": "0.10"}


def required_libraries(preset: Preset) -> dict[str, str]:
    """Return the least version of each library that a preset needs."""
    lora = _LORA if preset.policy.lora else {}
    vllm = _VLLM if preset.grpo.vllm else {}
    return {**MINIMUMS, **lora, **vllm}


def check_libraries(preset: Preset) -> Check:
    """Tell whether everything that a preset needs is installed, and new enough."""
    required = required_libraries(preset)
    found = {name: _installed(name) for name in required}
    lacking = [
        f"{name}>={least} ({found[name] or 'not installed'})"
        for name, least in required.items()
        if _numbers(found[name] or "0") < _numbers(least)
    ]
    if not lacking:
        return ok("libraries", ", ".join(f"{name} {found[name]}" for name in required))
    wanted = " ".join(f"'{part.partition(' ')[0]}'" for part in lacking)
    return missing("libraries", ", ".join(lacking), f"pip install {wanted}")


@contextmanager
def hub_offline() -> Iterator[None]:
    """Make every request to the Hugging Face Hub fail at once; TRL's telemetry is not sent.

    Equals `HF_HUB_OFFLINE=1`, which `huggingface_hub` reads only when it is first imported.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - needs the extra

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' progress bars and notes on renamed arguments out of the display."""
    from transformers.utils import logging  # noqa: PLC0415 - needs the extra

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loggers = [getLogger(name) for name in _NOTED_BY]
    for logger in loggers:
        logger.addFilter(_is_news)
    try:
        with warnings.catch_warnings():
            # TRL 1.16 uses names that transformers 5.23 renamed; nothing a user could act on.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_news)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _is_news(record: LogRecord) -> bool:
    return not record.getMessage().startswith(_NO_NEWS)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Compute on so many threads of the CPU; as many as torch thinks best if absent."""
    import torch  # noqa: PLC0415 - needs the extra

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: 2.13.0+cpu gives (2, 13, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
