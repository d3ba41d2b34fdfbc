"""Soak the log: python -m soak [--minutes N] [--seed N] [--rounds N] [--no-large].

One line per round, a summary, and an exit code. A failure names the seed and the round that
reproduce it, and leaves the run behind.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from soak.large import large_forms
from soak.machine import try_machine
from soak.oracle import SoakError
from soak.rounds import Soak

MACHINE_SHARE = 0.25
"""Part of the time that goes to the state machine of the log."""


def main(arguments: list[str] | None = None) -> int:
    """Soak; return 0 if everything was as it must be."""
    options = _options(arguments)
    root = Path(tempfile.mkdtemp(prefix="aegir-soak-", dir=options.directory))
    deadline = time.monotonic() + 60 * options.minutes
    print(f"seed {options.seed}, {options.minutes:g} minutes, in {root}", flush=True)  # noqa: T201
    number = 0
    try:
        if options.large:
            for line in large_forms(root / "large"):
                print(line, flush=True)  # noqa: T201
        examples = try_machine(options.seed, seconds=MACHINE_SHARE * 60 * options.minutes)
        soak = Soak(root / "run", seed=options.seed)
        try:
            while number < options.rounds and (number == 0 or time.monotonic() < deadline):
                number += 1
                print(soak.round(number), flush=True)  # noqa: T201
        finally:
            soak.close()
    except SoakError as failure:
        print(f"FAILED in round {number}: {failure}")  # noqa: T201
        again = f"--seed {options.seed} --rounds {number}{'' if options.large else ' --no-large'}"
        print(f"again with: {again}; left behind: {root}")  # noqa: T201
        return 1
    shutil.rmtree(root)
    print(f"passed: {number} rounds, {examples} examples of the state machine")  # noqa: T201
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak ARGS=", description="Soak the log.")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long, large forms aside")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is decided")
    parser.add_argument("--rounds", type=int, default=1 << 30, help="at most so many")
    parser.add_argument("--directory", type=Path, help="where to write (2.5 GiB)")
    parser.add_argument(
        "--no-large", dest="large", action="store_false", help="leave out what needs GiBs"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
