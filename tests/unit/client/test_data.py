from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import client.data
from client.data import load_catalogue, load_platform_data
from common.data.readers import read_interactions
from common.errors import DataError
from tests.unit.client.homes import (
    NAME,
    NUM_LISTED,
    NUM_USERS,
    move_in,
    purchases,
    write_users,
)

if TYPE_CHECKING:
    from pathlib import Path

    from client.config import PlatformConfig
    from client.data import PlatformData


@pytest.fixture
def config(tmp_path: Path) -> PlatformConfig:
    return move_in(tmp_path)


def validating(config: PlatformConfig, users: int, population: int = NUM_USERS) -> PlatformConfig:
    return replace(
        config,
        adaptation=replace(config.adaptation, validation_users=users),
        platform=replace(config.platform, population=population),
    )


@dataclass(frozen=True)
class Rows:
    """What the data say of one user: items, by their columns."""

    bought: set[int]
    kept: list[set[int]]
    """Fold by fold."""
    held_out: list[set[int]]


def rows(data: PlatformData) -> dict[str, Rows]:
    return {
        user: Rows(
            bought=set(data.users.matrix[row].indices),
            kept=[set(fold.history[row].indices) for fold in data.folds],
            held_out=[set(fold.held_out[row].indices) for fold in data.folds],
        )
        for row, user in enumerate(data.users.user_ids)
    }


