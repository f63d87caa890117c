"""From the cells that are there to the comparison's result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from simulations.compare.cells import enumerate_noises, enumerate_scenarios
from simulations.compare.result import (
    CellRecord,
    ComparedModel,
    ComparedPlatform,
    ScenarioResult,
    Setting,
    UserGroup,
)
from simulations.compare.statistics import seed_mean, seeded_gain
from simulations.compare.worker import failure_of, finished_cell
from simulations.per_user import PER_USER_METRICS, read_per_user
from simulations.result import PRIMARY_METRIC
from simulations.simulate import PER_USER_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from simulations.compare.cells import Cell, Scenario
    from simulations.compare.options import CompareOptions
    from simulations.result import DataStatement, RunResult

ALONE, SERVED = "local", "federated"

POPULARITY_GROUPS = {"0": 0, "1-4": 1, "5-19": 5, "20+": 20}
"""Label -> fewest purchases of the held-out item by other users of the platform."""
ACTIVITY_GROUPS = {"0": 0, "1-4": 1, "5-9": 5, "10+": 10}
"""Label -> fewest purchases of the user's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What the cells of a comparison hold."""

    scenarios: tuple[ScenarioResult, ...]
    """Statistics over the finished cells."""
    cells: tuple[CellRecord, ...]
    """All cells."""
    data: DataStatement | None
    """Of the first finished cell."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the first finished cell."""


def collect(
    options: CompareOptions, folder: Path, cells: Sequence[Cell], platforms: Sequence[str]
) -> Collected:
    """Read every cell in ``folder`` and compute the statistics.

    Raises:
        StateError: if the result of a finished cell cannot be read.
    """
    finished: dict[Cell, RunResult] = {}
    records = []
    for cell in cells:
        result, reason = finished_cell(folder, cell, options.base), failure_of(folder, cell)
        if result is not None:
            finished[cell] = result
        records.append(
            CellRecord(
                scenario=cell.scenario.name,
                seed=cell.seed,
                trust=cell.trust,
                epsilon=cell.epsilon,
                status="finished" if result else "failed" if reason else "missing",
                reason=None if result else reason,
                wall_seconds=result.wall_seconds if result else None,
            )
        )
    first = next(iter(finished.values()), None)
    return Collected(
        scenarios=tuple(
            _scenario(
                scenario,
                {cell: result for cell, result in finished.items() if cell.scenario == scenario},
                options,
                folder,
            )
            for scenario in enumerate_scenarios(options, platforms)
        ),
        cells=tuple(records),
        data=None if first is None else first.data,
        versions={} if first is None else first.versions,
    )


def _scenario(
    scenario: Scenario, finished: Mapping[Cell, RunResult], options: CompareOptions, folder: Path
) -> ScenarioResult:
    first = next(iter(finished.values()), None)
    settings: dict[str, list[Setting]] = {}
    for trust, epsilon in enumerate_noises(options):
        runs = {
            cell: result
            for cell, result in finished.items()
            if (cell.trust, cell.epsilon) == (trust, epsilon)
        }
        if not runs:
            continue
        tables = {cell: read_per_user(folder / cell.folder / PER_USER_FILE) for cell in runs}
        for name in sorted({name for table in tables.values() for name in table["platform"]}):
            here = {cell: table[table["platform"] == name] for cell, table in tables.items()}
            closer = epsilon in {None, options.main_epsilon}
            settings.setdefault(name, []).append(_setting(name, runs, here, closer=closer))
    newcomer = scenario.newcomer
    return ScenarioResult(
        name=scenario.name,
        newcomer=None if newcomer is None else newcomer.platform,
        fraction=None if newcomer is None else newcomer.fraction,
        platforms={
            name: ComparedPlatform(
                num_users=first.platforms[name].num_users,
                num_test_users=first.platforms[name].num_test_users,
                settings=tuple(found),
            )
            for name, found in settings.items()
            if first is not None
        },
    )


