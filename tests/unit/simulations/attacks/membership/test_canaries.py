"""A canary moves the sums by exactly what the attacker looks for, and nothing else moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import pytest

from client.sums import count_sum, on_items, pair_sum
from common.data.splits import split_marketplace
from common.errors import ConfigError
from common.models.pairs import MIN_WEIGHT, pair_starts
from server.sums import shared_items
from simulations.attacks.membership.canaries import (
    Canaries,
    choose_canaries,
    is_canary,
    most_items_in_common,
    plant,
    toss,
    users_of,
    with_test_set_aside,
)
from simulations.attacks.membership.result import Unit

if TYPE_CHECKING:
    from common.data.marketplace import Marketplace

MAX_ITEMS = 4000
each_unit = pytest.mark.parametrize("unit", get_args(Unit))


def chosen(marketplace: Marketplace, unit: Unit = "user", number: int = 40) -> Canaries:
    return choose_canaries(
        with_test_set_aside(marketplace, 0),
        unit,
        "shop-1",
        number,
        max_items=MAX_ITEMS,
        rng=np.random.default_rng(3),
    )


def sums(marketplace: Marketplace, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact counts and pairs over all platforms, as the client computes them."""
    weights = np.random.default_rng(0).uniform(MIN_WEIGHT, 1.0, len(items)).astype(np.float32)
    counts, pairs = [], []
    for table in marketplace.platforms:
        users = users_of(marketplace, table.name)
        own = on_items(users.matrix, users.listing, items)
        counts.append(count_sum(own))
        pairs.append(pair_sum(own, weights))
    return np.sum(counts, axis=0), np.sum(pairs, axis=0)


@each_unit
def test_a_canary_moves_the_sums_by_what_is_looked_for(
    marketplace: Marketplace, unit: Unit
) -> None:
    data, canaries = with_test_set_aside(marketplace, 0), chosen(marketplace, unit, 12)
    items = shared_items(marketplace.catalogue, tuple(p.name for p in marketplace.platforms))
    counts, pairs = (
        more - less
        for more, less in zip(
            sums(plant(data, canaries), items),
            sums(plant(data, canaries.all_out()), items),
            strict=True,
        )
    )
    wanted_counts, wanted_pairs = np.zeros_like(counts), np.zeros_like(pairs)
    first, second = np.searchsorted(items, canaries.items[canaries.is_in]).T
    np.add.at(wanted_counts, first, canaries.count_shifts[0])
    np.add.at(wanted_counts, second, canaries.count_shifts[1])
    wanted_pairs[pair_starts(len(items))[first] + second - first - 1] = canaries.pair_shift
    # Parts are rounded down, by 2^-40 and the rounding of factors that make up a pair.
    assert counts == pytest.approx(wanted_counts, abs=1e-9)
    assert pairs == pytest.approx(wanted_pairs, abs=1e-3)


@each_unit
def test_items_keep_their_rows_and_nobody_else_is_asked_for_others(
    marketplace: Marketplace, unit: Unit
) -> None:
    planted = plant(with_test_set_aside(marketplace, 0), chosen(marketplace, unit))
    old, new = marketplace.catalogue, planted.catalogue
    assert new.item_ids[: old.num_items] == old.item_ids
    assert list(new.item_ids) == sorted(new.item_ids)
    names = tuple(table.name for table in marketplace.platforms)
    for name in names:
        assert (new.listing(name) == old.listing(name)).all()
    everybody = tuple(table.name for table in planted.platforms)
    assert (shared_items(new, everybody) == shared_items(old, names)).all()


def test_pairs_differ_and_nobody_bought_them_together(marketplace: Marketplace) -> None:
    canaries = chosen(marketplace, number=1500)
    assert canaries.number == 1500
    assert len(np.unique(canaries.items, axis=0)) == 1500
    assert (canaries.items[:, 0] < canaries.items[:, 1]).all()
    users = users_of(with_test_set_aside(marketplace, 0), "shop-1")
    own = users.matrix.toarray()[:, np.searchsorted(users.listing, canaries.items)]
    assert not own.all(axis=2).any()
    few = chosen(marketplace, number=100).items
    assert len(np.unique(few)) == 200, "few canaries have no item in common"


def test_coins_are_fair_and_each_canarys_own(marketplace: Marketplace) -> None:
    rng = np.random.default_rng(0)
    canaries = chosen(marketplace, number=50)
    coins = np.array([toss(canaries, rng).is_in for _ in range(400)])
    assert abs(coins.mean() - 0.5) < 0.02
    correlation = np.corrcoef(coins.T) - np.eye(50)
    assert np.abs(correlation).max() < 0.25


def test_users_who_are_out_leave_no_trace(marketplace: Marketplace) -> None:
    data, canaries = with_test_set_aside(marketplace, 0), chosen(marketplace)
    found = plant(data, canaries).platform("shop-1").interactions
    mine = found.loc[found["user_id"].map(is_canary)]
    assert mine["user_id"].nunique() == canaries.is_in.sum()
    assert (mine.groupby("user_id").size() == 2).all()
    rest = found.loc[~found["user_id"].map(is_canary)].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, data.platform("shop-1").interactions)


def test_platforms_train_on_what_they_train_on_anyway_whatever_the_seed(
    marketplace: Marketplace,
) -> None:
    planted = plant(with_test_set_aside(marketplace, 0), chosen(marketplace))
    plain, attacked = split_marketplace(marketplace, 0), split_marketplace(planted, 99)
    for name, split in plain.items():
        train = attacked[name].train
        mine = train["user_id"].map(is_canary)
        pd.testing.assert_frame_equal(train.loc[~mine], split.train)
        assert int(mine.sum()) == (2 * chosen(marketplace).is_in.sum() if name == "shop-1" else 0)


def test_data_without_room_are_refused_by_name(marketplace: Marketplace) -> None:
    with pytest.raises(ConfigError, match="too small for 1000000: platform 'shop-1'"):
        chosen(marketplace, number=1_000_000)


def test_platforms_are_ordered_by_what_they_have_in_common(marketplace: Marketplace) -> None:
    assert most_items_in_common(marketplace) == [f"shop-{k}" for k in range(1, 6)]
