"""The lattice: nothing wraps, little is lost, and rounding tells nothing that the noise hides.

Seeded: statistical checks reject right code once in a million seeds (``FALSE_ALARM``), so never.
"""

from __future__ import annotations

import math
from functools import reduce
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_ndtr, ndtr

from common.errors import ConfigError
from common.privacy.noise import grid_step
from common.privacy.randomness import CHUNK, MAX_DEVIATION, RandomSource, SeededRandom
from common.secagg.lattice import (
    MAX_DIVERGENCE,
    MAX_STEPS,
    MIN_STEPS,
    Lattice,
    choose_lattice,
    noisy_lattice,
    rounding_divergence,
)
from common.secagg.terms import noise_share
from tests.laws.training import FALSE_ALARM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class ExtremeSource(RandomSource):
    """Every draw is as far out as one can be, on one side."""

    is_simulation = True

    def __init__(self, sign: float) -> None:
        super().__init__(bytes(32))
        self._sign = sign

    def gaussian(self, size: int, std: float, out: Tensor | None = None) -> Tensor:
        draws = torch.empty(size, dtype=torch.float64) if out is None else out[:size]
        return draws.fill_(self._sign * MAX_DEVIATION * std)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def signed(numbers: np.ndarray, lattice: Lattice) -> list[int]:
    return [int(value) for value in numbers.view(f"<i{lattice.bits // 8}")]


def check_nothing_wraps(lattice: Lattice, std: float, number: int, largest_sum: float) -> None:
    """All platforms send the same, as far out as sums and noise can be."""
    bound = lattice.bound(std, number)
    assert bound >= largest_sum * (1 - 1e-12)
    for sign in (-1.0, 1.0):
        sums = tensor(sign * bound, sign * largest_sum, sign * 1e300, sign * math.inf, 0.0)
        numbers = noisy_lattice(sums, std, lattice, number, ExtremeSource(sign))
        plain = [number * value for value in signed(numbers, lattice)]
        total = numbers * lattice.dtype.type(number)
        assert signed(total, lattice) == plain
        assert max(map(abs, plain)) < 2 ** (lattice.bits - 1)
        assert np.array_equal(lattice.values(total), [value * lattice.step for value in plain])
        assert sign * plain[0] > 0
        assert plain[0] == plain[2] == plain[3]
        moved = lattice.values(numbers)[1] - sign * MAX_DEVIATION * std
        assert abs(moved - sign * largest_sum) <= lattice.step


@pytest.mark.parametrize(("bits", "ratio"), [(32, 1.0), (32, 50.0), (64, 1e7)])
def test_no_number_of_platforms_makes_a_sum_wrap(bits: int, ratio: float) -> None:
    for number in [*range(2, 40), *range(50, 1001, 50), 999, 1000]:
        std = noise_share(number, 1)
        lattice = choose_lattice(std, ratio * std, number)
        assert lattice.bits == bits
        check_nothing_wraps(lattice, std, number, ratio * std)


@settings(max_examples=60)
@given(st.floats(1e-6, 1e6), st.floats(0.0, 1e10), st.integers(2, 1000))
def test_a_chosen_lattice_holds_all_sums_with_their_noise(
    std: float, ratio: float, number: int
) -> None:
    lattice = choose_lattice(std, ratio * std, number)
    lattice.check_noise(std, number, 10**7)
    check_nothing_wraps(lattice, std, number, ratio * std)
    assert std / lattice.step >= 2.0 ** (9 if lattice.bits == 32 else 6)
    assert lattice.step >= grid_step(std), "as coarse as any release at least"


def test_a_lattice_has_no_room_to_spare() -> None:
    """Twice as fine would be refused, or the numbers would not fit."""
    std, number, largest = 1.0, 1000, 100.0
    chosen = choose_lattice(std, largest, number)
    assert chosen.bits == 32
    finer = Lattice(bits=32, exponent=chosen.exponent - 1)
    assert finer.bound(std, number) < largest


def test_what_wraps_is_seen() -> None:
    number, std = 10, 1.0
    lattice = choose_lattice(std, 1000.0, number)
    with pytest.raises(AssertionError):
        check_nothing_wraps(lattice, std, number, 4 * lattice.bound(std, number))
    with pytest.raises(AssertionError):  # noise is larger than there is room for
        check_nothing_wraps(lattice, std * 2**20, number, 0.0)


@pytest.mark.parametrize("bits", [32, 64])
def test_values_are_signed_whole_numbers_of_steps(bits: int) -> None:
    lattice = Lattice(bits=bits, exponent=-3)
    half = 2 ** (bits - 1)
    numbers = np.array([0, 1, half - 1, half, 2 * half - 1], dtype=lattice.dtype)
    assert lattice.values(numbers).tolist() == [0.0, 0.125, (half - 1) / 8, -half / 8, -0.125]


