"""What a comparison consists of: scenarios, and one run for each of their cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.newcomers import Newcomer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.privacy.mechanisms import TrustMode
    from simulations.compare.options import CompareOptions
    from simulations.options import SimulationOptions

FULL = "full"
"""Name of the scenario in which every platform has all of its users."""
EVERYONE = "all"
"""In ``all:0.1``: every platform in turn, unless one is called so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A federation as it is, or with one platform that has just opened."""

    newcomer: Newcomer | None = None
    """The platform of interest; None: all are."""

    @property
    def name(self) -> str:
        """``full`` or ``NAME:FRACTION``."""
        return FULL if self.newcomer is None else str(self.newcomer)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run of a comparison."""

    scenario: Scenario
    """Who has how many users."""
    seed: int
    """Of everything random."""
    trust: TrustMode
    """``none`` is the run without noise."""
    epsilon: float | None
    """Budget; None without noise."""

    @property
    def folder(self) -> Path:
        """Where it lives in the folder of the comparison."""
        newcomer = self.scenario.newcomer
        place = FULL if newcomer is None else f"{newcomer.platform}-{newcomer.fraction:.12g}"
        noise = self.trust if self.epsilon is None else f"{self.trust}-{self.epsilon:.12g}"
        return Path("cells") / place / f"seed-{self.seed}" / noise

    def __str__(self) -> str:
        """For people."""
        noise = "without noise" if self.epsilon is None else f"{self.trust}, eps. {self.epsilon:g}"
        return f"{self.scenario.name}, seed {self.seed}, {noise}"

    def options(self, base: SimulationOptions) -> SimulationOptions:
        """The run's own options."""
        newcomer = self.scenario.newcomer
        return replace(
            base,
            newcomer=None if newcomer is None else str(newcomer),
            adapting=None if newcomer is None else (newcomer.platform,),
            trust=self.trust,
            epsilon=base.epsilon if self.epsilon is None else self.epsilon,
            seed=self.seed,
        )


def enumerate_scenarios(options: CompareOptions, platforms: Sequence[str]) -> tuple[Scenario, ...]:
    """The full federation first, then each newcomer once."""
    found = [Scenario()] if options.full else []
    for text in options.newcomers:
        newcomer = Newcomer.parse(text)
        names = [newcomer.platform]
        if newcomer.platform == EVERYONE and EVERYONE not in platforms:
            names = sorted(platforms)
        found += [Scenario(newcomer=replace(newcomer, platform=name)) for name in names]
    return tuple(dict.fromkeys(found))


def enumerate_noises(options: CompareOptions) -> list[tuple[TrustMode, float | None]]:
    """Trust and epsilon of each cell of a scenario and seed: without noise first."""
    noises: list[tuple[TrustMode, float | None]] = [("none", None)]
    return noises + [(trust, epsilon) for trust in options.trusts for epsilon in options.epsilons]


def enumerate_cells(options: CompareOptions, platforms: Sequence[str]) -> tuple[Cell, ...]:
    """Every run, seed by seed; of a scenario and seed the one without noise comes first."""
    return tuple(
        Cell(scenario=scenario, seed=seed, trust=trust, epsilon=epsilon)
        for seed in options.seeds
        for scenario in enumerate_scenarios(options, platforms)
        for trust, epsilon in enumerate_noises(options)
    )


def group_cells(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Cells of one scenario and seed together, in their order: they share local models."""
    return [
        tuple(group) for _, group in groupby(cells, key=lambda cell: (cell.seed, cell.scenario))
    ]
