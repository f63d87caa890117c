"""Canaries: users, interactions and platforms that are put into the data to be looked for.

A canary is in or out by a fair coin of its own. All of them say something about one pair of items
that nobody else says anything about, if the data allow it: their part of a sum of pairs is then one
number of its own, and nothing but noise is added to it.

| unit | out | in |
|---|---|---|
| user | not there | a user with both items |
| interaction | a user with the first item | the same user with both |
| platform | its users have an item each that nobody else lists | all of them have both items |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from common.data.catalogue import Catalogue
from common.data.interactions import UserItems
from common.data.schema import PlatformTable
from common.data.splits import split_marketplace
from common.errors import ConfigError
from common.models.pairs import most_counted
from server.sums import shared_items

if TYPE_CHECKING:
    from common.data.marketplace import Marketplace
    from simulations.attacks.membership.result import Unit

USERS_OF_PLATFORM = 10
"""Users of a canary platform."""
_MARK = "canary"
_MATCHINGS = 200
_LATEST = 4e9  # seconds since 1970: no test of a real platform is taken from a canary's rows
_SAFE_SHARE = 0.8
"""Of the items that are paired at most: noise must not push one of a canary's items out of them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Canaries:
    """Canaries of one unit."""

    unit: Unit
    """What each of them is."""
    platform: str
    """Where they are; empty for platforms."""
    items: np.ndarray
    """[m, 2] int64: the catalogue rows of each one's items. No pair occurs twice."""
    is_in: np.ndarray
    """[m] bool."""

    @property
    def number(self) -> int:
        """How many there are: m."""
        return len(self.is_in)

    @property
    def num_users(self) -> int:
        """How many users a canary stands for."""
        return USERS_OF_PLATFORM if self.unit == "platform" else 1

    @property
    def pair_shift(self) -> float:
        """What the sum of pairs has more at a canary's pair if it is in."""
        return float(self.num_users)

    @property
    def count_shifts(self) -> tuple[float, float]:
        """What the sum of counts has more at its first and at its second item."""
        both = 0.5**0.5
        return (both - 1.0, both) if self.unit == "interaction" else (self.num_users * both,) * 2

    def all_out(self) -> Canaries:
        """The same without any that is in."""
        return replace(self, is_in=np.zeros(self.number, dtype=bool))


def toss(canaries: Canaries, rng: np.random.Generator) -> Canaries:
    """A fair coin for each."""
    return replace(canaries, is_in=rng.random(canaries.number) < 0.5)


def is_canary(user_id: str) -> bool:
    """Whether a user, or a platform, is one by her name."""
    return user_id.startswith(_MARK)


def with_test_set_aside(marketplace: Marketplace, seed: int) -> Marketplace:
    """The same data in which every platform's test pairs are a file of their own.

    Then nothing that is added is taken out again as somebody's last interaction, and what platforms
    train on does not change with the seed of a run.
    """
    splits = split_marketplace(marketplace, seed)
    return replace(
        marketplace,
        platforms=tuple(
            replace(table, interactions=splits[table.name].train, held_out=splits[table.name].test)
            for table in marketplace.platforms
        ),
    )


def choose_canaries(
    marketplace: Marketplace,
    unit: Unit,
    platform: str,
    number: int,
    *,
    max_items: int,
    rng: np.random.Generator,
    at_least: int | None = None,
    listed_by: str | None = None,
) -> Canaries:
    """Draw the items of each canary, and a coin.

    Args:
        marketplace: without canaries.
        unit: what each is.
        platform: which one gets them; of canary platforms, whose items they have.
        number: of canaries.
        max_items: items that are paired at most in a run.
        rng: of the draws.
        at_least: as few are taken if there are no more; None takes ``number`` or none.
        listed_by: another platform that has to list their items, too.

    Raises:
        ConfigError: if the platform has too few items in common with others.
    """
    rows = _paired_rows(marketplace, platform, max_items)
    if listed_by is not None:
        rows = np.intersect1d(rows, marketplace.catalogue.listing(listed_by))
    pairs = _draw_pairs(rows, _bought_together(marketplace, platform, rows), number, rng)
    least = number if at_least is None else at_least
    if len(pairs) < least:
        msg = (
            f"canaries: the data are too small for {least}: platform {platform!r} has "
            f"{len(rows)} items in common with others, enough for {len(pairs)} pairs. Ask for "
            "fewer canaries, or use a larger data set."
        )
        raise ConfigError(msg)
    canaries = Canaries(
        unit=unit,
        platform="" if unit == "platform" else platform,
        items=pairs,
        is_in=np.zeros(len(pairs), dtype=bool),
    )
    return toss(canaries, rng)


def most_items_in_common(marketplace: Marketplace) -> list[str]:
    """Platforms by how many items they have in common with others, most first."""
    names = tuple(table.name for table in marketplace.platforms)
    shared = shared_items(marketplace.catalogue, names)
    listings = marketplace.catalogue.listings
    return sorted(names, key=lambda name: (-len(np.intersect1d(listings[name], shared)), name))


