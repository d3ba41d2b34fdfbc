"""The process that a development server lives in, and its restart when Python code changes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import watchfiles

from aegir_adapters.web.dev.gateway import gateway_url
from aegir_adapters.web.dev.sources import Sources
from aegir_adapters.web.server import address_of, listen

__all__ = ["Supervisor"]

_LOOK_MS = 500
_PATIENCE_S = 5.0


class Supervisor:
    """Keeps a port, and a process that serves the pages on it.

    The port is taken once: a browser that asks while the process is restarted waits, and is
    answered by the next one. The process ends with its standard input, so it never outlives us,
    however we end, and no signal is sent to it.

    Args:
        gateway: address of the gateway.
        sources: where the pages come from.
        host: address to listen on.
        port: port to listen on; 0 for a free one.
        allow_public: listen where other machines can reach it.

    Attributes:
        gateway: address of the gateway.
        address: what to type into a browser.

    Raises:
        OptionError: `gateway` is no address of a server.
        PortInUseError: another process listens on the port.
        PublicAddressError: `host` is not a loopback address and `allow_public` is not set.
    """

    def __init__(
        self,
        gateway: str,
        sources: Sources,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        allow_public: bool = False,
    ) -> None:
        self.gateway = gateway_url(gateway)
        self._sources = sources
        self._socket = listen(host, port=port, allow_public=allow_public)
        self.address = address_of(self._socket)
        self._hosts = ["--any-host"] if allow_public else []

    def run(self, say: Callable[[str], None]) -> None:
        """Serve until interrupted; start the process again when Python code changes.

        Args:
            say: tells what happens, a line each.
        """
        process = self._start()
        told = False
        try:
            for changes in watchfiles.watch(
                *self._sources.packages,
                watch_filter=watchfiles.PythonFilter(),
                rust_timeout=_LOOK_MS,
                yield_on_timeout=True,
            ):
                if changes:
                    _end(process)
                    process, told = self._start(), False
                    say(f"{_names(changes)} changed, started again")
                elif process.poll() is not None and not told:
                    told = True
                    say("Nothing is served, see above. Waiting until a Python file changes")
        finally:
            _end(process)
            self._socket.close()

    def _start(self) -> subprocess.Popen[bytes]:
        port = self._socket.fileno()
        module = ["-P", "-m", "aegir_adapters.web.dev"]
        options = ["--fd", str(port), "--gateway", self.gateway, *self._hosts]
        first = os.pathsep.join(map(str, self._sources.roots))
        path = os.pathsep.join(filter(None, (first, os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, *module, *options],
            stdin=subprocess.PIPE,
            pass_fds=[port],
            env={**os.environ, "PYTHONPATH": path},
            # Ctrl-C reaches all processes of a group; this one ends when we say so.
            process_group=0,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have our process end, by the end of its input."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _names(changes: set[tuple[watchfiles.Change, str]]) -> str:
    return ", ".join(sorted({os.path.basename(path) for _, path in changes}))  # noqa: PTH119
