"""Who listens on a TCP port of this host, as far as the kernel tells this user."""

from __future__ import annotations

import errno
import ipaddress
import pwd
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from aegir_stream.errors import OptionError
from aegir_stream.lease import Holder
from aegir_stream.processes import process_of, started_at

__all__ = ["Listener", "listener"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_PROC = Path("/proc")
_TABLES = ("net/tcp", "net/tcp6")
_LISTENS = "0A"
_LOCAL, _STATE, _UID, _INODE = 1, 3, 7, 9
"""Indices of the fields of a line of `/proc/net/tcp`."""

_EXACT, _ALL_ADDRESSES, _BOTH_FAMILIES, _NOT_IN_THE_WAY = range(4)
_LONGEST_COMMAND = 200
_HIGHEST_PORT = 65535
_WORD_BYTES = 4


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """A socket that listens, and whose it is.

    Attributes:
        address: where it listens; `0.0.0.0` and `::` are all addresses.
        port: the port.
        uid: number of the user whose socket it is; `None` where the system does not tell.
        holder: the process that has it, the oldest if several do, since when it runs and where;
            `None` for a process of another user or container, which shows nothing of itself.
    """

    address: str
    port: int
    uid: int | None = None
    holder: Holder | None = None

    def __str__(self) -> str:
        """Say who it is, or at least whose."""
        if self.holder:
            return str(self.holder)
        if self.uid is None:
            return "another process"
        return f"a process of user {_user_name(self.uid)}, which does not show itself"


class _Socket(msgspec.Struct, frozen=True):
    """A line of the kernel's table."""

    address: Address
    port: int
    uid: int
    inode: str


def listener(port: int, host: str = "127.0.0.1") -> Listener | None:
    """Return who is in the way of a server at `host` and `port`; `None` if nobody is.

    In the way is who listens on that address or on all addresses; where `host` is all addresses,
    who listens on any. Looks only: nothing is connected to, nothing is ended.

    Raises:
        OptionError: `host` is neither an address nor the name of one, or `port` is no port.
    """
    if not 0 < port <= _HIGHEST_PORT:
        raise OptionError(f"Expected a port from 1 to {_HIGHEST_PORT}, got `{port}`")
    wanted = _addresses(host)
    tables = [_PROC / name for name in _TABLES]
    if not any(table.exists() for table in tables):
        return _unseen_listener(wanted, port)
    there = [found for table in tables for found in _listening(table) if found.port == port]
    ranked = [(min(_rank(found, address) for address in wanted), found) for found in there]
    in_the_way = [pair for pair in ranked if pair[0] < _NOT_IN_THE_WAY]
    if not in_the_way:
        return None
    _, found = min(in_the_way, key=lambda pair: pair[0])
    return Listener(
        address=str(found.address), port=port, uid=found.uid, holder=_holder_of(found.inode)
    )


def _addresses(host: str) -> list[Address]:
    """Return the addresses that a name means here, `localhost` among them.

    Raises:
        OptionError: it means none.
    """
    try:
        found = socket.getaddrinfo(
            host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise OptionError(f"Expected an address of this host, got `{host}`: {error}") from error
    return [ipaddress.ip_address(str(address[0])) for *_, address in found]


def _rank(there: _Socket, wanted: Address) -> int:
    """Tell how closely a listening socket matches a wanted address."""
    address = _unmapped(there.address)
    if address == wanted:
        return _EXACT
    if address.version == wanted.version:
        either = address.is_unspecified or wanted.is_unspecified
        return _ALL_ADDRESSES if either else _NOT_IN_THE_WAY
    if wanted.version == 6:  # noqa: PLR2004 - the name of the protocol
        return _BOTH_FAMILIES if wanted.is_unspecified else _NOT_IN_THE_WAY
    takes_both = address.is_unspecified and not _can_be_bound(wanted, there.port)
    return _BOTH_FAMILIES if takes_both else _NOT_IN_THE_WAY


def _unmapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 socket may stand for, as in `::ffff:127.0.0.1`."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _can_be_bound(address: Address, port: int) -> bool:
    """Tell whether the kernel would let a server have an address, without ever listening there.

    The tables do not say whether a socket on `::` takes IPv4 as well.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 - likewise
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((str(address), port))
    except OSError as error:
        return error.errno not in {errno.EADDRINUSE, errno.EACCES}
    return True


def _unseen_listener(wanted: list[Address], port: int) -> Listener | None:
    """Tell what can be told where there is no `/proc`: that somebody listens."""
    taken = (address for address in wanted if not _can_be_bound(address, port))
    return next((Listener(address=str(address), port=port) for address in taken), None)


def _listening(table: Path) -> Iterator[_Socket]:
    """Yield the sockets of a table that listen."""
    try:
        lines = table.read_text("ascii").splitlines()[1:]
    except OSError:  # a kernel without IPv6 has only one of them
        return
    for fields in map(str.split, lines):
        if fields[_STATE] == _LISTENS:
            address, _, port = fields[_LOCAL].partition(":")
            yield _Socket(_decoded(address), int(port, 16), int(fields[_UID]), fields[_INODE])


def _decoded(text: str) -> Address:
    """Return the address that the kernel prints as 32-bit words in the host's byte order."""
    data = bytes.fromhex(text)
    words = (data[i : i + _WORD_BYTES] for i in range(0, len(data), _WORD_BYTES))
    if sys.byteorder == "little":
        words = (word[::-1] for word in words)
    return ipaddress.ip_address(b"".join(words))


def _holder_of(inode: str) -> Holder | None:
    """Return the oldest process that shows to have a socket open."""
    link = f"socket:[{inode}]"
    pids = [int(path.name) for path in _PROC.glob("[0-9]*") if link in _open_files(path)]
    started = [(started_at(pid) or 0.0, pid) for pid in pids]
    if not started:
        return None
    since, pid = min(started)
    return Holder(
        process=process_of(pid),
        since=since or None,
        directory=_directory(pid),
        command=_command(pid),
    )


def _open_files(process: Path) -> Iterator[str]:
    """Yield what a process has open; nothing if that is not shown to us, or it has ended."""
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        try:
            yield str(descriptor.readlink())
        except OSError:  # closed in the meantime
            continue


def _directory(pid: int) -> str | None:
    try:
        directory = (_PROC / str(pid) / "cwd").readlink()
    except OSError:
        return None
    return bytes(directory).decode(errors="replace")


def _command(pid: int) -> str | None:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return None
    program, *arguments = words.removesuffix(b"\0").decode(errors="replace").split("\0")
    return shlex.join([Path(program).name, *arguments])[:_LONGEST_COMMAND] if program else None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
