"""One epsilon for everything that leaves a platform: how much noise each kind of release gets.

Pure: shares in, mechanisms out. A share is part of the squared signal-to-noise ratio that epsilon
pays for; of Gaussians without sampling these add up (their 1/noise^2 do).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from common.errors import ConfigError
from common.privacy.accounting import epsilon_spent, smallest_noise
from common.privacy.mechanisms import SampledGaussian

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PlanName = Literal["pairs", "ncf", "both"]
"""What a run spends its budget on, see ``PLANS``."""

COUNTS_SHARE = 0.1
"""Part of what counts and pairs get together that goes into the counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """Relative weights of the kinds of releases; what has none does not run."""

    counts: float = 0.0
    """Item counts."""
    pairs: float = 0.0
    """Item pairs."""
    rounds: float = 0.0
    """All rounds of training together."""

    def __post_init__(self) -> None:
        """Refuse shares that cannot be divided by."""
        shares = (self.counts, self.pairs, self.rounds)
        if not all(math.isfinite(s) and s >= 0 for s in shares) or not sum(shares) > 0:
            msg = f"shares: found {shares}, expected numbers >= 0 that are not all 0."
            raise ConfigError(msg)


PLANS: Final[Mapping[PlanName, Shares]] = {
    "pairs": Shares(counts=COUNTS_SHARE, pairs=1 - COUNTS_SHARE),
    "ncf": Shares(rounds=1.0),
    "both": Shares(counts=COUNTS_SHARE, pairs=1 - COUNTS_SHARE, rounds=0.5),
}
"""Item pairs alone, rounds of neural collaborative filtering alone, or two parts to one of both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetPlan:
    """What one user's budget is spent on."""

    counts: SampledGaussian | None
    """Item counts, or None if they are not asked for."""
    pairs: SampledGaussian | None
    """Item pairs, or None."""
    rounds: SampledGaussian | None
    """All rounds of training together, or None."""

    @property
    def mechanisms(self) -> list[SampledGaussian]:
        """Everything that runs."""
        return [m for m in (self.counts, self.pairs, self.rounds) if m is not None]

    def epsilon(self, delta: float) -> float:
        """What all of it costs together."""
        return epsilon_spent(self.mechanisms, delta)


def plan_noise(
    epsilon: float, delta: float, *, shares: Shares, steps: int = 1, sampling_rate: float = 1.0
) -> BudgetPlan:
    """The least noise with which everything together costs at most ``epsilon``.

    Counts and pairs get base / sqrt(share), and each step of training base / sqrt(share / steps);
    base is the smallest number (to 0.1 %) that is enough.

    Args:
        epsilon: for everything together.
        delta: at which epsilon is stated.
        shares: of counts, pairs and rounds.
        steps: noisy steps of all rounds together.
        sampling_rate: of the users in each of these steps.

    Raises:
        ConfigError: if ``epsilon`` is not positive, or no reachable noise is enough.
    """
    total = shares.counts + shares.pairs + shares.rounds

    def planned(base: float) -> BudgetPlan:
        return _plan(
            shares,
            lambda share, steps: base * math.sqrt(total / share * steps),
            steps=steps,
            sampling_rate=sampling_rate,
        )

    base = smallest_noise(lambda noise: planned(noise).mechanisms, epsilon=epsilon, delta=delta)
    return planned(base)


def plan_without_noise(shares: Shares, *, steps: int = 1, sampling_rate: float = 1.0) -> BudgetPlan:
    """The same releases without noise and without a guarantee, for simulations."""
    return _plan(shares, lambda *_: 0.0, steps=steps, sampling_rate=sampling_rate)


def _plan(
    shares: Shares, noise: Callable[[float, int], float], *, steps: int, sampling_rate: float
) -> BudgetPlan:
    def mechanism(share: float, steps: int = 1, rate: float = 1.0) -> SampledGaussian | None:
        if share == 0:
            return None
        return SampledGaussian(
            noise_multiplier=noise(share, steps), sampling_rate=rate, steps=steps
        )

    return BudgetPlan(
        counts=mechanism(shares.counts),
        pairs=mechanism(shares.pairs),
        rounds=mechanism(shares.rounds, steps, sampling_rate),
    )
