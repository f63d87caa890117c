"""The SuperLink executes what it is told to; so it listens to its own user's programs only."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from flwr.superlink import extensions, main

from common.config import load_config
from common.processes import Child
from server import guarded_superlink, superlink
from server.config import FederationConfig, NetworkSection
from server.guarded_superlink import OwnUserOnly
from server.registrations import read_registrations
from server.superlink import SuperLink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONTROL = "/v1/control/list-runs"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose a socket is")


@pytest.fixture
def network(found: Callable[..., Path]) -> NetworkSection:
    network = load_config(found(), FederationConfig).network
    assert network is not None
    return network


@pytest.fixture
def flowers_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@on_linux
@pytest.mark.usefixtures("flowers_home")
def test_other_users_are_refused(tmp_path: Path, network: NetworkSection) -> None:
    link = SuperLink(tmp_path / "flower", network)
    link.start()
    try:
        url = f"https://{link.address}{CONTROL}"
        trusted = ssl.create_default_context(cafile=network.root_certificate)
        with httpx.Client(verify=trusted, trust_env=False) as client:
            mine = client.post(url).status_code
            # This process's own connection stays; who claims to be at its end is still refused.
            claimed = {"X-Forwarded-For": "127.0.0.1:1"}
            assert client.post(url, headers=claimed).status_code == 403
        assert mine != 403
        assert link._call("list")["runs"] == []
        assert permissions(tmp_path / "flower") == 0o700
        assert permissions(tmp_path / "flower/config.toml") == 0o600
        if os.geteuid() == 0:
            assert status_for_another_user(link.address, network) == 403
    finally:
        link.stop()


def status_for_another_user(address: str, network: NetworkSection) -> int:
    """As which the SuperLink answers a process of user 65534."""
    context = ssl.create_default_context(cafile=network.root_certificate)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setuid(65534)
        host, _, port = address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), 10) as plain,
            context.wrap_socket(plain, server_hostname=host) as there,
        ):
            request = f"POST {CONTROL} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n"
            there.sendall(request.encode())
            os.write(writing, there.recv(12))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        return int(answer.read().split()[1])


@on_linux
@pytest.mark.usefixtures("flowers_home")
def test_a_superlink_of_another_user_answers_nobody_here(
    tmp_path: Path, network: NetworkSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The program believes that its user is another one: everything else is as it is started.
    program = (
        "from common import peers; me = peers.own_user(); peers.own_user = lambda: me + 1; "
        "from server.guarded_superlink import main; main()"
    )

    def start(command: Sequence[str], **options: Any) -> Child:  # noqa: ANN401
        assert list(command[:3]) == [sys.executable, "-m", "server.guarded_superlink"]
        return Child([sys.executable, "-c", program, *command[3:]], **options)

    monkeypatch.setattr(superlink, "Child", start)
    monkeypatch.setattr(SuperLink, "_answers", lambda link: bool(health(link, network)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    link = SuperLink(tmp_path / "flower", network)
    try:
        link.start()
        assert health(link, network) == 403
        assert "not known to be of this user" in (tmp_path / "flower/superlink.log").read_text()
    finally:
        link.stop()


def health(link: SuperLink, network: NetworkSection) -> int | None:
    """The status of its answer, None while it does not listen."""
    context = ssl.create_default_context(cafile=network.root_certificate)
    try:
        url = f"https://{link.address}/health"
        return httpx.get(url, verify=context, trust_env=False).status_code
    except httpx.HTTPError:
        return None


def test_keys_are_registered_once_and_anew_when_they_changed(
    tmp_path: Path, network: NetworkSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: dict[str, str] = {}
    done: list[str] = []

    def call(_: SuperLink, *arguments: str) -> dict[str, Any]:
        match arguments:
            case "supernode", "list":
                return {"nodes": [{"node-id": node} for node in there]}
            case "supernode", "unregister", node:
                done.append(f"unregister {there.pop(node)}")
                return {}
            case "supernode", "register", path:
                node = str(1 + len(done))
                there[node] = Path(path).read_text()
                done.append(f"register {there[node]}")
                return {"node-id": node}
        raise AssertionError(arguments)

    monkeypatch.setattr(SuperLink, "_call", call)
    link, file = SuperLink(tmp_path / "flower", network), tmp_path / "registrations.json"
    keys = {name: tmp_path / f"{name}.pub" for name in ("b", "a")}
    for name, path in keys.items():
        path.write_text(f"{name}1")
    assert link.register(keys, file) == {"a": 1, "b": 2}
    assert link.register(keys, file) == {"a": 1, "b": 2}
    assert done == ["register a1", "register b1"]
    keys["b"].write_text("b2")
    assert link.register(keys, file) == {"a": 1, "b": 4}
    assert done[2:] == ["unregister b1", "register b2"]
    del there["4"], keys["a"]  # a database that was dropped, and a platform that is no more
    assert link.register(keys, file) == {"b": 6}
    assert done[4:] == ["unregister a1", "register b2"]
    assert {name: entry.node_id for name, entry in read_registrations(file).items()} == {"b": 6}


def test_flower_still_asks_for_more_middleware(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[Any]] = []
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(guarded_superlink, "configure_child_logging", lambda: None)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    monkeypatch.setattr(
        guarded_superlink, "flower_superlink", lambda: started.append(main._get_middleware())
    )
    guarded_superlink.main()
    assert started[0][0].cls is OwnUserOnly, "before everything of Flower's"
    assert os.environ["FORWARDED_ALLOW_IPS"] == ""
    assert "FLWR_INTERNAL_GRPC_CONTROL_API" not in os.environ


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("scope", "passed"),
    [
        ({"client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 9000)}, True),
        ({"client": None, "server": ("127.0.0.1", 9000)}, False),
        ({"client": ("127.0.0.1", 50000), "server": None}, False),
        (
            {
                "client": ("127.0.0.1", 50000),
                "server": ("127.0.0.1", 9000),
                "headers": [(b"x-forwarded-for", b"127.0.0.1:50000")],
            },
            False,
        ),
    ],
)
def test_what_says_too_little_or_too_much_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, scope: dict[str, Any], passed: bool
) -> None:
    monkeypatch.setattr(guarded_superlink, "peer_is_ours", lambda *_: True)
    reached: list[str] = []
    sent: list[Any] = []

    async def flower(scope: Any, *_: object) -> None:  # noqa: ANN401
        reached.append(scope["type"])

    async def send(message: Any) -> None:  # noqa: ANN401
        sent.append(message)

    async def receive() -> Any:  # noqa: ANN401
        raise AssertionError

    guard = OwnUserOnly(flower)
    asyncio.run(guard({"type": kind, "headers": [], **scope}, receive, send))
    assert reached == ([kind] if passed else [])
    assert [message["status"] for message in sent if "status" in message] == [403] * (not passed)
