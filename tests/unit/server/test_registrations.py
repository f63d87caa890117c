"""In a deployment a platform's name belongs to the node that holds its registered key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from common.errors import StateError
from server.config import NetworkSection
from server.registrations import (
    REGISTRATIONS_FILE,
    Registration,
    read_registrations,
    write_registrations,
)
from server.run import FederationRun
from tests.unit.server.scripted import (
    ScriptedGrid,
    Shop,
    events,
    federation,
    profile,
    write_catalogue_file,
)

if TYPE_CHECKING:
    from pathlib import Path

    from server.config import FederationConfig

NAMES = ("east", "north", "west")


def deployed(folder: Path, nodes: dict[str, int]) -> FederationConfig:
    """A federation with a network, whose platforms were registered under ``nodes``."""
    write_catalogue_file(folder)
    config = federation(folder, NAMES)
    config.state.folder.mkdir()
    registered = {n: Registration(node_id=node, key_sha256="0") for n, node in nodes.items()}
    write_registrations(config.state.folder / REGISTRATIONS_FILE, registered)
    network = NetworkSection(
        address="localhost:8000",
        root_certificate=folder / "ca.crt",
        certificate=folder / "server.pem",
        private_key=folder / "server.key",
        platform_keys=folder / "keys",
    )
    return replace(config, network=network)


def grid_of(folder: Path, *names: str) -> ScriptedGrid:
    return ScriptedGrid([Shop(profile=profile(n, folder / "catalogue.csv")) for n in names])


def test_who_holds_the_key_of_another_platform_cannot_speak_for_it(tmp_path: Path) -> None:
    config = deployed(tmp_path, {"east": 1, "north": 2, "west": 3})
    # Node 3, which is west, is first and calls itself north.
    grid = grid_of(tmp_path, "east", "north", "north")
    grid.get_node_ids = lambda: [3, 1, 2]  # type: ignore[method-assign]
    FederationRun(config, grid).run()
    (refused,) = events(config, "platform-refused")
    assert refused["node"] == "3"
    assert refused["reason"] == (
        "node 3 calls itself 'north', whose registered key belongs to node 2."
    )
    assert [event["platform"] for event in events(config, "platform-joined")] == ["east", "north"]


def test_a_platform_that_was_not_registered_is_refused(tmp_path: Path) -> None:
    config = deployed(tmp_path, {"east": 1, "north": 2})
    FederationRun(config, grid_of(tmp_path, *NAMES)).run()
    (refused,) = events(config, "platform-refused")
    assert "'west' has no registered key" in refused["reason"]


def test_a_simulation_has_no_registrations(tmp_path: Path) -> None:
    config = replace(deployed(tmp_path, {"east": 9}), network=None)
    FederationRun(config, grid_of(tmp_path, *NAMES)).run()
    assert events(config, "platform-refused") == []


def test_registrations_are_read_as_written_and_strictly(tmp_path: Path) -> None:
    path = tmp_path / REGISTRATIONS_FILE
    assert read_registrations(path) == {}
    registered = {"east": Registration(node_id=5, key_sha256="ab")}
    write_registrations(path, registered)
    assert read_registrations(path) == registered
    path.write_text('{"east": {"node_id": 5, "key_sha256": "ab"}}')
    assert read_registrations(path) == {"east": Registration(node_id=5, key_sha256="ab")}
    for damaged in ("[]", "{", '{"east": {}}', '{"east": {"node_id": "x", "key_sha256": ""}}'):
        path.write_text(damaged)
        with pytest.raises(StateError, match="is damaged"):
            read_registrations(path)
