"""What a comparison is asked to do: the options of ``crossrec compare``, as a value.

Written to ``comparison.toml`` in its folder, from which an interrupted comparison goes on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from common.errors import ConfigError
from common.privacy.mechanisms import TrustMode
from simulations.newcomers import Newcomer
from simulations.options import SimulationOptions

USUAL_EPSILON = 8.0
"""Where a comparison looks closer, if it is among its epsilons; else at the largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """One comparison. Two with equal options have equal results."""

    base: SimulationOptions = field(default_factory=SimulationOptions)
    """What all runs have in common; its epsilon, trust, seed and newcomer are not used."""
    newcomers: tuple[str, ...] = ()
    """``NAME:FRACTION``, one scenario each; ``all:FRACTION`` stands for every platform."""
    full: bool = True
    """Compare the federation as it is, too."""
    epsilons: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    """Budgets to compare."""
    trusts: tuple[TrustMode, ...] = ("secagg-simulated", "local")
    """Trust modes to compare; there is always a run without noise beside them."""
    seeds: tuple[int, ...] = (0,)
    """Each is a repetition: another draw of newcomers, noise and starting values."""

    def __post_init__(self) -> None:
        """Refuse what could not be compared."""
        for newcomer in self.newcomers:
            Newcomer.parse(newcomer)
        for name in ("newcomers", "epsilons", "trusts", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                msg = f"{name}: found a value twice in {', '.join(map(str, values))}."
                raise ConfigError(msg)
            if not values and name != "newcomers":
                msg = f"{name}: found none, expected at least one."
                raise ConfigError(msg)
        if not all(epsilon > 0 and math.isfinite(epsilon) for epsilon in self.epsilons):
            msg = f"epsilons: found {', '.join(map(str, self.epsilons))}, expected positive ones."
            raise ConfigError(msg)
        if "none" in self.trusts:
            msg = "trusts: there is always a run without noise; leave out 'none'."
            raise ConfigError(msg)
        if not (self.full or self.newcomers):
            msg = "there is nothing to compare: name a newcomer, or keep the full federation."
            raise ConfigError(msg)

    @property
    def main_epsilon(self) -> float:
        """Where verdicts, bars and groups of users are."""
        return USUAL_EPSILON if USUAL_EPSILON in self.epsilons else max(self.epsilons)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read ``5`` (as many, from 0), ``100-104`` (both included) or ``3,7,9``.

    Raises:
        ConfigError: if it is something else.
    """
    first, dash, last = text.strip().partition("-")
    parts = [part.strip() for part in text.split(",")]
    seeds: tuple[int, ...] = ()
    if dash and first.isdecimal() and last.isdecimal():
        seeds = tuple(range(int(first), int(last) + 1))
    elif len(parts) > 1 and all(part.isdecimal() for part in parts):
        seeds = tuple(map(int, parts))
    elif text.strip().isdecimal():
        seeds = tuple(range(int(text)))
    if not seeds:
        msg = f"--seeds: found {text!r}, expected a number of them, or 100-104, or 3,7,9."
        raise ConfigError(msg)
    return seeds


def parse_epsilons(text: str) -> tuple[float, ...]:
    """Read ``1,2.5,8``; the values in ascending order.

    Raises:
        ConfigError: if it is something else.
    """
    try:
        return tuple(sorted(float(part) for part in text.split(",")))
    except ValueError:
        msg = f"--epsilon: found {text!r}, expected numbers such as 1,2,4,8."
        raise ConfigError(msg) from None
