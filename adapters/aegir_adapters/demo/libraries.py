"""How the libraries behave while the demo runs: off the network, quiet, on one thread."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from huggingface_hub import constants
from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def hub_offline() -> Iterator[None]:
    """Make every request to the Hugging Face Hub fail at once; TRL's telemetry is not sent.

    Equals `HF_HUB_OFFLINE=1`, which `huggingface_hub` reads only when it is first imported.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' progress bars and notes on renamed arguments out of the display."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            # TRL 1.16 uses names that transformers 5.23 renamed; nothing a user could act on.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Compute on one thread: on tensors this small a second one only waits, or spins."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
