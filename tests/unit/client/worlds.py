"""A shop whose items come in groups, and what somebody who knows the groups would say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from client.validation import Fold

NUM_ITEMS, NUM_GROUPS = 90, 15
GROUP = np.arange(NUM_ITEMS) % NUM_GROUPS


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shop:
    """What its users bought, and one more item of each, which nobody who fits may see."""

    interactions: csr_matrix
    """[num_users, NUM_ITEMS] of ones."""
    folds: tuple[Fold, ...]
    test: csr_matrix
    """Same shape."""


def matrix(pairs: list[tuple[int, int]], num_users: int, num_items: int = NUM_ITEMS) -> csr_matrix:
    users, items = np.array(pairs, dtype=int).reshape(-1, 2).T
    return csr_matrix(
        (np.ones(len(pairs), dtype=np.float32), (users, items)), shape=(num_users, num_items)
    )


def shop(seed: int, num_users: int = 200, num_folds: int = 1) -> Shop:
    """Every user likes one group, buys five items mostly there, and all of them validate."""
    rng = np.random.default_rng(seed)
    bought: list[list[int]] = []
    for _ in range(num_users):
        chance = np.where(rng.integers(NUM_GROUPS) == GROUP, 20.0, 0.4)
        bought.append(rng.choice(NUM_ITEMS, 6, replace=False, p=chance / chance.sum()).tolist())

    def of(first: int, last: int) -> list[tuple[int, int]]:
        return [(user, item) for user in range(num_users) for item in bought[user][first:last]]

    folds = tuple(
        Fold(
            history=matrix(of(0, 4 - place) + of(5 - place, 5), num_users),
            held_out=matrix(of(4 - place, 5 - place), num_users),
        )
        for place in range(num_folds)
    )
    return Shop(
        interactions=matrix(of(0, 5), num_users), folds=folds, test=matrix(of(5, 6), num_users)
    )


def of_groups() -> csr_matrix:
    """The similarity of somebody who knows the groups."""
    same = (GROUP[:, None] == GROUP).astype(np.float32)
    np.fill_diagonal(same, 0.0)
    return csr_matrix(same)


def of_nothing(seed: int) -> csr_matrix:
    """As many pairs, drawn."""
    rng = np.random.default_rng(seed)
    is_pair = np.triu(rng.random((NUM_ITEMS, NUM_ITEMS)) < 1.0 / NUM_GROUPS, 1)
    drawn = is_pair * rng.random(is_pair.shape)
    return csr_matrix((drawn + drawn.T).astype(np.float32))
