"""What is claimed of a run, for each unit and adversary, before it is attacked. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.attacks.membership.accounted import accounted_epsilon

if TYPE_CHECKING:
    from common.privacy.account import Spend
    from simulations.attacks.membership.result import Adversary, Unit
    from simulations.options import SimulationOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What is said of a run before it is attacked."""

    epsilon: float | None
    """Accounted for the unit; None without a guarantee."""
    delta: float
    """Of it."""
    words: str
    """How it follows from what the ledger says."""
    is_gaussian: bool
    """Whether everything that is seen is Gaussian noise without sampling."""


def claim_for(
    unit: Unit,
    adversary: Adversary,
    spends: tuple[Spend, ...],
    options: SimulationOptions,
    *,
    num_platforms: int,
    num_users: int = 1,
) -> Claim:
    """What holds for ``unit`` by the noise that a ledger charged.

    Args:
        unit: whom the noise is to hide.
        adversary: from whom.
        spends: of the platform where the unit is.
        options: of the run.
        num_platforms: that are added up in what the run makes.
        num_users: of a canary platform.
    """
    epsilon = accounted_epsilon(unit, spends, options.delta, num_users=num_users)
    words = _words(unit, options, num_users)
    if options.trust == "none":
        words = "no noise is added: there is no guarantee"
    elif adversary != "releases" and options.trust == "local" and num_platforms > 1:
        noise = math.sqrt(num_platforms)
        alone = accounted_epsilon(unit, spends, options.delta, num_users=num_users, noise=noise)
        told = "no guarantee" if alone is None else f"epsilon {alone:.3g}"
        words += (
            f"; whoever sees nothing but sums of all {num_platforms} platforms, and knows nobody's "
            f"noise, faces that of all of them: {told}"
        )
    return Claim(
        epsilon=epsilon,
        delta=options.delta,
        words=words,
        is_gaussian=options.sampling_rate == 1.0,
    )


def _words(unit: Unit, options: SimulationOptions, num_users: int) -> str:
    if unit == "user":
        if options.trust == "local":
            return "what the platform's ledger says"
        return (
            "what the platform's ledger says of the sums, against whoever knows the parts of "
            f"{options.max_colluding} other platform(s)"
        )
    sampled = ", and without the help of sampling" if options.sampling_rate < 1 else ""
    if unit == "interaction":
        return (
            "not the ledger's epsilon of a user, who is there either way: one interaction moves a "
            "sum of pairs by at most sqrt(2), counts by at most 1 and a round by at most 2 times "
            f"what a user moves them; so with the ledger's noise divided by that{sampled}"
        )
    return (
        f"{num_users} users at once move everything {num_users} times as far: with the ledger's "
        f"noise divided by {num_users}{sampled}. The ledger protects users; for a platform this "
        "is no guarantee to speak of"
    )
