"""Break the lines listed in `breakages.toml`, one at a time, and see a test notice each.

Run as `python tests/break_lines.py [WORD]`; with a word, only breakages whose text holds it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Try every breakage; return how many went unnoticed."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    listed = tomllib.loads((ROOT / "tests" / "breakages.toml").read_text("utf-8"))["breakage"]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "tree"
        skipped = shutil.ignore_patterns(
            ".git", ".venv*", "runs", "_build", "__pycache__", ".*_cache"
        )
        shutil.copytree(ROOT, copy, ignore=skipped)
        for breakage in listed:
            if wanted in str(breakage):
                noticed = is_noticed(breakage, copy)
                unnoticed += not noticed
                verdict = "noticed  " if noticed else "UNNOTICED"
                print(f"{verdict} {breakage['file']}: {breakage['breaks']}", flush=True)  # noqa: T201
    return unnoticed


def is_noticed(breakage: dict[str, str], copy: Path) -> bool:
    """Break one line in the copy, run the core's tests, and mend it again."""
    path = copy / breakage["file"]
    whole = path.read_text("utf-8")
    if whole.count(breakage["line"]) != 1:
        raise SystemExit(f"{breakage['file']} does not hold exactly one {breakage['line']!r}")
    broken = whole.replace(breakage["line"], breakage["becomes"])
    compile(broken, str(path), "exec")  # a file that is no Python would be noticed by anything
    path.write_text(broken, "utf-8")
    command = [
        *(sys.executable, "-W", "ignore", "-m", "pytest", "tests/core", "-x", "-q"),
        *("-p", "no:cacheprovider", "--timeout", "60"),
    ]
    environment = {"PYTHONPATH": str(copy), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, check=False, cwd=copy, env=environment, capture_output=True)
    path.write_text(whole, "utf-8")
    # 1: tests failed. Anything else means that they did not run.
    if done.returncode not in {0, 1}:
        raise SystemExit(done.stdout.decode()[-2000:])
    return done.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
