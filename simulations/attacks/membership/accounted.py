"""What the accountant says for each privacy unit, from what a ledger holds. Pure.

A ledger prices a **user** with all she did. What other units move is more, or less:

- an **interaction** more or less. The user is there either way: her old part is taken away and her
  new one added. Both have an L2 norm of at most 1 and no negative numbers, so a sum of pairs moves
  by at most sqrt(2); a very rare item beside two very common ones comes near it, for then her pair
  of common items nearly disappears. Counts move by at most 1: where n >= 1 items are left, by
  sqrt(2 - 2 sqrt(n / (n + 1))) < .77. In a round her clipped gradient may turn around: 2 C.
- a **platform**: n times what a user moves. That is a guarantee for tiny platforms at most.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from common.messages import is_round
from common.privacy.accounting import epsilon_spent
from simulations.result import finite_or_none

if TYPE_CHECKING:
    from collections.abc import Iterable

    from common.privacy.account import Spend
    from common.privacy.mechanisms import SampledGaussian
    from simulations.attacks.membership.result import Unit


def moved_by(unit: Unit, request_id: str, num_users: int) -> float:
    """Most that one unit moves a release, over what a user does (see the module)."""
    if unit == "platform":
        return float(num_users)
    if unit == "user":
        return 1.0
    if is_round(request_id):
        return 2.0
    return math.sqrt(2.0) if "/item-pairs/" in request_id else 1.0


def mechanisms_for(
    unit: Unit, spends: Iterable[Spend], *, num_users: int = 1, noise: float = 1.0
) -> list[SampledGaussian]:
    """What an observer faces, as mechanisms over ``unit``.

    Args:
        unit: whom the noise is to hide.
        spends: of one platform's ledger.
        num_users: of a platform.
        noise: how many times the ledger's noise the observer faces.
    """
    found = []
    for spend in spends:
        mechanism, factor = spend.mechanism, moved_by(unit, spend.request_id, num_users)
        multiplier = mechanism.noise_multiplier * noise / factor
        # Sampling is priced for users who are there or not; others do without its help.
        rate = mechanism.sampling_rate if unit == "user" else 1.0
        found.append(replace(mechanism, noise_multiplier=multiplier, sampling_rate=rate))
    return found


def accounted_epsilon(
    unit: Unit, spends: Iterable[Spend], delta: float, *, num_users: int = 1, noise: float = 1.0
) -> float | None:
    """Epsilon at ``delta`` of all that a ledger charged, for ``unit``; None without a guarantee."""
    mechanisms = mechanisms_for(unit, spends, num_users=num_users, noise=noise)
    return finite_or_none(epsilon_spent(mechanisms, delta))


def shift_of(mechanisms: Iterable[SampledGaussian]) -> float:
    """Shift of one Gaussian that moves as much as all of them; sampling counted as its mean."""
    squares = 0.0
    for one in mechanisms:
        if one.noise_multiplier == 0:
            return math.inf
        squares += one.steps * (one.sampling_rate / one.noise_multiplier) ** 2
    return math.sqrt(squares)
