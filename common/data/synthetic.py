"""A marketplace with a known truth: platforms, items, tastes and purchases out of a seed.

It is what ``crossrec simulate`` runs on when no data is given, and a test that can fail:
its scores are known, so a ranking can be held against the best one there is.

How purchases come about. The rate at which user u of platform p buys item i while i is
listed is ``exp(scores(p)[u, i])`` with

    score = taste_strength * <taste_u, item_i> + popularity_i + offer_i + local_p,i + exposure_i

tastes point at a few item categories and are drawn alike on every platform; popularity
falls by a power of the rank (Zipf); an offer raises it; ``local`` is the platform's own
deviation; ``exposure`` is the log share of the observed time in which the item was for
sale. A user's basket is a draw without replacement in proportion to those rates, made with
the Gumbel-top-k trick (Kool et al. 2019, arXiv:1903.06059, section 2.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from common.data.catalogue import Catalogue
from common.data.marketplace import Marketplace
from common.data.schema import PlatformTable
from common.errors import ConfigError
from common.rng import derived_generator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_START: Final = pd.Timestamp("2024-01-01", tz="UTC")
_NUM_DAYS: Final = 730
_DAY_SECONDS: Final = 86_400.0
_MAX_CHUNK_CELLS: Final = 1 << 22  # users times items scored at once: 16 MiB of float32
_MIN_LISTED: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketplaceConfig:
    """What kind of marketplace to generate.

    Attributes:
        num_users: users of each platform, one number per platform.
        num_items: items of all platforms together.
        num_categories: item categories.
        num_brands: item brands.
        num_factors: dimensions of taste.
        mean_interactions: mean number of purchases per user.
        min_interactions: purchases that every user makes at least.
        taste_strength: standard deviation of the taste part of a score.
        popularity_exponent: item popularity falls as rank to minus this.
        local_strength: standard deviation of a platform's own deviation per item.
        exclusive_share: share of the items that one platform alone lists.
        largest_listing: share of the other items that the platform with most users lists.
        smallest_listing: the same for the platform with fewest users.

    Raises:
        ConfigError: if a value is out of range.
    """

    num_users: tuple[int, ...] = (1200, 600, 300, 150, 80)
    num_items: int = 600
    num_categories: int = 12
    num_brands: int = 40
    num_factors: int = 8
    mean_interactions: float = 15.0
    min_interactions: int = 5
    taste_strength: float = 2.0
    popularity_exponent: float = 0.8
    local_strength: float = 0.3
    exclusive_share: float = 0.15
    largest_listing: float = 0.9
    smallest_listing: float = 0.5

    def __post_init__(self) -> None:
        checks = {
            "num_users": bool(self.num_users) and min(self.num_users) >= 2,
            "num_items": self.num_items >= 4 * _MIN_LISTED,
            "num_categories": 1 <= self.num_categories <= self.num_items,
            "num_brands": self.num_brands >= 1,
            "num_factors": self.num_factors >= 1,
            "mean_interactions": self.min_interactions <= self.mean_interactions < math.inf,
            "min_interactions": 1 <= self.min_interactions <= _MIN_LISTED // 2,
            "taste_strength": 0 <= self.taste_strength < math.inf,
            "popularity_exponent": 0 <= self.popularity_exponent < math.inf,
            "local_strength": 0 <= self.local_strength < math.inf,
            "exclusive_share": 0 <= self.exclusive_share <= 1,
            "largest_listing": 0 < self.largest_listing <= 1,
            "smallest_listing": 0 < self.smallest_listing <= self.largest_listing,
        }
        for name, is_valid in checks.items():
            if not is_valid:
                raise ConfigError(f"marketplace {name}: found {getattr(self, name)}, out of range.")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MarketplaceTruth:
    """The factors that made the purchases.

    Attributes:
        user_factors: platform -> float32, shape (num_users, num_factors), in the order of
            the sorted user ids; scaled by ``taste_strength``.
        item_factors: float32, shape (num_items, num_factors), in catalogue order.
        item_bias: platform -> float32, shape (num_items,): popularity, offers, the
            platform's own deviation and exposure.
        listings: platform -> sorted catalogue indices.
    """

    user_factors: Mapping[str, NDArray[np.float32]]
    item_factors: NDArray[np.float32]
    item_bias: Mapping[str, NDArray[np.float32]]
    listings: Mapping[str, NDArray[np.int64]]

    def scores(self, platform: str, users: slice = slice(None)) -> NDArray[np.float32]:
        """Log purchase rates, shape (num_users, num_listed): users by id, items by listing."""
        listing = self.listings[platform]
        factors, items = self.user_factors[platform][users], self.item_factors[listing]
        scores: NDArray[np.float32] = factors @ items.T
        scores += self.item_bias[platform][listing]
        return scores


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SyntheticMarketplace:
    """A generated marketplace and the truth behind it."""

    marketplace: Marketplace
    truth: MarketplaceTruth


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Items:
    """Every item's part of the truth, in catalogue order."""

    attributes: pd.DataFrame
    factors: NDArray[np.float32]
    bias: NDArray[np.float64]
    listed_from: NDArray[np.float64]  # seconds since 1970


