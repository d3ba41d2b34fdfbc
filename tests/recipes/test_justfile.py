from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from recipes.checkouts import Checkouts, environment, just
from recipes.programs import free_port, is_listening, started, tiny_preset

pytestmark = pytest.mark.skipif(
    shutil.which("just", path=environment()["PATH"]) is None,
    reason="needs just (PyPI: rust-just, part of the dev extra)",
)

DEFAULT_DIRECTORY = Path("/raid/checkpoints/p5")
ALLOWED = {"ALLOW_SECONDARY": "1"}


def files_below(directory: Path) -> set[Path]:
    """Return every file below a directory."""
    return {path for path in directory.rglob("*") if path.is_file()}


def test_whoami_tells_the_role_of_each_checkout(checkouts: Checkouts) -> None:
    """Where nothing is installed as well."""
    for directory, role in ((checkouts.primary, "primary"), (checkouts.secondary, "secondary")):
        told = just(directory, "whoami", "--json")
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["role"] == role
        (directory / ".venv").unlink()
        assert just(directory, "whoami").stdout.strip() == role


@pytest.mark.parametrize(
    ("recipe", "resource", "variable"),
    [
        ("gateway", "port 8091", "AEGIR_GATEWAY_PORT"),
        ("p5-train", "/raid/checkpoints/p5", "AEGIR_P5_OUTPUT_DIR"),
    ],
)
def test_a_guarded_recipe_refuses_in_a_secondary_checkout(
    checkouts: Checkouts, recipe: str, resource: str, variable: str
) -> None:
    """Exit code 2 and both names: without leave, and with leave but with what is the primary's."""
    before = files_below(checkouts.primary.parent)
    was_there = DEFAULT_DIRECTORY.exists()
    for allowed in ({}, ALLOWED, {**ALLOWED, variable: ""}, {"ALLOW_SECONDARY": "yes"}):
        refused = just(checkouts.secondary, recipe, overrides=allowed)

        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert resource in refused.stderr
        assert variable in refused.stderr
    assert files_below(checkouts.primary.parent) == before
    assert DEFAULT_DIRECTORY.exists() == was_there


def test_the_guard_sees_what_reaches_the_process(checkouts: Checkouts) -> None:
    """A variable of its own is no leave for an option that names what is the primary's."""
    elsewhere = checkouts.primary.parent / "own"
    own = {**ALLOWED, "AEGIR_P5_OUTPUT_DIR": str(elsewhere), "AEGIR_GATEWAY_PORT": "8092"}
    for arguments in (
        ["gateway", "--port", "8091"],
        ["p5-train", "--output-dir", str(DEFAULT_DIRECTORY)],
        ["p5-train", "--output-dir", str(checkouts.primary / "runs" / "1")],
    ):
        refused = just(checkouts.secondary, *arguments, overrides=own)
        assert refused.returncode == 2, refused.stdout + refused.stderr
    assert not elsewhere.exists()


def test_a_gateway_runs_in_a_secondary_on_a_port_of_its_own(
    checkouts: Checkouts, tmp_path: Path
) -> None:
    """There and nowhere else; Ctrl-C ends it."""
    port = free_port()
    own = {**ALLOWED, "AEGIR_GATEWAY_PORT": str(port)}
    with started(
        checkouts.secondary, "gateway", str(tmp_path / "run"), overrides=own, says=str(port)
    ):
        answer = httpx.get(f"http://127.0.0.1:{port}/api/p5/runs").json()
        assert answer["p5_dir"] == str(tmp_path / "run")
        assert not is_listening(8091)
    assert not is_listening(port)


def test_up_starts_gateway_and_pages_in_the_primary_only(
    checkouts: Checkouts, tmp_path: Path
) -> None:
    """In a secondary checkout it is safe to call: it says what to do, and starts nothing."""
    port = free_port()
    own = {"AEGIR_GATEWAY_PORT": str(port), "AEGIR_P5_OUTPUT_DIR": str(tmp_path / "run")}
    hint = just(checkouts.secondary, "up", overrides=own)
    assert hint.returncode == 0, hint.stderr
    assert "ui-dev" in hint.stdout
    assert not is_listening(port)

    with started(checkouts.primary, "up", overrides=own, says="The pages of") as up:
        told = next(line for line in up.lines if b"The pages of" in line).decode()
        pages = next(word for word in told.split() if word.startswith("http://"))
        for address in (f"http://127.0.0.1:{port}", pages):
            assert httpx.get(f"{address}/api/p5/runs").json()["p5_dir"] == str(tmp_path / "run")
    assert not is_listening(port)
    assert not is_listening(int(pages.rpartition(":")[2]))


