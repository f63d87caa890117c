"""Validation users are judged by the reported metric, each of them once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from client import validation
from client.validation import CUTOFF, METRIC, Fold, log_ranks, ndcg
from common.evaluation.metrics import evaluate
from common.evaluation.ranking import InvalidScores
from tests.unit.client.worlds import matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from client.validation import Scores

    Judge = Callable[[Scores, Sequence[Fold]], np.ndarray]

NUM_USERS, NUM_ITEMS = 40, 25


def fold_of(seed: int, held_out: list[tuple[int, int]] | None = None) -> Fold:
    rng = np.random.default_rng(seed)
    bought = rng.random((NUM_USERS, NUM_ITEMS)) < 0.2
    if held_out is None:
        users = np.sort(rng.choice(NUM_USERS, 30, replace=False))
        held_out = [(int(user), int(rng.integers(NUM_ITEMS))) for user in users]
    for user, item in held_out:
        bought[user, item] = False
    history = csr_matrix(bought.astype(np.float32))
    return Fold(history=history, held_out=matrix(held_out, NUM_USERS, NUM_ITEMS))


def scores_of(fold: Fold, seed: int, levels: int | None = None) -> np.ndarray:
    """Distinct scores, or with ``levels`` many equal ones."""
    rng = np.random.default_rng(seed)
    shape = (len(fold.users), NUM_ITEMS)
    if levels is not None:
        return rng.integers(levels, size=shape).astype(np.float32)
    return rng.permuted(np.tile(np.arange(NUM_ITEMS, dtype=np.float32), (shape[0], 1)), axis=1)


def reported(fold: Fold, scores: np.ndarray, seed: int, metric: str) -> np.ndarray:
    users = fold.users
    metrics = evaluate(
        lambda rows: scores[rows],
        fold.history[users],
        fold.held_out[users],
        cutoffs=(CUTOFF, NUM_ITEMS),
        rng=np.random.default_rng(seed),
    )
    return metrics.per_user[metric]


@pytest.mark.parametrize("block", [1, 7, 256])
def test_it_is_the_reported_metric(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_BLOCK", block)
    fold = fold_of(0)
    scores = scores_of(fold, 1)
    found = ndcg((scores,), (fold,))
    np.testing.assert_allclose(found, reported(fold, scores, 0, METRIC), rtol=1e-12)
    assert 0.0 < found.mean() < 1.0
    ranks = 1.0 / reported(fold, scores, 0, f"mrr@{NUM_ITEMS}")
    np.testing.assert_allclose(log_ranks((scores,), (fold,)), -np.log(ranks), atol=1e-12)


def test_equal_scores_count_as_the_mean_over_their_orders() -> None:
    # Each user's mean over 4000 drawn orders has a standard error below 0.5 / sqrt(4000) = 0.008
    # (of logarithms of ranks: below 1.3 / sqrt(4000) = 0.02).
    fold = fold_of(2)
    scores, times = scores_of(fold, 3, levels=4), 4000
    users = fold.users.repeat(times)
    metrics = evaluate(
        lambda rows: scores.repeat(times, axis=0)[rows],
        fold.history[users],
        fold.held_out[users],
        cutoffs=(CUTOFF, NUM_ITEMS),
        rng=np.random.default_rng(0),
    )
    drawn = metrics.per_user[METRIC].reshape(-1, times).mean(axis=1)
    np.testing.assert_allclose(ndcg((scores,), (fold,)), drawn, atol=0.04)
    logs = np.log(metrics.per_user[f"mrr@{NUM_ITEMS}"]).reshape(-1, times).mean(axis=1)
    np.testing.assert_allclose(log_ranks((scores,), (fold,)), logs, atol=0.1)


def test_scores_that_say_nothing_are_at_chance() -> None:
    fold = Fold(
        history=csr_matrix((1, NUM_ITEMS), dtype=np.float32),
        held_out=matrix([(0, 3)], 1, NUM_ITEMS),
    )
    nothing = np.zeros((1, NUM_ITEMS), dtype=np.float32)
    chance = (1.0 / np.log2(np.arange(2, CUTOFF + 2))).sum() / NUM_ITEMS
    assert ndcg((nothing,), (fold,)) == pytest.approx(chance)
    assert log_ranks((nothing,), (fold,)) == pytest.approx(
        -np.log(np.arange(1, NUM_ITEMS + 1)).mean()
    )


def test_what_she_bought_does_not_stand_above() -> None:
    fold = Fold(history=matrix([(0, 1), (0, 2)], 1, 4), held_out=matrix([(0, 3)], 1, 4))
    scores = np.array([[1.0, 9.0, 8.0, 2.0]], dtype=np.float32)
    assert ndcg((scores,), (fold,)) == [1.0]
    assert log_ranks((scores,), (fold,)) == [0.0]


def test_what_cannot_be_reached_counts_as_after_the_last() -> None:
    fold = Fold(history=matrix([(0, 3)], 1, 4), held_out=matrix([(0, 3)], 1, 4))
    for score in (0.0, 1.0, np.inf):
        scores = np.array([[1.0, 1.0, 1.0, score]], dtype=np.float32)
        assert ndcg((scores,), (fold,)) == [0.0]
        assert log_ranks((scores,), (fold,)) == pytest.approx(-np.log(5))


@pytest.mark.parametrize("num_items", [1, 9, 10, 11, 40])
def test_only_the_first_ten_count(num_items: int) -> None:
    for rank in {1, min(10, num_items), num_items}:
        fold = Fold(
            history=csr_matrix((1, num_items), dtype=np.float32),
            held_out=matrix([(0, rank - 1)], 1, num_items),
        )
        scores = -np.arange(num_items, dtype=np.float32)[None]
        expected = 1.0 / np.log2(rank + 1) if rank <= CUTOFF else 0.0
        assert ndcg((scores,), (fold,)) == pytest.approx(expected)
        assert log_ranks((scores,), (fold,)) == pytest.approx(-np.log(rank))


@pytest.mark.parametrize("judge", [ndcg, log_ranks])
def test_a_user_of_several_folds_counts_once(judge: Judge) -> None:
    first = fold_of(4, [(user, user % NUM_ITEMS) for user in range(20)])
    second = fold_of(5, [(user, (user + 1) % NUM_ITEMS) for user in range(10, 30)])
    scores = (scores_of(first, 0), scores_of(second, 1))
    ones, twos = judge(scores[:1], (first,)), judge(scores[1:], (second,))
    expected = np.concatenate([ones[:10], (ones[10:] + twos[:10]) / 2, twos[10:]])
    np.testing.assert_allclose(judge(scores, (first, second)), expected, rtol=1e-12)


@pytest.mark.parametrize("judge", [ndcg, log_ranks])
@pytest.mark.parametrize("levels", [None, 3])
def test_the_order_of_users_changes_nothing(judge: Judge, levels: int | None) -> None:
    fold = fold_of(6)
    scores = scores_of(fold, 7, levels)
    order = np.random.default_rng(0).permutation(NUM_USERS)
    moved = Fold(history=fold.history[order], held_out=fold.held_out[order])
    full = np.zeros((NUM_USERS, NUM_ITEMS), dtype=np.float32)
    full[fold.users] = scores
    before, after = np.zeros(NUM_USERS), np.zeros(NUM_USERS)
    before[fold.users] = judge((scores,), (fold,))
    after[moved.users] = judge((full[order][moved.users],), (moved,))
    np.testing.assert_array_equal(before[order], after)


@pytest.mark.parametrize("judge", [ndcg, log_ranks])
def test_without_validation_users_there_is_nothing(judge: Judge) -> None:
    fold = fold_of(8, [])
    assert len(fold.users) == 0
    assert judge((np.empty((0, NUM_ITEMS), dtype=np.float32),), (fold,)).shape == (0,)


def test_scores_that_cannot_be_judged_are_refused() -> None:
    fold = fold_of(9)
    scores = scores_of(fold, 0)
    with pytest.raises(ValueError, match="shape"):
        ndcg((scores[1:],), (fold,))
    with pytest.raises(ValueError, match="argument 2"):
        ndcg((scores, scores), (fold,))
    scores[3, 4] = np.nan
    with pytest.raises(InvalidScores, match="NaN"):
        ndcg((scores,), (fold,))
    several = fold_of(10, [(0, 1), (0, 2)])
    with pytest.raises(ValueError, match="several items"):
        ndcg((np.zeros((1, NUM_ITEMS), dtype=np.float32),), (several,))
