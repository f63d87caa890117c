"""Private adaptation: the best a platform can do alone, and what joining adds to it.

Everything here looks at the platform's raw interactions without noise, and none of it is ever
released: not a model, not a weight, not how long it took to choose one. Training for a release
never reads it back (a user's released gradient would then depend on other users).

Every choice is made on validation users, by the metric that is reported; a federated part has to
gain in the ranks of what they gave up as well. What was chosen is fitted again on all interactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, diags

from client.local_models.als import fit_als
from client.local_models.ease import MAX_ITEMS, fit_ease
from client.local_models.item_knn import fit_item_knn
from client.parts import Blend, Factors, ItemScores, ItemWeights
from client.personal_ncf import fit_personal_ncf
from client.validation import log_ranks, ndcg
from common.models.popularity import popularity_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from client.parts import Part
    from client.validation import Fold, Scores
    from common.models.ncf import NcfConfig

    Fit = Callable[[csr_matrix], Part]

_NEIGHBOURS = 200
_SHRINKS = (3.0, 10.0, 30.0)
_RIDGES = (3.0, 10.0, 30.0, 100.0)
_RIDGES_IF_SLOW = (10.0, 30.0)
_SLOW_ITEMS = 3000
_ALS_DIM, _ALS_EPOCHS = 64, 10
_ALS_CHOICES = ((0.003, 0.1), (0.01, 0.1), (0.003, 0.03))
"""Strength of the penalty, and weight of unobserved pairs."""

_LOCAL_WEIGHTS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_FEDERATED_WEIGHTS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Weights tried for a further part; scores of both are first scaled to the same spread."""

_STDERRS = 1.0
"""What a further part has to gain on validation users, in standard errors of the difference."""

_HALF_TRUSTED_PURCHASES = 5.0
"""Own purchases of an item at which what others say about it counts half."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fitted:
    """One part that was chosen on the folds and fitted on everything."""

    part: Part
    """Fitted on all interactions."""
    scores: Scores
    """Of the same kind of part fitted on each fold, for the fold's validation users."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adapted:
    """A blend, and how its parts did where they could be judged."""

    blend: Blend
    """Fitted on all interactions."""
    scores: Scores
    """Of the blend fitted on each fold, for the fold's validation users."""


def fit_alone(
    interactions: csr_matrix,
    folds: Sequence[Fold],
    config: NcfConfig,
    *,
    max_epochs: int,
    seed: int,
) -> Adapted:
    """The best that the platform can do without anybody else, from five kinds of model.

    Popularity, ItemKNN, EASE, iALS and neural collaborative filtering are each tuned on the folds.
    The best one is taken, then each other one is added where that helps by more than one
    standard error. EASE is left out beyond ``MAX_ITEMS`` items that were bought.

    Args:
        interactions: all of the platform's, [num_users, num_listed] of ones.
        folds: at least one; without validation users EASE (or, left out, ItemKNN) is taken.
        config: the NCF model.
        max_epochs: upper bound on its epochs.
        seed: of random starts; no guarantee hangs on it.
    """
    fitted: dict[str, Fitted] = {}
    for name, fits in _local_fits(interactions, folds, config, max_epochs, seed):
        fitted[name] = _best(fits, interactions, folds)
    if not any(len(fold.users) for fold in folds):
        return _only(fitted, "ease" if "ease" in fitted else "item_knn")
    means = {name: _mean_ndcg(found.scores, folds) for name, found in fitted.items()}
    first, *others = sorted(fitted, key=lambda name: -means[name])
    adapted = _only(fitted, first)
    for name in others:
        adapted = _with_part(adapted, name, fitted[name], folds, weights=_LOCAL_WEIGHTS)
    return adapted


def join(
    alone: Adapted,
    federated: Mapping[str, csr_matrix],
    interactions: csr_matrix,
    folds: Sequence[Fold],
) -> Adapted:
    """Add what the federation brought, part by part, where the validation users clearly prefer it.

    The gate: a part is added with the weight that gives the best NDCG@10, if by that weight both
    NDCG@10 and the logarithms of the ranks gain more than one standard error of the paired
    difference (the one-standard-error rule: Breiman et al. 1984, section 3.4.3). Otherwise its
    weight is 0, so joining can be refused part by part. What others say about an item counts
    less the more often the platform sold it itself.

    Args:
        alone: from :func:`fit_alone`.
        federated: item similarities by name, each [num_listed, num_listed].
        interactions: all of the platform's.
        folds: those that ``alone`` was chosen on, or the first of them.

    Raises:
        ValueError: if a similarity is not one of the listed items.
    """
    num_listed = interactions.shape[1]
    for name, similarity in federated.items():
        if similarity.shape != (num_listed, num_listed):
            raise ValueError(
                f"{name}: found a similarity of shape {similarity.shape}, "
                f"expected {(num_listed, num_listed)}"
            )
    adapted = Adapted(blend=alone.blend, scores=alone.scores[: len(folds)])
    for name, similarity in federated.items():
        if not similarity.nnz or not any(len(fold.users) for fold in folds):
            continue

        def fit(history: csr_matrix, weights: csr_matrix = similarity) -> ItemWeights:
            bought = popularity_scores(history)
            trust = _HALF_TRUSTED_PURCHASES / (_HALF_TRUSTED_PURCHASES + bought)
            return ItemWeights(weights=(weights @ diags(trust)).tocsr().astype(np.float32))

        adapted = _with_part(
            adapted,
            name,
            _best([fit], interactions, folds),
            folds,
            weights=_FEDERATED_WEIGHTS,
            by_rank=True,
        )
    return adapted


