"""Noise and coins have their law, from the operating system as from a seed.

Draws of the operating system are not seeded. Each check gives a false alarm once in a million
runs (``FALSE_ALARM``); with 20,000 draws it rejects a standard deviation that is off by a third,
or any of the planted bugs, practically always. That the last bits of a noisy sum say nothing
about the sum is in test_low_bits.py.
"""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import stats

from common.privacy.noise import add_gaussian_noise_
from common.privacy.randomness import CHUNK, SeededRandom, SystemRandom
from common.rng import derive_seed
from tests.laws.training import FALSE_ALARM, check_gaussian, check_uncorrelated

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.privacy.randomness import RandomSource

    Draw = Callable[..., np.ndarray]

NUM_DRAWS = 20_000
STD = 3.7


def new_sources() -> list[RandomSource]:
    return [SystemRandom(), SeededRandom(20)]


each_source = pytest.mark.parametrize("source", new_sources(), ids=["system", "seeded"])


def check_uniform(draws: np.ndarray) -> None:
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > FALSE_ALARM


def added_noise(source: RandomSource, std: float, size: int = NUM_DRAWS) -> np.ndarray:
    """What is added to a sum that is not zero."""
    total = torch.linspace(-9.0, 9.0, size, dtype=torch.float64)
    result = total.clone()
    add_gaussian_noise_(result, std, source)
    return (result - total).numpy()


def plain_draws(source: RandomSource, std: float, size: int = NUM_DRAWS) -> np.ndarray:
    draws: np.ndarray = source.gaussian(size, std).numpy()
    return draws


each_way = pytest.mark.parametrize("draw", [plain_draws, added_noise])


@each_source
@each_way
@pytest.mark.parametrize("std", [1e-3, STD, 1e3])
def test_noise_has_the_standard_deviation_asked_for(
    source: RandomSource, draw: Draw, std: float
) -> None:
    check_gaussian(draw(source, std), std)


@each_source
@each_way
@pytest.mark.parametrize("factor", [2 / 3, 1.5])
def test_another_standard_deviation_is_rejected(
    source: RandomSource, draw: Draw, factor: float
) -> None:
    with pytest.raises(AssertionError):
        check_gaussian(draw(source, factor * STD), STD)


TAILS = (3.5, 4.5)


def check_tails(draws: np.ndarray) -> None:
    """How many lie beyond 3.5 and 4.5 sigma: Kolmogorov and Smirnov hardly look there."""
    for sigmas, side in product(TAILS, (-1, 1)):
        beyond = int((side * draws > sigmas).sum())
        p_value = stats.binomtest(beyond, len(draws), stats.norm.sf(sigmas)).pvalue
        assert p_value > FALSE_ALARM, f"{beyond} beyond {side * sigmas} sigma"


@each_source
@each_way
def test_tails_are_there(source: RandomSource, draw: Draw) -> None:
    check_tails(draw(source, 1.0, 4_000_000))


def cut_off(draws: np.ndarray) -> np.ndarray:
    return draws.clip(-4.4, 4.4)


def mean_of_uniforms(draws: np.ndarray) -> np.ndarray:
    """Twelve uniforms, added: the textbook's quick Gaussian."""
    uniforms = stats.norm.cdf(draws[: len(draws) // 12 * 12]).reshape(12, -1)
    sums: np.ndarray = uniforms.sum(0) - 6
    return sums


@pytest.mark.parametrize("broken", [cut_off, mean_of_uniforms])
def test_wrong_tails_are_rejected(broken: Callable[[np.ndarray], np.ndarray]) -> None:
    draws = broken(plain_draws(SeededRandom(5), 1.0, 6_000_000))
    with pytest.raises(AssertionError):
        check_tails(draws)


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
    draws = plain_draws(source, 1.0)
    check_uncorrelated(draws[lag:], draws[:-lag])
    check_uncorrelated(draws[lag:] ** 2, draws[:-lag] ** 2)


def check_box_muller(draws: np.ndarray) -> None:
    """The two halves of a chunk are cosines and sines of the same angles and radii."""
    first, second = draws.reshape(2, -1)
    for left, right in ((first, second), (first**2, second**2), (first, second**2)):
        check_uncorrelated(left, right)
    check_gaussian(draws, 1.0)


def test_the_halves_of_box_muller_pairs_are_independent() -> None:
    check_box_muller(plain_draws(SystemRandom(), 1.0))


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


# --- Streams --------------------------------------------------------------------------------


def check_streams(streams: list[np.ndarray]) -> None:
    """Each pair of streams is independent, in the values as in their squares.

    Raises:
        AssertionError: for independent ones, per pair with probability twice ``FALSE_ALARM``.
    """
    for left, right in combinations(streams, 2):
        check_uncorrelated(left, right)
        check_uncorrelated(left**2, right**2)


@each_source
@each_way
def test_chunks_are_independent(source: RandomSource, draw: Draw) -> None:
    check_streams(list(draw(source, 1.0, 4 * CHUNK).reshape(4, CHUNK)))


def test_a_chunk_used_twice_is_rejected() -> None:
    chunk = plain_draws(SeededRandom(0), 1.0, CHUNK)
    for again in (chunk, -chunk, chunk * np.sign(plain_draws(SeededRandom(1), 1.0, CHUNK))):
        with pytest.raises(AssertionError):
            check_streams([chunk, again])


@each_way
def test_releases_of_the_operating_system_are_independent(draw: Draw) -> None:
    check_streams([draw(SystemRandom(), 1.0) for _ in range(4)])


@each_way
def test_one_release_after_the_other_from_one_source_is_independent(draw: Draw) -> None:
    source = SystemRandom()
    check_streams([draw(source, 1.0, size)[:999] for size in (1000, 1001, 999)])


@each_way
def test_rounds_and_platforms_of_a_simulation_are_independent(draw: Draw) -> None:
    places = [(run, name, number) for run in ("r1", "r2") for name in "ab" for number in (1, 2)]
    seeds = [derive_seed(0, "release", *place) for place in places] + [1, 2]
    assert len(set(seeds)) == len(seeds)
    check_streams([draw(SeededRandom(seed), 1.0) for seed in seeds])
