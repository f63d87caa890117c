"""Ranking metrics over ranked item ids and held-out items, and nothing else.

A metric never sees scores, and ranking never sees labels. Relevance is binary.

Conventions:

- Only users with a held-out item count; all of their held-out items stay in the denominators.
- A seen item is never recommended. If it is held out as well (a repeat purchase), it cannot be
  retrieved and counts as a miss, for every model alike: keeping it as a candidate only because
  it is the answer would let labels choose the candidates. ``num_unreachable`` counts such pairs.
- The standard error is that of a mean over test users. It covers which users were tested, not
  what another training seed or other noise would have given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.evaluation.ranking import PADDING, rank_top_k, sample_candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankingMetrics:
    """How well one model ranks one platform's held-out items.

    Attributes:
        mean: ``"ndcg@10"``, ``"hr@10"``, ``"recall@10"``, ``"mrr@10"`` (means over test users) and
            ``"coverage@10"`` (of the platform), for each cutoff. NaN without test users.
        stderr: standard error of each mean over users; NaN below two test users. Coverage is not
            such a mean and has none.
        num_test_users: users with at least one held-out item.
        num_unreachable: held-out pairs that the same user had already seen; all are misses.
        per_user: each mean's values, shape (num_test_users,), in the order of ``user_rows``.
        user_rows: rows of the test users, ascending.
    """

    mean: Mapping[str, float]
    stderr: Mapping[str, float]
    num_test_users: int
    num_unreachable: int
    per_user: Mapping[str, FloatArray]
    user_rows: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """Mean over test users of one model's metric minus another's, and its standard error."""

    mean: float
    stderr: float


def ndcg(ranked_ids: NDArray[np.int64], held_out: csr_matrix) -> FloatArray:
    """Normalised discounted cumulative gain of each user's ranking, in [0, 1].

    Gain 1 per hit, discount 1 / log2(rank + 1); the ideal ranking holds min(k, held-out) hits.
    Source: Jarvelin and Kekalainen 2002, Cumulated gain-based evaluation of IR techniques.

    Args:
        ranked_ids: shape (num_users, k), best first, padded with -1.
        held_out: shape (num_users, num_items); every row has a non-zero entry.

    Raises:
        ValueError: if shapes disagree, a user has no held-out item or a ranking repeats an item.
    """
    hits, num_relevant = _hits(ranked_ids, held_out)
    k = hits.shape[1]
    discounts = 1.0 / np.log2(np.arange(k) + 2.0)
    ideal = np.cumsum(discounts)[np.minimum(num_relevant, k) - 1]
    value: FloatArray = (hits @ discounts) / ideal
    return value


def hit_rate(ranked_ids: NDArray[np.int64], held_out: csr_matrix) -> FloatArray:
    """1 for each user whose ranking holds a held-out item, else 0. Arguments as in `ndcg`."""
    hits, _ = _hits(ranked_ids, held_out)
    hit: FloatArray = np.any(hits, axis=1).astype(np.float64)
    return hit


def recall(ranked_ids: NDArray[np.int64], held_out: csr_matrix) -> FloatArray:
    """Share of each user's held-out items that her ranking holds. Arguments as in `ndcg`."""
    hits, num_relevant = _hits(ranked_ids, held_out)
    share: FloatArray = hits.sum(axis=1) / num_relevant
    return share


def reciprocal_rank(ranked_ids: NDArray[np.int64], held_out: csr_matrix) -> FloatArray:
    """1 / rank of each user's first hit, 0 without one. Arguments as in `ndcg`."""
    hits, _ = _hits(ranked_ids, held_out)
    ranks = np.arange(1, hits.shape[1] + 1)
    best: FloatArray = (hits / ranks).max(axis=1)
    return best


def catalogue_coverage(ranked_ids: NDArray[np.int64], num_items: int) -> float:
    """Share of ``num_items`` listed items that at least one user is recommended."""
    recommended = np.unique(ranked_ids)
    return int((recommended != PADDING).sum()) / num_items


_PER_USER = {"ndcg": ndcg, "hr": hit_rate, "recall": recall, "mrr": reciprocal_rank}


