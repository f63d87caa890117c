from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from client import check
from client.check import check_platform, what_would_leave
from client.config import CatalogueSection, SecaggSection, ServerSection
from client.platform import Platform
from common.keys import fingerprint, new_key_pair, read_public_key
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


@pytest.fixture
def summed(config: PlatformConfig, tmp_path: Path) -> PlatformConfig:
    """A platform that takes part in secure sums and trusts two others."""
    for name in (homes.NAME, "east", "south"):
        private, public = new_key_pair(name)
        (tmp_path / f"{name}.key").write_bytes(private)
        (tmp_path / "platforms").mkdir(exist_ok=True)
        (tmp_path / f"platforms/{name}.pub").write_bytes(public)
    section = SecaggSection(
        private_key=tmp_path / f"{homes.NAME}.key", platform_keys=tmp_path / "platforms"
    )
    privacy = replace(config.privacy, trust="secagg")
    return replace(config, privacy=privacy, secagg=section)


def problems(config: PlatformConfig) -> list[str]:
    """What is wrong beside the server, which no test here has."""
    found = check_platform(config.state.folder.parent / "platform.toml", config)
    return [f"{f.subject}: {f.text}" for f in found if not f.is_fine and f.subject != "server"]


def test_whom_a_platform_trusts_is_shown(config: PlatformConfig, summed: PlatformConfig) -> None:
    assert "keys" not in findings(config)
    text = findings(summed)["keys"].text
    assert text.startswith("trusts the keys of 3 platforms: ")
    folder = summed.state.folder.parent / "platforms"
    for name in (homes.NAME, "east", "south"):
        key = fingerprint(read_public_key(folder / f"{name}.pub"))
        assert f"{name} {key[:12]}" in text
        assert key not in text
    assert not problems(summed)


def test_too_few_trusted_keys_keep_a_platform_out(summed: PlatformConfig) -> None:
    assert summed.secagg is not None
    more = replace(summed, secagg=replace(summed.secagg, min_summed=4))
    (problem,) = problems(more)
    assert "keys: trusts the keys of 3 platforms: " in problem
    assert "a sum takes at least 4, itself included (min_summed)" in problem
    assert "crossrec client trust NAME node.pub" in problem
    for key in summed.secagg.platform_keys.iterdir():
        key.unlink()
    assert "trusts the keys of 0 platforms: none; a sum takes at least 3" in problems(summed)[0]


def test_keys_that_no_sum_would_work_with_are_named(summed: PlatformConfig, tmp_path: Path) -> None:
    folder = tmp_path / "platforms"
    east, south = (folder / "east.pub").read_bytes(), (folder / "south.pub").read_bytes()
    (folder / "south.pub").write_bytes(east)
    (problem,) = problems(summed)
    assert "keys: east, south have one and the same key" in problem
    (folder / "south.pub").write_text("no key")
    (problem,) = problems(summed)
    assert f"{folder}/south.pub: is not a public key" in problem
    (folder / "south.pub").write_bytes(south)
    (folder / f"{homes.NAME}.pub").unlink()
    few, own = problems(summed)
    assert "trusts the keys of 2 platforms: east " in few
    assert f"own key: {folder}/{homes.NAME}.pub is not the public half" in own
    (tmp_path / f"{homes.NAME}.key").unlink()
    assert f"keys: {tmp_path}/{homes.NAME}.key: cannot be read" in problems(summed)[0]


def test_one_key_stands_for_the_platform_everywhere(summed: PlatformConfig, tmp_path: Path) -> None:
    server = ServerSection(
        address="127.0.0.1:1",
        root_certificate=tmp_path / "ca.crt",
        private_key=tmp_path / "east.key",
    )
    (problem,) = problems(replace(summed, server=server))
    assert "is not" in problem
    assert "name one key in both" in problem
    own = replace(server, private_key=tmp_path / f"{homes.NAME}.key")
    assert not problems(replace(summed, server=own))


def test_what_leaves_in_secure_sums_is_said(config: PlatformConfig, summed: PlatformConfig) -> None:
    told = " ".join(what_would_leave(summed))
    assert "of these only the sum with those of 2 other platforms or more can be read" in told
    assert "sum" not in " ".join(what_would_leave(config))