def test_a_port_that_is_taken_stays_with_its_holder(checkouts: Checkouts) -> None:
    """The refusal names the process; nobody ends it, in whichever checkout."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        for directory, allowed in ((checkouts.primary, {}), (checkouts.secondary, ALLOWED)):
            overrides = {**allowed, "AEGIR_GATEWAY_PORT": port}
            refused = just(directory, "gateway", overrides=overrides)

            assert refused.returncode == 2, refused.stdout + refused.stderr
            assert f"process {os.getpid()}" in refused.stderr
            assert "AEGIR_GATEWAY_PORT" in refused.stderr
        assert is_listening(int(port))


def test_training_in_a_secondary_writes_to_its_own_directory_only(
    checkouts: Checkouts, tmp_path: Path
) -> None:
    """The variable reaches the trainer; a directory that the primary trained into is refused."""
    preset = str(tiny_preset(tmp_path))
    train = ("p5-train", "--policy-preset", preset)
    theirs = {"AEGIR_P5_OUTPUT_DIR": str(tmp_path / "theirs")}
    ours = {**ALLOWED, "AEGIR_P5_OUTPUT_DIR": str(tmp_path / "ours")}

    trained = just(checkouts.primary, *train, overrides=theirs)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    before = files_below(tmp_path)

    refused = just(checkouts.secondary, *train, overrides=ALLOWED | theirs)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert str(checkouts.primary) in refused.stderr
    assert files_below(tmp_path) == before

    trained = just(checkouts.secondary, *train, overrides=ours)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    new = files_below(tmp_path) - before
    assert tmp_path / "ours" / "checkpoint-2" / "sae_features.jsonl" in new
    assert {path for path in new if not path.is_relative_to(tmp_path / "ours")} == set()
    assert not DEFAULT_DIRECTORY.exists()


def test_a_second_trainer_waits_for_the_end_of_the_first(
    checkouts: Checkouts, tmp_path: Path
) -> None:
    """It refuses and names the first; after SIGKILL of the first it starts."""
    own = {"AEGIR_P5_OUTPUT_DIR": str(tmp_path / "run")}
    endless = str(tiny_preset(tmp_path, steps=100_000))
    train = ("p5-train", "--policy-preset", endless)
    with started(checkouts.primary, *train, overrides=own, says="reward"):
        holder = json.loads((tmp_path / "run/aegir_lease.jsonl").read_text())
        pid = holder["process"]["pid"]
        refused = just(checkouts.primary, *train, overrides=own)

        assert refused.returncode == 2, refused.stdout + refused.stderr
        for part in (f"process {pid} on", "started", str(checkouts.primary), "AEGIR_P5_OUTPUT_DIR"):
            assert part in refused.stderr
        os.kill(pid, signal.SIGKILL)

    resume = just(checkouts.primary, *train, "--resume", "--dry-run", overrides=own)
    assert resume.returncode == 0, resume.stdout + resume.stderr


def test_a_role_that_is_none_ends_every_recipe(checkouts: Checkouts) -> None:
    """A misspelt role is no way around the guard."""
    for recipe in ("whoami", "gateway", "p5-train", "ui-dev", "up"):
        refused = just(checkouts.primary, recipe, overrides={"AEGIR_WORKTREE_ROLE": "main"})
        assert refused.returncode != 0
        assert "got `main`" in refused.stderr


def test_the_recipes_have_the_names_that_people_know() -> None:
    """`just` lists them all."""
    listed = json.loads(
        subprocess.run(
            ["just", "--dump", "--dump-format", "json"],
            cwd=Path(__file__).parents[2],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert {"whoami", "gateway", "p5-train", "ui-dev", "sync", "test", "smoke"} <= set(
        listed["recipes"]
    )


def test_no_recipe_or_command_ends_another_process() -> None:
    """Whatever holds a port or a directory is named, never signalled."""
    root = Path(__file__).parents[2]
    sources = [root / "Justfile", root / "devenv.nix", *(root / "bin").iterdir()]
    sources += (root / "adapters").rglob("*.py")
    for path in sources:
        text = path.read_text("utf-8").replace("os.kill(os.getpid(), ", "")
        for word in ("os.kill", "killpg", "fuser", "pkill", "kill -", ".send_signal", "lsof"):
            assert word not in text, f"{path} says {word}"
