from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aegir_stream import codec
from aegir_stream.layout import RunDirectory
from core.runs import Life

AEGIR = [sys.executable, "-m", "aegir_adapters.cli"]


def aegir(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [*AEGIR, *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AEGIR_")}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, env=environment
    )


@contextmanager
def started(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start a command; interrupt it at the end if it still runs."""
    command = [*AEGIR, *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A run with a checkpoint and a live tail."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    life.record_step()
    life.save()
    life.record_step()
    return life


def data(life: Life) -> list[str]:
    """Return the lines of the surviving records."""
    return [codec.encode(record).decode().rstrip("\n") for record in life.surviving]


def test_tail_prints_what_is_there(life: Life) -> None:
    """`--from start --no-follow` prints every surviving record once and ends."""
    done = aegir("tail", life.run.root, "--from", "start", "--no-follow")

    assert done.returncode == 0
    assert done.stdout.splitlines() == data(life)
    assert done.stderr == ""


def test_tail_selects(life: Life) -> None:
    """Steps, layers and features narrow what is printed."""
    root = life.run.root
    by_step = aegir("tail", root, "--from", "start", "--no-follow", "--step-max", "1")
    by_layer = aegir("tail", root, "--no-follow", "--layer", "5")
    by_feature = aegir("tail", root, "--from", "start", "--no-follow", "--feature", "9")

    assert by_step.stdout.splitlines() == data(life)[:3]
    assert by_layer.stdout == ""
    assert [json.loads(line)["token_index"] for line in by_feature.stdout.splitlines()] == [2, 2]


def test_tail_follows_across_a_checkpoint_until_the_run_is_closed(life: Life) -> None:
    """A follower prints records as they come, misses none at a seal, and ends with the run."""
    with started("tail", life.run.root) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        life.record_step()
        life.save()
        life.record_step()
        life.finish()
        rest = process.stdout.read()
        assert process.wait(timeout=30) == 0

    assert [first.rstrip("\n"), *rest.splitlines()] == data(life)[3:]


def test_tail_resumes_from_a_cursor(life: Life) -> None:
    """`--from` takes the id of any event and goes on behind it."""
    from aegir_stream.source import RunSource  # noqa: PLC0415
    from core.runs import cursors_in, drain  # noqa: PLC0415 - beside its only use

    cursors = cursors_in(drain(RunSource(life.run, start="start")))
    done = aegir("tail", life.run.root, "--from", cursors[3], "--no-follow")

    assert done.stdout.splitlines() == data(life)[4:]


def test_tail_ends_quietly_when_its_reader_has_enough(life: Life) -> None:
    """`aegir tail RUN | head -1` prints one line and no complaint."""
    for _ in range(200):
        life.record_step(50)
    tail = f"{' '.join(AEGIR)} tail {life.run.root} --from start --no-follow"
    command = f"set -o pipefail; {tail} | head -1"
    done = subprocess.run(
        ["bash", "-c", command], check=False, capture_output=True, text=True, timeout=60
    )

    assert done.stdout.splitlines() == data(life)[:1]
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["tail", "{run}", "--from", "yesterday"], ["yesterday", "--from", "checkpoint"]),
        (["tail", "{run}/nowhere"], ["nowhere", "does not exist", "AEGIR_P5_OUTPUT_DIR"]),
        (["replay", "{run}", "--until", "soon"], ["soon", "checkpoint"]),
        (["inspect", "{run}/nowhere"], ["nowhere", "does not exist"]),
        (["serve", "{run}", "--host", "::"], ["::", "loopback"]),
    ],
)
def test_errors_are_one_line_that_names_thing_value_and_remedy(
    life: Life, arguments: list[str], named: list[str]
) -> None:
    """A failing command exits with 1, prints no traceback, and says what to do."""
    done = aegir(*(argument.format(run=life.run.root) for argument in arguments))

    assert done.returncode == 1
    assert done.stderr.startswith("aegir: ")
    assert len(done.stderr.splitlines()) == 1
    for word in named:
        assert word in done.stderr


def test_a_wrong_command_line_exits_with_two(life: Life) -> None:
    """Usage errors are told apart from failures."""
    assert aegir("tail", life.run.root, "--every", "0").returncode == 2
    assert aegir("sing").returncode == 2


def test_a_port_in_use_is_named(life: Life) -> None:
    """The refusal names the port, its holder, and how to choose another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = aegir("serve", life.run.root, "--port", str(port))

    assert done.returncode == 2
    assert str(port) in done.stderr
    assert f"process {os.getpid()}" in done.stderr
    assert "--port" in done.stderr


def test_serve_answers_and_ends_by_interrupt(life: Life) -> None:
    """The address is printed, the table of checkpoints is there, Ctrl-C ends it at once."""
    from urllib.request import urlopen  # noqa: PLC0415 - beside its only use

    with started("serve", life.run.root, "--port", "0") as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" is at ")[1].split(" ")[0]
        with urlopen(f"{address}/api/p5/runs", timeout=10) as answer:  # noqa: S310 - our own
            table = json.load(answer)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=10)

    assert (table["count"], table["rows"][0]["n_sae_records"]) == (1, 3)


