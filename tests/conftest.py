"""What every test runs under."""

from __future__ import annotations

import os

from hypothesis import settings

# Read by torch when it is first imported, and inherited by the processes that tests start: the
# models here are so small that a second thread only waits for the first.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Development mode is for the process that runs a test; those that it starts are a user's.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("PYTHONDEVMODE", None)
# Nothing is downloaded in a test; a hub that cannot be reached must not be waited for.
os.environ["HF_HUB_OFFLINE"] = "1"

# A deadline per example measures the neighbours on a shared machine, not the code.
settings.register_profile("aegir", deadline=None)
settings.load_profile("aegir")
