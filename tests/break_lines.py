"""Break the lines listed in `breakages.toml`, one at a time, and see the test beside each notice.

Run as `python tests/break_lines.py [WORD]`; with a word, only breakages whose text holds it. The
tests are first run on the whole tree: one that fails there would notice anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT_S = 90
"""For the test of one breakage; one that takes longer goes round in circles."""


def main() -> int:
    """Try every breakage; return how many went unnoticed."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    listed = tomllib.loads((ROOT / "tests" / "breakages.toml").read_text("utf-8"))["breakage"]
    listed = [breakage for breakage in listed if wanted in str(breakage)]
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "tree"
        skipped = shutil.ignore_patterns(
            ".git", ".venv*", "runs", "_build", "__pycache__", ".*_cache"
        )
        shutil.copytree(ROOT, copy, ignore=skipped)
        unbroken = sorted({breakage["noticed_by"] for breakage in listed})
        if run_tests(copy, unbroken, limit_s=None).returncode:
            raise SystemExit(f"These fail before anything is broken: {' '.join(unbroken)}")
        unnoticed = sum(not is_noticed(breakage, copy) for breakage in listed)
    print(f"{len(listed)} breakages, {unnoticed} unnoticed")  # noqa: T201
    return unnoticed


def is_noticed(breakage: dict[str, str], copy: Path) -> bool:
    """Break one line in the copy, run the test that guards it, and mend it again."""
    path = copy / breakage["file"]
    whole = path.read_text("utf-8")
    if whole.count(breakage["line"]) != 1:
        raise SystemExit(f"{breakage['file']} does not hold exactly one {breakage['line']!r}")
    broken = whole.replace(breakage["line"], breakage["becomes"])
    if path.suffix == ".py":
        compile(broken, str(path), "exec")  # a file that is no Python would be noticed by anything
    path.write_text(broken, "utf-8")
    try:
        done = run_tests(copy, [breakage["noticed_by"]])
    except subprocess.TimeoutExpired:
        noticed = True
    else:
        # 1: tests failed. Anything else means that they did not run.
        if done.returncode not in {0, 1}:
            raise SystemExit(done.stdout.decode()[-2000:])
        noticed = done.returncode == 1
    finally:
        path.write_text(whole, "utf-8")
    verdict = "noticed  " if noticed else "UNNOTICED"
    print(f"{verdict} {breakage['file']}: {breakage['breaks']}", flush=True)  # noqa: T201
    return noticed


def run_tests(
    copy: Path, tests: list[str], *, limit_s: float | None = LIMIT_S
) -> subprocess.CompletedProcess[Any]:
    """Run tests of the copy, on the packages of the copy."""
    command = [
        *(sys.executable, "-W", "ignore", "-m", "pytest", "-x", "-q", "--timeout", "100"),
        *("-p", "no:cacheprovider", *tests),
    ]
    packages = os.pathsep.join([str(copy), str(copy / "adapters")])
    environment = {
        "PYTHONPATH": packages,
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        command, check=False, cwd=copy, env=environment, capture_output=True, timeout=limit_s
    )


if __name__ == "__main__":
    sys.exit(main())
