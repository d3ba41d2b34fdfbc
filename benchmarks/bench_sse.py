"""How long until every browser has a step, and what does the server spend on it?

One step of 16,384 records is appended while N clients are connected; the clients discard what they
read. Budgets: the last of 100 clients has everything within 400 ms; at least 4 million events a
second; 1,000 idle clients fit into 150 MiB. Server and clients share the machine's cores.
"""

from __future__ import annotations

import os
import platform
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from records import sae_columns

from aegir_adapters.trainer.rows import RowEncoder
from aegir_stream.testing import make_append

RECORDS = 16_384
ROUNDS = 5
CLIENTS = (1, 10, 100)


class Client:
    """A connection that counts events and throws them away."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        request = f"GET /api/p5/sae/stream?from=now HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
        self.socket.sendall(request.encode())
        # Only what is appended after this is the client's to see.
        greeting = b""
        while b"event: source" not in greeting:
            greeting += self.socket.recv(1 << 16)
        self.socket.setblocking(False)
        self.records = 0
        self._last = b""

    def read(self, buffer: bytearray) -> None:
        """Count the records in what has arrived."""
        size = self.socket.recv_into(buffer)
        data = self._last + bytes(memoryview(buffer)[:size])
        self.records += data.count(b'\ndata: {"step"')
        self._last = data[-13:] if not data.endswith(b'\ndata: {"step"') else b""


def wait(clients: list[Client], records: int) -> None:
    """Read until every client has seen `records` records."""
    selector, buffer = selectors.DefaultSelector(), bytearray(1 << 20)
    for client in clients:
        selector.register(client.socket, selectors.EVENT_READ, client)
    waiting = {id(client) for client in clients if client.records < records}
    while waiting:
        for key, _ in selector.select(1.0):
            key.data.read(buffer)
            if key.data.records >= records:
                waiting.discard(id(key.data))
    selector.close()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(server: subprocess.Popen[str], port: int, live: Path, *, count: int) -> None:
    """Append a few steps while `count` clients read, and print what it took."""
    clients = [Client(port) for _ in range(count)]
    taken: list[float] = []
    spent: list[float] = []
    data = RowEncoder().encode(sae_columns(tokens=RECORDS // 4, layers=4))
    with live.open("ab", buffering=0) as file:
        file.write(make_append().data)
        wait(clients, 1)
        for number in range(1, ROUNDS + 1):
            before, began = cpu_seconds(server.pid), time.perf_counter()
            file.write(data)
            wait(clients, 1 + number * RECORDS)
            taken.append(time.perf_counter() - began)
            spent.append(cpu_seconds(server.pid) - before)
    for client in clients:
        client.socket.close()
    last_ms, cpu = 1e3 * statistics.median(taken), statistics.median(spent)
    rate = count * RECORDS / max(cpu, 0.01) / 1e6
    verdict = ""
    if count == 100:
        verdict = "  " + ("within" if last_ms <= 400 else "MISSED") + " 400 ms"
        verdict += ", " + ("within" if rate >= 4 else "MISSED") + " 4 million events/s"
    print(f"{count:7} {last_ms:12.0f} {cpu:12.2f} {rate:12.2f}{verdict}", flush=True)


def idle_clients(server: subprocess.Popen[str], port: int, *, count: int) -> None:
    """Connect many clients that wait, and print the server's memory."""
    clients = [Client(port) for _ in range(count)]
    mib = resident_mib(server.pid)
    verdict = "within" if mib <= 150 else "MISSED"
    print(f"{len(clients)} idle clients: {mib:.0f} MiB resident  {verdict} 150 MiB")


def main() -> None:
    """Serve a run in another process and measure."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, {RECORDS:,} records a step, {ROUNDS} steps")
    with tempfile.TemporaryDirectory() as root:
        live = Path(root, "sae_features.live.jsonl")
        live.write_bytes(make_append().data)
        command = [sys.executable, "-m", "aegir_adapters.cli", "serve", root, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            if server.stdout is None:
                raise SystemExit("the server has no output")
            port = int(server.stdout.readline().split(" (")[0].rpartition(":")[2])
            print("clients  last has ms server CPU s  M ev/CPU s")
            for count in CLIENTS:
                measure(server, port, live, count=count)
            idle_clients(server, port, count=800)
            server.terminate()


if __name__ == "__main__":
    main()
