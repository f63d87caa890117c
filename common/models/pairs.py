"""Which items go together: noisy counts of items and of pairs, and what everybody makes of them.

Pure post-processing of what platforms released (:mod:`client.sums`), so it costs no privacy. Pairs
of m items are numbers of the strict upper triangle of an [m, m] matrix, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_COUNTED_ITEMS = 1_000_000
"""Items that a platform counts at most in one release."""

MAX_PAIRED_ITEMS = 10_000
"""Items whose pairs a platform counts at most in one release: 50 million pairs."""

MIN_WEIGHT = 2.0**-10
"""Least weight of an item; the largest is 1. Within, no user's part is rounded away."""

_DAMPING = 0.4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PairSum:
    """Noisy sum of what the users of several platforms say about pairs of items."""

    items: np.ndarray
    """[m] int64, catalogue rows, increasing."""
    weights: np.ndarray
    """[m] float32, the public weights that users' parts were made with."""
    total: np.ndarray
    """[m (m-1) / 2] float32, strict upper triangle."""
    noise_std: float
    """Standard deviation of the noise in each number of ``total``."""


def num_pairs(num_items: int) -> int:
    """Pairs of different items."""
    return num_items * (num_items - 1) // 2


def pair_starts(num_items: int) -> np.ndarray:
    """Where the pairs of each item with later ones begin: int64 [m]; item i has m - 1 - i."""
    rows = np.arange(num_items, dtype=np.int64)
    starts: np.ndarray = rows * num_items - rows * (rows + 1) // 2
    return starts


def symmetric(upper: np.ndarray, num_items: int) -> np.ndarray:
    """The matrix whose strict upper triangle is ``upper``: float32 [m, m], zero diagonal."""
    matrix = np.zeros((num_items, num_items), dtype=np.float32)
    for row, start in enumerate(pair_starts(num_items)):
        pairs = upper[start : start + num_items - 1 - row]
        matrix[row, row + 1 :] = pairs
        matrix[row + 1 :, row] = pairs
    return matrix


def item_weights(noisy_counts: np.ndarray, noise_std: float) -> np.ndarray:
    """How much each item says about a user's taste: rare ones more, up to what noise lets us know.

    Proportional to count^-0.4, and 1 for the rarest. What is below two standard deviations counts
    as if it were there: noise must not make an item look rare.

    Args:
        noisy_counts: [m] sum of the platforms' counts.
        noise_std: standard deviation of the noise in each; 0 without noise.

    Returns:
        [m] float32 from ``MIN_WEIGHT`` to 1.
    """
    least = 2.0 * noise_std if noise_std > 0 else 1.0
    damped = np.maximum(noisy_counts.astype(np.float64), least) ** -_DAMPING
    weights: np.ndarray = (damped / damped.max()).astype(np.float32)
    return weights.clip(np.float32(MIN_WEIGHT), np.float32(1.0))


def most_counted(noisy_counts: np.ndarray, at_most: int) -> np.ndarray:
    """Places of the ``at_most`` largest counts, increasing; of equal ones the first are taken."""
    order = np.argsort(-noisy_counts, kind="stable")
    return np.sort(order[:at_most])
