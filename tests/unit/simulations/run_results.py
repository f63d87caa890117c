"""A small run result that the tests of this folder build on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simulations.result import (
    DataStatement,
    ModelResult,
    PlatformResult,
    PrivacyStatement,
    RoundRecord,
    RunResult,
)


def model(ndcg: float | None, stderr: float | None = 0.004) -> ModelResult:
    return ModelResult(
        metrics={"ndcg@10": ndcg, "hr@10": ndcg, "coverage@10": 0.3},
        stderr={"ndcg@10": stderr, "hr@10": stderr},
        num_test_users=90,
    )


def platform(local: float | None = 0.25, federated: float | None = 0.28) -> PlatformResult:
    return PlatformResult(
        num_users=100,
        num_items=50,
        num_interactions=900,
        num_test_users=90,
        epsilon=7.9,
        epsilon_if_secagg_broken=19.0,
        epsilon_budget=8.0,
        delta=1e-5,
        privacy_unit="user",
        trust="secagg",
        epsilon_history=(5.0, 7.9),
        noise_multiplier=0.8,
        sampling_rate=0.1,
        models={
            "popularity": model(0.2),
            "local": model(local),
            "federated": model(federated),
        },
    )


def run_result(**changes: Any) -> RunResult:  # noqa: ANN401  (any field of any type)
    names = ("north", "south")
    result = RunResult(
        status="complete",
        configuration={"epsilon": 8.0, "rounds": 2, "layers": [64, 32], "data": None},
        seed=7,
        versions={"crossrec": "0.1.0", "torch": "2.13.0"},
        command="crossrec simulate --epsilon 8 --seed 7",
        wall_seconds=12.5,
        peak_memory_mb=300.0,
        data=DataStatement(
            source="built-in marketplace",
            is_synthetic=True,
            catalogue_derived=True,
            num_items=80,
            notes=("3 duplicate rows were kept once.",),
            items_in_common={a: {b: 50 if a == b else 20 for b in names} for a in names},
        ),
        privacy=PrivacyStatement(
            unit="user",
            delta=1e-5,
            trust="secagg",
            mechanism="Poisson-subsampled Gaussian",
            accountant="PRV (Opacus)",
            planned_epsilon=7.9,
            clipping_norm=1.0,
            sampling="Poisson",
            noise_source="seeded",
            released=("noised sum of clipped gradients",),
        ),
        rounds_planned=2,
        rounds_completed=2,
        rounds=(
            RoundRecord(
                round=1,
                seconds=1.0,
                platforms=dict.fromkeys(names, "released"),
                update_norm=0.4,
            ),
            RoundRecord(
                round=2,
                seconds=1.5,
                platforms={"north": "released", "south": "declined: budget exhausted"},
                update_norm=None,
            ),
        ),
        platforms={name: platform() for name in names},
    )
    return replace(result, **changes)