@pytest.mark.parametrize("wanted", [NUM_USERS // 2, 3 * NUM_USERS])
def test_a_user_who_comes_or_goes_changes_no_other_users_row(
    config: PlatformConfig, wanted: int
) -> None:
    # The sensitivity of a sum over users needs it, and that of a round.
    config = validating(config, wanted)
    everyone = rows(load_platform_data(config))
    assert any(row.held_out[0] for row in everyone.values())
    for users in (range(1, NUM_USERS), range(NUM_USERS + 3), [7]):
        write_users(purchases(config), users)
        others = rows(load_platform_data(config))
        assert len(others) == len(users)
        for user in everyone.keys() & others.keys():
            assert others[user] == everyone[user]


@pytest.mark.parametrize("wanted", [NUM_USERS // 2, 3 * NUM_USERS])
def test_a_user_gives_up_another_interaction_in_each_fold_and_keeps_the_rest(
    config: PlatformConfig, wanted: int
) -> None:
    config = validating(config, wanted)
    found = rows(load_platform_data(config))
    for row in found.values():
        assert len(row.bought) == 5
        for kept, held_out in zip(row.kept, row.held_out, strict=True):
            assert kept | held_out == row.bought
            assert not kept & held_out
            assert len(held_out) <= 1
        given_up = set.union(*row.held_out)
        assert len(given_up) == sum(map(len, row.held_out))
        assert len(given_up) in (0, len(row.held_out)), "the same users validate in each fold"
    asked = sum(bool(row.held_out[0]) for row in found.values())
    assert asked == NUM_USERS if wanted > NUM_USERS else 0 < asked < NUM_USERS


@pytest.mark.parametrize(
    ("wanted", "population", "num_folds"),
    [
        (0, NUM_USERS, 1),
        (NUM_USERS // 2, NUM_USERS, 1),
        (NUM_USERS, NUM_USERS, 1),
        (NUM_USERS + 1, NUM_USERS, 2),
        (3 * NUM_USERS, NUM_USERS, 3),
        (5 * NUM_USERS, NUM_USERS, 5),
        (1500, NUM_USERS, 5),
        (3 * NUM_USERS, 10 * NUM_USERS, 1),  # the public size counts, not the true one
    ],
)
def test_there_are_as_many_folds_as_it_takes_for_the_wanted_judgements(
    config: PlatformConfig, wanted: int, population: int, num_folds: int
) -> None:
    data = load_platform_data(validating(config, wanted, population))
    assert len(data.folds) == num_folds
    if wanted == 0:
        assert data.folds[0].held_out.nnz == 0
        assert (data.folds[0].history != data.users.matrix).nnz == 0


def test_who_has_too_few_interactions_is_never_asked(config: PlatformConfig) -> None:
    """Nobody is left with fewer than two, or asked for an interaction that she does not have."""
    lines = [f"u{size},i{item:02d},{item}" for size in range(1, 8) for item in range(size)]
    text = "\n".join(["user_id,item_id,timestamp", *lines])
    purchases(config).write_text(text, encoding="utf-8")
    found = rows(load_platform_data(config))
    for size in range(1, 8):
        row = found[f"u{size}"]
        latest = [{item} for item in reversed(range(size))]
        expected = latest[:5] if size >= 3 else []
        assert row.held_out == expected + [set()] * (5 - len(expected))
        assert row.bought == set(range(size))


def test_the_share_of_validation_users_follows_the_public_size_not_the_count(
    config: PlatformConfig,
) -> None:
    # A platform that declares a thousand times its users validates on hardly any of them.
    data = load_platform_data(validating(config, NUM_USERS, 1000 * NUM_USERS))
    assert data.folds[0].held_out.nnz < NUM_USERS / 4


def test_items_that_the_catalogue_does_not_list_here_are_left_out(config: PlatformConfig) -> None:
    with purchases(config).open("a", encoding="utf-8") as file:
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
    write_users(purchases(config), range(NUM_USERS + 1))
    second = load_platform_data(config)
    assert len(reads) == 2
    assert second.users.num_users == NUM_USERS + 1
    assert second.users_digest != first.users_digest


def test_a_database_is_asked_for_each_request_and_gives_what_a_file_gives(
    config: PlatformConfig, tmp_path: Path
) -> None:
    shop = tmp_path / "shop.db"
    with closing(sqlite3.connect(shop)) as database, database:
        pd.read_csv(purchases(config)).to_sql("orders", database, index=False)
    statement = "SELECT * FROM orders ORDER BY random()"
    data = replace(config.data, source=f"sqlite:///{shop}", query=statement)
    asked = replace(config, data=data)
    first = load_platform_data(asked)
    assert rows(first) == rows(load_platform_data(config))
    assert first.users_digest == load_platform_data(config).users_digest
    status = shop.stat()
    with closing(sqlite3.connect(shop)) as database, database:
        database.execute("UPDATE orders SET user_id = 'u500' WHERE user_id = 'u000'")
    os.utime(shop, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert set(rows(load_platform_data(asked))) == set(rows(first)) - {"u000"} | {"u500"}


def test_a_file_of_the_same_length_is_read_again_when_its_time_changed(
    config: PlatformConfig,
) -> None:
    before = rows(load_platform_data(config))
    text = purchases(config).read_text(encoding="utf-8")
    purchases(config).write_text(text.replace("u000,", "u500,"), encoding="utf-8")
    os.utime(purchases(config), ns=(1, 1))
    assert set(rows(load_platform_data(config))) == set(before) - {"u000"} | {"u500"}


def test_the_users_digest_names_the_users_in_order(config: PlatformConfig, tmp_path: Path) -> None:
    digest = load_platform_data(config).users_digest
    text = purchases(config).read_text(encoding="utf-8")
    header, *lines = text.splitlines()
    shuffled = replace(config, data=replace(config.data, source=tmp_path / "shuffled.csv"))
    order = np.random.default_rng(0).permutation(len(lines))
    purchases(shuffled).write_text("\n".join([header, *(lines[k] for k in order)]))
    assert load_platform_data(shuffled).users_digest == digest
    assert rows(load_platform_data(shuffled)) == rows(load_platform_data(config))


def test_columns_can_be_named(config: PlatformConfig) -> None:
    text = purchases(config).read_text(encoding="utf-8")
    purchases(config).write_text(text.replace("user_id,item_id,timestamp", "who,what,when"))
    with pytest.raises(DataError, match="column"):
        load_platform_data(config)
    named = replace(config.data, user_column="who", item_column="what", time_column="when")
    assert load_platform_data(replace(config, data=named)).users.num_users == NUM_USERS


def test_the_catalogue_is_read_without_any_user_data(config: PlatformConfig) -> None:
    purchases(config).unlink()
    assert len(load_catalogue(config).listing(NAME)) == NUM_LISTED


@pytest.mark.parametrize("file", ["purchases.csv", "catalogue.csv"])
def test_a_missing_file_is_named(config: PlatformConfig, tmp_path: Path, file: str) -> None:
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=file):
        load_platform_data(config)
