"""From scores to ranked items: top-k selection and sampled candidates, blind to labels.

No function here orders items by anything but their score; a held-out item gains nothing from
its index, nor from being held out, so that a scorer without information lands at chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from common.errors import CrossRecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

PADDING = -1
"""Stands in a ranking where a user has fewer candidates than the cutoff asks for."""

_ENTRIES_PER_BLOCK = 1 << 22  # of 8-byte keys, so that a block of users stays near 100 MB


class InvalidScores(CrossRecError):
    """A model gave scores that cannot be ranked."""


def rank_top_k(
    scores: NDArray[np.float32],
    excluded: csr_matrix | None,
    k: int,
    rng: np.random.Generator,
    candidates: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Return each user's ``k`` best items, best first.

    Equal scores are ordered at random, independently for every user. Infinite scores are ranked
    like any other; an item that may not be shown is marked by ``excluded`` or ``candidates``,
    never by a score. The draws from ``rng`` depend on the shape of ``scores`` alone, so ranking
    users in blocks equals ranking them at once.

    Args:
        scores: shape (num_users, num_items); higher is better.
        excluded: same shape; its non-zero entries (items already seen) are never ranked.
        k: length of a ranking, at least 1.
        rng: orders ties.
        candidates: same shape; only items marked True are ranked. All by default.

    Returns:
        Item indices, shape (num_users, k), padded at the end with ``PADDING``.

    Raises:
        InvalidScores: if a score is NaN.
        ValueError: if shapes disagree or ``k`` is below 1.
    """
    scores = np.asarray(scores, dtype=np.float32)
    if scores.ndim != 2:
        raise ValueError(f"scores have {scores.ndim} dimensions, expected (num_users, num_items)")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    for name, other in (("excluded", excluded), ("candidates", candidates)):
        if other is not None and other.shape != scores.shape:
            raise ValueError(f"{name} has shape {other.shape}, scores have {scores.shape}")

    num_users, num_items = scores.shape
    length = min(k, num_items)
    ranked = np.full((num_users, k), PADDING, dtype=np.int64)
    if length == 0:
        return ranked
    for rows in _blocks(num_users, num_items):
        keys = _sort_keys(scores[rows], rng)
        if excluded is not None:
            keys[excluded[rows].nonzero()] = 0
        if candidates is not None:
            keys[~candidates[rows]] = 0
        best = np.argpartition(keys, num_items - length, axis=1)[:, num_items - length :]
        best_keys = np.take_along_axis(keys, best, axis=1)
        order = np.argsort(best_keys, axis=1)[:, ::-1]
        best = np.take_along_axis(best, order, axis=1)
        best_keys = np.take_along_axis(best_keys, order, axis=1)
        ranked[rows, :length] = np.where(best_keys == 0, PADDING, best)
    return ranked


def sample_candidates(
    held_out: csr_matrix,
    excluded: csr_matrix | None,
    num_candidates: int,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Place each user's held-out items among ``num_candidates - 1`` sampled others.

    The others are drawn uniformly without replacement from the items that the user has neither
    seen nor held out (all of them where there are fewer). Metrics on sampled candidates are
    easier than, and not consistent with, those on the whole catalogue (Krichene and Rendle 2020,
    On sampled metrics for item recommendation): use them only to compare with papers.

    Args:
        held_out: shape (num_users, num_items); non-zero entries are the test items.
        excluded: same shape; items already seen. They are no candidates, held out or not.
        num_candidates: size of the set for a user with one held-out item, at least 2.
        rng: draws the others.

    Returns:
        True at each candidate, shape (num_users, num_items).

    Raises:
        ValueError: if shapes disagree or ``num_candidates`` is below 2.
    """
    if num_candidates < 2:
        raise ValueError(f"num_candidates is {num_candidates}, expected at least 2")
    if excluded is not None and excluded.shape != held_out.shape:
        raise ValueError(f"excluded has shape {excluded.shape}, held_out has {held_out.shape}")
    # All scores equal: the random order of ties is the uniform sample.
    taken = held_out.astype(bool)
    if excluded is not None:
        taken = taken + excluded.astype(bool)
    others = rank_top_k(
        np.broadcast_to(np.float32(0), held_out.shape), taken, num_candidates - 1, rng
    )
    candidates = np.zeros(held_out.shape, dtype=np.bool_)
    users, places = np.nonzero(others != PADDING)
    candidates[users, others[users, places]] = True
    candidates[held_out.nonzero()] = True
    if excluded is not None:
        candidates[excluded.nonzero()] = False
    return candidates


def _blocks(num_users: int, num_items: int) -> Iterator[slice]:
    size = max(1, _ENTRIES_PER_BLOCK // max(1, num_items))
    for start in range(0, num_users, size):
        yield slice(start, min(start + size, num_users))


def _sort_keys(scores: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint64]:
    """Map scores to integers of the same order, with a random lower half that breaks ties.

    The upper half is the score's IEEE 754 pattern with the sign bit flipped (all bits flipped
    for a negative score), which orders floats as unsigned integers. No score has key 0.
    """
    if np.isnan(scores).any():
        raise InvalidScores(
            f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN, expected numbers. "
            "Training probably diverged: lower the learning rate."
        )
    bits = (scores + np.float32(0)).view(np.uint32)  # adding 0 turns -0.0 into 0.0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    ties = rng.integers(1 << 32, size=scores.shape, dtype=np.uint32)
    return (ordered.astype(np.uint64) << np.uint64(32)) | ties
