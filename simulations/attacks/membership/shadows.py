"""Shadow runs for LiRA: real users and canary users, each in or out by a coin of every run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from client.sums import on_items
from common.models.pairs import pair_starts
from simulations.attacks.membership.canaries import users_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scipy.sparse import csr_matrix

    from common.data.marketplace import Marketplace
    from simulations.attacks.membership.observer import Seen


def draw_records(
    marketplace: Marketplace, platform: str, at_most: int, rng: np.random.Generator
) -> tuple[str, ...]:
    """Users of a platform whose membership is guessed: at most half of all, drawn at random."""
    users = sorted(marketplace.platform(platform).interactions["user_id"].unique().tolist())
    number = min(at_most, len(users) // 2)
    chosen = rng.permutation(len(users))[:number]
    return tuple(users[place] for place in sorted(chosen.tolist()))


def without_users(marketplace: Marketplace, platform: str, users: Iterable[str]) -> Marketplace:
    """The data without some users of a platform."""
    table, gone = marketplace.platform(platform), set(users)
    frames = {}
    for name in ("interactions", "held_out"):
        frame = getattr(table, name)
        frames[name] = frame.loc[~frame["user_id"].isin(gone)].reset_index(drop=True)
    smaller = replace(table, **frames)
    return replace(
        marketplace,
        platforms=tuple(smaller if p is table else p for p in marketplace.platforms),
    )


def score_records(
    marketplace: Marketplace, platform: str, users: tuple[str, ...], seen: Iterable[Seen]
) -> np.ndarray:
    """How much of each user's part there is in the sums: her part times the sum, over the variance.

    Args:
        marketplace: with all of them in: what the attacker has of each is what she would add.
        platform: whose users they are.
        users: whose membership is guessed.
        seen: releases, or sums of them; rounds of training are passed over.

    Returns:
        [records] float64, higher for in.
    """
    everybody = users_of(marketplace, platform)
    places = {user: row for row, user in enumerate(everybody.user_ids)}
    own = everybody.matrix[[places[user] for user in users]]
    total = np.zeros(len(users))
    for one in seen:
        quantity = getattr(one.request, "quantity", None)
        if quantity is None or platform not in one.platforms:
            continue
        rows = on_items(own, everybody.listing, one.asked["items"])
        weights = one.asked.get("weights")
        for place in range(len(users)):
            columns = np.sort(rows.indices[rows.indptr[place] : rows.indptr[place + 1]])
            value = _product(columns, weights, one.numbers["sum"], rows)
            total[place] += value / max(one.noise_std**2, 1e-6)
    return total


def _product(
    columns: np.ndarray, weights: np.ndarray | None, numbers: np.ndarray, rows: csr_matrix
) -> float:
    """A user's part of a sum, of norm 1, times the sum."""
    if weights is None:
        part, index = np.ones(len(columns)), columns
    else:
        first, second = np.triu_indices(len(columns), k=1)
        own = weights[columns].astype(np.float64)
        part = own[first] * own[second]
        index = pair_starts(rows.shape[1])[columns[first]] + columns[second] - columns[first] - 1
    norm = float(np.linalg.norm(part))
    return float(part @ numbers[index]) / norm if norm > 0 else 0.0
