"""One user moves a sum by her own part, exactly, and that is at most 1, whoever else is there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from client.sums import MAX_USERS, _factors, count_sum, on_items, pair_sum
from common.errors import DataError
from common.models.pairs import MAX_PAIRED_ITEMS, MIN_WEIGHT, num_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

UNIT = 2**40

weights_of_items = st.floats(MIN_WEIGHT, 1.0, width=32) | st.sampled_from([MIN_WEIGHT, 1.0])


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Who has what (bool), and weights of the items."""
    num_users, num_items = draw(st.integers(1, 6)), draw(st.integers(2, 9))
    cells = st.lists(st.booleans(), min_size=num_items, max_size=num_items)
    owned = draw(st.lists(cells, min_size=num_users, max_size=num_users))
    weights = draw(st.lists(weights_of_items, min_size=num_items, max_size=num_items))
    return np.array(owned), np.array(weights, dtype=np.float32)


def sums(weights: np.ndarray) -> list[Callable[[csr_matrix], np.ndarray]]:
    return [count_sum, lambda interactions: pair_sum(interactions, weights)]


def whole(total: np.ndarray) -> np.ndarray:
    """In units of 2^-40, as Python integers: nothing may be lost."""
    numbers = [number * UNIT for number in total.tolist()]
    assert all(number.is_integer() for number in numbers)
    return np.array([int(number) for number in numbers], dtype=object)


def matrix(owned: np.ndarray) -> csr_matrix:
    return csr_matrix(owned.astype(np.float32))


def upper(square: np.ndarray) -> np.ndarray:
    """Strict upper triangle, row by row."""
    found: np.ndarray = square[np.triu_indices(len(square), 1)]
    return found


@given(case=cases(), data=st.data())
def test_adding_or_removing_a_user_moves_a_sum_by_her_bounded_part(
    case: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    owned, weights = case
    user = data.draw(st.integers(0, len(owned) - 1))
    own = owned[user]
    hers = [own, upper(np.outer(own, own))]
    for add_up, touched in zip(sums(weights), hers, strict=True):
        without = whole(add_up(matrix(np.delete(owned, user, axis=0))))
        moved = whole(add_up(matrix(owned))) - without
        assert (moved == whole(add_up(matrix(own[None])))).all(), "her part depends on others"
        assert int((moved * moved).sum()) <= UNIT**2, "a part beyond norm 1"
        assert not moved[~touched].any(), "a part outside of what she has"
        if touched.any():
            # Not much less than 1, either: noise is for 1.
            assert int((moved * moved).sum()) > 0.99 * UNIT**2


@given(case=cases(), seed=st.integers(0, 1000))
def test_the_order_of_users_changes_no_bit(case: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    owned, weights = case
    shuffled = np.random.default_rng(seed).permutation(owned)
    for add_up in sums(weights):
        assert add_up(matrix(owned)).tobytes() == add_up(matrix(shuffled)).tobytes()


@given(case=cases())
def test_a_sum_is_what_its_definition_says(case: tuple[np.ndarray, np.ndarray]) -> None:
    owned, weights = case
    counts, pairs = np.zeros(owned.shape[1]), np.zeros(num_pairs(owned.shape[1]))
    for own in owned:
        if own.any():
            counts += own / np.sqrt(own.sum())
        part = upper(np.outer(own * weights.astype(float), own * weights.astype(float)))
        if part.any():
            pairs += part / np.linalg.norm(part)
    np.testing.assert_allclose(count_sum(matrix(owned)), counts, atol=1e-10)
    # A factor is rounded by up to 2^-20, and the other one is at most 2^5.
    np.testing.assert_allclose(pair_sum(matrix(owned), weights), pairs, atol=6 * 2.0**-14)


def weight_patterns(num_items: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(num_items)
    one_heavy = np.full(num_items, MIN_WEIGHT)
    one_heavy[-1] = 1.0
    return {
        "all 1": np.ones(num_items),
        "all least": np.full(num_items, MIN_WEIGHT),
        "one heavy": one_heavy,
        "one light": np.where(np.arange(num_items) > 0, 1.0, MIN_WEIGHT),
        "any": rng.uniform(MIN_WEIGHT, 1.0, num_items),
        "any magnitude": 2.0 ** rng.uniform(-10, 0, num_items),
    }


@pytest.mark.parametrize("num_items", [2, 3, 50, 4000, MAX_PAIRED_ITEMS])
def test_a_user_with_all_items_keeps_within_her_bound_and_none_is_rounded_away(
    num_items: int,
) -> None:
    own = matrix(np.ones((1, num_items), dtype=bool))
    for name, weights in weight_patterns(num_items).items():
        factors = [int(q) for q in _factors(own, weights.astype(np.float32))]
        assert min(factors) >= 10, name
        squares = sum(q**2 for q in factors)
        norm_squared = (squares**2 - sum(q**4 for q in factors)) // 2
        assert norm_squared <= UNIT**2, name
        assert math.isqrt(norm_squared) > 0.999 * UNIT, name


def test_an_interaction_counts_once_however_it_is_stored() -> None:
    stored = ([1, 0, 1, 0], [2, 2, 1], [2, 0, 1])
    values = [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]  # and a zero is none
    indices = np.concatenate(stored)
    starts = np.cumsum([0, *map(len, stored)])
    twice = csr_matrix((np.array(values, dtype=np.float32), indices, starts), shape=(3, 3))
    once = matrix(np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=bool))
    for add_up in sums(np.array([0.2, 0.5, 1.0], dtype=np.float32)):
        assert add_up(twice).tobytes() == add_up(once).tobytes()
    assert twice.nnz == len(values), "what was given is not changed"


def test_more_users_than_whole_numbers_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_USERS * UNIT < 2**63
    monkeypatch.setattr("client.sums.MAX_USERS", 2)
    for add_up in sums(np.ones(4, dtype=np.float32)):
        add_up(matrix(np.ones((2, 4), dtype=bool)))
        with pytest.raises(DataError, match="too many users"):
            add_up(matrix(np.ones((3, 4), dtype=bool)))


@pytest.mark.parametrize("cells", [1, 3, 7, 40, 10**6])
def test_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    rng = np.random.default_rng(0)
    owned = matrix(rng.random((30, 13)) < 0.3)
    weights = rng.uniform(0.1, 1.0, 13).astype(np.float32)
    expected = pair_sum(owned, weights)
    monkeypatch.setattr("client.sums._CELLS_IN_BLOCK", cells)
    assert pair_sum(owned, weights).tobytes() == expected.tobytes()


def test_items_that_are_not_listed_stay_empty() -> None:
    listing = np.array([1, 4, 5, 9])
    owned = matrix(np.array([[1, 0, 1, 1], [0, 1, 0, 0]], dtype=bool))
    for items, expected in (
        ([0, 1, 5, 7, 10], [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]),
        ([4], [[0], [1]]),
        ([0, 11], [[0, 0], [0, 0]]),
        ([1, 4, 5, 9], [[1, 0, 1, 1], [0, 1, 0, 0]]),
    ):
        found = on_items(owned, listing, np.array(items))
        np.testing.assert_array_equal(found.toarray(), expected)