@pytest.mark.parametrize(("bits", "exponent"), [(31, 0), (0, 0), (128, 0), (32, 121), (64, -121)])
def test_what_is_no_lattice_is_refused(bits: int, exponent: int) -> None:
    with pytest.raises(ConfigError, match="expected 32 or 64 and -120 to 120"):
        Lattice(bits=bits, exponent=exponent)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_there_is_no_lattice_without_noise(std: float) -> None:
    with pytest.raises(ConfigError, match="expected a positive number"):
        choose_lattice(std, 1.0, 5)


def test_sums_that_are_too_large_for_their_noise_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rounding would show the data"):
        choose_lattice(1.0, 2.0**50, 1000)


def test_too_coarse_and_too_fine_lattices_are_refused() -> None:
    lattice = Lattice(bits=32, exponent=0)
    lattice.check_noise(MIN_STEPS, 1000, 10**9)
    for std in (0.0, 1e-3, 1.0, MIN_STEPS * 0.999):
        with pytest.raises(ConfigError, match=r"expected at least 64 .* would show the data"):
            lattice.check_noise(std, 2, 1)
    with pytest.raises(ConfigError, match="would show the data"):
        lattice.check_noise(MIN_STEPS, 10_000, 1)
    with pytest.raises(ConfigError, match="32 bits leave no room beside noise of"):
        lattice.check_noise(2.0**22, 1000, 1)


def test_a_lattice_finer_than_computed_noise_is_refused() -> None:
    """Two draws have one radius, and float64 has few of them close to 0.

    On a lattice of 2^46 steps a standard deviation, that of two small numbers of a release is one
    of these if the sums are what they are, and none if they are off by 2^-16 deviations.
    """
    steps = 2.0**46
    lattice = Lattice(bits=64, exponent=0)

    def off(first: np.ndarray, second: np.ndarray) -> float:
        """How far radii are from those that are possible: 1/4 if they follow no rule."""
        places = -np.expm1(-(first**2 + second**2) / 2 / steps**2) * 2.0**53
        return float(np.abs(places - np.rint(places)).mean())

    pairs = []
    for seed in range(100):
        zeros = torch.zeros(CHUNK, dtype=torch.float64)
        release = noisy_lattice(zeros, steps, lattice, 3, SeededRandom(seed))
        pair = lattice.values(release).reshape(2, -1)
        pairs.append(pair[:, np.hypot(*pair) < steps * 2.0**-8])
    first, second = np.concatenate(pairs, axis=1)
    assert off(first, second) < 0.15
    assert off(first + 2.0**30, second) > 0.15
    with pytest.raises(ConfigError, match=r"7.04e\+13 steps, expected at most 262144"):
        lattice.check_noise(steps, 3, 1)
    lattice.check_noise(MAX_STEPS, 3, 1)
    with pytest.raises(ConfigError, match="how it is computed would show the data"):
        lattice.check_noise(MAX_STEPS * 1.001, 3, 1)


# How much is lost


SIGNAL = 4e-4
REALISTIC = [
    # Platforms, users of the largest, what is divided by, noise multiplier: of sums cut to 1 each.
    (5, 2000, 5000, 1.0),
    (20, 5000, 50_000, 0.6),
    (100, 2000, 100_000, 1.0),
    (100, 100_000, 1_000_000, 1.0),
]


@pytest.mark.parametrize(("number", "users", "denominator", "noise"), REALISTIC)
def test_rounding_loses_a_thousandth_of_the_signal_at_most(
    number: int, users: int, denominator: int, noise: float
) -> None:
    std = noise * noise_share(number, 1)
    lattice = choose_lattice(std, float(users), number)
    generator = torch.Generator().manual_seed(4)
    size = 4000
    mean = SIGNAL * torch.randn(size, dtype=torch.float64, generator=generator)
    exact, total = torch.zeros(size, dtype=torch.float64), np.zeros(size, dtype=lattice.dtype)
    for platform in range(number):
        own = mean * (denominator / number)
        exact += own + SeededRandom(platform).gaussian(size, std)
        total += noisy_lattice(own, std, lattice, number, SeededRandom(platform))
    error = (torch.from_numpy(lattice.values(total)) - exact) / denominator
    assert float(error.square().mean().sqrt()) <= 1e-3 * SIGNAL
    expected = math.sqrt(number / 12) * lattice.step / denominator
    assert float(error.square().mean().sqrt()) == pytest.approx(expected, rel=0.05)


# What rounding tells: exact probabilities of sums of rounded Gaussians, one number each


