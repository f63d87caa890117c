"""Noise and coins have their law, from the operating system as from a seed.

Draws of the operating system are not seeded. Each check gives a false alarm once in a million
runs (``FALSE_ALARM``); with 20,000 draws it rejects a standard deviation that is off by a third,
or any of the planted bugs, practically always.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from common.privacy.randomness import SeededRandom, SystemRandom
from tests.laws import FALSE_ALARM, check_gaussian, check_uncorrelated

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.privacy.randomness import RandomSource

NUM_DRAWS = 20_000
STD = 3.7


def new_sources() -> list[RandomSource]:
    return [SystemRandom(), SeededRandom(20)]


each_source = pytest.mark.parametrize("source", new_sources(), ids=["system", "seeded"])


def check_uniform(draws: np.ndarray) -> None:
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > FALSE_ALARM


@each_source
def test_gaussians_have_the_standard_deviation_asked_for(source: RandomSource) -> None:
    check_gaussian(source.gaussian((NUM_DRAWS,), STD), STD)


@each_source
@pytest.mark.parametrize("factor", [2 / 3, 1.5])
def test_another_standard_deviation_is_rejected(source: RandomSource, factor: float) -> None:
    with pytest.raises(AssertionError):
        check_gaussian(source.gaussian((NUM_DRAWS,), factor * STD), STD)


@each_source
def test_tails_are_there(source: RandomSource) -> None:
    """Beyond 3.5 sigma: a truncated or coarse generator would pass a Kolmogorov-Smirnov test."""
    num_draws = 1_000_000
    beyond = int((np.abs(source.gaussian((num_draws,), 1.0)) > 3.5).sum())
    p_value = stats.binomtest(beyond, num_draws, 2 * stats.norm.sf(3.5)).pvalue
    assert p_value > FALSE_ALARM


@each_source
def test_uniforms_fill_the_unit_interval(source: RandomSource) -> None:
    check_uniform(source.uniform(NUM_DRAWS))


@pytest.mark.parametrize(
    "broken",
    [np.sqrt, lambda u: 0.98 * u, lambda u: 1 - u**1.1],
    ids=["root", "short of 1", "tilted"],
)
def test_uneven_uniforms_are_rejected(broken: Callable[[np.ndarray], np.ndarray]) -> None:
    with pytest.raises(AssertionError):
        check_uniform(broken(SeededRandom(0).uniform(100_000)))


@each_source
@pytest.mark.parametrize("lag", [1, 2, 7])
def test_neighbouring_draws_are_independent(source: RandomSource, lag: int) -> None:
    draws = source.gaussian((NUM_DRAWS,), 1.0)
    check_uncorrelated(draws[lag:], draws[:-lag])
    check_uncorrelated(draws[lag:] ** 2, draws[:-lag] ** 2)


def check_box_muller(draws: np.ndarray) -> None:
    """The two halves of a chunk are cosines and sines of the same angles and radii."""
    first, second = draws.reshape(2, -1)
    for left, right in ((first, second), (first**2, second**2), (first, second**2)):
        check_uncorrelated(left, right)
    check_gaussian(draws, 1.0)


def test_the_halves_of_box_muller_pairs_are_independent() -> None:
    check_box_muller(SystemRandom().gaussian((NUM_DRAWS,), 1.0))


def _cosine_twice(u: np.ndarray) -> np.ndarray:
    radius = np.sqrt(-2 * np.log1p(-u[0]))
    return np.concatenate([radius * np.cos(2 * np.pi * u[1])] * 2)


def _half_a_turn(u: np.ndarray) -> np.ndarray:
    radius, angle = np.sqrt(-2 * np.log1p(-u[0])), np.pi * u[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


def _one_radius_for_all(u: np.ndarray) -> np.ndarray:
    radius, angle = np.sqrt(2.0), 2 * np.pi * u[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


@pytest.mark.parametrize("broken", [_cosine_twice, _half_a_turn, _one_radius_for_all])
def test_wrong_box_muller_pairs_are_rejected(broken: Callable[[np.ndarray], np.ndarray]) -> None:
    draws = broken(SeededRandom(3).uniform(NUM_DRAWS).reshape(2, -1))
    with pytest.raises(AssertionError):
        check_box_muller(draws)


def test_two_instances_are_independent() -> None:
    check_uncorrelated(*(SystemRandom().gaussian((NUM_DRAWS,), 1.0) for _ in range(2)))
    check_uncorrelated(*(SeededRandom(seed).gaussian((NUM_DRAWS,), 1.0) for seed in (1, 2)))