def evaluate(
    score_block: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    seen: csr_matrix,
    held_out: csr_matrix,
    *,
    cutoffs: Sequence[int] = (10,),
    candidates: int | None = None,
    rng: np.random.Generator,
    block: int = 1024,
) -> RankingMetrics:
    """Score, rank and measure every user who has a held-out item, ``block`` users at a time.

    Give each model a generator of the same seed, so that all of them face the same candidates.
    The result does not depend on ``block``.

    Args:
        score_block: maps rows of users to their scores, shape (num_rows, num_items).
        seen: shape (num_users, num_items); non-zero entries are never recommended.
        held_out: same shape; non-zero entries are the test items.
        cutoffs: lengths of ranking, each at least 1.
        candidates: rank the held-out items among this many sampled ones (see
            `sample_candidates`) instead of all unseen items.
        rng: draws candidates and orders ties.
        block: users scored at once.

    Raises:
        InvalidScores: if a score is NaN.
        ValueError: if shapes disagree, or ``cutoffs`` or ``block`` is unusable.
    """
    if seen.shape != held_out.shape:
        raise ValueError(f"seen has shape {seen.shape}, held_out has {held_out.shape}")
    if not cutoffs or min(cutoffs) < 1 or block < 1:
        raise ValueError(f"cutoffs {tuple(cutoffs)} and block {block} must be at least 1")
    num_items = held_out.shape[1]
    unreachable = held_out.astype(bool).multiply(seen.astype(bool))
    user_rows = np.unique(held_out.nonzero()[0]).astype(np.int64)
    # Two streams: how many numbers a block draws for one must not shift the other.
    tie_rng, candidate_rng = rng.spawn(2)

    ranked = np.full((len(user_rows), max(cutoffs)), PADDING, dtype=np.int64)
    for start in range(0, len(user_rows), block):
        rows = user_rows[start : start + block]
        scores = score_block(rows)
        if scores.shape != (len(rows), num_items):
            raise ValueError(f"scores have shape {scores.shape}, expected {(len(rows), num_items)}")
        allowed = None
        if candidates is not None:
            allowed = sample_candidates(held_out[rows], seen[rows], candidates, candidate_rng)
        ranked[start : start + block] = rank_top_k(
            scores, seen[rows], max(cutoffs), tie_rng, allowed
        )

    relevant = held_out[user_rows]
    per_user = {
        f"{name}@{k}": metric(ranked[:, :k], relevant)
        for name, metric in _PER_USER.items()
        for k in cutoffs
    }
    summaries = {key: _mean_and_stderr(values) for key, values in per_user.items()}
    mean = {key: summary[0] for key, summary in summaries.items()}
    for k in cutoffs:
        mean[f"coverage@{k}"] = (
            catalogue_coverage(ranked[:, :k], num_items) if len(user_rows) else float("nan")
        )
    return RankingMetrics(
        mean=mean,
        stderr={key: summary[1] for key, summary in summaries.items()},
        num_test_users=len(user_rows),
        num_unreachable=int(unreachable.nnz),
        per_user=per_user,
        user_rows=user_rows,
    )


def paired_difference(
    first: RankingMetrics, second: RankingMetrics, metric: str
) -> PairedDifference:
    """Return ``first`` minus ``second`` over the same test users.

    Pairing removes the spread between users that both models share, so the standard error is
    that of the difference itself.

    Raises:
        ValueError: if the two were measured on different users.
    """
    if not np.array_equal(first.user_rows, second.user_rows):
        raise ValueError("the two models were measured on different test users")
    mean, stderr = _mean_and_stderr(first.per_user[metric] - second.per_user[metric])
    return PairedDifference(mean=mean, stderr=stderr)


def _mean_and_stderr(values: FloatArray) -> tuple[float, float]:
    if len(values) == 0:
        return float("nan"), float("nan")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan")
    return mean, float(values.std(ddof=1) / np.sqrt(len(values)))


def _hits(
    ranked_ids: NDArray[np.int64], held_out: csr_matrix
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return where rankings hold held-out items, (num_users, k), and how many each user has."""
    num_users, num_items = held_out.shape
    if ranked_ids.ndim != 2 or ranked_ids.shape[0] != num_users or ranked_ids.shape[1] < 1:
        raise ValueError(
            f"ranked_ids has shape {ranked_ids.shape}, expected ({num_users}, at least 1)"
        )
    if ranked_ids.size and (ranked_ids.min() < PADDING or ranked_ids.max() >= num_items):
        raise ValueError(f"ranked_ids holds an item outside 0 to {num_items - 1}")
    ordered = np.sort(ranked_ids, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PADDING)).any():
        raise ValueError("a ranking repeats an item, expected each at most once")
    users, items = held_out.nonzero()
    num_relevant = np.bincount(users, minlength=num_users).astype(np.int64)
    if (num_relevant == 0).any():
        raise ValueError("a user has no held-out item; measure only users who have one")
    # A pair (user, item) becomes one integer; padding matches none.
    first_keys = np.arange(num_users, dtype=np.int64)[:, None] * num_items
    ranked_keys = np.where(ranked_ids == PADDING, -1, first_keys + ranked_ids)
    held_out_keys = users.astype(np.int64) * num_items + items
    return np.isin(ranked_keys, held_out_keys), num_relevant
