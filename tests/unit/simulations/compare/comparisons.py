"""A comparison result by hand, and small comparisons that take a second per cell."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from simulations.compare.options import CompareOptions
from simulations.compare.result import (
    CellRecord,
    ComparedModel,
    ComparedPlatform,
    CompareResult,
    ScenarioResult,
    Setting,
    UserGroup,
)
from simulations.compare.statistics import SeededGain, SeedMean
from tests.shops import options
from tests.unit.simulations.run_results import run_result

if TYPE_CHECKING:
    from pathlib import Path


def small(data: Path, **changes: Any) -> CompareOptions:  # noqa: ANN401
    """Two groups of two cells each."""
    quick: dict[str, Any] = {
        "newcomers": ("north:0.5",),
        "full": False,
        "epsilons": (8.0,),
        "trusts": ("local",),
        "seeds": (0, 1),
    }
    return CompareOptions(base=options(data), **{**quick, **changes})


def seeded(mean: float | None, stderr: float | None = 0.004, num_seeds: int = 2) -> SeededGain:
    return SeededGain(
        mean=mean,
        stderr=stderr,
        stderr_users=stderr,
        stderr_seeds=stderr if num_seeds > 1 else None,
        p_value=0.0002,
        num_users=90,
        num_seeds=num_seeds,
    )


def model(value: float, gain: SeededGain | None = None) -> ComparedModel:
    metrics = {name: SeedMean(mean=value, sd=0.001) for name in ("ndcg@10", "hr@10")}
    return ComparedModel(metrics=metrics, gain={} if gain is None else {"ndcg@10": gain})


def setting(
    gain: SeededGain | None = None,
    *,
    trust: str = "secagg-simulated",
    epsilon: float | None = 8.0,
    **changes: Any,  # noqa: ANN401
) -> Setting:
    gain = seeded(0.029) if gain is None else gain
    groups = (UserGroup(label="1-4", local=0.2, federated=0.3, gain=gain),)
    found = Setting(
        trust=trust,
        epsilon=epsilon,
        epsilon_spent=epsilon,
        num_seeds=2,
        times_joined=2,
        unfinished=(),
        models={
            "popularity": model(0.351),
            "local": model(0.418),
            "federated": model(0.418 + (gain.mean or 0), gain),
        },
        by_popularity=groups,
        by_activity=groups,
    )
    return replace(found, **changes)


def compare_result(*settings: Setting, **changes: Any) -> CompareResult:  # noqa: ANN401
    """A full federation of ``s1`` and the newcomer ``t1``, both with ``settings``."""
    platform = ComparedPlatform(num_users=270, num_test_users=90, settings=settings or (setting(),))
    result = CompareResult(
        status="complete",
        configuration={"epsilons": [8.0]},
        epsilons=(2.0, 8.0),
        main_epsilon=8.0,
        delta=1e-5,
        trusts=("secagg-simulated",),
        seeds=(0, 1),
        versions={"crossrec": "0.1.0"},
        command="crossrec compare",
        resume_command=None,
        data=run_result().data,
        scenarios=(
            ScenarioResult(name="full", newcomer=None, fraction=None, platforms={"s1": platform}),
            ScenarioResult(name="t1:0.1", newcomer="t1", fraction=0.1, platforms={"t1": platform}),
        ),
        cells=(
            CellRecord(
                scenario="full",
                seed=0,
                trust="none",
                epsilon=None,
                status="finished",
                reason=None,
                wall_seconds=3.0,
            ),
        ),
    )
    return replace(result, **changes)
