from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from client import check
from client.check import check_platform, what_would_leave
from client.config import CatalogueSection
from client.platform import Platform
from tests.unit.client import homes

if TYPE_CHECKING:
    from pathlib import Path

    from client.check import Finding
    from client.config import PlatformConfig


@pytest.fixture
def config(tmp_path: Path) -> PlatformConfig:
    return homes.move_in(tmp_path, simulation=False)


def findings(config: PlatformConfig) -> dict[str, Finding]:
    found = check_platform(config.state.folder.parent / "platform.toml", config)
    return {finding.subject: finding for finding in found}


def test_a_platform_that_is_ready_but_for_its_server(config: PlatformConfig) -> None:
    found = findings(config)
    assert found["catalogue"].text == "north lists 12 items of the shared catalogue"
    assert found["data"].text.startswith("20 users with 100 interactions with 12 listed items; 0 ")
    assert "nothing is spent yet" in found["budget"].text
    assert [name for name, finding in found.items() if not finding.is_fine] == ["server"]
    assert "[server] is missing" in found["server"].text


def test_nothing_is_changed(config: PlatformConfig) -> None:
    folder = config.state.folder.parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    findings(config)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_assortment_before_any_agreement(config: PlatformConfig, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id\ni00\ni01\ni02\n")
    config = replace(config, catalogue=CatalogueSection(assortment=tmp_path / "items.csv"))
    found = findings(config)
    assert found["catalogue"].text.startswith("3 items in the assortment; nothing is agreed on yet")
    assert "are left out" in found["data"].text
    assert "the ids of the items it lists" in what_would_leave(config)
    (tmp_path / "secret").write_text("ab" * 32)
    section = replace(config.catalogue, key_file=tmp_path / "secret")
    assert "keyed hashes of the items it lists" in what_would_leave(
        replace(config, catalogue=section)
    )


def test_what_is_wrong_with_the_data_is_said_and_the_rest_is_looked_at(
    config: PlatformConfig,
) -> None:
    homes.purchases(config).write_text("user_id,timestamp\nu1,5\n")
    found = findings(config)
    assert not found["data"].is_fine
    assert "item" in found["data"].text
    assert found["budget"].is_fine


def test_a_population_far_from_the_truth_is_noticed(config: PlatformConfig) -> None:
    platform = replace(config.platform, population=1000)
    assert "states 1000" in findings(replace(config, platform=platform))["population"].text


def test_the_budget_is_the_ledgers(config: PlatformConfig) -> None:
    Platform(config).train(homes.train_request(config), homes.shared_arrays())
    text = findings(config)["budget"].text
    assert "spent 4." in text or "spent 5." in text
    privacy = replace(config.privacy, epsilon=1.0)
    assert not findings(replace(config, privacy=privacy))["budget"].is_fine


def test_servers_that_cannot_be_reached_or_trusted(config: PlatformConfig, tmp_path: Path) -> None:
    from client.config import ServerSection
    from common.processes import free_port

    (tmp_path / "node.key").write_text("key")
    (tmp_path / "ca.crt").write_text("no certificate")
    server = ServerSection(
        address=f"127.0.0.1:{free_port()}",
        root_certificate=tmp_path / "ca.crt",
        private_key=tmp_path / "node.key",
    )
    found = findings(replace(config, server=server))
    assert "is no certificate" in found["server"].text
    assert check._PATIENCE <= 10
