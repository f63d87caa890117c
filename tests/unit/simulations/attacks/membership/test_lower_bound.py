"""The bounds are those of the papers, hold against Gaussian noise, and reach near the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from common.errors import ConfigError
from common.privacy.accounting import calibrate_noise_multiplier
from simulations.attacks.membership.lower_bound import (
    best_guesses,
    epsilon_lower,
    estimated_shift,
    gaussian_epsilon,
    guess,
    p_value,
    shift_lower,
)

# canaries, guesses, right, delta; then what jax-privacy 2.0.0 says with a significance of .05:
# jax_privacy.auditing._one_run_p_value(m, r, v, eps=1, delta), ._epsilon_one_run(0, m, r, v, .05,
# delta), and ._epsilon_one_run_fdp(1e-3, m, r, v, .05, delta=1e-5).
REFERENCE = [
    (100, 40, 31, 0, 0.335381, 0.57627, 1.0595),
    (100, 40, 38, 1e-05, 0.0005904, 1.73993, 3.4083),
    (1000, 176, 171, 1e-05, 0.000368012, 2.76607, 4.5258),
    (1000, 176, 120, 1e-05, 0.938781, 0.48477, 0.7351),
    (5000, 300, 297, 1e-05, 0.00105755, 3.58952, 5.2362),
    (250, 250, 140, 0.001, 1, 0.00000, 0.0266),
    (2000, 274, 270, 1e-06, 4.67232e-05, 3.37320, 5.3097),
    (50, 50, 50, 1e-05, 5.30788e-05, 2.78331, 6.8280),
    (1000, 100, 51, 1e-05, 0.999999, 0.00000, 0.0010),
]
CONFIDENCE = 0.95
DELTA = 1e-5


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "p", "epsilon", "fdp"), REFERENCE
)
def test_bounds_are_those_of_jax_privacy(
    canaries: int, guesses: int, right: int, delta: float, p: float, epsilon: float, fdp: float
) -> None:
    counted = {"num_canaries": canaries, "num_guesses": guesses, "num_correct": right}
    assert p_value(**counted, epsilon=1.0, delta=delta) == pytest.approx(p, rel=1e-4)
    found = epsilon_lower(**counted, delta=delta, confidence=CONFIDENCE)
    assert found == pytest.approx(epsilon, abs=1e-4)
    shift = shift_lower(**counted, confidence=CONFIDENCE)
    assert gaussian_epsilon(shift, DELTA) == pytest.approx(fdp, abs=2e-3)


def test_without_delta_the_bound_is_that_of_clopper_and_pearson() -> None:
    interval = binomtest(52, 60, alternative="greater").proportion_ci(CONFIDENCE, method="exact")
    found = epsilon_lower(
        num_canaries=80, num_guesses=60, num_correct=52, delta=0.0, confidence=CONFIDENCE
    )
    assert found == pytest.approx(math.log(interval.low / (1 - interval.low)), abs=1e-5)


@pytest.mark.parametrize("right", [0, 20, 29])
def test_guesses_no_better_than_chance_prove_nothing(right: int) -> None:
    counted = {"num_canaries": 100, "num_guesses": 50, "num_correct": right}
    assert epsilon_lower(**counted, delta=DELTA, confidence=CONFIDENCE) == 0
    assert shift_lower(**counted, confidence=CONFIDENCE) <= 0.01


def test_bounds_rise_with_right_guesses_and_fall_with_confidence() -> None:
    def both(right: int, confidence: float) -> np.ndarray:
        counted = {"num_canaries": 500, "num_guesses": 100, "num_correct": right}
        lower = epsilon_lower(**counted, delta=DELTA, confidence=confidence)
        return np.array([lower, shift_lower(**counted, confidence=confidence)])

    assert (np.diff([both(right, 0.95) for right in (70, 80, 90, 100)], axis=0) > 0).all()
    assert (both(90, 0.99) < both(90, 0.95)).all()


@pytest.mark.parametrize("shift", [0.27, 0.9, 1.67])
def test_bounds_hold_against_gaussian_noise_and_fail_as_rarely_as_they_say(shift: float) -> None:
    """200 runs: with 5 % of failures each, more than 22 come once in a thousand times."""
    rng = np.random.default_rng(0)
    truth, number = gaussian_epsilon(shift, DELTA), 400
    guesses = best_guesses(number, shift, delta=DELTA, confidence=CONFIDENCE)
    failed, bounds = np.zeros(2), []
    for _ in range(200):
        is_in = rng.random(number) < 0.5
        right = guess(rng.standard_normal(number) + shift * is_in, is_in, guesses)
        counted = {"num_canaries": number, "num_guesses": guesses, "num_correct": right}
        bounds.append(epsilon_lower(**counted, delta=DELTA, confidence=CONFIDENCE))
        tighter = gaussian_epsilon(shift_lower(**counted, confidence=CONFIDENCE), DELTA)
        failed += np.array([bounds[-1], tighter]) > truth
    assert (failed <= 22).all()
    if shift > 1:
        assert np.median(bounds) > 0.25 * truth


def test_the_number_of_guesses_follows_from_public_numbers() -> None:
    def guesses(shift: float) -> int:
        return best_guesses(1000, shift, delta=DELTA, confidence=CONFIDENCE)

    assert 20 <= guesses(0.9) <= 300
    most = guesses(math.inf)  # without noise every guess is right
    assert 900 <= most < 1000
    assert guesses(0.0) == most  # and nothing can be proved with any
    assert all(guesses(shift) % 2 == 0 for shift in (0.3, 0.9, 2.0, 3.0))
    with pytest.raises(ConfigError, match="at least 8"):
        best_guesses(4, 1.0, delta=DELTA, confidence=CONFIDENCE)


def test_guesses_are_the_extremes_and_nothing_in_between() -> None:
    scores = np.array([5.0, -3.0, 0.1, 4.0, -2.0, 0.2])
    is_in = np.array([True, False, False, True, True, True])
    assert guess(scores, is_in, 2) == 2
    assert guess(scores, is_in, 4) == 3
    assert guess(-scores, is_in, 4) == 1


def test_the_estimate_finds_the_shift() -> None:
    rng = np.random.default_rng(1)
    is_in = rng.random(20_000) < 0.5
    scores = 7.0 + 3.0 * rng.standard_normal(20_000) + 5.0 * is_in
    assert estimated_shift(scores, is_in) == pytest.approx(5 / 3, rel=0.03)
    assert estimated_shift(-scores, is_in) == 0
    assert estimated_shift(scores[:10], is_in[:10]) is None
    assert estimated_shift(is_in.astype(float), is_in) == math.inf


def test_a_gaussian_is_priced_as_the_ledger_prices_it() -> None:
    assert gaussian_epsilon(1.0, DELTA) == pytest.approx(4.3766, abs=1e-3)
    assert gaussian_epsilon(0.0, DELTA) == 0
    assert gaussian_epsilon(math.inf, DELTA) == math.inf


@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0])
def test_enough_guesses_are_made_to_disprove_a_guarantee(epsilon: float) -> None:
    """Without any noise all guesses are right: then a bound has to exceed what is accounted."""
    noise = calibrate_noise_multiplier(epsilon=epsilon, delta=DELTA, sampling_rate=1.0, steps=1)
    guesses = best_guesses(2000, 1 / noise, delta=DELTA, confidence=CONFIDENCE)
    shift = shift_lower(
        num_canaries=2000, num_guesses=guesses, num_correct=guesses, confidence=CONFIDENCE
    )
    assert gaussian_epsilon(shift, DELTA) > epsilon
