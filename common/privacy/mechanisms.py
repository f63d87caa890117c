"""Mechanisms as immutable values: what ran, and nothing about how it is priced.

A value says everything an accountant needs. It is written to the ledger before data is touched,
and it is what :mod:`common.privacy.accounting` composes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

PrivacyUnit = Literal["user"]
"""Neighbouring data sets differ by one user with all her interactions, added or removed."""

TrustMode = Literal["local", "secagg", "secagg-simulated", "none"]
"""Who sees a release: ``local`` = anyone; ``secagg`` = nobody, all see the sum of the platforms
(:mod:`common.secagg`); ``secagg-simulated`` = the same sum and the same price, but added up in the
clear (simulations only); ``none`` = no noise, no guarantee."""

MAX_STEPS = 10**9  # beyond any training; float64 counts far further

NEIGHBOURING = "add or remove one user with all her interactions"


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledGaussian:
    """``steps`` Gaussian sums over Poisson samples of the privacy units.

    Each step includes every unit with probability ``sampling_rate``, clips its contribution to
    the clipping norm C in L2, sums, and adds N(0, (``noise_multiplier`` C)^2) per coordinate.

    Guarantee: priced by the privacy loss of the Poisson-subsampled Gaussian mechanism under add
    or remove (Mironov et al. 2019, arXiv:1908.10530; Gopi et al. 2021, arXiv:2106.02848).

    | edge case | meaning |
    |---|---|
    | sampling_rate = 1 | every unit in every step: the plain Gaussian mechanism |
    | noise_multiplier = 0 | no guarantee: epsilon is infinite |
    """

    noise_multiplier: float
    """Standard deviation of the noise that an observer faces, over C."""
    sampling_rate: float
    """Probability that a unit takes part in one step, in (0, 1]."""
    steps: int
    """Noisy sums released, 1 to 10^9."""
    unit: PrivacyUnit = "user"
    """Privacy unit."""

    def __post_init__(self) -> None:
        """Refuse values outside their range: an accountant must never see them."""
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            msg = f"noise_multiplier: found {self.noise_multiplier}, expected a finite number >= 0."
            raise ConfigError(msg)
        if not 0 < self.sampling_rate <= 1:
            msg = f"sampling_rate: found {self.sampling_rate}, expected a number in (0, 1]."
            raise ConfigError(msg)
        if type(self.steps) is not int or not 1 <= self.steps <= MAX_STEPS:
            msg = f"steps: found {self.steps}, expected a whole number from 1 to {MAX_STEPS}."
            raise ConfigError(msg)
        if self.unit not in get_args(PrivacyUnit):
            msg = f"unit: found {self.unit!r}, expected one of {', '.join(get_args(PrivacyUnit))}."
            raise ConfigError(msg)

    def to_dict(self) -> dict[str, Any]:
        """A plain form for JSON; :func:`mechanism_from_dict` undoes it."""
        return {"type": "sampled-gaussian", **asdict(self)}


def mechanism_from_dict(value: Mapping[str, Any]) -> SampledGaussian:
    """Rebuild a mechanism from :meth:`SampledGaussian.to_dict`.

    Raises:
        ConfigError: for an unknown type: an accountant must not guess what ran.
    """
    fields = dict(value)
    kind = fields.pop("type", None)
    if kind != "sampled-gaussian":
        msg = f"mechanism type: found {kind!r}, expected 'sampled-gaussian'."
        raise ConfigError(msg)
    try:
        return SampledGaussian(**fields)
    except TypeError as error:
        msg = f"mechanism 'sampled-gaussian': {error}"
        raise ConfigError(msg) from None