def _setting(
    name: str,
    runs: Mapping[Cell, RunResult],
    tables: Mapping[Cell, pd.DataFrame],
    *,
    closer: bool,
) -> Setting:
    """One platform at one trust and epsilon; ``tables`` hold that platform's rows only."""
    platforms = [run.platforms[name] for run in runs.values()]
    spent = [p.epsilon for p in platforms if p.epsilon is not None]
    cell = next(iter(runs))
    by_model = {
        cell.seed: {str(model): rows for model, rows in table.groupby("model", sort=True)}
        for cell, table in tables.items()
    }
    pairs = _paired(by_model, SERVED, PRIMARY_METRIC) if closer else None
    return Setting(
        trust=cell.trust,
        epsilon=cell.epsilon,
        epsilon_spent=max(spent) if len(spent) == len(platforms) else None,
        num_seeds=len(runs),
        times_joined=sum(platform.gate == "joined" for platform in platforms),
        unfinished=tuple(sorted({model for p in platforms for model in p.unfinished})),
        models={
            model: _model(by_model, model)
            for model in sorted({model for models in by_model.values() for model in models})
        },
        by_popularity=_groups(pairs, "item_purchases", POPULARITY_GROUPS),
        by_activity=_groups(pairs, "interactions", ACTIVITY_GROUPS),
    )


def _model(by_model: Mapping[int, Mapping[str, pd.DataFrame]], model: str) -> ComparedModel:
    gain = {}
    for metric in PER_USER_METRICS if model != ALONE else ():
        pairs = _paired(by_model, model, metric)
        if pairs is not None:
            gain[metric] = seeded_gain(
                pairs.seeds, pairs.users, pairs.other - pairs.alone, test=metric == PRIMARY_METRIC
            )
    return ComparedModel(
        metrics={
            metric: seed_mean(
                [float(m[model][metric].mean()) for m in by_model.values() if model in m]
            )
            for metric in PER_USER_METRICS
        },
        gain=gain,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pairs:
    """A model beside ``local``, one row per seed and test user."""

    seeds: np.ndarray
    users: np.ndarray
    alone: np.ndarray
    other: np.ndarray
    traits: Mapping[str, np.ndarray]


def _paired(
    by_model: Mapping[int, Mapping[str, pd.DataFrame]], model: str, metric: str
) -> _Pairs | None:
    """The same users of ``model`` and ``local`` in each seed that has both; None if none has."""
    both = {
        seed: (models[ALONE], models[model])
        for seed, models in by_model.items()
        if ALONE in models and model in models
    }
    if not both:
        return None
    for alone, other in both.values():
        if not np.array_equal(alone["user"], other["user"]):
            raise ValueError(f"{model} and {ALONE} were measured on different users")

    def joined(column: str) -> np.ndarray:
        return np.concatenate([alone[column].to_numpy() for alone, _ in both.values()])

    return _Pairs(
        seeds=np.repeat(list(both), [len(alone) for alone, _ in both.values()]),
        users=joined("user"),
        alone=joined(metric),
        other=np.concatenate([other[metric].to_numpy() for _, other in both.values()]),
        traits={name: joined(name) for name in ("interactions", "item_purchases")},
    )


def _groups(pairs: _Pairs | None, trait: str, fewest: Mapping[str, int]) -> tuple[UserGroup, ...]:
    """Users by ``trait``, those that nobody is in left out."""
    if pairs is None:
        return ()
    labels = list(fewest)
    places = np.searchsorted(list(fewest.values()), pairs.traits[trait], side="right") - 1
    found = []
    for place, label in enumerate(labels):
        here = places == place
        if here.any():
            seeds = pairs.seeds[here]
            found.append(
                UserGroup(
                    label=label,
                    local=_mean_over_seeds(seeds, pairs.alone[here]),
                    federated=_mean_over_seeds(seeds, pairs.other[here]),
                    gain=seeded_gain(
                        seeds, pairs.users[here], pairs.other[here] - pairs.alone[here]
                    ),
                )
            )
    return tuple(found)


def _mean_over_seeds(seeds: np.ndarray, values: np.ndarray) -> float:
    return float(np.mean([values[seeds == seed].mean() for seed in np.unique(seeds)]))
