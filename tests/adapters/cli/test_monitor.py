from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegir_stream.progress import ProgressFeed

AEGIR = [sys.executable, "-m", "aegir_adapters.cli"]
PATIENCE_S = 60.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SECOND_SCREEN, FIRST_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"

FEEDER = """
import sys
from aegir_stream.progress import ProgressFeed

with ProgressFeed(sys.argv[1], total=10) as feed:
    for number, line in enumerate(sys.stdin, start=1):
        feed.append(iter=number, score=float(line))
"""


def environment(**changed: str) -> dict[str, str]:
    """Return the environment without what would change the display."""
    odd = ("AEGIR_", "NO_COLOR", "FORCE_COLOR", "TTY_", "COLUMNS", "LINES", "TERM", "COLORTERM")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(odd)}
    return kept | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | changed


def monitor(*arguments: str | Path, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run the monitor into a pipe, to its end."""
    return subprocess.run(
        [*AEGIR, "monitor", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment(**changed),
    )


class PseudoTerminal:
    """A monitor in a terminal of its own.

    Attributes:
        process: the monitor.
        output: what it has sent to the terminal.
    """

    def __init__(
        self, *arguments: str | Path, columns: int = 100, keys: bool = True, **changed: str
    ) -> None:
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
        self.before = self.modes()
        self.output = ""
        self.process = subprocess.Popen(
            [*AEGIR, "monitor", "--interval", "0.1", *map(str, arguments)],
            stdin=self._theirs if keys else subprocess.DEVNULL,
            stdout=self._theirs,
            stderr=self._theirs,
            # A group of its own, with a parent in its session: else Ctrl-Z could not stop it.
            process_group=0,
            env=environment(**changed),
        )

    def modes(self) -> list[object]:
        """Return the modes of the terminal."""
        return termios.tcgetattr(self._theirs)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._ours, keys.encode())

    def expect(self, pattern: str) -> str:
        """Read until the text, without its escapes, matches; return what was read for that."""
        deadline, begin = time.monotonic() + PATIENCE_S, len(self.output)
        while not re.search(pattern, text := ESCAPES.sub("", self.output[begin:])):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} not in {text!r}"
            self._read(left)
        return text

    def wait(self) -> int:
        """Read to the end of the process; return its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.returncode

    def hang_up(self) -> int:
        """Close the terminal as a broken connection does; return the exit code."""
        os.close(self._ours)
        self._ours = -1
        self.process.send_signal(signal.SIGHUP)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End the process, close the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        for fd in (self._ours, self._theirs):
            with contextlib.suppress(OSError):
                os.close(fd)

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], timeout_s)
        if ready:
            self.output += os.read(self._ours, 1 << 16).decode("utf-8", "replace")
        return bool(ready)