def test_replay_prints_rows(life: Life) -> None:
    """The heat map comes as one object per layer and step; `--until` cuts it off."""
    done = aegir("replay", life.run.root, "--view", "heatmap", "--until", "checkpoint-1")

    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["step"], row["layer"], row["records"]) for row in rows] == [(1, 0, 3)]


def test_inspect_counts_every_segment(life: Life) -> None:
    """Each segment is listed with its records, and whether it survives."""
    life.kill(torn=b"{")
    life.resume("checkpoint-1")
    done = aegir("inspect", life.run.root, "--json")

    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = [(r["source"], r["records"], r["damaged"], r["survives"]) for r in rows]
    assert found == [
        ("snapshot:checkpoint-1", 3, 0, True),
        ("history:00002", 3, 1, False),
        ("live", 0, 0, True),
    ]


def test_runs_lists_what_lies_under_a_directory(life: Life) -> None:
    """Runs are found below a directory, and a run is found as itself."""
    below = aegir("runs", life.run.root.parent, "--json")
    itself = aegir("runs", life.run.root, "--json")

    assert below.stdout == itself.stdout
    assert json.loads(itself.stdout)["records_sealed"] == 3


def test_a_directory_without_runs_is_told(tmp_path: Path) -> None:
    """Where nothing was recorded, listing says so and folding is an error that says what to do."""
    listed = aegir("runs", tmp_path)
    folded = aegir("replay", tmp_path)

    assert (listed.returncode, listed.stdout) == (0, "")
    assert str(tmp_path) in listed.stderr
    assert folded.returncode == 1
    assert "holds no log" in folded.stderr


def test_tables_are_legible_at_80_columns(life: Life) -> None:
    """On a terminal every figure stands on one line, uncut."""
    table = (
        "import sys; sys.stdout.isatty = lambda: True\n"
        f"sys.argv = ['aegir', 'inspect', {str(life.run.root)!r}]\n"
        "from aegir_adapters.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", table],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "80"},
    )

    assert "…" not in done.stdout
    for column in ("file", "attempt", "survives", "records", "dropped", "damaged"):
        assert column in done.stdout


def test_version_names_the_program() -> None:
    """The version is that of the distribution."""
    assert aegir("version").stdout.startswith("aegir-stream 0.1.0\n")


@pytest.mark.parametrize(
    ("module", "command", "extra"), [("starlette", "serve", "web"), ("trl", "demo", "demo")]
)
def test_a_missing_extra_is_named_with_its_remedy(
    tmp_path: Path, module: str, command: str, extra: str
) -> None:
    """A command whose libraries are not installed says which, and how to install them."""
    program = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['aegir', {command!r}]; "
        "from aegir_adapters.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )

    assert done.returncode == 1
    expected = f"aegir: {module} is not installed. Install it with: "
    assert done.stderr == f"{expected}pip install 'aegir-stream[{extra}]'\n"


def test_a_damaged_manifest_does_not_hide_a_run(life: Life) -> None:
    """`inspect` and `runs` show what the log holds without it."""
    life.run.manifest_path.write_bytes(b"damaged")
    inspected, listed = aegir("inspect", life.run.root), aegir("runs", life.run.root)

    assert (inspected.returncode, listed.returncode) == (0, 0)
    assert [json.loads(line)["records"] for line in inspected.stdout.splitlines()] == [3, 3]
    assert json.loads(listed.stdout)["records_sealed"] == 3
