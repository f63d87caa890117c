"""Whose program is at the other end of a loopback connection, by the kernel's own tables.

A port on loopback is open to every user of the machine, and a program cannot keep another user from
listening on a port that it has left. Linux says whose each socket is; other systems have no such
table, and there everyone is taken for ours: run CrossRec on a machine of its own.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

End: TypeAlias = "tuple[IPv4Address | IPv6Address, int]"

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED, _LISTENING = 1, 10
_TIMES_LOOKED = 2  # a table that changes while it is read can leave out a line


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One line of the kernel's tables."""

    local: End
    remote: End
    state: int
    user: int


def parse_sockets(table: str) -> Iterator[TcpSocket]:
    """The sockets of ``/proc/net/tcp`` or ``/proc/net/tcp6``; other lines are left out."""
    for line in table.splitlines():
        words = line.split()
        if len(words) < 8 or not words[0].removesuffix(":").isdigit():
            continue
        try:
            local, remote = _end(words[1]), _end(words[2])
            yield TcpSocket(local, remote, int(words[3], 16), int(words[7]))
        except ValueError:
            continue


def peer_is_ours(peer: tuple[str, int], here: tuple[str, int]) -> bool:
    """Whether the program that connected from ``peer`` to ``here`` runs as this process's user.

    A connection that its program has closed already is nobody's.
    """
    if sys.platform != "linux":
        return True
    ends = _known(peer), _known(here)
    if None in ends:
        return False
    for _ in range(_TIMES_LOOKED):
        for found in _sockets():
            if (found.local, found.remote) == ends and found.state == _ESTABLISHED:
                return found.user == own_user()
    return False


def listener_is_ours(here: tuple[str, int]) -> bool:
    """Whether a program listens at ``here``, and runs as this process's user."""
    if sys.platform != "linux":
        return True
    end = _known(here)
    if end is None:
        return False
    host, port = end
    users: set[int] = set()
    for _ in range(_TIMES_LOOKED):
        users |= {
            found.user
            for found in _sockets()
            if found.state == _LISTENING
            and found.local[1] == port
            and (found.local[0] == host or found.local[0].is_unspecified)
        }
    return users == {own_user()}


def own_user() -> int:
    """The user whose sockets this process opens."""
    return os.geteuid()


def _sockets() -> Iterator[TcpSocket]:
    for table in TABLES:
        try:
            yield from parse_sockets(table.read_text("ascii"))
        except OSError:  # a machine without IPv6
            continue


def _end(text: str) -> End:
    """``0100007F:1F90``: words of 32 bits in the machine's byte order, and the port."""
    words, _, port = text.partition(":")
    if len(words) not in {8, 32}:
        raise ValueError(text)
    pieces = (words[k : k + 8] for k in range(0, len(words), 8))
    packed = b"".join(int(piece, 16).to_bytes(4, sys.byteorder) for piece in pieces)
    return _plain(ip_address(packed)), int(port, 16)


def _known(end: tuple[str, int]) -> End | None:
    try:
        return _plain(ip_address(end[0])), end[1]
    except ValueError:
        return None


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An IPv4 address is the same one when a socket of both families writes it."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
