from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import client.data
from client.data import load_catalogue, load_platform_data
from common.data.readers import read_interactions
from common.errors import DataError
from tests.unit.client.homes import NAME, NUM_LISTED, NUM_USERS, move_in, write_users

if TYPE_CHECKING:
    from pathlib import Path

    from client.config import PlatformConfig
    from client.data import PlatformData


@pytest.fixture
def config(tmp_path: Path) -> PlatformConfig:
    return move_in(tmp_path)


def rows(data: PlatformData) -> dict[str, tuple[set[int], set[int]]]:
    """What each user keeps and what she gives up, by her id."""
    return {
        user: (set(data.users.matrix[row].indices), set(data.validation[row].indices))
        for row, user in enumerate(data.users.user_ids)
    }


def test_a_user_who_comes_or_goes_changes_no_other_users_row(config: PlatformConfig) -> None:
    # The sensitivity of a sum over users needs it.
    everyone = rows(load_platform_data(config))
    assert any(held_out for _, held_out in everyone.values())
    for users in (range(1, NUM_USERS), range(NUM_USERS + 3)):
        write_users(config.data.source, users)
        others = rows(load_platform_data(config))
        for user in everyone.keys() & others.keys():
            assert others[user] == everyone[user]


def test_validation_users_give_up_one_interaction_that_is_no_longer_trained_on(
    config: PlatformConfig,
) -> None:
    some = replace(config, adaptation=replace(config.adaptation, validation_users=NUM_USERS // 2))
    given_up = 0
    for kept, held_out in rows(load_platform_data(some)).values():
        assert not kept & held_out
        assert len(kept) + len(held_out) == 5
        given_up += len(held_out)
    assert 0 < given_up < NUM_USERS


def test_the_share_of_validation_users_follows_the_public_size_not_the_count(
    config: PlatformConfig,
) -> None:
    # A platform that declares ten times its users validates on about a tenth of them.
    half = replace(config.adaptation, validation_users=NUM_USERS)
    declared = replace(config.platform, population=1000 * NUM_USERS)
    data = load_platform_data(replace(config, adaptation=half, platform=declared))
    assert data.validation.nnz < NUM_USERS / 4


def test_items_that_the_catalogue_does_not_list_here_are_left_out(config: PlatformConfig) -> None:
    with config.data.source.open("a", encoding="utf-8") as file:
        file.write("u000,i13,999\nu000,unheard-of,999\nu999,i13,999\n")
    data = load_platform_data(config)
    assert data.users.num_items == NUM_LISTED
    assert "u999" not in data.users.user_ids
    assert data.num_catalogue_items == 14


def test_files_are_read_once_until_they_change(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []

    def read(*arguments: object) -> object:
        reads.append(arguments)
        return read_interactions(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(client.data, "read_interactions", read)
    first = load_platform_data(config)
    assert load_platform_data(config) is first
    assert len(reads) == 1
    write_users(config.data.source, range(NUM_USERS + 1))
    second = load_platform_data(config)
    assert len(reads) == 2
    assert second.users.num_users == NUM_USERS + 1
    assert second.users_digest != first.users_digest


def test_a_file_of_the_same_length_is_read_again_when_its_time_changed(
    config: PlatformConfig,
) -> None:
    before = rows(load_platform_data(config))
    text = config.data.source.read_text(encoding="utf-8")
    config.data.source.write_text(text.replace("u000,", "u500,"), encoding="utf-8")
    os.utime(config.data.source, ns=(1, 1))
    assert set(rows(load_platform_data(config))) == set(before) - {"u000"} | {"u500"}


def test_the_users_digest_names_the_users_in_order(config: PlatformConfig, tmp_path: Path) -> None:
    digest = load_platform_data(config).users_digest
    text = config.data.source.read_text(encoding="utf-8")
    header, *lines = text.splitlines()
    shuffled = replace(config, data=replace(config.data, source=tmp_path / "shuffled.csv"))
    order = np.random.default_rng(0).permutation(len(lines))
    shuffled.data.source.write_text("\n".join([header, *(lines[k] for k in order)]))
    assert load_platform_data(shuffled).users_digest == digest
    assert rows(load_platform_data(shuffled)) == rows(load_platform_data(config))


def test_columns_can_be_named(config: PlatformConfig) -> None:
    text = config.data.source.read_text(encoding="utf-8")
    config.data.source.write_text(text.replace("user_id,item_id,timestamp", "who,what,when"))
    with pytest.raises(DataError, match="column"):
        load_platform_data(config)
    named = replace(config.data, user_column="who", item_column="what", time_column="when")
    assert load_platform_data(replace(config, data=named)).users.num_users == NUM_USERS


def test_the_catalogue_is_read_without_any_user_data(config: PlatformConfig) -> None:
    config.data.source.unlink()
    assert len(load_catalogue(config).listing(NAME)) == NUM_LISTED


@pytest.mark.parametrize("file", ["purchases.csv", "catalogue.csv"])
def test_a_missing_file_is_named(config: PlatformConfig, tmp_path: Path, file: str) -> None:
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=file):
        load_platform_data(config)
