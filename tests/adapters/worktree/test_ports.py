from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegir_adapters.worktree import Listener, listener, ports
from aegir_stream.errors import OptionError
from aegir_stream.processes import this_process

LISTENING = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()
"""
ASKING = """
import os, sys
from aegir_adapters.worktree import listener
listener(1)  # the other user may not read what Python loads when it is first needed
os.setuid(65534)
found = listener(int(sys.argv[1]))
print(found.holder, found.uid, found, sep="\\n")
"""
V6ONLY = "only "


def bound(address: str, port: int = 0) -> socket.socket:
    """Return a socket at an address; `only ::` takes no IPv4."""
    host = address.removeprefix(V6ONLY)
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address.startswith(V6ONLY))
    try:
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


@contextlib.contextmanager
def listening(address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Listen at an address; yield the port."""
    with bound(address, port) as server:
        server.listen()
        yield server.getsockname()[1]


@contextlib.contextmanager
def listening_process(directory: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Start a process in a directory that listens; yield the port and it."""
    with subprocess.Popen(
        [sys.executable, "-c", LISTENING, "an argument"],
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process
        process.communicate()


def pid_of(found: Listener | None) -> int:
    """Return the process that listens."""
    assert found is not None
    assert found.holder is not None
    return found.holder.process.pid


def has_ipv6() -> bool:
    """Tell whether this host has an IPv6 loopback address."""
    try:
        bound("::1").close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc/net")


def test_a_free_port_has_no_listener() -> None:
    """Nor has one that is bound only, or one that was listened on before."""
    with bound("127.0.0.1") as server:
        port = server.getsockname()[1]
        assert listener(port) is None
        server.listen()
        assert listener(port)
    assert listener(port) is None


def test_a_connection_is_no_listener() -> None:
    """One that outlives the server that took it keeps nobody from listening."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = server.accept()
    with client, served:
        assert listener(port) is None


@needs_proc
def test_the_process_is_named_with_its_start_and_its_directory(tmp_path: Path) -> None:
    """What one needs to find it: number, start, working directory, command line."""
    before = time.time()
    with listening_process(tmp_path) as (port, process):
        found = listener(port)
        after = time.time()
    assert found is not None
    assert found.holder is not None
    assert found.holder.process.pid == process.pid
    assert found.holder.process.host == this_process().host
    assert found.holder.process.started != this_process().started
    assert found.holder.directory == str(tmp_path)
    assert str(found.holder.command).startswith(f"{Path(sys.executable).name} -c ")
    # The kernel tells the time of the boot in whole seconds.
    assert before - 1.1 <= float(found.holder.since or 0) <= after + 0.1
    assert str(found) == str(found.holder)
    assert listener(port) is None


ADDRESSES = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "only ::"]  # noqa: S104


@needs_ipv6
@pytest.mark.parametrize("there", ADDRESSES)
@pytest.mark.parametrize("wanted", ["127.0.0.1", "0.0.0.0", "::1", "::"])  # noqa: S104
def test_who_is_in_the_way_is_who_keeps_a_server_from_listening(there: str, wanted: str) -> None:
    """Of the same address or of all, IPv4 or IPv6: the kernel would refuse, and no one else."""
    with listening(there) as port:
        found = listener(port, wanted)
        try:
            with listening(wanted, port):
                refused = False
        except OSError:
            refused = True
    assert (found is not None) == refused
    if found:
        assert found.holder is None or found.holder.process == this_process()


@needs_proc
def test_who_listens_on_another_address_is_not_named(tmp_path: Path) -> None:
    """Of the same port; asked for all addresses, either is in the way."""
    with listening_process(tmp_path) as (port, process), listening("127.0.0.2", port):
        hosts = ("127.0.0.1", "127.0.0.2", "0.0.0.0")  # noqa: S104
        found = [pid_of(listener(port, host)) for host in hosts]
    assert found[:2] == [process.pid, os.getpid()]
    assert found[2] in found[:2]


@needs_proc
@needs_ipv6
def test_the_nearest_of_several_is_named(tmp_path: Path) -> None:
    """Before one on all IPv6 addresses, of which the kernel does not say if it takes IPv4."""
    with listening_process(tmp_path) as (port, process), listening("only ::", port):
        assert pid_of(listener(port)) == process.pid
        assert pid_of(listener(port, "::1")) == os.getpid()


def test_a_name_stands_for_its_addresses() -> None:
    """As `localhost` does; an empty one for all of them."""
    with listening() as port:
        assert listener(port, "localhost")
        assert listener(port, "")


@needs_proc
def test_of_processes_that_share_a_socket_the_oldest_is_named(tmp_path: Path) -> None:
    """Which is the one that started the others; when it lets go, one of those has it."""
    code = "import sys; sys.stdin.read()"
    with bound("127.0.0.1") as server:
        server.listen()
        port = server.getsockname()[1]
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[server.fileno()]
        )
        both = listener(port)
    with child:
        alone = listener(port)
        child.communicate()
    assert pid_of(both) == os.getpid()
    assert pid_of(alone) == child.pid


@needs_proc
@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_a_process_of_another_user_is_told_without_its_name() -> None:
    """Somebody listens, and whose process that is; more the system does not show."""
    with listening() as port:
        done = subprocess.run(
            [sys.executable, "-c", ASKING, str(port)], check=True, capture_output=True, text=True
        )
    holder, uid, text = done.stdout.splitlines()
    assert (holder, uid) == ("None", "0")
    assert text == "a process of user root, which does not show itself"


def test_a_system_without_proc_tells_that_somebody_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more."""
    monkeypatch.setattr(ports, "_PROC", tmp_path)
    with listening() as port:
        found = listener(port)
        assert found == Listener(address="127.0.0.1", port=port)
        assert str(found) == "another process"
    assert listener(port) is None


@pytest.mark.parametrize(("port", "host"), [(0, "::1"), (-1, "::1"), (65536, "::1"), (1, "a..b")])
def test_what_is_no_port_or_address_is_refused(port: int, host: str) -> None:
    """The message names it."""
    with pytest.raises(OptionError, match=f"got `{port if host == '::1' else host}`"):
        listener(port, host)
