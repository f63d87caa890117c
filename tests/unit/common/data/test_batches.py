"""A user's batch is made of her own items and of public ones, whoever else is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.sparse import csr_matrix

from common.data import batches
from common.data.batches import MAX_POSITIVES, UserBatch, make_batch

NUM_ITEMS = 400


def market(counts: list[int], num_items: int = NUM_ITEMS) -> csr_matrix:
    """A user's items follow from her number alone."""
    rows = np.zeros((len(counts), num_items), dtype=np.float32)
    for user, count in enumerate(counts):
        rows[user, np.random.default_rng(user).permutation(num_items)[:count]] = 1
    return csr_matrix(rows)


def batch(
    matrix: csr_matrix, users: list[int], num_negatives: int = 30, seed: int = 0
) -> UserBatch:
    return make_batch(matrix, np.array(users), num_negatives, np.random.default_rng(seed))


def positives(of: UserBatch, row: int) -> set[int]:
    found = of.items[row][of.is_positive[row]].tolist()
    assert len(found) == len(set(found)), "a positive counts once"
    return set(found)


def test_positives_are_a_users_own_items_each_once() -> None:
    matrix = market([3, 0, 12, 1])
    found = batch(matrix, [2, 0, 1])
    for row, user in enumerate([2, 0, 1]):
        assert positives(found, row) == set(matrix[user].indices.tolist())


def test_who_else_is_in_the_batch_changes_nobodys_items() -> None:
    matrix = market([5, 9, 150, 2])
    alone, together = batch(matrix, [0]), batch(matrix, [3, 0, 1, 2])
    assert positives(alone, 0) == positives(together, 1)
    assert positives(batch(matrix, [2]), 0) == positives(together, 3)


def test_a_heavy_user_changes_nobody_elses_row() -> None:
    """Not even the order of her items: sums are rounded in it."""
    matrix = market([129, MAX_POSITIVES, 390, 7])
    light = batch(matrix, [0, 1, 3], num_negatives=0)
    beside = batch(matrix, [0, 1, 2, 3], num_negatives=0)
    rows = torch.tensor([0, 1, 3])
    assert torch.equal(light.items, beside.items[rows])
    assert torch.equal(light.is_positive, beside.is_positive[rows])
    heavy = beside.items[2]
    assert torch.equal(heavy, heavy.sort().values)


@pytest.mark.parametrize("count", [MAX_POSITIVES, MAX_POSITIVES + 1, 390])
def test_a_heavy_user_brings_a_random_subset_of_bounded_size(count: int) -> None:
    matrix = market([count, 4])
    own = set(matrix[0].indices.tolist())
    draws = [batch(matrix, [1, 0], seed=seed) for seed in range(60)]
    assert all(len(positives(d, 1)) == min(count, MAX_POSITIVES) for d in draws)
    assert all(positives(d, 1) <= own for d in draws)
    assert all(positives(d, 0) == set(matrix[1].indices.tolist()) for d in draws)
    if count == 390:
        assert set().union(*(positives(d, 1) for d in draws)) == own
        counts = np.array([sum(i in positives(d, 1) for d in draws) for i in own])
        # Each of 390 items is in about 60 * 200/390 = 31 +- 3.9 subsets; 5.5 standard deviations.
        assert np.abs(counts - 60 * MAX_POSITIVES / 390).max() < 5.5 * 3.9


def test_negatives_are_uniform_over_the_listing_and_never_her_own() -> None:
    matrix = market([25, 0], num_items=40)
    found = batch(matrix, [0, 1], num_negatives=40_000)
    own = matrix[0].indices
    width = found.items.shape[1] - 40_000
    drawn = found.items[:, width:].numpy()
    hers = found.is_negative[0, width:].numpy()
    assert np.array_equal(hers, ~np.isin(drawn[0], own))
    assert found.is_negative[1, width:].all()
    for row, allowed in ((drawn[0][hers], np.setdiff1d(np.arange(40), own)), (drawn[1], range(40))):
        counts = np.array([(row == item).sum() for item in allowed])
        assert counts.sum() == len(row)
        assert stats.chisquare(counts).pvalue > 1e-6


def test_the_two_marks_exclude_each_other_and_padding_has_neither() -> None:
    found = batch(market([3, 0, 12, 1]), [0, 1, 2, 3])
    width = 16  # places for 12 items
    assert found.items.shape == (4, width + 30)
    assert not (found.is_positive & found.is_negative).any()
    assert not found.is_negative[:, :width].any()
    assert not found.is_positive[:, width:].any()
    assert found.is_positive.sum(1).tolist() == [3, 0, 12, 1]
    padding = found.items[:, :width][~found.is_positive[:, :width]]
    assert not padding.any()


@pytest.mark.parametrize("users", [[], [1], [0, 1, 2]])
@pytest.mark.parametrize("num_negatives", [0, 5])
def test_empty_samples_and_empty_users_have_a_batch(users: list[int], num_negatives: int) -> None:
    found = batch(market([0, 0, 2]), users, num_negatives)
    assert len(found.items) == len(found.is_positive) == len(found.is_negative) == len(users)
    assert found.items.shape[1] >= 1


def test_the_cap_alone_looks_at_the_generator_without_negatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The full softmax of light users has nothing random in it."""
    monkeypatch.setattr(batches, "MAX_POSITIVES", 6)
    light, heavy = market([5, 6]), market([5, 7])
    rng = np.random.default_rng(3)
    make_batch(light, np.array([0, 1]), 0, rng)
    assert rng.random() == np.random.default_rng(3).random()
    make_batch(heavy, np.array([0, 1]), 0, rng)
    assert positives(make_batch(heavy, np.array([0, 1]), 0, rng), 0) == set(
        heavy[0].indices.tolist()
    )
