"""Browsers that stopped reading: what they cost the server, and what they get afterwards."""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from aegir_stream.layout import RunDirectory
from aegir_stream.sinks import JournalSink
from core.resident import memory_mib
from core.runs import drive
from soak.oracle import SoakError
from soak.processes import PATIENCE_S, Process
from soak.weights import heavy_append

ALLOWED_MIB = 100.0
"""What the server may need beside what it needs before anybody connects."""

_RECEIVE_BYTES = 1 << 20
_LAST_ID = re.compile(rb".*^id: ([^\n]*)$", re.MULTILINE | re.DOTALL)


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What a crowd of stalled clients cost."""

    clients: int
    records: int
    megabytes: float
    baseline_mib: float
    stalled_mib: float
    peak_mib: float
    reconnects: int
    seconds: float

    def __str__(self) -> str:
        """Return it as one line."""
        return (
            f"{self.clients} stalled clients, {self.megabytes:.0f} MB each: server "
            f"{self.baseline_mib:.0f} MiB before, {self.stalled_mib:.0f} while they stalled, "
            f"{self.peak_mib:.0f} at most; all complete after {self.seconds:.0f} s, "
            f"{self.reconnects} reconnects"
        )


class Browser:
    """A client that reads when it is told to, and comes back when it is let go.

    Attributes:
        records: complete events that were records.
        ended: whether the server said that the run is closed.
        connections: how often it connected.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._last_id = b""
        self._rest = b""
        self.records = 0
        self.ended = False
        self.connections = 0
        self.connect()

    def connect(self) -> None:
        """Ask for the stream, from the start or behind the last id, with a small buffer."""
        self._rest = b""
        self.connections += 1
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        self.socket.connect(("127.0.0.1", self._port))
        last = b"Last-Event-ID: %b\r\n" % self._last_id if self._last_id else b""
        self.socket.sendall(
            b"GET /api/p5/sae/stream?from=start HTTP/1.0\r\nHost: localhost\r\n%b\r\n" % last
        )

    def hurry(self) -> None:
        """Take more at a time from now on."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)

    def read(self) -> bool:
        """Take what has arrived; return whether the connection still stands."""
        try:
            data = self.socket.recv(_RECEIVE_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            self.socket.close()
            return False
        whole, blank, self._rest = (self._rest + data).rpartition(b"\n\n")
        whole = b"\n" + whole + blank
        self.records += whole.count(b'\ndata: {"step"') - whole.count(b"\nevent: checkpoint")
        self.ended = self.ended or b"\nevent: closed\n" in whole
        if found := _LAST_ID.match(whole[-4096:]):
            self._last_id = found[1]
        return True


def stall(root: Path, *, clients: int, mib: int) -> Served:
    """Let clients connect and stop reading while much is written, then let them read to the end.

    Raises:
        SoakError: the server needed too much, or a client did not get everything.
    """
    run = RunDirectory.at(root)
    sink, append = JournalSink(run), heavy_append()
    drive(sink.open())
    with_server = Process("soak.server", root, kind=int)
    try:
        appends = max(2, (mib << 20) // len(append.data))
        drive(sink.write(append))
        port = with_server.hear()[0]
        baseline_mib = with_server.resident_mib()
        browsers = [Browser(port) for _ in range(clients)]
        try:
            # Everybody is being served before the rest is written.
            _await_data(browsers)
            for _ in range(appends - 1):
                drive(sink.write(append))
            drive(sink.aclose())
            stalled_mib = _highest_of(with_server)
            started = time.monotonic()
            _read_all(browsers, lambda: _check(with_server, baseline_mib))
        finally:
            for browser in browsers:
                browser.socket.close()
        return Served(
            clients=clients,
            records=_complete(browsers, appends * append.records),
            megabytes=appends * len(append.data) / 1e6,
            baseline_mib=baseline_mib,
            stalled_mib=stalled_mib,
            peak_mib=_check(with_server, baseline_mib),
            reconnects=sum(browser.connections - 1 for browser in browsers),
            seconds=time.monotonic() - started,
        )
    finally:
        with_server.close()


def _await_data(browsers: list[Browser]) -> None:
    with selectors.DefaultSelector() as selector:
        for browser in browsers:
            selector.register(browser.socket, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(PATIENCE_S)
            if not ready:
                raise SoakError("a client is not answered")
            for key, _ in ready:
                selector.unregister(key.fileobj)


def _read_all(browsers: list[Browser], check: Callable[[], object]) -> None:
    for browser in browsers:
        browser.hurry()
    with selectors.DefaultSelector() as selector:
        for browser in browsers:
            selector.register(browser.socket, selectors.EVENT_READ, browser)
        while selector.get_map():
            ready = selector.select(PATIENCE_S)
            if not ready:
                raise SoakError(f"{len(selector.get_map())} clients wait for ever")
            check()
            for key, _ in ready:
                browser = key.data
                if browser.read():
                    continue
                selector.unregister(browser.socket)
                if not browser.ended:
                    browser.connect()
                    selector.register(browser.socket, selectors.EVENT_READ, browser)


def _complete(browsers: list[Browser], records: int) -> int:
    counts = {browser.records for browser in browsers}
    if counts != {records}:
        raise SoakError(f"clients got {sorted(counts)} records, of {records}")
    return records


def _check(server: Process[int], baseline_mib: float) -> float:
    peak_mib = _highest_of(server)
    if peak_mib > baseline_mib + ALLOWED_MIB:
        raise SoakError(f"the server grew from {baseline_mib:.0f} to {peak_mib:.0f} MiB")
    return peak_mib


def _highest_of(server: Process[int]) -> float:
    return memory_mib("VmHWM", str(server.pid))