def _local_fits(
    interactions: csr_matrix,
    folds: Sequence[Fold],
    config: NcfConfig,
    max_epochs: int,
    seed: int,
) -> Iterator[tuple[str, list[Fit]]]:
    """Name of each kind of local model, and what fits it with each setting that is tried."""

    def fit_popularity(history: csr_matrix) -> ItemScores:
        return ItemScores(values=np.log1p(popularity_scores(history)))

    def fit_neighbours(history: csr_matrix, shrink: float) -> ItemWeights:
        return ItemWeights(weights=fit_item_knn(history, neighbours=_NEIGHBOURS, shrink=shrink))

    def fit_linear(history: csr_matrix, l2: float) -> ItemWeights:
        return ItemWeights(weights=fit_ease(history, l2=l2))

    yield "popularity", [fit_popularity]
    yield "item_knn", [partial(fit_neighbours, shrink=shrink) for shrink in _SHRINKS]
    num_bought = int(np.count_nonzero(popularity_scores(interactions)))
    if num_bought <= MAX_ITEMS:
        ridges = _RIDGES if num_bought <= _SLOW_ITEMS else _RIDGES_IF_SLOW
        yield "ease", [partial(fit_linear, l2=l2) for l2 in ridges]

    def fit_factors(history: csr_matrix, l2: float, unobserved_weight: float) -> Factors:
        found = fit_als(
            history,
            dim=_ALS_DIM,
            l2=l2,
            unobserved_weight=unobserved_weight,
            epochs=_ALS_EPOCHS,
            seed=seed,
        )
        return Factors(users=found.users, items=found.items)

    yield (
        "als",
        [partial(fit_factors, l2=l2, unobserved_weight=weight) for l2, weight in _ALS_CHOICES],
    )
    epochs = fit_personal_ncf(
        config, folds[0].history, folds[0].held_out, max_epochs=max_epochs, seed=seed
    ).epochs
    nothing = csr_matrix(interactions.shape, dtype=np.float32)
    yield (
        "ncf",
        [
            lambda history: fit_personal_ncf(
                config, history, nothing, max_epochs=max(1, epochs), seed=seed
            )
        ],
    )


def _best(fits: Sequence[Fit], interactions: csr_matrix, folds: Sequence[Fold]) -> Fitted:
    """Of several settings the one with the best mean NDCG@10, fitted on everything.

    Without validation users it is the one in the middle.
    """
    if not any(len(fold.users) for fold in folds):
        fits = [fits[(len(fits) - 1) // 2]]

    def tried() -> Iterator[tuple[float, Scores, Fit]]:
        for fit in fits:
            scores = tuple(fit(fold.history).scores(fold.users, fold.history) for fold in folds)
            yield _mean_ndcg(scores, folds), scores, fit

    _, scores, fit = max(tried(), key=lambda outcome: outcome[0])
    return Fitted(part=fit(interactions), scores=scores)


def _only(fitted: Mapping[str, Fitted], name: str) -> Adapted:
    """Parts that were fitted, with a weight for one of them."""
    scale = 1.0 / _spread(fitted[name].scores)
    return Adapted(
        blend=Blend(
            parts={key: found.part for key, found in fitted.items()}, weights={name: scale}
        ),
        scores=_scaled(fitted[name].scores, scale),
    )


def _with_part(
    adapted: Adapted,
    name: str,
    found: Fitted,
    folds: Sequence[Fold],
    *,
    weights: Sequence[float],
    by_rank: bool = False,
) -> Adapted:
    """Give a further part the weight that serves validation users best, or none."""
    unit = _spread(adapted.scores) / _spread(found.scores)

    def tried() -> Iterator[tuple[float, Scores, float]]:
        for weight in weights:
            scores = _sum(adapted.scores, _scaled(found.scores, weight * unit))
            yield _mean_ndcg(scores, folds), scores, weight * unit

    _, scores, weight = max(tried(), key=lambda outcome: outcome[0])
    parts = {**adapted.blend.parts, name: found.part}
    is_better = _gains(ndcg(scores, folds) - ndcg(adapted.scores, folds)) and (
        not by_rank or _gains(log_ranks(scores, folds) - log_ranks(adapted.scores, folds))
    )
    if not is_better:
        return Adapted(
            blend=Blend(parts=parts, weights=adapted.blend.weights), scores=adapted.scores
        )
    return Adapted(
        blend=Blend(parts=parts, weights={**adapted.blend.weights, name: weight}), scores=scores
    )


def _gains(differences: np.ndarray) -> bool:
    """Whether a mean difference is above 0 by more than `_STDERRS` of its standard errors."""
    if len(differences) < 2:
        return False
    stderr = float(differences.std(ddof=1)) / len(differences) ** 0.5
    return bool(differences.mean() > _STDERRS * stderr)


def _mean_ndcg(scores: Scores, folds: Sequence[Fold]) -> float:
    values = ndcg(scores, folds)
    return float(values.mean()) if len(values) else 0.0


def _spread(scores: Scores) -> float:
    """Standard deviation of all scores of the first fold; 1 where they do not differ."""
    spread = float(scores[0].std()) if scores[0].size else 0.0
    return spread or 1.0


def _scaled(scores: Scores, factor: float) -> Scores:
    return tuple(np.float32(factor) * block for block in scores)


def _sum(first: Scores, second: Scores) -> Scores:
    return tuple(a + b for a, b in zip(first, second, strict=True))