def generate_marketplace(
    config: MarketplaceConfig | None = None, seed: int = 0
) -> SyntheticMarketplace:
    """Generate platforms with overlapping catalogues, users of their own and shared tastes.

    The same arguments give the same marketplace. Platforms are called ``shop-1`` and so on
    in the order of ``config.num_users``; no user is on two of them. Timestamps are whole
    seconds, never before an item's listing date. The catalogue is a given one, with the
    attributes category, brand, price, listing_date and on_promotion.

    Args:
        config: what kind; the default makes 2,330 users on five platforms.
        seed: the seed of all streams.
    """
    config = config or MarketplaceConfig()
    width = len(str(len(config.num_users)))
    names = [f"shop-{k:0{width}d}" for k in range(1, len(config.num_users) + 1)]
    centres = derived_generator(seed, "synthetic-categories").standard_normal(
        (config.num_categories, config.num_factors)
    )
    items = _draw_items(config, centres, derived_generator(seed, "synthetic-items"))
    listings = _draw_listings(config, names, derived_generator(seed, "synthetic-listings"))
    user_factors: dict[str, NDArray[np.float32]] = {}
    item_bias: dict[str, NDArray[np.float32]] = {}
    for name, num_users in zip(names, config.num_users, strict=True):
        rng = derived_generator(seed, "synthetic-users", name)
        user_factors[name] = _draw_tastes(config, centres, num_users, rng)
        local = config.local_strength * rng.standard_normal(config.num_items)
        item_bias[name] = (items.bias + local).astype(np.float32)
    truth = MarketplaceTruth(
        user_factors=user_factors,
        item_factors=items.factors,
        item_bias=item_bias,
        listings=listings,
    )
    catalogue = Catalogue(
        item_ids=tuple(items.attributes.index),
        listings=listings,
        derived=False,
        attributes=items.attributes,
    )
    platforms = []
    for name in names:
        rng = derived_generator(seed, "synthetic-purchases", name)
        interactions = _draw_interactions(config, name, truth, items, rng)
        platforms.append(
            PlatformTable(name=name, interactions=interactions, source="synthetic marketplace")
        )
    marketplace = Marketplace(
        platforms=tuple(platforms),
        catalogue=catalogue,
        source=f"synthetic marketplace (seed {seed})",
        is_synthetic=True,
    )
    return SyntheticMarketplace(marketplace=marketplace, truth=truth)


def _draw_items(
    config: MarketplaceConfig, centres: NDArray[np.float64], rng: np.random.Generator
) -> _Items:
    num = config.num_items
    sizes = rng.dirichlet(np.full(config.num_categories, 3.0))
    category = rng.choice(config.num_categories, size=num, p=sizes)
    brand = (config.num_brands * rng.random(num) ** 2).astype(np.int64)  # a few big brands
    factors = 0.85 * centres[category] + 0.5 * rng.standard_normal((num, config.num_factors))
    typical_price = np.exp(rng.normal(3.0, 0.7, size=config.num_categories))
    price = np.round(typical_price[category] * np.exp(rng.normal(0.0, 0.4, size=num)), 2)
    # Two thirds were there from the start; the others arrive while purchases are observed.
    is_new = rng.random(num) < 1 / 3
    first_day = np.where(
        is_new, rng.integers(1, int(0.8 * _NUM_DAYS), num), -rng.integers(0, 1000, num)
    )
    on_promotion = rng.random(num) < 0.1
    popularity = -config.popularity_exponent * np.log(rng.permutation(num) + 1.0)
    exposure = np.log1p(-np.maximum(first_day, 0) / _NUM_DAYS)
    width = max(4, len(str(num)))
    attributes = pd.DataFrame(
        {
            "category": [f"category-{k + 1:02d}" for k in category],
            "brand": [f"brand-{k + 1:03d}" for k in brand],
            "price": price,
            "listing_date": (_START + pd.to_timedelta(first_day, unit="D")).strftime("%Y-%m-%d"),
            "on_promotion": on_promotion,
        },
        index=pd.Index([f"item-{k:0{width}d}" for k in range(1, num + 1)], name="item_id"),
    )
    return _Items(
        attributes=attributes,
        factors=factors.astype(np.float32),
        bias=popularity + 0.5 * on_promotion + exposure,
        listed_from=_START.timestamp() + first_day * _DAY_SECONDS,
    )


