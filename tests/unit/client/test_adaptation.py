"""The gate: what joining brought is served only where it is clearly better."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from client.adaptation import PersonalModel, joining_pays

NUM_USERS, NUM_ITEMS = 200, 400
NOTHING = csr_matrix((NUM_USERS, NUM_ITEMS), dtype=np.float32)


class Ranks:
    """A model that puts each user's held-out item, number 0, at a chosen rank (from 1)."""

    def __init__(self, ranks: np.ndarray) -> None:
        self.ranks = ranks

    def scores(self, users: np.ndarray) -> np.ndarray:
        others = np.arange(NUM_ITEMS - 1, 0, -1, dtype=np.float32)
        scores = np.empty((len(users), NUM_ITEMS), dtype=np.float32)
        scores[:, 1:] = others
        scores[:, 0] = NUM_ITEMS - self.ranks[users] + 0.5
        return scores


def held_out(users: int = NUM_USERS) -> csr_matrix:
    rows = np.arange(users)
    values = (np.ones(users, dtype=np.float32), (rows, np.zeros(users, dtype=int)))
    return csr_matrix(values, shape=(NUM_USERS, NUM_ITEMS))


def pays(alone: np.ndarray, joined: np.ndarray, validation: csr_matrix) -> bool:
    models = [cast("PersonalModel", Ranks(ranks)) for ranks in (alone, joined)]
    return joining_pays(models[0], models[1], NOTHING, validation)


RNG = np.random.default_rng(0)
ALONE = RNG.integers(5, NUM_ITEMS, size=NUM_USERS)


def test_clearly_better_ranks_are_served() -> None:
    assert pays(ALONE, np.maximum(1, ALONE // 2), held_out())


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_equal_or_worse_ranks_are_not(factor: float) -> None:
    assert not pays(ALONE, np.minimum(NUM_ITEMS, ALONE * factor).astype(int), held_out())


def test_a_gain_within_one_standard_error_is_not() -> None:
    """Every other user gains, and the others lose nearly as much."""
    alone = np.full(NUM_USERS, 100)
    joined = np.where(np.arange(NUM_USERS) % 2 == 0, 50, 195)
    assert np.log(alone / joined).mean() > 0
    assert not pays(alone, joined, held_out())
    # 1.3 standard errors are enough.
    assert pays(alone, np.where(np.arange(NUM_USERS) % 2 == 0, 50, 175), held_out())


def test_better_ranks_below_the_top_do_not_pay_for_a_worse_top() -> None:
    alone = np.where(np.arange(NUM_USERS) < 20, 1, 390)
    joined = np.where(np.arange(NUM_USERS) < 20, 11, 40)
    assert not pays(alone, joined, held_out())


@pytest.mark.parametrize("users", [0, 1])
def test_too_few_validation_users_decide_nothing(users: int) -> None:
    assert not pays(ALONE, np.ones(NUM_USERS, dtype=int), held_out(users))
