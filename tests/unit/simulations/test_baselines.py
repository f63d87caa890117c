from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from client.local_models.ease import fit_ease
from client.validation import Fold
from common.data.interactions import UserItems
from simulations import baselines
from simulations.baselines import has_too_many_items, pooled_scorer, restrict

if TYPE_CHECKING:
    import pytest


def users(listing: list[int], rows: list[list[int]]) -> UserItems:
    matrix = sp.csr_matrix(np.array(rows, dtype=np.float32))
    names = tuple(f"u{k}" for k in range(len(rows)))
    return UserItems(user_ids=names, listing=np.array(listing), matrix=matrix)


def test_others_count_with_what_the_platform_lists_too() -> None:
    other = users([1, 4, 7], [[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]])
    found = restrict([other, other], np.array([0, 1, 7, 9]))
    one = [[0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]]
    np.testing.assert_array_equal(found.toarray(), [*one, *one])
    assert restrict([], np.array([0, 1])).shape == (0, 2)


def test_items_without_purchases_do_not_count_as_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    own, others = users([0, 1, 2], [[1, 0, 0]]), sp.csr_matrix([[1.0, 1.0, 0.0]])
    monkeypatch.setattr(baselines, "MAX_ITEMS", 2)
    assert not has_too_many_items(own, others)
    monkeypatch.setattr(baselines, "MAX_ITEMS", 1)
    assert has_too_many_items(own, others)


def random_purchases(num_users: int, seed: int, num_items: int = 12) -> sp.csr_matrix:
    """Users who buy within one of two halves of the catalogue."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((num_users, num_items), dtype=np.float32)
    for user in range(num_users):
        half = rng.integers(2) * (num_items // 2)
        rows[user, half + rng.choice(num_items // 2, size=3, replace=False)] = 1
    return sp.csr_matrix(rows)


def test_scaled_rows_add_that_share_of_a_gram_matrix() -> None:
    own, others = random_purchases(9, 0), random_purchases(20, 1)
    tripled = sp.vstack([own, others, others, others], format="csr")
    pooled = baselines._one_gram(own, others, 3.0, 10.0)
    expected = fit_ease(tripled, l2=10.0)
    np.testing.assert_allclose(pooled.toarray(), expected.toarray(), atol=1e-5)


def test_a_newcomer_learns_from_others_and_not_from_its_validation_items_before_the_choice() -> (
    None
):
    own, others = random_purchases(6, 2), random_purchases(300, 3)
    fit, validation = own.tolil(), sp.lil_matrix(own.shape, dtype=np.float32)
    for user in range(own.shape[0]):
        given_up = own[user].indices[-1]
        fit[user, given_up], validation[user, given_up] = 0, 1
    score = pooled_scorer(
        Fold(history=fit.tocsr(), held_out=validation.tocsr()), fit.tocsr(), others
    )
    scores = score(np.arange(6))
    assert scores.dtype == np.float32
    for user in range(6):
        half = own[user].indices[0] // 6 * 6
        inside = scores[user, half : half + 6].mean()
        assert inside > scores[user].mean()


def test_without_validation_users_the_middle_penalty_pools_everything() -> None:
    own, others = random_purchases(6, 2), random_purchases(30, 3)
    score = pooled_scorer(
        Fold(history=own, held_out=sp.csr_matrix(own.shape, dtype=np.float32)), own, others
    )
    weights = fit_ease(sp.vstack([own, others], format="csr"), l2=30.0)
    np.testing.assert_allclose(score(np.arange(6)), (own @ weights).toarray(), atol=1e-6)