def plant(marketplace: Marketplace, canaries: Canaries) -> Marketplace:
    """The data with those of ``canaries`` that are in, and what is there of the others.

    Raises:
        ValueError: if a name of a canary is taken.
    """
    if canaries.unit == "platform":
        return _plant_platforms(marketplace, canaries)
    users = np.array([f"{_MARK}-{place:06d}" for place in range(canaries.number)], dtype=object)
    table = marketplace.platform(canaries.platform)
    if table.interactions["user_id"].str.startswith(_MARK).any():
        raise ValueError("the data hold canaries already")
    ids = np.asarray(marketplace.catalogue.item_ids, dtype=object)
    has_first = canaries.is_in | (canaries.unit == "interaction")
    frames = [
        _frame(table, users[chosen], ids[canaries.items[chosen, place]])
        for place, chosen in enumerate((has_first, canaries.is_in))
    ]
    larger = replace(
        table, interactions=pd.concat([table.interactions, *frames], ignore_index=True)
    )
    return replace(
        marketplace,
        platforms=tuple(larger if p is table else p for p in marketplace.platforms),
    )


def users_of(marketplace: Marketplace, platform: str) -> UserItems:
    """What a platform of data :func:`with_test_set_aside` sums over."""
    table = marketplace.platform(platform)
    return UserItems.from_table(table.interactions, marketplace.catalogue, platform)


def _paired_rows(marketplace: Marketplace, platform: str, max_items: int) -> np.ndarray:
    """Rows that the platform lists and that are sure to be among those that are paired."""
    catalogue = marketplace.catalogue
    shared = shared_items(catalogue, tuple(table.name for table in marketplace.platforms))
    if len(shared) > max_items:
        counts = np.zeros(catalogue.num_items)
        for table in marketplace.platforms:
            np.add.at(counts, catalogue.index_of(table.interactions["item_id"]), 1.0)
        shared = shared[most_counted(counts[shared], int(_SAFE_SHARE * max_items))]
    rows: np.ndarray = np.intersect1d(shared, catalogue.listing(platform))
    return rows


def _bought_together(marketplace: Marketplace, platform: str, rows: np.ndarray) -> np.ndarray:
    """[n, n] bool: which of ``rows`` some user of the platform has both of."""
    users = users_of(marketplace, platform)
    own = users.matrix[:, np.searchsorted(users.listing, rows)]
    together: np.ndarray = (own.T @ own).toarray() > 0
    return together


def _draw_pairs(
    rows: np.ndarray, is_taken: np.ndarray, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Random matchings, one after the other, without pairs that are taken: [<= number, 2]."""
    is_taken = is_taken.copy()
    found: list[np.ndarray] = []
    for _ in range(_MATCHINGS if len(rows) > 1 else 0):
        order = rng.permutation(len(rows))[: len(rows) // 2 * 2].reshape(-1, 2)
        first, second = order.min(axis=1), order.max(axis=1)
        is_free = ~is_taken[first, second]
        is_taken[first[is_free], second[is_free]] = True
        found.append(np.stack([first, second], axis=1)[is_free])
        if sum(map(len, found)) >= number:
            break
    places = np.concatenate(found)[:number] if found else np.empty((0, 2), dtype=np.int64)
    pairs: np.ndarray = rows[places]
    return pairs


def _frame(like: PlatformTable, users: np.ndarray, items: np.ndarray) -> pd.DataFrame:
    """Interactions with the columns of a platform's own."""
    frame = pd.DataFrame({"user_id": users, "item_id": items}, dtype="str")
    for column, value in (("rating", 1.0), ("timestamp", _LATEST)):
        if column in like.interactions.columns:
            frame[column] = value
    return frame


def _plant_platforms(marketplace: Marketplace, canaries: Canaries) -> Marketplace:
    old = marketplace.catalogue
    names = [f"{_MARK}-{place:04d}" for place in range(canaries.number)]
    # Items that come after all others: everybody else's rows stay what they are.
    new = [f"{old.item_ids[-1]}-{name}" for name in names]
    tables, listings = list(marketplace.platforms), dict(old.listings)
    for place, (name, alone) in enumerate(zip(names, new, strict=True)):
        pair = [old.item_ids[row] for row in canaries.items[place]]
        bought, tested = (pair, alone) if canaries.is_in[place] else ([alone], pair[0])
        users = [f"{name}-{user}" for user in range(USERS_OF_PLATFORM)]
        frame = pd.DataFrame(
            [(user, item) for user in users for item in bought],
            columns=["user_id", "item_id"],
            dtype="str",
        )
        # A test pair takes nothing away: it is of an item that nobody there has.
        held_out = pd.DataFrame({"user_id": users[:1], "item_id": [tested]}, dtype="str")
        tables.append(PlatformTable(name=name, interactions=frame, held_out=held_out, source=_MARK))
        listings[name] = np.append(canaries.items[place], old.num_items + place)
    catalogue = Catalogue(
        item_ids=(*old.item_ids, *new),
        listings={name: np.sort(listing) for name, listing in listings.items()},
        derived=old.derived,
    )
    return replace(marketplace, platforms=tuple(tables), catalogue=catalogue)
