"""How likely each canary is to be in, given the noisy sums that an adversary sees.

Sums are linear and their noise is known. So the adversary takes away what everybody else says,
which it knows, and weighs what is left at a canary's own numbers: the logarithm of the likelihood
ratio of in and out, which no other score beats (Neyman and Pearson 1933). Releases are independent,
so their logarithms add up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from client.sums import count_sum, on_items, pair_sum
from common.models.pairs import pair_starts
from common.models.partition import PAIRS
from simulations.attacks.membership.canaries import users_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from common.data.marketplace import Marketplace
    from common.models.partition import Arrays
    from simulations.attacks.membership.canaries import Canaries
    from simulations.attacks.membership.observer import Handed, Seen


_LEAST_VARIANCE = 1e-6


def score_sums(canaries: Canaries, seen: Iterable[Seen], known: Marketplace) -> np.ndarray:
    """Logarithm of the likelihood ratio of each canary, from all sums that hold its platform.

    Args:
        canaries: whose items are looked at, and nothing else of them.
        seen: releases, or sums of them; rounds of training are passed over.
        known: the data without canaries that are in: the adversary knows everybody else.

    Returns:
        [m] float64, higher for in.
    """
    total = np.zeros(canaries.number)
    for one in seen:
        quantity = getattr(one.request, "quantity", None)
        if quantity is None or (canaries.platform and canaries.platform not in one.platforms):
            continue
        numbers = one.numbers["sum"] - _known_sum(one.asked, one.platforms, known)
        score = _score_counts if quantity == "item-counts" else _score_pairs
        total += score(canaries, one.asked["items"], numbers, one.noise_std)
    return total


def score_handed_pairs(canaries: Canaries, handed: Handed, known: Marketplace) -> np.ndarray:
    """The same from the sum of pairs that the run hands to every platform."""
    asked = {name: handed.arrays[f"{PAIRS}{name}"] for name in ("items", "weights")}
    platforms = tuple(table.name for table in known.platforms)
    numbers = handed.arrays[f"{PAIRS}sum"] - _known_sum(asked, platforms, known)
    std = handed.request.noise_std * np.sqrt(handed.request.num_sums)
    return _score_pairs(canaries, asked["items"], numbers, float(std))


def log_ratio(found: np.ndarray, shift: float, variance: np.ndarray | float) -> np.ndarray:
    """Logarithm of N(found; shift, variance) over N(found; 0, variance).

    Without noise, where it would be infinite, it is very large.
    """
    safe = np.maximum(variance, _LEAST_VARIANCE)
    ratio: np.ndarray = (shift * found - 0.5 * shift * shift) / safe
    return ratio


def _known_sum(asked: Arrays, platforms: tuple[str, ...], known: Marketplace) -> np.ndarray:
    """What everybody but the canaries that are in says, exactly."""
    sums = []
    for name in platforms:
        users = users_of(known, name)
        own = on_items(users.matrix, users.listing, asked["items"])
        sums.append(pair_sum(own, asked["weights"]) if "weights" in asked else count_sum(own))
    total: np.ndarray = np.sum(sums, axis=0)
    return total


def _places(canaries: Canaries, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a canary's items are among ``items``, [m, 2], and which canaries have both, [m]."""
    places = np.minimum(np.searchsorted(items, canaries.items), len(items) - 1)
    return places, (items[places] == canaries.items).all(axis=1)


def _score_pairs(
    canaries: Canaries, items: np.ndarray, numbers: np.ndarray, std: float
) -> np.ndarray:
    places, is_asked = _places(canaries, items)
    first, second = places.min(axis=1), places.max(axis=1)
    index = np.where(is_asked, pair_starts(len(items))[first] + second - first - 1, 0)
    ratio = log_ratio(numbers[index], canaries.pair_shift, std * std)
    return np.where(is_asked, ratio, 0.0)


def _score_counts(
    canaries: Canaries, items: np.ndarray, numbers: np.ndarray, std: float
) -> np.ndarray:
    """Several canaries may share an item: then the others' coins are noise as well."""
    places, is_asked = _places(canaries, items)
    mean, variance = np.zeros((2, len(items)))
    for side, shift in enumerate(canaries.count_shifts):
        np.add.at(mean, places[is_asked, side], shift / 2)
        np.add.at(variance, places[is_asked, side], shift * shift / 4)
    score = np.zeros(canaries.number)
    for side, shift in enumerate(canaries.count_shifts):
        place = places[:, side]
        found = numbers[place] - (mean[place] - shift / 2)
        score += log_ratio(found, shift, std * std + variance[place] - shift * shift / 4)
    return np.where(is_asked, score, 0.0)