def _draw_listings(
    config: MarketplaceConfig, names: list[str], rng: np.random.Generator
) -> dict[str, NDArray[np.int64]]:
    """Large platforms list more; every item is listed somewhere."""
    log_users = np.log(config.num_users)
    span = float(log_users.max() - log_users.min())
    size = (log_users - log_users.min()) / span if span else np.ones(len(names))
    share = config.smallest_listing + (config.largest_listing - config.smallest_listing) * size
    shape = (len(names), config.num_items)
    is_listed = rng.random(shape) < share[:, None]
    home = rng.choice(len(names), size=config.num_items, p=share / share.sum())
    is_home = np.arange(len(names))[:, None] == home
    is_exclusive = rng.random(config.num_items) < config.exclusive_share
    is_listed = np.where(is_exclusive | ~is_listed.any(axis=0), is_home, is_listed)
    for listed in is_listed:
        num_short = _MIN_LISTED - int(listed.sum())
        if num_short > 0:
            listed[rng.choice(np.flatnonzero(~listed), size=num_short, replace=False)] = True
    return {name: np.flatnonzero(row) for name, row in zip(names, is_listed, strict=True)}


def _draw_tastes(
    config: MarketplaceConfig,
    centres: NDArray[np.float64],
    num_users: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Users like up to three categories; every taste has length ``taste_strength``."""
    favourites = rng.integers(config.num_categories, size=(num_users, 3))
    weights = rng.dirichlet(np.array([2.0, 1.0, 0.5]), size=num_users)
    tastes: NDArray[np.float64] = np.einsum("uk,ukf->uf", weights, centres[favourites])
    tastes += 0.3 * rng.standard_normal(tastes.shape)
    tastes *= config.taste_strength / np.linalg.norm(tastes, axis=1, keepdims=True)
    return tastes.astype(np.float32)


def _draw_interactions(
    config: MarketplaceConfig,
    name: str,
    truth: MarketplaceTruth,
    items: _Items,
    rng: np.random.Generator,
) -> pd.DataFrame:
    num_users, listing = len(truth.user_factors[name]), truth.listings[name]
    # Log-normal activity above the minimum; nobody buys more than half of what is listed.
    spread = 0.8
    extra = config.mean_interactions - config.min_interactions
    activity = extra * np.exp(spread * rng.standard_normal(num_users) - spread**2 / 2)
    most = len(listing) // 2
    baskets = np.minimum(config.min_interactions + rng.poisson(activity), most)
    size = int(baskets.max())
    chunk = max(1, _MAX_CHUNK_CELLS // len(listing))
    chosen = []
    for first in range(0, num_users, chunk):
        users = slice(first, min(first + chunk, num_users))
        keys = truth.scores(name, users)
        # Gumbel noise is minus the log of exponential noise, which numpy draws in float32.
        noise = rng.standard_exponential(keys.shape, dtype=np.float32)
        keys -= np.log(np.maximum(noise, np.finfo(np.float32).tiny))
        top = np.argpartition(-keys, size - 1, axis=1)[:, :size]
        ranks = np.argsort(-np.take_along_axis(keys, top, axis=1), axis=1)
        in_order = np.take_along_axis(top, ranks, axis=1)
        chosen.append(in_order[np.arange(size) < baskets[users, None]])
    indices = listing[np.concatenate(chosen)]
    start = np.maximum(items.listed_from[indices], _START.timestamp())
    end = _START.timestamp() + _NUM_DAYS * _DAY_SECONDS
    times = np.floor(start + rng.random(len(indices)) * (end - start))
    width = max(5, len(str(num_users)))
    users_of = np.repeat(np.arange(num_users), baskets)
    user_ids = np.array([f"{name}-user-{k:0{width}d}" for k in range(1, num_users + 1)], object)
    item_ids = items.attributes.index.to_numpy(dtype=object)
    order = np.lexsort((times, users_of))
    return pd.DataFrame(
        {
            "user_id": pd.Series(user_ids[users_of[order]], dtype="str"),
            "item_id": pd.Series(item_ids[indices[order]], dtype="str"),
            "timestamp": times[order],
        }
    )
