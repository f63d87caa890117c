"""What each platform's models are worth on test pairs that no platform ever saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from client.data import load_platform_data
from client.state import PlatformState
from common.evaluation.metrics import evaluate, paired_difference
from common.models.popularity import popularity_scores
from common.rng import derived_generator
from simulations.result import Gain, ModelResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.adaptation import PersonalModel
    from client.config import PlatformConfig
    from client.state import ModelName, ServedName
    from common.evaluation.metrics import RankingMetrics
    from simulations.federation import SimulatedPlatform

CUTOFFS = (10, 20)

REPORTED_MODELS: dict[str, ModelName] = {
    "shared": "shared",
    "local": "alone",
    "joined": "joined",
}
"""Name in reports -> model in a platform's state; ``federated`` is the one that it serves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One platform's models on its test pairs."""

    models: dict[str, ModelResult]
    """By name; models that the run has not reached are absent."""
    gain: dict[str, Gain]
    """By metric: ``federated`` minus ``local`` on the same users."""
    joined_gain: dict[str, Gain]
    """By metric: ``joined`` minus ``local`` on the same users, whatever the gate chose."""
    unfinished: tuple[str, ...]
    """Models that were still improving when their epochs ran out."""
    gate: ServedName | None
    """Which model the platform serves."""


def measure_platform(
    platform: SimulatedPlatform, config: PlatformConfig, *, candidates: int | None, seed: int
) -> Measured:
    """Rank the test items by every model the platform has."""
    measured = {"popularity": _evaluate(platform, _popularity(platform), candidates, seed)}
    data = load_platform_data(config)
    unfinished = []
    state = PlatformState(config.state.folder, config.state.keep_releases)
    try:
        for reported, stored in REPORTED_MODELS.items():
            model = state.load_model(stored, data.users_digest)
            if model is not None:
                scorer = _personal(platform, model, data.users.user_ids)
                measured[reported] = _evaluate(platform, scorer, candidates, seed)
                if model.epochs >= config.adaptation.max_epochs:
                    unfinished.append(reported)
        gate = state.served()
    finally:
        state.close()
    gain: dict[str, Gain] = {}
    joined_gain: dict[str, Gain] = {}
    if gate is not None and {"joined", "local"} <= measured.keys():
        measured["federated"] = measured["joined" if gate == "joined" else "local"]
        gain = _gain(measured["federated"], measured["local"])
        joined_gain = _gain(measured["joined"], measured["local"])
    return Measured(
        models={name: ModelResult.measured(metrics) for name, metrics in measured.items()},
        gain=gain,
        joined_gain=joined_gain,
        unfinished=tuple(unfinished),
        gate=gate,
    )


def _gain(first: RankingMetrics, second: RankingMetrics) -> dict[str, Gain]:
    return {
        metric: Gain.measured(paired_difference(first, second, metric))
        for metric in ("ndcg@10", "hr@10")
    }


def _evaluate(
    platform: SimulatedPlatform,
    scorer: Callable[[np.ndarray], np.ndarray],
    candidates: int | None,
    seed: int,
) -> RankingMetrics:
    return evaluate(
        scorer,
        platform.train.matrix,
        platform.test,
        cutoffs=CUTOFFS,
        candidates=candidates,
        # The same stream for every model: all face the same candidates and the same ties.
        rng=derived_generator(seed, "evaluation", platform.name),
    )


def _popularity(platform: SimulatedPlatform) -> Callable[[np.ndarray], np.ndarray]:
    counts = popularity_scores(platform.train.matrix)
    return lambda users: np.tile(counts, (len(users), 1))


def _personal(
    platform: SimulatedPlatform, model: PersonalModel, model_users: tuple[str, ...]
) -> Callable[[np.ndarray], np.ndarray]:
    """Scores by a personal model; a user without any training interaction gets popularity."""
    known = {user: row for row, user in enumerate(model_users)}
    rows = np.array([known.get(user, -1) for user in platform.train.user_ids])
    counts = popularity_scores(platform.train.matrix)

    def score(users: np.ndarray) -> np.ndarray:
        wanted = rows[users]
        scores = model.scores(np.maximum(wanted, 0))
        scores[wanted < 0] = counts
        return scores

    return score
