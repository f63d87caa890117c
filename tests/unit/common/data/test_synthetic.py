"""The built-in marketplace is what it says: seeded, consistent, and learnable to a known best."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from common.data.catalogue import read_catalogue, write_catalogue
from common.data.interactions import UserItems, encode_held_out
from common.data.splits import split_marketplace
from common.data.synthetic import MarketplaceConfig, SyntheticMarketplace, generate_marketplace
from common.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SMALL = MarketplaceConfig(num_users=(40, 20, 10), num_items=120)


@pytest.fixture(scope="module")
def default() -> SyntheticMarketplace:
    return generate_marketplace(seed=0)


def hit_rate(scores: np.ndarray, train: sp.csr_matrix, test: sp.csr_matrix) -> float:
    """HR@10 of the held-out item among the items not trained on; a tie counts half."""
    scores = np.where(train.toarray() > 0, -np.inf, scores.astype(np.float64))
    users, items = test.nonzero()
    own = scores[users, items][:, None]
    ahead = (scores[users] > own).sum(axis=1) + 0.5 * ((scores[users] == own).sum(axis=1) - 1)
    return float((ahead < 10).mean())


def similarity(matrix: sp.csr_matrix) -> np.ndarray:
    counts = (matrix.T @ matrix).toarray()
    norms = np.sqrt(np.diag(counts)) + 1e-9
    cosine: np.ndarray = counts / np.outer(norms, norms)
    np.fill_diagonal(cosine, 0.0)
    return cosine


def test_the_same_seed_gives_the_same_marketplace() -> None:
    one, two = (generate_marketplace(SMALL, seed=4) for _ in range(2))
    other = generate_marketplace(SMALL, seed=5)
    for a, b in zip(one.marketplace.platforms, two.marketplace.platforms, strict=True):
        pd.testing.assert_frame_equal(a.interactions, b.interactions)
        assert not a.interactions.equals(other.marketplace.platform(a.name).interactions)
    assert one.marketplace.catalogue.attributes is not None
    assert two.marketplace.catalogue.attributes is not None
    pd.testing.assert_frame_equal(
        one.marketplace.catalogue.attributes, two.marketplace.catalogue.attributes
    )


def test_platforms_share_items_and_no_user(default: SyntheticMarketplace) -> None:
    market = default.marketplace
    assert market.is_synthetic
    assert not market.catalogue.derived
    users = [set(p.interactions["user_id"]) for p in market.platforms]
    assert [len(u) for u in users] == [1200, 600, 300, 150, 80]
    assert len(set().union(*users)) == sum(len(u) for u in users)
    lists = np.zeros(market.catalogue.num_items, dtype=int)
    for platform in market.platforms:
        assert set(platform.interactions["item_id"]) <= set(
            market.catalogue.listed_ids(platform.name)
        )
        lists[market.catalogue.listing(platform.name)] += 1
    assert lists.min() == 1
    assert 0.1 < (lists == 1).mean() < 0.4  # exclusive items
    assert (lists >= 3).mean() > 0.4  # widely shared ones


def test_nothing_is_bought_before_its_listing_date_or_twice(default: SyntheticMarketplace) -> None:
    attributes = default.marketplace.catalogue.attributes
    assert attributes is not None
    assert list(attributes.columns) == [
        *("category", "brand", "price", "listing_date", "on_promotion"),
    ]
    listed = pd.to_datetime(attributes["listing_date"], utc=True)
    some_are_new = False
    for platform in default.marketplace.platforms:
        frame = platform.interactions
        bought = pd.to_datetime(frame["timestamp"], unit="s", utc=True)
        dates = listed.loc[frame["item_id"]].to_numpy()
        assert (bought.to_numpy() >= dates).all()
        some_are_new |= bool((dates > bought.min()).any())
        assert not frame.duplicated(["user_id", "item_id"]).any()
        assert frame.groupby("user_id").size().min() >= 5
    assert some_are_new


def test_popularity_is_skewed(default: SyntheticMarketplace) -> None:
    frame = default.marketplace.platforms[0].interactions
    counts = frame["item_id"].value_counts().to_numpy()
    top_tenth = counts[: len(counts) // 10].sum() / counts.sum()
    assert top_tenth > 0.25  # 0.1 without skew


def test_the_truth_beats_popularity_and_popularity_beats_chance(
    default: SyntheticMarketplace,
) -> None:
    market = default.marketplace
    splits = split_marketplace(market, seed=0)
    for platform in market.platforms[:3]:
        train, test, _ = splits[platform.name]
        items = UserItems.from_table(train, market.catalogue, platform.name)
        held_out = encode_held_out(
            test, user_ids=items.user_ids, catalogue=market.catalogue, platform=platform.name
        )
        popularity = np.asarray(items.matrix.sum(axis=0)).ravel()
        of_truth = hit_rate(default.truth.scores(platform.name), items.matrix, held_out)
        of_popularity = hit_rate(np.tile(popularity, (items.num_users, 1)), items.matrix, held_out)
        chance = 10 / items.num_items
        assert of_truth > 1.7 * of_popularity
        assert of_popularity > 3 * chance


def test_the_smallest_platform_could_learn_from_the_others(default: SyntheticMarketplace) -> None:
    market = default.marketplace
    splits = split_marketplace(market, seed=0)
    everyone = []
    for platform in market.platforms:
        items = UserItems.from_table(splits[platform.name].train, market.catalogue, platform.name)
        columns = items.listing[items.matrix.indices]
        everyone.append(
            sp.csr_matrix(
                (items.matrix.data, columns, items.matrix.indptr),
                shape=(items.num_users, market.catalogue.num_items),
            )
        )
    held_out = encode_held_out(
        splits[platform.name].test,
        user_ids=items.user_ids,
        catalogue=market.catalogue,
        platform=platform.name,
    )
    pooled = similarity(sp.vstack(everyone).tocsr())[np.ix_(items.listing, items.listing)]
    local = similarity(items.matrix)
    own = hit_rate(items.matrix @ local, items.matrix, held_out)
    assert hit_rate(items.matrix @ pooled, items.matrix, held_out) > own


def test_its_catalogue_survives_a_file(default: SyntheticMarketplace, tmp_path: Path) -> None:
    catalogue = default.marketplace.catalogue
    write_catalogue(catalogue, tmp_path / "catalogue.csv")
    again = read_catalogue(tmp_path / "catalogue.csv", platforms=list(catalogue.listings))
    assert again.digest == catalogue.digest
    assert again.attributes is not None
    assert catalogue.attributes is not None
    pd.testing.assert_frame_equal(again.attributes, catalogue.attributes)
    for name, listing in catalogue.listings.items():
        assert np.array_equal(again.listings[name], listing)


def test_many_tiny_platforms_are_possible() -> None:
    made = generate_marketplace(
        MarketplaceConfig(num_users=(2,) * 300, num_items=40, smallest_listing=0.01), seed=1
    )
    assert [p.num_users for p in made.marketplace.platforms] == [2] * 300
    assert made.marketplace.platforms[0].name == "shop-001"


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_users": ()},
        {"num_users": (5, 1)},
        {"num_items": 3},
        {"exclusive_share": 1.5},
        {"mean_interactions": 2.0},
        {"smallest_listing": 0.95},
    ],
)
def test_an_impossible_marketplace_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MarketplaceConfig(**wrong)  # type: ignore[arg-type]
