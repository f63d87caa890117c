"""Judging scores on the platform's own validation users, by the metric that is reported.

Nothing here leaves the platform. A user's interactions are held out one at a time, in as many folds
as it takes to have enough judgements; where a user is judged in several folds, she counts once.
Equal scores count as their mean over all orders, so nothing is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.evaluation.ranking import InvalidScores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    FloatArray = NDArray[np.float64]

CUTOFF = 10
METRIC = f"ndcg@{CUTOFF}"

_BLOCK = 256
"""Users compared at once: two bytes for each of their scores."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fold:
    """Interactions to fit, and what validation users gave up."""

    history: csr_matrix
    """[num_users, num_listed] of ones."""
    held_out: csr_matrix
    """Same shape; at most one in each row."""

    @property
    def users(self) -> np.ndarray:
        """Rows of the validation users, ascending."""
        return np.flatnonzero(np.diff(self.held_out.indptr))


Scores = tuple[np.ndarray, ...]
"""For each fold, scores of its validation users: float32 [V, num_listed]."""


def ndcg(scores: Scores, folds: Sequence[Fold]) -> FloatArray:
    """NDCG@10 of each validation user, a mean over the folds that judge her: [num_judged].

    As :func:`common.evaluation.metrics.ndcg`, of which it is the mean where scores are equal; 0 for
    an item that cannot be reached.
    """
    gains = 1.0 / np.log2(np.arange(2.0, _num_items(folds) + 3.0))
    gains[CUTOFF:] = gains[-1] = 0.0
    return _per_user(scores, folds, gains)


def log_ranks(scores: Scores, folds: Sequence[Fold]) -> FloatArray:
    """Minus the logarithm of each user's rank of what she gave up: [num_judged].

    An item that cannot be reached counts as one after the last.
    """
    return _per_user(scores, folds, -np.log(np.arange(1.0, _num_items(folds) + 2.0)))


def _num_items(folds: Sequence[Fold]) -> int:
    return int(folds[0].history.shape[1])


def _per_user(scores: Scores, folds: Sequence[Fold], worth: FloatArray) -> FloatArray:
    """Mean worth of what each user gave up.

    Args:
        scores: see :data:`Scores`.
        folds: at least one.
        worth: of each rank, from the first; that of what cannot be reached is the last,
            [num_listed + 1].
    """
    num_users = folds[0].history.shape[0]
    total, judged = np.zeros(num_users), np.zeros(num_users)
    up_to = np.concatenate([[0.0], np.cumsum(worth)])
    for found, fold in zip(scores, folds, strict=True):
        higher, equal = _places(found, fold)
        # Items that score the same share their ranks, so their mean is what each is worth.
        shared = (up_to[higher + equal] - up_to[higher]) / np.maximum(equal, 1)
        single = worth[np.where(equal == 1, higher, -1)]
        total[fold.users] += np.where(equal > 1, shared, single)
        judged[fold.users] += 1
    mean: FloatArray = total[judged > 0] / judged[judged > 0]
    return mean


def _places(scores: np.ndarray, fold: Fold) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the held-out item of each validation user stands among the items she has not bought.

    Args:
        scores: [V, num_listed].
        fold: with V validation users.

    Returns:
        how many items score higher, and how many as high, itself included; of these there are 0 if
        it is in her history as well. Both [V].

    Raises:
        InvalidScores: if a score is NaN.
        ValueError: if ``scores`` has another shape, or a user gave up several items.
    """
    users = fold.users
    if scores.shape != (len(users), fold.history.shape[1]):
        raise ValueError(
            f"scores have shape {scores.shape}, expected {(len(users), fold.history.shape[1])}"
        )
    if len(users) != fold.held_out.nnz:
        raise ValueError("a user gave up several items in one fold, expected one")
    higher, equal = np.zeros((2, len(users)), dtype=np.int64)
    items = fold.held_out.indices
    for first in range(0, len(users), _BLOCK):
        rows = slice(first, first + _BLOCK)
        block, seen = scores[rows], fold.history[users[rows]]
        if np.isnan(block).any():
            raise InvalidScores("scores of validation users hold NaN, expected numbers")
        number = np.arange(len(block))
        own = block[number, items[rows], None]
        is_higher, is_equal = block > own, block == own
        is_higher[seen.nonzero()] = is_equal[seen.nonzero()] = False
        higher[rows] = np.count_nonzero(is_higher, axis=1)
        equal[rows] = np.count_nonzero(is_equal, axis=1) * is_equal[number, items[rows]]
    return higher, equal
