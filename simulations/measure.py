"""What each platform's models are worth on test pairs that no platform ever saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from client.data import load_platform_data
from client.personal_ncf import PersonalNcf
from client.state import PlatformState
from common.evaluation.metrics import evaluate, paired_difference
from common.models.popularity import popularity_scores
from common.rng import derived_generator
from simulations.baselines import has_too_many_items, pooled_scorer, restrict
from simulations.result import Gain, ModelResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from client.config import PlatformConfig
    from client.data import PlatformData
    from client.model_files import PlatformModels, ServedName
    from client.parts import Scorer
    from common.data.interactions import UserItems
    from common.evaluation.metrics import RankingMetrics
    from simulations.federation import SimulatedPlatform

CUTOFFS = (10, 20)

REPORTED_PARTS = ("item_knn", "ease", "als", "ncf", "shared")
"""Parts of a platform's models that are measured one by one; ``local`` is a blend of them, and
``federated`` is what the platform serves: that blend, or the one with what joining added."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One platform's models on its test pairs."""

    rankings: dict[str, RankingMetrics]
    """By name, for every test user; models that the run has not reached are absent."""
    models: dict[str, ModelResult]
    """Means of ``rankings``."""
    gain: dict[str, Gain]
    """By metric: ``federated`` minus ``local`` on the same users."""
    unfinished: tuple[str, ...]
    """Models that were still improving when their epochs ran out."""
    gate: ServedName | None
    """Which model the platform serves."""

    @classmethod
    def nothing(cls) -> Measured:
        """Of a platform that is not measured."""
        return cls(rankings={}, models={}, gain={}, unfinished=(), gate=None)


def measure_platform(
    platform: SimulatedPlatform,
    config: PlatformConfig,
    *,
    candidates: int | None,
    seed: int,
    others: Sequence[SimulatedPlatform] = (),
) -> Measured:
    """Rank the test items by every model the platform has.

    Args:
        platform: its training data and test pairs.
        config: its ``platform.toml``.
        candidates: rank among this many sampled items; None ranks all.
        seed: draws candidates, orders ties.
        others: platforms whose raw data the baseline ``pooled`` may use; without any it is absent,
            and where it would not fit this machine.
    """
    measured = {"popularity": _evaluate(platform, _popularity(platform), candidates, seed)}
    data = load_platform_data(config)
    unfinished: tuple[str, ...] = ()
    state = PlatformState(config.state.folder, config.state.keep_releases)
    try:
        models, gate = state.models.load(data.users_digest), state.models.served()
    finally:
        state.close()
    if models is not None:
        scorers: dict[str, Scorer] = {
            name: models.parts[name] for name in REPORTED_PARTS if name in models.parts
        }
        scorers["local"] = models.alone
        if models.joined is not None and gate is not None:
            scorers["federated"] = models.joined if gate == "joined" else models.alone
        for name, model in scorers.items():
            scorer = personal_scorer(platform, model, data.users)
            measured[name] = _evaluate(platform, scorer, candidates, seed)
        unfinished = _unfinished(models, config.adaptation.max_epochs)
    gain: dict[str, Gain] = {}
    if "federated" in measured:
        gain = {
            metric: Gain.measured(
                paired_difference(measured["federated"], measured["local"], metric)
            )
            for metric in ("ndcg@10", "hr@10")
        }
    if others:
        pooled = _pooled(platform, data, others)
        if pooled is not None:
            measured["pooled"] = _evaluate(platform, pooled, candidates, seed)
    return Measured(
        rankings=measured,
        models={name: ModelResult.measured(metrics) for name, metrics in measured.items()},
        gain=gain,
        unfinished=unfinished,
        gate=gate,
    )


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


def _pooled(
    platform: SimulatedPlatform, data: PlatformData, others: Sequence[SimulatedPlatform]
) -> Callable[[np.ndarray], np.ndarray] | None:
    theirs = restrict([other.train for other in others], platform.train.listing)
    if has_too_many_items(platform.train, theirs):
        return None
    return pooled_scorer(data.folds[0], platform.train.matrix, theirs)


def _unfinished(models: PlatformModels, max_epochs: int) -> tuple[str, ...]:
    """Names of models that hold an NCF which was still improving when its epochs ran out."""
    ncf = models.parts.get("ncf")
    if not isinstance(ncf, PersonalNcf) or ncf.epochs < max_epochs:
        return ()
    # The first part of a blend is the best one alone: only then is `local` short of training.
    return ("ncf", "local") if next(iter(models.alone.weights)) == "ncf" else ("ncf",)


def personal_scorer(
    platform: SimulatedPlatform, model: Scorer, own: UserItems
) -> Callable[[np.ndarray], np.ndarray]:
    """Scores by a platform's model; a user without any training interaction gets popularity."""
    known = {user: row for row, user in enumerate(own.user_ids)}
    rows = np.array([known.get(user, -1) for user in platform.train.user_ids])
    counts = popularity_scores(platform.train.matrix)

    def score(users: np.ndarray) -> np.ndarray:
        wanted = rows[users]
        scores = model.scores(np.maximum(wanted, 0), own.matrix)
        scores[wanted < 0] = counts
        return scores

    return score
