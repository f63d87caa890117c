"""What if all raw data could be put in one place? EASE on the purchases of every platform.

No platform can have this model; it shows what there is to gain from the others' purchases at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from client.local_models.ease import MAX_ITEMS, fit_ease
from common.evaluation.metrics import evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from client.validation import Fold
    from common.data.interactions import UserItems

    Scorer = Callable[[np.ndarray], np.ndarray]

PENALTIES = (10.0, 30.0, 100.0)
"""Values of EASE's l2 that the validation users choose from."""
SHARES = (0.1, 0.3, 1.0)
"""Weights of the others' purchases, or of their model's scores, that they choose from."""
_SLOW_ITEMS = 3000
"""Beyond, a fit takes minutes: one penalty is tried."""
_CHOICE_METRIC = "ndcg@10"


def restrict(others: Sequence[UserItems], listing: np.ndarray) -> sp.csr_matrix:
    """Purchases of other platforms' users, of the items in ``listing`` only.

    Args:
        others: one or more platforms.
        listing: sorted catalogue indices, the columns of the result.

    Returns:
        CSR of float32 ones, [users with at least one such purchase, len(listing)].
    """
    blocks = [sp.csr_matrix((0, len(listing)), dtype=np.float32)]
    for platform in others:
        _, theirs, ours = np.intersect1d(
            platform.listing, listing, assume_unique=True, return_indices=True
        )
        place = sp.csr_matrix(
            (np.ones(len(ours), dtype=np.float32), (theirs, ours)),
            shape=(len(platform.listing), len(listing)),
        )
        block = platform.matrix @ place
        blocks.append(block[np.diff(block.indptr) > 0])
    return sp.vstack(blocks, format="csr")


def has_too_many_items(own: UserItems, others: sp.csr_matrix) -> bool:
    """Whether EASE's matrix over the items with interactions would not fit this machine."""
    bought = own.matrix.sum(axis=0) + others.sum(axis=0)
    return int(np.count_nonzero(bought)) > MAX_ITEMS


def pooled_scorer(fold: Fold, everything: sp.csr_matrix, others: sp.csr_matrix) -> Scorer:
    """Fit EASE to one platform's and all others' purchases; scores for rows of ``everything``.

    Two ways to pool are tried: one model of the Gram matrix own + share * others, and the sum of
    the own model's scores and share times those of the others' model. Share, penalty and way are
    those that rank the validation users' held-out items best, and are then refitted to everything.

    Args:
        fold: what the platform fits to, and what its validation users gave up.
        everything: [any users, listed items], what is scored and refitted to.
        others: as `restrict` returns.
    """
    fit, validation = fold.history, fold.held_out
    if not validation.nnz:
        return _scorer(everything, _one_gram(everything, others, SHARES[-1], PENALTIES[1]))
    penalties = PENALTIES if fit.shape[1] <= _SLOW_ITEMS else PENALTIES[:1]
    quality = {
        ("gram", share, penalty): _quality(fit, validation, _one_gram(fit, others, share, penalty))
        for share in SHARES
        for penalty in penalties
    }
    for penalty in penalties:
        own, theirs = fit_ease(fit, l2=penalty), fit_ease(others, l2=penalty)
        for share in SHARES:
            weights = (own + share * theirs).tocsr()
            quality["scores", share, penalty] = _quality(fit, validation, weights)
    way, share, penalty = max(quality, key=quality.__getitem__)
    if way == "gram":
        return _scorer(everything, _one_gram(everything, others, share, penalty))
    own, theirs = fit_ease(everything, l2=penalty), fit_ease(others, l2=penalty)
    return _scorer(everything, (own + share * theirs).tocsr())


def _one_gram(
    own: sp.csr_matrix, others: sp.csr_matrix, share: float, penalty: float
) -> sp.csr_matrix:
    # Rows scaled by the root of ``share`` add ``share`` times their Gram matrix.
    pooled = sp.vstack([own, others * np.float32(share**0.5)], format="csr")
    return fit_ease(pooled, l2=penalty)


def _scorer(interactions: sp.csr_matrix, weights: sp.csr_matrix) -> Scorer:
    def score(users: np.ndarray) -> np.ndarray:
        scores: np.ndarray = (interactions[users] @ weights).toarray().astype(np.float32)
        return scores

    return score


def _quality(fit: sp.csr_matrix, validation: sp.csr_matrix, weights: sp.csr_matrix) -> float:
    metrics = evaluate(
        _scorer(fit, weights), fit, validation, cutoffs=(10,), rng=np.random.default_rng(0)
    )
    return metrics.mean[_CHOICE_METRIC]
