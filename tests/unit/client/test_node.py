"""The node with Flower's programs replaced by ones that follow a script."""

from __future__ import annotations

import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from client import node
from client.config import PlatformConfig, ServerSection
from client.node import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, Node, is_running
from client.platform import Platform
from client.status import describe
from common.errors import ConfigError, StateError
from tests.unit.client import homes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class EndOfTestError(Exception):
    """Ends a node that would go on for ever."""


class Scripted:
    """In place of a process: a SuperNode that ends after some looks at it."""

    started: list[Scripted]

    def __init__(self, command: Sequence[str], *, log: Path, environment: dict[str, str]) -> None:
        self.command, self.log, self.environment = list(command), log, environment
        self.name, self.stopped, self.looks = command[2], False, 0
        self.started.append(self)

    @property
    def exit_code(self) -> int | None:
        self.looks += 1
        return 305 if self.name == "client.supernode" and self.looks > 3 else None

    def stop(self) -> None:
        self.stopped = True

    def last_lines(self) -> str:
        return "the end of its log"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlatformConfig:
    for name in ("ca.crt", "node.key"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(Scripted, "started", [], raising=False)
    monkeypatch.setattr(node, "Child", Scripted)
    server = ServerSection(
        address="coordinator.example:8000",
        root_certificate=tmp_path / "ca.crt",
        private_key=tmp_path / "node.key",
    )
    return replace(homes.move_in(tmp_path, simulation=False), server=server)


def opened(config: PlatformConfig) -> Node:
    return Node(config.state.folder.parent / "platform.toml", config)


def run_until(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch, num_waits: int
) -> list[float]:
    """Start the node, and stop it at its n-th wait before a new start; return the waits."""
    waits: list[float] = []

    def wait(seconds: float) -> None:
        if seconds != node.POLL_SECONDS:
            waits.append(seconds)
        if len(waits) == num_waits:
            raise EndOfTestError

    monkeypatch.setattr(node, "sleep", wait)
    with pytest.raises(EndOfTestError):
        opened(config).run()
    return waits


def option(child: Scripted, name: str) -> str:
    return child.command[child.command.index(name) + 1]


def test_both_programs_find_each_other_and_share_a_secret(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(config, monkeypatch, 1)
    supernode, launcher = Scripted.started
    assert (supernode.name, launcher.name) == ("client.supernode", "client.launcher")
    assert option(supernode, "--superlink") == "coordinator.example:8000"
    assert option(supernode, "--isolation") == "process"
    assert option(supernode, "--host") == "127.0.0.1"
    address = f"127.0.0.1:{option(supernode, '--port')}"
    assert option(launcher, "--runtime-api-address") == address
    secret = option(launcher, "--secret-file")
    assert option(supernode, "--superexec-auth-secret-file") == secret
    # The launcher is told by its own command line, not by whoever answers at that address.
    platform_config = config.state.folder.parent / "platform.toml"
    assert option(launcher, "--platform-config") == str(platform_config)
    assert "--node-config" not in supernode.command


def test_the_secret_is_the_owners_and_new_each_time(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = []
    for _ in range(2):
        run_until(config, monkeypatch, 1)
        secret = config.state.folder / "flower/launcher.secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        secrets.append(secret.read_bytes())
    assert len(set(secrets)) == 2
    assert {len(secret) for secret in secrets} == {32}
    assert stat.S_IMODE(config.state.folder.stat().st_mode) == 0o700


def test_programs_are_started_again_ever_more_patiently(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = run_until(config, monkeypatch, 8)
    assert waits[:2] == [FIRST_WAIT_SECONDS, 2 * FIRST_WAIT_SECONDS]
    assert waits[-1] == LONGEST_WAIT_SECONDS
    assert len(Scripted.started) == 16
    assert all(child.stopped for child in Scripted.started)


def test_one_node_for_each_platform(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_running(config.state.folder)
    seen: list[bool] = []

    def wait(_: float) -> None:
        seen.append(is_running(config.state.folder))
        with pytest.raises(StateError, match="this platform runs already"):
            opened(config).run()
        raise EndOfTestError

    monkeypatch.setattr(node, "sleep", wait)
    with pytest.raises(EndOfTestError):
        opened(config).run()
    assert seen == [True]
    assert not is_running(config.state.folder)


def test_what_is_missing_is_named(config: PlatformConfig) -> None:
    with pytest.raises(ConfigError, match=r"\[server\] is missing"):
        opened(replace(config, server=None))
    (config.state.folder.parent / "ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"ca\.crt: is missing"):
        opened(config)


def test_a_node_before_the_first_request_hinders_no_ledger(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(config, monkeypatch, 1)
    reply, release = Platform(config).train(homes.train_request(config), homes.shared_arrays())
    assert (reply.outcome, release is None) == ("released", False)


def test_status_says_what_was_answered_spent_and_served(config: PlatformConfig) -> None:
    lines = describe(config)
    assert lines[0].startswith("north: does not run")
    assert lines[1:] == [
        "serves: no model yet: nothing was handed over",
        "budget: epsilon 8, nothing spent yet",
    ]
    Platform(config).train(homes.train_request(config), homes.shared_arrays())
    too_much: dict[str, Any] = {"round_number": 2, "noise_multiplier": 0.31}
    Platform(config).train(homes.train_request(config, **too_much), homes.shared_arrays())
    lines = describe(config)
    assert any("released spring/1/north" in line for line in lines)
    assert any("declined spring/2/north" in line for line in lines)
    (config.state.folder / "stopped.txt").write_text("the disk was full")
    assert "stopped: the disk was full" in describe(config)
