from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from common.data.readers import read_marketplace
from common.data.splits import split_marketplace
from common.errors import ConfigError
from simulations.newcomers import Newcomer, draw_newcomer
from tests.shops import SIZES, options, purchases, run_all, write_shops

if TYPE_CHECKING:
    from pathlib import Path

    from common.data.marketplace import Marketplace


@pytest.fixture
def marketplace(tmp_path: Path) -> Marketplace:
    return read_marketplace(write_shops(tmp_path / "shops", {"north": 40, "south": 14}))


def drawn(marketplace: Marketplace, fraction: float, seed: int = 0) -> set[str]:
    found = draw_newcomer(marketplace, Newcomer(platform="north", fraction=fraction), seed)
    return set(found.platform("north").interactions["user_id"])


@pytest.mark.parametrize(("fraction", "number"), [(0.1, 4), (0.26, 10), (0.5, 20), (1.0, 40)])
def test_exactly_that_fraction_of_the_users_is_there_with_all_they_bought(
    marketplace: Marketplace, fraction: float, number: int
) -> None:
    users = drawn(marketplace, fraction)
    assert len(users) == number
    found = draw_newcomer(marketplace, Newcomer(platform="north", fraction=fraction), 0)
    bought = found.platform("north").interactions
    assert (bought.groupby("user_id").size() == 6).all()


def test_a_tiny_fraction_keeps_two_users(marketplace: Marketplace) -> None:
    assert len(drawn(marketplace, 0.001)) == 2


def test_the_draw_follows_the_seed_and_grows_with_the_fraction(marketplace: Marketplace) -> None:
    assert drawn(marketplace, 0.25) == drawn(marketplace, 0.25) < drawn(marketplace, 0.5)
    assert drawn(marketplace, 0.25) != drawn(marketplace, 0.25, seed=1)


def test_nothing_else_changes(marketplace: Marketplace) -> None:
    found = draw_newcomer(marketplace, Newcomer(platform="north", fraction=0.1), 0)
    assert found.catalogue is marketplace.catalogue
    assert found.platform("south") is marketplace.platform("south")


def test_a_user_is_split_as_on_the_whole_platform(marketplace: Marketplace) -> None:
    whole = split_marketplace(marketplace, 3)["north"].test
    newcomer = Newcomer(platform="north", fraction=0.25)
    small = split_marketplace(draw_newcomer(marketplace, newcomer, 3), 3)["north"].test
    pd.testing.assert_frame_equal(
        small.sort_values("user_id", ignore_index=True),
        whole[whole["user_id"].isin(small["user_id"])].sort_values("user_id", ignore_index=True),
    )


def test_held_out_pairs_of_others_go_with_them(marketplace: Marketplace) -> None:
    north = marketplace.platform("north")
    held_out = pd.DataFrame(
        {"user_id": [f"north-u{k:02d}" for k in range(40)], "item_id": ["i00"] * 40}
    )
    platforms = (replace(north, held_out=held_out), marketplace.platform("south"))
    with_file = replace(marketplace, platforms=platforms)
    found = draw_newcomer(with_file, Newcomer(platform="north", fraction=0.25), 0)
    table = found.platform("north")
    assert table.held_out is not None
    assert set(table.held_out["user_id"]) == set(table.interactions["user_id"])


def test_a_platform_that_is_not_there_is_named(marketplace: Marketplace) -> None:
    with pytest.raises(ConfigError, match="there is no platform 'x'; the data have north, south"):
        draw_newcomer(marketplace, Newcomer(platform="x", fraction=0.1), 0)


@pytest.mark.parametrize("text", ["t1:0.1", "a:b:0.25", " t1:1 "])
def test_a_newcomer_is_read_as_it_is_written(text: str) -> None:
    newcomer = Newcomer.parse(text)
    assert Newcomer.parse(str(newcomer)) == newcomer
    assert str(newcomer) == text.strip()


def test_in_a_run_only_drawn_users_are_on_disk_and_no_test_pair_is(tmp_path: Path) -> None:
    data = write_shops(tmp_path / "shops")
    document = run_all(options(data, newcomer="north:0.5", adapting=("north",)), tmp_path / "run")
    train = pd.read_parquet(tmp_path / "run/platforms/north/train.parquet")
    users = drawn(read_marketplace(data), 0.5)
    assert set(train["user_id"]) == users
    assert len(users) == 9 == document["platforms"]["north"]["num_users"]
    everything = purchases("north", SIZES["north"])
    assert len(train) == 5 * 9  # six purchases each, one held out
    assert len(everything[everything["user_id"].isin(users)].merge(train)) == len(train)
    # Every platform trains, only the newcomer is measured.
    assert document["rounds"][0]["platforms"] == dict.fromkeys(SIZES, "released")
    assert set(document["platforms"]["north"]["models"]) > {"popularity"}
    assert document["platforms"]["south"]["models"] == {}
    assert any("north has 0.5 of its users" in note for note in document["data"]["notes"])
