"""The last bits of a noisy sum say nothing about the sum (Mironov 2012).

The attacker knows the code and two sums that may stand behind a release. She looks at no value,
only at bits that a Gaussian in exact arithmetic would leave at random. Floating-point noise gives
itself away: the numbers that ``sum + noise`` can reach are not the same for both sums.

Everything is seeded. With other seeds a right mechanism would be rejected once in a million runs
(``FALSE_ALARM``) by each of the three statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import stats

from common.privacy.noise import add_gaussian_noise_, grid_step
from common.privacy.randomness import SeededRandom
from tests.laws.training import FALSE_ALARM

if TYPE_CHECKING:
    from collections.abc import Callable

    Mechanism = Callable[[float, SeededRandom], np.ndarray]
    Statistic = Callable[[np.ndarray], np.ndarray]

NUM_DRAWS, STD = 200_000, 1.0
STEP = grid_step(STD)
FINEST = 80


def released(total: float, source: SeededRandom) -> np.ndarray:
    sums = torch.full((NUM_DRAWS,), total, dtype=torch.float64)
    add_gaussian_noise_(sums, STD, source)
    return np.asarray(sums)


# --- What the attacker computes -------------------------------------------------------------


def fineness(values: np.ndarray) -> np.ndarray:
    """The place of the lowest bit that is set: k where 2^-k divides the value and 2^-(k-1) not."""
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(mantissas, 53).astype(np.int64)
    lowest = np.log2(np.maximum(whole & -whole, 1)).astype(np.int64)
    return np.asarray(np.clip(53 - exponents - lowest, 0, FINEST))


def last_bits_on_the_grid(values: np.ndarray) -> np.ndarray:
    """The grid point's number, modulo 64."""
    return np.floor(values / STEP).astype(np.int64) % 64


def bits_below_the_grid(values: np.ndarray) -> np.ndarray:
    """Where between two grid points it lies, in 64 parts: 0 on the grid."""
    return np.floor(values / STEP * 64).astype(np.int64) % 64


STATISTICS = (fineness, last_bits_on_the_grid, bits_below_the_grid)


def coarse_enough(statistic: Statistic, values: np.ndarray) -> np.ndarray:
    """No attacker may use the value itself; its magnitude shows in the coarsest bits only."""
    found = statistic(values)
    return np.maximum(found, 8) if statistic is fineness else found


def histograms(mechanism: Mechanism, sums: tuple[float, float], statistic: Statistic) -> np.ndarray:
    """How often each result appears, for both sums: shape [2, FINEST + 1]."""
    return np.stack(
        [
            np.bincount(
                coarse_enough(statistic, mechanism(total, SeededRandom(seed))), minlength=FINEST + 1
            )
            for seed, total in enumerate(sums)
        ]
    )


def accuracy(table: np.ndarray) -> float:
    """How often the best guess from one result is right, if both sums are equally likely."""
    return float(table.max(0).sum() / table.sum())


def check_bits_are_silent(mechanism: Mechanism, sums: tuple[float, float]) -> None:
    """Both sums give the same distribution of each statistic (chi-squared).

    Raises:
        AssertionError: if one of them tells the sums apart.
    """
    for statistic in STATISTICS:
        table = histograms(mechanism, sums, statistic)
        # Rare results go together, so that the chi-squared law holds.
        frequent = table.sum(0) >= 50
        table = np.column_stack([table[:, frequent], table[:, ~frequent].sum(1)])
        table = table[:, table.sum(0) > 0]
        p_value = stats.chi2_contingency(table).pvalue if table.shape[1] > 1 else 1.0
        assert p_value > FALSE_ALARM, f"{statistic.__name__}: p = {p_value:.1e}"


FAR, NEIGHBOURS, FRACTIONS = (0.0, 1000.3), (0.0, 1.0), (0.3, 0.3 + 1e-7)
each_pair = pytest.mark.parametrize("sums", [FAR, NEIGHBOURS, FRACTIONS], ids=str)


@each_pair
def test_the_last_bits_of_a_release_are_silent(sums: tuple[float, float]) -> None:
    check_bits_are_silent(released, sums)


@each_pair
def test_nobody_guesses_the_sum_from_the_last_bits(sums: tuple[float, float]) -> None:
    """A coin is right half of the time, and 65 results of 400,000 draws overfit by below 1 %."""
    for statistic in STATISTICS:
        assert accuracy(histograms(released, sums, statistic)) < 0.51


# --- Planted bugs ---------------------------------------------------------------------------


def plain_float64(total: float, source: SeededRandom) -> np.ndarray:
    values: np.ndarray = total + source.gaussian(NUM_DRAWS, STD).numpy()
    return values


def plain_float32(total: float, source: SeededRandom) -> np.ndarray:
    noise: np.ndarray = source.gaussian(NUM_DRAWS, STD).float().numpy()
    return np.asarray(np.float32(total) + noise, dtype=np.float64)


def grid_for_the_noise_alone(total: float, source: SeededRandom) -> np.ndarray:
    return total + released(0.0, source)


def grid_that_follows_the_sum(total: float, source: SeededRandom) -> np.ndarray:
    """So many significant digits, as a number format would do it."""
    mantissas, exponents = np.frexp(plain_float64(total, source))
    return np.asarray(np.ldexp(np.round(np.ldexp(mantissas, 20)), exponents - 20))


@pytest.mark.parametrize(
    ("broken", "sums"),
    [
        (plain_float64, FAR),
        (plain_float64, NEIGHBOURS),
        (plain_float32, FAR),
        (plain_float32, NEIGHBOURS),
        (grid_for_the_noise_alone, FAR),
        (grid_for_the_noise_alone, FRACTIONS),
        (grid_that_follows_the_sum, FAR),
        (grid_that_follows_the_sum, NEIGHBOURS),
    ],
)
def test_bits_that_tell_are_found(broken: Mechanism, sums: tuple[float, float]) -> None:
    with pytest.raises(AssertionError, match="p = "):
        check_bits_are_silent(broken, sums)


@pytest.mark.parametrize("broken", [plain_float64, plain_float32, grid_for_the_noise_alone])
def test_the_attack_on_plain_noise_nearly_always_succeeds(broken: Mechanism) -> None:
    """One coordinate of one release is enough to tell 0 from 1000.3."""
    best = max(accuracy(histograms(broken, FAR, statistic)) for statistic in STATISTICS)
    assert best > 0.99