@contextlib.contextmanager
def terminal(
    *arguments: str | Path, columns: int = 100, keys: bool = True, **changed: str
) -> Iterator[PseudoTerminal]:
    """Start a monitor in a terminal; end both."""
    opened = PseudoTerminal(*arguments, columns=columns, keys=keys, **changed)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a finished run and one of a foreign program."""
    with ProgressFeed(tmp_path / "evolve" / "first", total=3) as feed:
        for number in range(1, 4):
            feed.append(iter=number, score=number / 4, cost=number * 0.5, calls=number)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "progress.jsonl").write_text('{"iter": 7, "score": -1.5}\n')
    return tmp_path


# -- the report ------------------------------------------------------------------------------------


def test_into_a_pipe_goes_one_plain_line_for_each_run(root: Path) -> None:
    """Where the output is no terminal, there is one report, and no escape codes."""
    done = monitor(root)

    assert (done.returncode, done.stderr) == (0, "")
    first, foreign = done.stdout.splitlines()
    assert re.fullmatch(
        r"finished  evolve/first  iteration 3/3  score 0\.7500  best 0\.7500  (rate \S+  )?"
        r"cost 1\.500  calls 3  elapsed \d+s",
        first,
    )
    assert foreign == "live      foreign       iteration 7  score -1.500  best -1.500"


def test_the_report_is_plain_whatever_the_environment_asks_for(root: Path) -> None:
    """Even where colours are forced on other programs, the report stays what it was."""
    assert monitor(root, FORCE_COLOR="1").stdout == monitor(root, "--once").stdout


def test_a_name_that_the_output_cannot_encode_is_printed(tmp_path: Path) -> None:
    """A report never fails for a character."""
    with ProgressFeed(tmp_path / "naïve") as feed:
        feed.append(iter=1)
    done = monitor(tmp_path, PYTHONIOENCODING="ascii")

    assert (done.returncode, done.stderr) == (0, "")
    assert "na?ve" in done.stdout


def test_runs_are_those_of_the_environment_if_none_is_named(root: Path) -> None:
    """Like the other commands, it looks where `AEGIR_P5_OUTPUT_DIR` says."""
    done = monitor(AEGIR_P5_OUTPUT_DIR=str(root / "foreign"))

    assert done.stdout.startswith("live      foreign  iteration 7")


def test_an_unknown_run_is_an_error(tmp_path: Path) -> None:
    """A directory that is not there is named in one line; one without runs is no error."""
    missing, empty = monitor(tmp_path / "no-such-run"), monitor(tmp_path)

    assert missing.returncode == 1
    assert missing.stderr.startswith("aegir: Expected a run directory, got `")
    assert "Traceback" not in missing.stderr
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, "", "No run is there\n")


# -- the display -----------------------------------------------------------------------------------


def test_rows_change_as_another_process_feeds_a_run(root: Path) -> None:
    """What another process appends is shown, until `q`; then the terminal is as it was."""
    run = root / "evolve" / "second"
    with (
        terminal(root) as screen,
        subprocess.Popen(
            [sys.executable, "-c", FEEDER, str(run)], stdin=subprocess.PIPE, text=True
        ) as feeder,
    ):
        assert feeder.stdin is not None
        screen.expect("live +evolve/second +0/10 ")
        assert screen.modes() != screen.before
        feeder.stdin.write("0.25\n")
        feeder.stdin.flush()
        screen.expect(r"live +evolve/second +1/10 +▄ .* 0\.2500 +0\.2500 ")
        feeder.stdin.write("0.75\n0.5\n")
        feeder.stdin.flush()
        screen.expect(r"live +evolve/second +3/10 +▁█▅ .* 0\.5000 +0\.7500 ")
        feeder.stdin.close()
        screen.expect("finished +evolve/second")
        screen.press("q")
        assert screen.wait() == 0

        assert screen.modes() == screen.before
        drawn, left, printed = screen.output.partition(FIRST_SCREEN)
        assert SECOND_SCREEN in drawn
        assert left
        assert HIDE in drawn
        assert SHOW in screen.output[drawn.rindex(HIDE) :]
        assert re.search("finished +evolve/second", ESCAPES.sub("", printed))


def test_s_changes_the_order(root: Path) -> None:
    """The key goes through the orders and says which one it is."""
    with terminal(root) as screen:
        screen.expect("s sort: activity")
        screen.press("s")
        by_name = screen.expect("s sort: name")
        screen.press("s")
        screen.expect("s sort: best")
        screen.press("ss")
        by_activity = screen.expect("s sort: activity")
        screen.press("q")
        assert screen.wait() == 0

    assert by_name.index("evolve/first") < by_name.index("foreign")
    assert by_activity.rindex("foreign") < by_activity.rindex("evolve/first")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_the_terminal_as_it_was(
    root: Path, number: signal.Signals, code: int
) -> None:
    """Modes, cursor and first screen come back, and the exit code tells the signal."""
    with terminal(root) as screen:
        screen.expect("q quit")
        screen.process.send_signal(number)

        assert screen.wait() == code
        assert screen.modes() == screen.before
        assert screen.output.rindex(FIRST_SCREEN) > screen.output.rindex(SECOND_SCREEN)
        assert screen.output.rindex(SHOW) > screen.output.rindex(HIDE)
        assert "Traceback" not in screen.output


def test_a_stopped_monitor_comes_back(root: Path) -> None:
    """Ctrl-Z gives the terminal back to the shell; the display is drawn anew when it goes on."""
    with terminal(root) as screen:
        screen.expect("q quit")
        screen.process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(screen.process.pid, os.WUNTRACED)
        stopped = os.WIFSTOPPED(status)
        modes = screen.modes()
        screen.process.send_signal(signal.SIGCONT)
        screen.expect("q quit")
        screen.press("q")

        assert stopped
        assert modes == screen.before
        assert screen.wait() == 0
        assert screen.output.count(SECOND_SCREEN) == screen.output.count(FIRST_SCREEN) == 2


def test_a_failure_leaves_the_terminal_as_it_was(root: Path, tmp_path: Path) -> None:
    """Also an error in the monitor itself gives the terminal back, then it is told."""
    broken = tmp_path / "patches"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import aegir_adapters.monitor.display as display\n"
        "def draw(*_, **__): raise ValueError('broken on purpose')\n"
        "display.draw = draw\n"
    )
    with terminal(root, PYTHONPATH=str(broken)) as screen:
        assert screen.wait() == 1
        assert "broken on purpose" in screen.output.partition(FIRST_SCREEN)[2]
        assert screen.modes() == screen.before


def test_a_terminal_that_is_gone_ends_it(root: Path) -> None:
    """When the connection breaks, nothing is left running."""
    with terminal(root) as screen:
        screen.expect("q quit")
        assert screen.hang_up() == 129


def test_without_keys_it_is_interrupted(root: Path) -> None:
    """Where standard input is no terminal, the display says how to quit."""
    with terminal(root, keys=False) as screen:
        screen.expect("Ctrl-C quits")
        screen.process.send_signal(signal.SIGINT)
        assert screen.wait() == 130


def test_a_resized_terminal_is_drawn_anew(root: Path) -> None:
    """A change of the size is answered at once, with the columns that fit then."""
    with terminal(root, columns=40) as screen:
        narrow = screen.expect("q quit")
        fcntl.ioctl(screen._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 160, 0, 0))
        screen.process.send_signal(signal.SIGWINCH)
        wide = screen.expect("q quit")
        screen.press("q")
        assert screen.wait() == 0

    assert "elapsed" not in narrow
    assert "elapsed" in wide


def test_colours_and_blocks_are_only_where_they_are_wanted(root: Path) -> None:
    """`NO_COLOR` is respected, and an encoding without blocks is sent none."""
    colour = re.compile(r"\x1b\[(?:\d+;)*3[0-7][;m]")
    screens = []
    for no_colour, encoding in (("", "utf-8"), ("1", "ascii")):
        with terminal(root, NO_COLOR=no_colour, PYTHONIOENCODING=encoding) as screen:
            screen.expect("q quit")
            screen.press("q")
            assert screen.wait() == 0
            screens.append(screen.output)

    assert colour.search(screens[0])
    assert "▁" in screens[0]
    assert not colour.search(screens[1])
    assert screens[1].isascii()


def test_nothing_is_sent_while_nothing_changes(tmp_path: Path) -> None:
    """An idle display is silent, which counts over a slow connection."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "progress.jsonl").write_text(json.dumps({"iter": 1, "score": 1}) + "\n")
    with terminal(tmp_path, columns=80) as screen:
        screen.expect("q quit")
        while screen._read(0.05):
            pass
        screen.press("x")
        # Ten looks: a display that draws at each would be noticed.
        assert not screen._read(1.0)
        screen.press("q")
        assert screen.wait() == 0


def test_a_dumb_terminal_gets_the_report(root: Path) -> None:
    """Where nothing can be drawn over, the report is printed."""
    with terminal(root, TERM="dumb") as screen:
        assert screen.wait() == 0
        assert "\x1b" not in screen.output
        assert screen.output.splitlines()[1].startswith("live      foreign")
