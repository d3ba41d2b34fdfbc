"""Sweeps that a page asks for, each in a process of its own: `aegir sweep`.

So the server needs neither torch nor memory for a model, and a sweep that goes wrong takes nothing
with it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from aegir_adapters.web import BusyError, Starting, SweepOrder
from aegir_stream.errors import MissingExtraError
from aegir_stream.layout import RunDirectory

__all__ = ["SweepProcesses", "arguments_of"]

_NEEDED = ("torch", "transformers")
_LAST_BYTES = 8192
_PATIENCE_S = 10.0
_PUBLIC = (
    "This server can be reached by other machines and has no passwords, so it starts no processes"
)


class SweepProcesses:
    """Starts sweeps (see `aegir_adapters.web.SweepStarter`); ends those that are left with it.

    Args:
        may_start: whether those who can reach the server may start processes.
        command: what `aegir` is here.
    """

    def __init__(
        self,
        *,
        may_start: bool = True,
        command: tuple[str, ...] = (sys.executable, "-m", "aegir_adapters.cli"),
    ) -> None:
        self._may_start = may_start
        self._command = command
        self._made: dict[Path, _Making] = {}

    def refusal(self) -> str | None:
        """Return why no sweep can be started, and the remedy; `None` if one can."""
        if not self._may_start:
            return _PUBLIC
        missing = next((name for name in _NEEDED if find_spec(name) is None), None)
        return str(MissingExtraError(missing, extra="patching")) if missing else None

    def start(self, run: RunDirectory, order: SweepOrder) -> None:
        """Start a sweep, which records itself in the run.

        Raises:
            BusyError: one of the run is being made.
            OSError: the system does not let it.
        """
        making = self._made.get(run.root)
        if making is not None and making.is_running:
            raise BusyError("A sweep of this run is being made", hint="Wait for it, or cancel it")
        self._made[run.root] = _Making([*self._command, *arguments_of(run, order)], order)
        if making is not None:
            making.close()

    def look(self, run: RunDirectory) -> Starting | None:
        """Return what became of the newest order for a run; `None` if there was none."""
        making = self._made.get(run.root)
        return making.look() if making is not None else None

    def stop(self, run: RunDirectory) -> None:
        """Cancel the sweep of a run that is being made, if there is one."""
        making = self._made.get(run.root)
        if making is not None:
            making.stop()

    def close(self) -> None:
        """Cancel all that are left, and wait for their ends."""
        for making in self._made.values():
            making.stop()
        for making in self._made.values():
            making.close()
        self._made = {}

    def __enter__(self) -> Self:
        """Return the starter."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel what is left."""
        self.close()


class _Making:
    """One sweep that is made, or was."""

    def __init__(self, command: list[str], order: SweepOrder) -> None:
        self._order = order
        self._stopped = False
        # A file, not a pipe: nobody reads while it writes, and a full pipe would stop it.
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                # Ctrl-C is for the server, which ends what is left; twice would cut its end short.
                process_group=0,
            )
        except OSError:
            self._said.close()
            raise

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def look(self) -> Starting:
        status = self._process.poll()
        failed = status not in (None, 0) and not self._stopped
        return Starting(
            order=self._order, running=status is None, error=self._error() if failed else None
        )

    def stop(self) -> None:
        if self.is_running:
            self._stopped = True
            self._process.terminate()

    def close(self) -> None:
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _error(self) -> str:
        """Return what the sweep said last, without its own name."""
        size = self._said.seek(0, 2)
        self._said.seek(max(0, size - _LAST_BYTES))
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        ours = [line.removeprefix("aegir: ") for line in lines if line.startswith("aegir: ")]
        said = (ours or lines)[-1:]
        return said[0] if said else f"The sweep ended with exit code {self._process.returncode}"


def arguments_of(run: RunDirectory, order: SweepOrder) -> list[str]:
    """Return the command line of an order; no text of it can be taken for another option."""
    named = {
        "checkpoint": order.checkpoint,
        "prompt": order.prompt,
        "clean": order.clean_prompt,
        "answer": order.answer,
        "foil": order.foil,
        "hooks": ",".join(order.hooks),
        "layers": order.layers,
        "positions": order.positions,
        "metric": order.metric,
        "latent": order.latent,
        "prompt-ids": order.prompt_ids,
        "clean-ids": order.clean_ids,
        "answer-ids": order.answer_ids,
        "foil-ids": order.foil_ids,
        "groups": order.groups,
    }
    options = [f"--{name}={text}" for name, text in named.items() if text]
    options += ["--preview"] * order.preview
    return ["sweep", "--json", *options, "--", str(run.root.absolute())]
