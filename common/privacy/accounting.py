"""The price of mechanisms: epsilon of everything that ran, by Opacus' accountants.

Pure: mechanisms in, numbers out. PRV (Gopi et al. 2021, arXiv:2106.02848) is tight and the
default; RDP (Mironov et al. 2019, arXiv:1908.10530) is looser and serves as the safe bound.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from opacus.accountants import PRVAccountant, RDPAccountant

from common.errors import ConfigError
from common.privacy.mechanisms import SampledGaussian

if TYPE_CHECKING:
    from collections.abc import Iterable

AccountantName = Literal["prv", "rdp"]

_MAX_NOISE_MULTIPLIER = 1e6


def epsilon_spent(
    mechanisms: Iterable[SampledGaussian], delta: float, accountant: AccountantName = "prv"
) -> float:
    """Upper bound on epsilon of the composition of ``mechanisms`` at ``delta``.

    Guarantee: the composition is (epsilon, ``delta``)-DP for adaptively chosen mechanisms.

    | edge case | result |
    |---|---|
    | nothing ran | 0 |
    | a mechanism without noise | infinity |

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
    if not steps:
        return 0.0
    if any(noise == 0 for noise, _ in steps):
        return math.inf
    history = tuple(sorted((noise, rate, count) for (noise, rate), count in steps.items()))
    return _price(history, delta, accountant)


@lru_cache(maxsize=4096)
def _price(
    history: tuple[tuple[float, float, int], ...], delta: float, accountant: AccountantName
) -> float:
    rdp = RDPAccountant()
    rdp.history = list(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "optimal order is the largest alpha": still a bound
        bound = float(rdp.get_epsilon(delta))
        if accountant == "rdp":
            return bound
        prv = PRVAccountant()
        prv.history = list(history)
        try:
            tight = float(prv.get_epsilon(delta))
        except (RuntimeError, ValueError, MemoryError):
            # PRV's grid cannot cover very large losses; RDP's bound holds everywhere.
            return bound
    return min(tight, bound) if math.isfinite(tight) else bound


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
        ConfigError: if ``epsilon`` is not positive, or no reachable noise is enough.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        msg = f"epsilon: found {epsilon}, expected a positive finite number."
        raise ConfigError(msg)

    def cost(noise: float) -> float:
        mechanism = SampledGaussian(
            noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps
        )
        return epsilon_spent([mechanism], delta, accountant)

    low, high = 0.0, 1.0
    while cost(high) > epsilon:
        low, high = high, 2.0 * high
        if high > _MAX_NOISE_MULTIPLIER:
            msg = f"epsilon {epsilon} at delta {delta} cannot be reached in {steps} steps."
            raise ConfigError(msg)
    while high - low > 1e-3 * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if cost(middle) <= epsilon else (middle, high)
    return high
