from __future__ import annotations

import os
import socket
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from common import peers
from common.peers import listener_is_ours, parse_sockets, peer_is_ours

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  inode\n"
REST = "00000000:00000000 00:00000000 00000000"
little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="as such a machine writes it")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose a socket is")

HERE, PEER = ("127.0.0.1", 0x2328), ("127.0.0.1", 0xC350)


def line(local: str, remote: str, state: str, user: int) -> str:
    return (
        f"   7: {local} {remote} {state} {REST} {user:5d}        0 4711 1 00000000bf5e3a64 100 0\n"
    )


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(peers, "TABLES", (tmp_path / "tcp", tmp_path / "tcp6"))
    monkeypatch.setattr(peers, "own_user", lambda: 1000)
    return tmp_path / "tcp"


@little_endian
def test_lines_of_both_families_are_read() -> None:
    text = HEAD + line("0100007F:2328", "00000000:0000", "0A", 1000)
    text += line("0000000000000000FFFF00000100007F:C350", "0100007F:2328", "01", 33)
    text += line("00000000000000000000000001000000:0016", "0" * 32 + ":0000", "0A", 0)
    first, second, third = parse_sockets(text)
    assert first.local == (ip_address("127.0.0.1"), 9000)
    assert (first.state, first.user) == (10, 1000)
    assert second.local == (ip_address("127.0.0.1"), 50000), "of a socket of both families"
    assert (second.remote, second.state, second.user) == (first.local, 1, 33)
    assert third.local == (ip_address("::1"), 22)


@pytest.mark.parametrize(
    "text", ["", HEAD, "1: 2 3", line("0100007F", "xx:1", "01", 0), line("01:1", "02:1", "01", 0)]
)
def test_other_lines_are_left_out(text: str) -> None:
    assert list(parse_sockets(text)) == []


@little_endian
@pytest.mark.parametrize(
    ("written", "ours"),
    [
        (line("0100007F:C350", "0100007F:2328", "01", 1000), True),
        (line("0100007F:C350", "0100007F:2328", "01", 1001), False),
        (line("0100007F:C350", "0100007F:2328", "01", 0), False),
        # What its program has closed has no user; the kernel writes 0 or what was.
        (line("0100007F:C350", "0100007F:2328", "05", 1000), False),
        (line("0100007F:C350", "0100007F:2328", "06", 1000), False),
        # The near end, another connection of the same port, and of another address.
        (line("0100007F:2328", "0100007F:C350", "01", 1000), False),
        (line("0100007F:C350", "0100007F:2329", "01", 1000), False),
        (line("0200007F:C350", "0100007F:2328", "01", 1000), False),
        ("", False),
    ],
)
def test_a_peer_is_known_by_its_own_end(table: Path, written: str, ours: bool) -> None:
    table.write_text(HEAD + written)
    assert peer_is_ours(PEER, HERE) is ours


@little_endian
def test_a_peer_of_both_families_is_found(table: Path) -> None:
    mapped = "0000000000000000FFFF0000"
    text = line(f"{mapped}0100007F:C350", f"{mapped}0100007F:2328", "01", 1000)
    table.with_name("tcp6").write_text(HEAD + text)
    assert peer_is_ours(PEER, HERE)
    assert not peer_is_ours(("nowhere", PEER[1]), HERE)


@little_endian
@pytest.mark.parametrize(
    ("written", "ours"),
    [
        (line("0100007F:2328", "00000000:0000", "0A", 1000), True),
        (line("00000000:2328", "00000000:0000", "0A", 1000), True),
        (line("0100007F:2328", "00000000:0000", "0A", 1001), False),
        (line("00000000:2328", "00000000:0000", "0A", 1001), False),
        (line("0100007F:2328", "0100007F:C350", "01", 1000), False),
        (line("0100007F:2329", "00000000:0000", "0A", 1000), False),
    ],
)
def test_a_listener_is_known_by_its_port(table: Path, written: str, ours: bool) -> None:
    table.write_text(HEAD + written)
    assert listener_is_ours(HERE) is ours


def test_without_tables_nobody_is_known(table: Path) -> None:
    assert not table.exists()
    assert not peer_is_ours(PEER, HERE)
    assert not listener_is_ours(HERE)


def test_other_systems_have_no_such_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peer_is_ours(PEER, HERE)
    assert listener_is_ours(HERE)


@on_linux
@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::ffff:127.0.0.1")]
)
def test_real_sockets_are_found(
    monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily, address: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(family) as peer:
        here = server.getsockname()
        assert listener_is_ours(here)
        peer.connect((address, here[1]))
        seen = ("127.0.0.1", peer.getsockname()[1])
        assert peer_is_ours(seen, here)
        monkeypatch.setattr(peers, "own_user", lambda: os.geteuid() + 1)
        assert not peer_is_ours(seen, here)
        assert not listener_is_ours(here)
        monkeypatch.undo()
        peer.close()
        assert not peer_is_ours(seen, here), "a connection that is closed is nobody's"
