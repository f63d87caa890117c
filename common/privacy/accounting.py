"""The price of mechanisms: epsilon of everything that ran, by Opacus' accountants.

Pure: mechanisms in, numbers out. Gaussians without sampling are priced exactly (Balle and Wang
2018). With sampling PRV (Gopi et al. 2021, arXiv:2106.02848) is tight and the default; RDP (Mironov
et al. 2019, arXiv:1908.10530) is looser and serves as the safe bound.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.prv import Domain
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from scipy.special import log_ndtr

from common.errors import ConfigError
from common.privacy.mechanisms import SampledGaussian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

AccountantName = Literal["prv", "rdp"]
"""``prv``: the tight one, exact without sampling; ``rdp``: the quick, looser bound."""

_History = tuple[tuple[float, float, int], ...]
"""Noise multiplier, sampling rate and number of steps of each group of equal steps."""

_MAX_NOISE_MULTIPLIER = 1e6

# Any set of orders gives a valid bound. Opacus sums a series for each fractional order whose
# length grows with the noise; much noise needs large orders only.
_INTEGER_ORDERS = (*range(2, 64), 80, 96, 128, 192, 256, 512)
_FRACTIONAL_ORDERS = (1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.25, 2.5, 2.75, 3.5, 4.5)
_ORDERS = (*_FRACTIONAL_ORDERS, *_INTEGER_ORDERS)
_MAX_NOISE_FOR_FRACTIONS = 100.0
# Below, one sampled step costs an epsilon near 500,000, and Opacus' series may never end.
_MIN_SAMPLED_NOISE = 1e-3

_MIN_EXACT_NOISE = 1e-3  # below, epsilon is beyond 500,000: no privacy to speak of
_ROUNDING = 1e-13  # of the relative difference of two normal tails in float64

# Where Opacus' PRV is trusted: its float64 grid overflows for losses beyond 700, and rounding costs
# about (steps x 2^-52) of delta. Time and memory grow with the grid, so a coarser one is tried
# before PRV is given up (2^21 cells take about 2 s).
_MAX_LOSS = 300.0
_MAX_CELLS = 1 << 21
_EPSILON_ERRORS = (0.01, 0.1)


def epsilon_spent(
    mechanisms: Iterable[SampledGaussian], delta: float, accountant: AccountantName = "prv"
) -> float:
    """Upper bound on epsilon of the composition of ``mechanisms`` at ``delta``.

    Guarantee: the composition is (epsilon, ``delta``)-DP. Each mechanism may look at the releases
    before it. Noise and rate must be fixed beforehand, except for Gaussians without sampling, which
    may be chosen as one goes (Smith and Thakurta 2022, arXiv:2210.17520); the ledger sees to it.

    | edge case | result |
    |---|---|
    | nothing ran | 0 |
    | a mechanism without noise, or with far too little to matter | infinity |
    | ``prv`` where its numbers cannot be trusted (see ``_Prv``) | the bound of ``rdp`` |

    Raises:
        ConfigError: if ``delta`` is not in (0, 1), or privacy units are mixed.
    """
    if not 0 < delta < 1:
        msg = f"delta: found {delta}, expected a number in (0, 1)."
        raise ConfigError(msg)
    steps: Counter[tuple[float, float]] = Counter()
    units = set()
    for mechanism in mechanisms:
        steps[mechanism.noise_multiplier, mechanism.sampling_rate] += mechanism.steps
        units.add(mechanism.unit)
    if len(units) > 1:
        msg = f"privacy unit: found {sorted(units)} in one account, expected a single unit."
        raise ConfigError(msg)
    return _price(_history(steps), delta, accountant) if steps else 0.0


def _history(steps: Mapping[tuple[float, float], int]) -> _History:
    """Groups in order. Gaussians without sampling are one Gaussian: their 1/noise^2 add up."""
    groups = sorted((noise, rate, count) for (noise, rate), count in steps.items())
    sampled = tuple(group for group in groups if group[1] < 1.0)
    if len(sampled) == len(groups):
        return sampled
    weight = sum(
        count / noise / noise if noise > 0 else math.inf
        for noise, rate, count in groups
        if rate == 1.0
    )
    return (*sampled, (max(weight, 1e-300) ** -0.5, 1.0, 1))


@lru_cache(maxsize=4096)
def _price(history: _History, delta: float, accountant: AccountantName) -> float:
    if accountant == "prv" and len(history) == 1 and history[0][1] == 1.0:
        return _exact_epsilon(history[0][0], delta)
    bound = _rdp_epsilon(history, delta)
    if accountant == "prv" and math.isfinite(bound):
        for error in _EPSILON_ERRORS:
            tight = _prv_epsilon(history, delta, error)
            if tight < math.inf:
                return min(tight, bound)
    return bound


def _exact_epsilon(noise: float, delta: float) -> float:
    """Epsilon of one Gaussian at ``delta``, rounded up (Balle and Wang 2018, arXiv:1805.06530).

    By theorem 8, delta(epsilon) = Phi(m/2 - epsilon/m) - e^epsilon Phi(-m/2 - epsilon/m) with
    m = 1/noise; it falls in epsilon, so a bisection finds where it reaches ``delta``.
    """
    if noise < _MIN_EXACT_NOISE:
        return math.inf
    mean = 1.0 / noise

    def is_enough(epsilon: float) -> bool:
        log_first = float(log_ndtr(mean / 2 - epsilon / mean))
        log_second = epsilon + float(log_ndtr(-mean / 2 - epsilon / mean))
        # The difference cancels where epsilon is small: then the first term alone is a bound.
        ratio = -math.expm1(min(log_second - log_first, 0.0)) + _ROUNDING
        return log_first + math.log(ratio) <= math.log(delta)

    if is_enough(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not is_enough(high):
        low, high = high, 2.0 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _rdp_epsilon(history: _History, delta: float) -> float:
    """Bound at ``delta`` by Renyi DP; infinity where it cannot be computed."""
    total = sum(count * _rdp_curve(noise, rate) for noise, rate, count in history)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "optimal order is the largest alpha": still a bound
        epsilon, _ = get_privacy_spent(orders=list(_ORDERS), rdp=total, delta=delta)
    return max(float(epsilon), 0.0) if math.isfinite(epsilon) else math.inf


@lru_cache(maxsize=4096)
def _rdp_curve(noise: float, rate: float) -> np.ndarray:
    """Renyi divergences of one step at ``_ORDERS``; infinity where one is not known."""
    orders = _ORDERS if rate == 1.0 or noise <= _MAX_NOISE_FOR_FRACTIONS else _INTEGER_ORDERS
    curve = np.full(len(_ORDERS), math.inf)
    if rate < 1.0 and noise < _MIN_SAMPLED_NOISE:
        return curve
    try:
        found = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(orders))
    except (ArithmeticError, ValueError):  # the noise underflows when squared
        return curve
    curve[-len(orders) :] = np.where(np.isnan(found), math.inf, np.maximum(found, 0.0))
    return curve


def _prv_epsilon(history: _History, delta: float, epsilon_error: float) -> float:
    """Bound at ``delta`` by PRV; infinity where its numbers are no bound or cannot be had."""
    prv = _Prv()
    prv.history = list(history)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about quadrature; PRV checks its mean itself
            epsilon = float(prv.get_epsilon(delta, eps_error=epsilon_error))
    except (ArithmeticError, RuntimeError, ValueError, MemoryError):
        return math.inf
    return math.inf if math.isnan(epsilon) else max(epsilon, 0.0)


class _Prv(PRVAccountant):  # type: ignore[misc]
    """Opacus' PRV accountant, refusing where its answer is no bound.

    Opacus 1.6 reports less than the truth where exp(loss) overflows (noise 0.01 at rate 0.1 and
    delta 1e-5: epsilon 707 for 5,400) and where rounding reaches delta (100,000 steps of noise
    100 at delta 1e-10).
    """

    def _get_domain(
        self,
        prvs: Any,  # noqa: ANN401, ARG002 - Opacus' signature; the history says the same
        num_self_compositions: list[int],
        eps_error: float,
        delta_error: float,
    ) -> Domain:
        num_steps = sum(num_self_compositions)
        # Gopi et al. 2021, remark 5.6, as in opacus.accountants.analysis.prv.domain.
        largest = 3.0 + max(
            eps_error,
            _rdp_epsilon(tuple(self.history), delta_error / 4),
            *(
                _rdp_epsilon(((noise, rate, 1),), delta_error / (8 * num_steps))
                for noise, rate, _ in self.history
            ),
        )
        mesh_size = eps_error / math.sqrt(num_steps * math.log(12 / delta_error) / 2)
        if (
            num_steps * 2.0**-52 > delta_error
            or largest > _MAX_LOSS
            or 2 * largest / mesh_size * len(self.history) > _MAX_CELLS
        ):
            msg = "PRV's float64 grid is no bound here, or too large"
            raise ValueError(msg)
        return Domain.create_aligned(-largest, largest, mesh_size)


def calibrate_noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: AccountantName = "prv",
) -> float:
    """The smallest noise multiplier (to 0.1 %) at which ``steps`` sums cost at most ``epsilon``.

    Raises:
        ConfigError: as :func:`smallest_noise`.
    """

    def mechanisms(noise: float) -> list[SampledGaussian]:
        return [SampledGaussian(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)]

    return smallest_noise(mechanisms, epsilon=epsilon, delta=delta, accountant=accountant)


def smallest_noise(
    mechanisms: Callable[[float], Iterable[SampledGaussian]],
    *,
    epsilon: float,
    delta: float,
    accountant: AccountantName = "prv",
) -> float:
    """The smallest noise (to 0.1 %) at which ``mechanisms`` of it cost at most ``epsilon``.

    Args:
        mechanisms: everything that will run, as a function of one noise level; more of it must
            mean more noise in each.
        epsilon: for all of them together.
        delta: at which epsilon is stated.
        accountant: whose numbers decide.

    Raises:
        ConfigError: if ``epsilon`` is not positive, or no reachable noise is enough.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        msg = f"epsilon: found {epsilon}, expected a positive finite number."
        raise ConfigError(msg)

    def is_enough(noise: float) -> bool:
        return epsilon_spent(mechanisms(noise), delta, accountant) <= epsilon

    low, high = 0.0, 1.0
    while not is_enough(high):
        low, high = high, 2.0 * high
        if high > _MAX_NOISE_MULTIPLIER:
            msg = f"epsilon {epsilon} at delta {delta} cannot be reached with any noise."
            raise ConfigError(msg)
    while high - low > 1e-3 * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
