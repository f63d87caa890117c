"""Sampling is the Poisson sampling that the accountant prices, and nothing that looks like it.

The checks on draws of the operating system are not seeded; each statistic gives a false alarm
once in a million runs (``FALSE_ALARM``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from common.privacy.randomness import SeededRandom, SystemRandom, poisson_sample
from tests.laws.training import check_coins

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.privacy.randomness import RandomSource

    Sampler = Callable[[int, float, RandomSource], np.ndarray]

NUM_USERS, RATE, NUM_SAMPLES = 40, 0.3, 8000


def check_poisson(sampler: Sampler, source: RandomSource) -> None:
    """Every user, every pair of users and every pair of steps: independent coins of one rate.

    Raises:
        AssertionError: for Poisson sampling with a probability below four times FALSE_ALARM.
    """
    coins = np.zeros((NUM_SAMPLES, NUM_USERS))
    for sample, row in enumerate(coins):
        users = sampler(NUM_USERS, RATE, source)
        assert users.dtype == np.int64, f"sample {sample}"
        assert np.array_equal(users, np.unique(users)), "sorted, and nobody twice"
        row[users] = 1
    check_coins(coins, RATE)


@pytest.mark.parametrize("source", [SystemRandom(), SeededRandom(4)], ids=["system", "seeded"])
def test_users_are_sampled_by_independent_coins(source: RandomSource) -> None:
    check_poisson(poisson_sample, source)


def fixed_size(num_users: int, rate: float, source: RandomSource) -> np.ndarray:
    """A shuffled batch of the expected size: what most training loops do."""
    return np.sort(np.argsort(source.uniform(num_users))[: round(rate * num_users)])


def everybody_or_nobody(num_users: int, rate: float, source: RandomSource) -> np.ndarray:
    return np.arange(num_users if source.uniform(1)[0] < rate else 0)


def with_replacement(num_users: int, rate: float, source: RandomSource) -> np.ndarray:
    drawn = np.floor(source.uniform(round(rate * num_users)) * num_users)
    return np.unique(drawn.astype(np.int64))


def lower_rate(num_users: int, rate: float, source: RandomSource) -> np.ndarray:
    return np.flatnonzero(source.uniform(num_users) < 0.95 * rate)


def favourites(num_users: int, rate: float, source: RandomSource) -> np.ndarray:
    tilt = np.linspace(0.9, 1.1, num_users)
    return np.flatnonzero(source.uniform(num_users) < rate * tilt)


def never_empty(num_users: int, rate: float, source: RandomSource) -> np.ndarray:
    sample = poisson_sample(num_users, rate, source)
    return sample if len(sample) > 7 else never_empty(num_users, rate, source)


class TakingTurns:
    """Whoever was in the last sample is left out of the next one."""

    def __init__(self) -> None:
        self.last = np.zeros(0, dtype=np.int64)

    def __call__(self, num_users: int, rate: float, source: RandomSource) -> np.ndarray:
        coins = source.uniform(num_users)
        coins[self.last] = 1.0
        self.last = np.flatnonzero(coins < rate / (1 - rate))
        return self.last


@pytest.mark.parametrize(
    "broken",
    [
        fixed_size,
        everybody_or_nobody,
        with_replacement,
        lower_rate,
        favourites,
        never_empty,
        TakingTurns(),
    ],
)
def test_other_ways_of_sampling_are_rejected(broken: Sampler) -> None:
    with pytest.raises(AssertionError):
        check_poisson(broken, SeededRandom(8))


@pytest.mark.parametrize("source", [SystemRandom(), SeededRandom(4)], ids=["system", "seeded"])
def test_edge_cases(source: RandomSource) -> None:
    assert poisson_sample(5, 1.0, source).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(0, 0.5, source).tolist() == []
    assert poisson_sample(1000, 1e-12, source).tolist() == []
