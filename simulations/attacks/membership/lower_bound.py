"""How large epsilon must be, given how often an attacker's guesses are right. Pure: counts in.

One run with m canaries, each in or out by its own fair coin. The attacker makes r guesses and
passes over the rest; how many it makes is fixed before it sees anything (:func:`best_guesses`), so
that no correction for choosing is needed. Two bounds on what a mechanism allows:

- :func:`epsilon_lower`: of any (epsilon, delta)-DP mechanism (Steinke, Nasr and Jagielski 2023,
  "Privacy auditing with one (1) training run", arXiv:2305.08846, theorem 5.2);
- :func:`shift_lower`: of a Gaussian mechanism, whose trade-off is known at every delta at once
  (Mahloujifar, Melis and Chaudhuri 2024, "Auditing f-differential privacy in one run",
  arXiv:2410.22235): it comes closer to the truth and says nothing about other mechanisms.

A Gaussian's *shift* is how far one unit moves it, in standard deviations of its noise: one over the
noise multiplier.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, ndtr, ndtri
from scipy.stats import binom

from common.errors import ConfigError
from common.privacy.accounting import epsilon_spent
from common.privacy.mechanisms import SampledGaussian

if TYPE_CHECKING:
    from collections.abc import Callable

FEWEST_CANARIES = 8
"""Fewer prove next to nothing, and no Gaussian can be fitted to them."""
_LARGEST = 100.0
_PRECISION = 1e-6
_CHOICES = 40
_MARGIN = 1.03
_MOST_GUESSED = 0.5
"""Share of the canaries up to which more guesses are made so that a guarantee can be disproved."""


def p_value(
    *, num_canaries: int, num_guesses: int, num_correct: int, epsilon: float, delta: float
) -> float:
    """Most that the chance of so many right guesses can be under (``epsilon``, ``delta``)-DP.

    Theorem 5.2 of arXiv:2305.08846: with p = e^epsilon / (1 + e^epsilon), B ~ Binomial(r, p) and
    beta = P[B >= v], it is beta + 2 m delta max over i >= 1 of (P[B >= v - i] - beta) / i.

    Args:
        num_canaries: m.
        num_guesses: r <= m, fixed beforehand.
        num_correct: v <= r.
        epsilon: of the guarantee that is doubted, >= 0.
        delta: of it.
    """
    right = expit(epsilon)
    beta = float(binom.sf(num_correct - 1, num_guesses, right))
    if delta == 0 or num_correct == 0:
        return min(1.0, beta)
    fewer = np.arange(1, num_correct + 1)
    gains = (binom.sf(num_correct - fewer - 1, num_guesses, right) - beta) / fewer
    return float(min(1.0, beta + 2 * num_canaries * delta * max(0.0, gains.max())))


def epsilon_lower(
    *, num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float
) -> float:
    """No mechanism with a smaller epsilon at ``delta`` allows so many right guesses.

    Guarantee: of an (epsilon, delta)-DP mechanism the bound exceeds epsilon with a probability of
    at most 1 - ``confidence``, whatever the attacker does.

    | edge case | result |
    |---|---|
    | guesses no better than chance | 0 |
    | too many canaries for ``delta``: m delta is near 1 | 0 |
    """

    def is_refuted(epsilon: float) -> bool:
        chance = p_value(
            num_canaries=num_canaries,
            num_guesses=num_guesses,
            num_correct=num_correct,
            epsilon=epsilon,
            delta=delta,
        )
        return chance <= 1.0 - confidence

    return _largest_refuted(is_refuted)


def shift_lower(
    *, num_canaries: int, num_guesses: int, num_correct: int, confidence: float
) -> float:
    """No Gaussian mechanism with a smaller shift allows so many right guesses.

    The recursion of arXiv:2410.22235 (algorithm "audit_rh_with_cap") with the trade-off of the
    Gaussian, two choices for each canary and confidence as in :func:`epsilon_lower`.
    """
    chance = 1.0 - confidence

    def is_refuted(shift: float) -> bool:
        right = chance * num_correct / num_canaries
        wrong = chance * (num_guesses - num_correct) / num_canaries
        for place in range(num_correct - 1, -1, -1):
            more = float(ndtr(ndtri(right) - shift))
            if more <= wrong:
                break
            right += place / (num_guesses - place) * (more - wrong)
            wrong = more
            if right >= 1.0:
                return True
        return right + wrong > num_guesses / num_canaries

    return _largest_refuted(is_refuted)


def _largest_refuted(is_refuted: Callable[[float], bool]) -> float:
    """Where a test that refutes small values and no large ones changes its mind, rounded down."""
    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while high < _LARGEST and is_refuted(high):
        low, high = high, 2.0 * high
    while high - low > _PRECISION:
        middle = (low + high) / 2.0
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low


def gaussian_epsilon(shift: float, delta: float) -> float:
    """Epsilon at ``delta`` of a Gaussian mechanism with this shift; infinite without noise."""
    if shift <= 0:
        return 0.0
    noise = 0.0 if math.isinf(shift) else 1.0 / shift
    mechanism = SampledGaussian(noise_multiplier=noise, sampling_rate=1.0, steps=1)
    return epsilon_spent([mechanism], delta)


def estimated_shift(scores: np.ndarray, is_in: np.ndarray) -> float | None:
    """Shift between the scores of canaries that are in and out, as of two Gaussians.

    They have one variance, for the noise does not know who is in. At a delta it gives an estimate
    of epsilon and no bound (Andrew et al. 2023, "One-shot empirical privacy estimation for
    federated learning", arXiv:2302.03098).

    Returns:
        None with fewer than ``FEWEST_CANARIES`` on a side; infinity if nothing is random.
    """
    inside, outside = scores[is_in], scores[~is_in]
    if min(len(inside), len(outside)) < FEWEST_CANARIES:
        return None
    gap = max(0.0, float(inside.mean() - outside.mean()))
    squares = np.square(inside - inside.mean()).sum() + np.square(outside - outside.mean()).sum()
    std = math.sqrt(squares / (len(scores) - 2))
    return gap / std if std > 0 else (math.inf if gap > 0 else 0.0)


@lru_cache(maxsize=256)
def best_guesses(num_canaries: int, shift: float, *, delta: float, confidence: float) -> int:
    """How many canaries an attacker should guess: half of them ``in``, half of them ``out``.

    It is the number with the best bound to be expected if scores were Gaussian with this shift,
    and a standard deviation of luck was missing; of those numbers, if there are any, that would
    disprove the guarantee if all guesses were right. It depends on public numbers alone, and never
    on what was seen.

    Args:
        num_canaries: m, at least ``FEWEST_CANARIES``.
        shift: of the accounted noise; infinity without noise.
        delta: of the bound.
        confidence: of the bound.

    Raises:
        ConfigError: if there are too few canaries.
    """
    if num_canaries < FEWEST_CANARIES:
        msg = f"canaries: found {num_canaries}, expected at least {FEWEST_CANARIES}."
        raise ConfigError(msg)
    # Coins rarely fall farther apart: with more guesses on a side, some would have to be wrong.
    most = max(2, num_canaries // 2 - math.ceil(math.sqrt(num_canaries)))
    halves = sorted({int(half) for half in np.geomspace(2, most, _CHOICES)})

    def expected(half: int) -> float:
        accuracy = _accuracy(half / num_canaries, shift)
        luck = math.sqrt(2 * half * accuracy * (1 - accuracy))
        return epsilon_lower(
            num_canaries=num_canaries,
            num_guesses=2 * half,
            num_correct=max(0, math.floor(2 * half * accuracy - luck)),
            delta=delta,
            confidence=confidence,
        )

    def can_disprove(half: int) -> bool:
        most_provable = shift_lower(
            num_canaries=num_canaries,
            num_guesses=2 * half,
            num_correct=2 * half,
            confidence=confidence,
        )
        return 2 * half <= _MOST_GUESSED * num_canaries and most_provable > _MARGIN * shift

    if not math.isinf(shift):
        halves = [half for half in halves if can_disprove(half)] or halves
    bounds = [expected(half) for half in halves]
    if not max(bounds) > 0:  # then the more the better
        return 2 * most
    return 2 * halves[int(np.argmax(bounds))]


def _accuracy(share: float, shift: float) -> float:
    """How many of the highest ``share`` of scores are in: half are N(0, 1), half N(shift, 1)."""
    if shift > _LARGEST:
        return 1.0
    low, high = -_LARGEST, 2 * _LARGEST
    while high - low > _PRECISION:
        middle = (low + high) / 2.0
        above = (ndtr(-middle) + ndtr(shift - middle)) / 2.0
        low, high = (middle, high) if above > share else (low, middle)
    outside, inside = float(ndtr(-low)), float(ndtr(shift - low))
    return inside / (inside + outside)


def guess(scores: np.ndarray, is_in: np.ndarray, num_guesses: int) -> int:
    """Call the highest scores in and the lowest out, half of the guesses each.

    Of equal scores the first count as lower.

    Returns:
        how many guesses are right.
    """
    order, half = np.argsort(scores, kind="stable"), num_guesses // 2
    return int(is_in[order[len(order) - half :]].sum() + (~is_in[order[:half]]).sum())