def rounded_gaussian(mean: float, std: float, reach: int) -> np.ndarray:
    """Probabilities of -reach .. reach of a Gaussian made whole; exact far out on both sides."""
    edges = (np.arange(-reach, reach + 2) - 0.5 - mean) / std
    low, high = edges[:-1], edges[1:]
    flip = low > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    return np.asarray(np.exp(log_ndtr(high)) * -np.expm1(log_ndtr(low) - log_ndtr(high)))


def rounded_sum(means: Sequence[float], stds: Sequence[float]) -> np.ndarray:
    """Means of up to 12; noise of 0 is none."""
    reach = math.ceil(10 * max(stds)) + 15
    parts = [
        rounded_gaussian(mean, max(std, 1e-9), reach) for mean, std in zip(means, stds, strict=True)
    ]
    return reduce(np.convolve, parts)


def delta_between(first: np.ndarray, second: np.ndarray, epsilon: float) -> float:
    """The hockey-stick divergence, exact."""
    return float(np.maximum(first - math.exp(epsilon) * second, 0.0).sum())


def gaussian_delta(moved: float, std: float, epsilon: float) -> float:
    """Balle and Wang 2018, theorem 8."""
    if moved == 0.0:
        return 0.0
    half, line = moved / (2 * std), epsilon * std / moved
    return float(ndtr(half - line) - math.exp(epsilon) * ndtr(-half - line))


# Means of up to five platforms, in steps, and how a user who is in several of them moves these.
MEANS = (0.5, -0.27, 0.31, 7.5, -3.1)
MOVES = [
    (1.0, 0.0, 0.0, 0.0, 0.0),
    (0.5, 0.0, 0.0, 0.0, 0.0),
    (0.3, -0.3, 0.5, -0.5, 0.0),
    (8.0, 3.3, -1.4, 2.2, 0.7),
]
EPSILONS = (0.0, 0.1, 0.5, 1.0, 2.0, 4.0)
NUMERICAL = 1e-12


def excess(number: int, std: float, stds: Sequence[float]) -> float:
    """Most that sums of rounded numbers tell beyond what the Gaussian mechanism does, in delta."""
    worst = -math.inf
    for moves, sign, epsilon in product(MOVES, (-1.0, 1.0), EPSILONS):
        means = MEANS[:number]
        others = [mean + sign * move for mean, move in zip(means, moves, strict=False)]
        found = delta_between(rounded_sum(means, stds), rounded_sum(others, stds), epsilon)
        moved = abs(sum(others) - sum(means))
        worst = max(worst, found - gaussian_delta(moved, math.sqrt(number) * std, epsilon))
    return worst


@pytest.mark.parametrize(("number", "std"), list(product((1, 2, 3, 5), (8.0, 30.0))))
def test_a_sum_of_rounded_numbers_tells_what_the_gaussian_mechanism_does(
    number: int, std: float
) -> None:
    assert rounding_divergence(std, number, 1) < NUMERICAL
    assert excess(number, std, [std] * number) <= NUMERICAL


@pytest.mark.parametrize("number", [2, 3, 5])
def test_coarse_rounding_and_missing_noise_are_seen(number: int) -> None:
    assert excess(number, 0.3, [0.3] * number) > 1e-2, "steps of three standard deviations"
    without = [8.0] * (number - 1) + [0.0]
    assert excess(number, 8.0, without) > 1e-3, "one platform adds no noise"
    assert excess(number, 8.0, [8.0 * 0.9] * number) > 1e-3, "too little of it"


def measured_divergence(number: int, std: float) -> float:
    """Largest log-ratio of two sums of the same real total, over all moves between platforms."""
    worst = 0.0
    for moved in (0.25, 0.5):
        for base in (0.0, 0.25, 0.5):
            means = [base] * number
            others = [base + moved, base - moved, *means[2:]]
            for first, second in ((means, others), (others, means)):
                one = rounded_sum(first, [std] * number)
                two = rounded_sum(second, [std] * number)
                seen = (one > 1e-20) & (two > 1e-20)
                worst = max(worst, float(np.abs(np.log(one[seen] / two[seen])).max()))
    return worst


@pytest.mark.parametrize(
    ("number", "std"), [(2, 0.5), (2, 0.7), (2, 1.0), (2, 1.2), (3, 0.8), (3, 1.2), (5, 1.2)]
)
def test_what_rounding_tells_is_bounded_as_stated(number: int, std: float) -> None:
    measured, stated = measured_divergence(number, std), rounding_divergence(std, number, 1)
    assert 0 < measured <= stated
    if number == 2:
        assert measured > stated / 20, "and not by far too much"


