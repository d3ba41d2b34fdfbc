"""Sweeps that a page asks for, as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from aegir_adapters.cli import app
from aegir_adapters.cli.sweep_processes import SweepProcesses, arguments_of
from aegir_adapters.web import BusyError, SweepOrder
from aegir_stream.layout import RunDirectory

ORDER = SweepOrder(prompt="41 62 =>", clean_prompt="41 20 =>", answer="SPACE")
PATIENCE_S = 30


def program(code: str) -> tuple[str, ...]:
    """Return a command that takes the place of `aegir`."""
    return (sys.executable, "-c", code)


def ended(starter: SweepProcesses, run: RunDirectory) -> None:
    """Wait for the end of the sweep of a run."""
    starter._made[run.root]._process.wait(PATIENCE_S)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory."""
    return RunDirectory.at(tmp_path)


def test_an_order_is_a_command_line(run: RunDirectory) -> None:
    """Every text is the value of its option, whatever it looks like; empty ones are left out."""
    order = SweepOrder(
        prompt="--help",
        clean_prompt="-x\n; rm -rf /",
        answer="--",
        layers="-1",
        hooks=("z",),
        groups="--json=1",
    )
    arguments = arguments_of(run, order)
    command = typer.main.get_command(app).commands["sweep"]  # type: ignore[attr-defined]
    context = command.make_context("sweep", arguments[1:])
    given = {
        "model": run.root,
        "prompt": "--help",
        "clean": "-x\n; rm -rf /",
        "answer": "--",
        "hooks": "z",
        "layers": "-1",
        "positions": "all",
        "groups": "--json=1",
        "checkpoint": "latest",
        "as_json": True,
    }
    usual = {parameter.name: parameter.get_default(context) for parameter in command.params}
    assert context.params == usual | given


def test_an_order_of_a_latent_is_a_command_line(run: RunDirectory) -> None:
    """Token ids and a latent stand in the place of text, hooks and layers."""
    order = SweepOrder(
        prompt_ids="1,2",
        clean_ids="3,4",
        answer_ids="5",
        foil_ids="6",
        latent="2:448",
        hooks=(),
        layers="",
        preview=True,
    )
    command = typer.main.get_command(app).commands["sweep"]  # type: ignore[attr-defined]
    arguments = arguments_of(run, order)
    params = command.make_context("sweep", arguments[1:]).params
    assert "--hooks" not in " ".join(arguments)
    assert {name: params[name] for name in ("prompt", "hooks", "layers")} == {
        "prompt": None,
        "hooks": None,
        "layers": None,
    }
    assert (params["prompt_ids"], params["clean_ids"]) == ("1,2", "3,4")
    assert (params["answer_ids"], params["foil_ids"]) == ("5", "6")
    assert (params["latent"], params["preview"]) == ("2:448", True)


def test_a_sweep_is_made_in_a_process(run: RunDirectory) -> None:
    """It is running, and then it is not; the order is kept for the form."""
    with SweepProcesses(command=program("import sys; sys.exit(0)")) as starter:
        assert starter.look(run) is None
        starter.start(run, ORDER)
        ended(starter, run)
        made = starter.look(run)
        assert made is not None
        assert (made.order, made.running, made.error) == (ORDER, False, None)
        starter.start(run, ORDER)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (
            "import sys; sys.exit('Loading weights\\naegir: Expected `foil` to be short')",
            "Expected `foil` to be short",
        ),
        ("import sys; sys.exit('Traceback\\nValueError: odd')", "ValueError: odd"),
        ("import os; os._exit(9)", "The sweep ended with exit code 9"),
        ("import os; os.kill(os.getpid(), 9)", "The sweep ended with exit code -9"),
        ("import sys; sys.stderr.buffer.write(b'\\xff' * 99999); sys.exit(3)", "\ufffd"),
    ],
)
def test_what_it_said_last_is_the_error(run: RunDirectory, code: str, error: str) -> None:
    """Without the name of the program; of a great deal only the end is read."""
    with SweepProcesses(command=program(code)) as starter:
        starter.start(run, ORDER)
        ended(starter, run)
        made = starter.look(run)
    assert made is not None
    assert (made.error or "").startswith(error)
    assert len(made.error or "") < 10_000


@pytest.fixture
def waiting(tmp_path: Path) -> tuple[tuple[str, ...], Callable[[], None]]:
    """A command that waits for a signal, and what waits until it does."""
    pipe = tmp_path / "ready"
    os.mkfifo(pipe)
    code = f"import signal; open({str(pipe)!r}, 'w').close(); signal.pause()"
    return program(code), lambda: pipe.open().close()


def test_one_at_a_time_for_each_run(
    run: RunDirectory, tmp_path: Path, waiting: tuple[tuple[str, ...], Callable[[], None]]
) -> None:
    """A second one of the same run is refused; it can be cancelled, which is no failure."""
    command, wait = waiting
    with SweepProcesses(command=command) as starter:
        starter.start(run, ORDER)
        wait()
        made = starter.look(run)
        assert made is not None
        assert made.running
        with pytest.raises(BusyError, match="is being made"):
            starter.start(run, ORDER)
        starter.start(RunDirectory.at(tmp_path / "other"), ORDER)
        wait()
        starter.stop(run)
        ended(starter, run)
        made = starter.look(run)
        assert made is not None
        assert (made.running, made.error) == (False, None)


def test_what_is_left_ends_with_the_server(
    run: RunDirectory, waiting: tuple[tuple[str, ...], Callable[[], None]]
) -> None:
    """No process outlives it."""
    command, wait = waiting
    with SweepProcesses(command=command) as starter:
        starter.start(run, ORDER)
        wait()
        process = starter._made[run.root]._process
    assert process.returncode == -signal.SIGTERM


def test_a_server_that_others_reach_starts_nothing() -> None:
    """It says why; so does one whose libraries are missing, with the command that helps."""
    assert SweepProcesses().refusal() is None
    assert "no passwords" in (SweepProcesses(may_start=False).refusal() or "")
    code = (
        "import importlib.util as u; real = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a); "
        "from aegir_adapters.cli.sweep_processes import SweepProcesses; "
        "print(SweepProcesses().refusal())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == (
        "torch is not installed. Install it with: pip install 'aegir-stream[patching]'"
    )
