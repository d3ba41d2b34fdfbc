"""What does it cost to know the role of a checkout?

Budget: 5 ms, the start of a shell included, because a Justfile asks whenever it is read. The rivals
are git itself, and a program that does nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from aegir_adapters.worktree import detect_role

SCRIPT = Path(__file__).parents[1] / "bin" / "detect-worktree-role.sh"
BUDGET_MS = 5.0
ROUNDS = 300
DEPTH = 10
COMMIT = ("-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "--quiet", "--allow-empty")
GIT = shutil.which("git") or "git"
GIT_ROLE = (GIT, "rev-parse", "--git-dir", "--git-common-dir")


def make_checkouts(root: Path) -> dict[str, Path]:
    """Make a repository with a worktree; return directories deep in both, and one outside."""
    top, beside = root / "primary", root / "secondary"
    for arguments in (
        ("init", "--quiet", str(top)),
        ("-C", str(top), *COMMIT, "--message", "first"),
        ("-C", str(top), "worktree", "add", "--quiet", str(beside)),
    ):
        subprocess.run([GIT, *arguments], check=True)
    below = Path(*(f"folder-{n}" for n in range(DEPTH)))
    for checkout in (top, beside):
        (checkout / below).mkdir(parents=True)
    return {"primary": top / below, "secondary": beside / below}


def timed(action: Callable[[], object]) -> list[float]:
    """Return how many milliseconds something takes, again and again."""
    action()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - began))
    return times


def told(what: str, times: list[float], budget_ms: float | None = None) -> None:
    """Print two quantiles, and the verdict on the median."""
    quantiles = statistics.quantiles(times, n=100, method="inclusive")
    line = f"{what:34} {quantiles[49]:8.3f} {quantiles[98]:8.3f}"
    if budget_ms is not None:
        verdict = "within budget" if quantiles[49] <= budget_ms else "over budget"
        line += f"   {verdict} ({budget_ms:g} ms)"
    print(line, flush=True)


def measure(role: str, directory: Path) -> None:
    """Measure all ways to learn the role of one checkout."""

    def run(*command: str | Path) -> bytes:
        done = subprocess.run(command, cwd=directory, check=True, capture_output=True)
        return done.stdout

    if {run(SCRIPT).decode().strip(), detect_role(directory)} != {role}:
        raise SystemExit(f"{directory} is {role}")
    told(f"{role}: script", timed(lambda: run(SCRIPT)), BUDGET_MS)
    for shell in filter(shutil.which, ("dash", "bash")):
        told(f"{role}: script under {shell}", timed(lambda: run(shell, SCRIPT)), BUDGET_MS)  # noqa: B023
    told(f"{role}: library", timed(lambda: detect_role(directory)), BUDGET_MS)
    told(f"{role}: git rev-parse", timed(lambda: run(*GIT_ROLE)))


def main() -> None:
    """Measure both roles, ten directories below the top level."""
    git = subprocess.run([GIT, "--version"], check=True, capture_output=True, text=True).stdout
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"Python {platform.python_version()}, {sys.platform}, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}, {git.strip()}")
    print(f"{'ms':34} {'p50':>8} {'p99':>8}")
    true = shutil.which("true") or "true"
    told("a program that does nothing", timed(lambda: subprocess.run([true], check=True)))
    with tempfile.TemporaryDirectory() as root:
        for role, directory in make_checkouts(Path(root)).items():
            measure(role, directory)


if __name__ == "__main__":
    main()