def test_the_bound_grows_with_platforms_and_numbers_and_falls_with_noise() -> None:
    assert rounding_divergence(2.0, 4, 1) < rounding_divergence(2.0, 5, 1)
    assert rounding_divergence(2.0, 4, 10) == pytest.approx(10 * rounding_divergence(2.0, 4, 1))
    assert rounding_divergence(2.1, 4, 1) < rounding_divergence(2.0, 4, 1)
    assert rounding_divergence(2.0, 1, 1) == 0.0
    assert rounding_divergence(0.1, 2, 1) == math.inf
    assert rounding_divergence(0.5, 4, 1) == math.inf
    assert rounding_divergence(MIN_STEPS, 1000, 10**9) <= MAX_DIVERGENCE


# The noise of the sum


def sum_of_noise(
    number: int, std: float, lattice: Lattice, seeds: Sequence[int], size: int = 50_000
) -> np.ndarray:
    """In steps: what ``number`` platforms add to nothing, each from the stream of its seed."""
    total = np.zeros(size, dtype=lattice.dtype)
    for seed in seeds:
        own = torch.zeros(size, dtype=torch.float64)
        total += noisy_lattice(own, std, lattice, number, SeededRandom(seed))
    return lattice.values(total) / lattice.step


def variance_is(draws: np.ndarray, expected: float) -> bool:
    """Chi-square; a tenth too much or too little is always seen with 50,000 draws."""
    law = stats.chi2(len(draws))
    low, high = law.ppf(FALSE_ALARM / 2), law.isf(FALSE_ALARM / 2)
    return bool(low <= (draws * draws).sum() / expected <= high)


@pytest.mark.parametrize(("number", "steps"), [(2, 1.0), (5, 1.0), (5, 64.0), (20, 70_000.0)])
def test_the_noise_of_the_sum_is_as_accounted(number: int, steps: float) -> None:
    """Of t platforms, t times the share and a twelfth of a squared step for each rounding."""
    lattice = Lattice(bits=64, exponent=-10)
    std = steps * lattice.step
    rounding = number / 12
    expected = number * steps**2 + rounding
    draws = sum_of_noise(number, std, lattice, range(number))
    assert variance_is(draws, expected)
    assert abs(draws.mean()) < 6 * math.sqrt(expected / len(draws))
    for wrong in (
        sum_of_noise(number, std * math.sqrt(2 / 3), lattice, range(number)),
        sum_of_noise(number, std, lattice, [3] * number),
        sum_of_noise(number, std, lattice, range(number - 1)) if number < 20 else draws * 0.9,
    ):
        assert not variance_is(wrong, expected)
    if steps == 1.0:
        assert not variance_is(draws, number * steps**2), "rounding is seen where it is large"


@pytest.mark.parametrize(("number", "colluding", "dropped"), [(5, 1, 0), (10, 2, 2), (20, 3, 4)])
def test_whoever_is_left_of_the_smallest_sum_adds_all_of_the_noise(
    number: int, colluding: int, dropped: int
) -> None:
    """Noise of 1 is asked for; c of the t platforms in the sum tell theirs."""
    summed = number - dropped
    std = noise_share(summed, colluding)
    lattice = choose_lattice(std, 100.0, number)
    draws = sum_of_noise(number, std, lattice, range(summed - colluding)) * lattice.step
    assert variance_is(draws, 1.0)
    draws = sum_of_noise(number, std, lattice, range(summed - colluding - 1)) * lattice.step
    assert not variance_is(draws, 1.0)


def fractions_are_uniform(std: float, means: Sequence[float]) -> bool:
    """What rounding takes off all numbers but one does not depend on their sum, nor on means."""
    size = 200_000
    numbers = [
        mean + SeededRandom(10 + seed).gaussian(size, std).numpy()
        for seed, mean in enumerate(means)
    ]
    total = np.sum(numbers, axis=0)
    part = np.digitize(total, np.quantile(total, [0.2, 0.4, 0.6, 0.8]))
    for found in numbers[:-1]:
        fraction = found - np.floor(found)
        table = np.histogram2d(part, fraction, bins=(5, 16), range=((0, 5), (0, 1)))[0]
        flat = stats.chisquare(table.ravel(), np.repeat(table.sum(axis=1) / 16, 16), ddof=4)
        if flat.pvalue <= FALSE_ALARM:
            return False
    return True


@pytest.mark.parametrize("means", [(0.0, 0.0), (0.5, 0.2, -7.3)])
def test_what_rounding_takes_off_is_uniform_whatever_the_data_and_the_sum(
    means: tuple[float, ...],
) -> None:
    for std in (2.0, MIN_STEPS):
        assert fractions_are_uniform(std, means)
    assert not fractions_are_uniform(0.3, means)
