"""What an epsilon means, in probabilities and in words. Pure.

With (epsilon, delta)-DP nobody's odds that a given person is in the data change by more than
e^epsilon, whatever is observed, but for events of probability delta (Kasiviswanathan and Smith
2014, "On the 'semantics' of differential privacy"). That is the worst observation. How often
somebody who sees everything guesses right, on average, follows from the whole curve: an attack's
true positive rate is at most e^epsilon times its false positive rate, plus delta, for every point
of the curve (Kairouz et al. 2015, arXiv:1311.0776, theorem 2.1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from simulations.plots import epsilon_text

if TYPE_CHECKING:
    from collections.abc import Iterable

WEAK = 3.0
"""An epsilon beyond is called weak: odds may change twentyfold."""

_WORDS = ((1.0, "strong"), (WEAK, "moderate"), (10.0, "weak"), (math.inf, "very weak"))


def posterior(prior: float, epsilon: float) -> float:
    """Largest probability that somebody can come to from ``prior``, but for probability delta."""
    if prior in (0.0, 1.0):
        return prior
    return 1.0 / (1.0 + (1.0 - prior) / prior * math.exp(-epsilon))


def advantage(curve: Iterable[tuple[float, float]]) -> float:
    """Bound on true minus false positive rate of any attack.

    Args:
        curve: (epsilon, delta) points, each of which holds.

    Returns:
        the least of (e^epsilon - 1 + 2 delta) / (e^epsilon + 1); 1 for no points.
    """
    return min((_advantage(*point) for point in curve), default=1.0)


def _advantage(epsilon: float, delta: float) -> float:
    # With tanh(epsilon / 2) = (e^epsilon - 1) / (e^epsilon + 1), which never overflows.
    return min(1.0, math.tanh(epsilon / 2.0) + 2.0 * delta / (1.0 + math.exp(min(epsilon, 700.0))))


def true_positive_bound(rate: float, curve: Iterable[tuple[float, float]]) -> float:
    """Largest true positive rate of any attack at false positive rate ``rate``.

    Args:
        rate: from 0 to 1.
        curve: (epsilon, delta) points, each of which holds.
    """
    bounds = [1.0]
    for epsilon, delta in curve:
        bounds.append(math.exp(min(epsilon, 700.0)) * rate + delta)
        bounds.append(1.0 - math.exp(-epsilon) * (1.0 - rate - delta))
    return min(bounds)


def strength(epsilon: float) -> str:
    """``strong``, ``moderate``, ``weak`` or ``very weak``."""
    return next(word for limit, word in _WORDS if epsilon <= limit)


def odds_text(epsilon: float) -> str:
    """How far odds can change at ``epsilon`` as it is printed: ``2.8-fold``, ``2,981-fold``."""
    epsilon = float(epsilon_text(epsilon)) if math.isfinite(epsilon) else epsilon
    if epsilon > math.log(1e6):
        return "more than a million-fold"
    factor = math.exp(epsilon)
    if factor < 100:
        return f"{math.ceil(factor * 10 - 1e-6) / 10:g}-fold"
    return f"{math.ceil(factor - 1e-6):,}-fold"


def percent_text(probability: float) -> str:
    """A percentage, rounded up: an upper bound must not shrink in print."""
    if probability > 0.9999:
        return "more than 99.99 %"
    places = 2 if probability > 0.99 else 1
    scale = 10 ** (places + 2)
    return f"{math.ceil(probability * scale - 1e-6) / 10**places:g} %"


def delta_text(delta: float) -> str:
    """``1e-05 (1 in 100,000)``."""
    return f"{delta:g} (1 in {math.floor(1 / delta + 1e-6):,})"


def shown_epsilon(epsilon: float | None) -> str:
    """Two decimals, rounded up; ``no guarantee`` for None."""
    return "no guarantee" if epsilon is None else epsilon_text(epsilon)
