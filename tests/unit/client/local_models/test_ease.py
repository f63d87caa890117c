"""EASE against one ridge regression per item and a direct inverse, both in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_matrix

from client.local_models import ease
from client.local_models.ease import fit_ease

purchases = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)
permutations = st.integers(0, 2**32).map(np.random.default_rng)
TOLERANCE = 1e-5
"""Of weights, all of which lie within -1 and 1 here."""


def sparse(bought: np.ndarray) -> csr_matrix:
    return csr_matrix(bought.astype(np.float32))


def fit(bought: np.ndarray, l2: float = 2.0) -> np.ndarray:
    dense: np.ndarray = fit_ease(sparse(bought), l2=l2).toarray()
    return dense


def some_purchases(num_users: int = 120, num_items: int = 70) -> np.ndarray:
    """Tastes and popularity, so that weights of both signs and many sizes occur."""
    rng = np.random.default_rng(0)
    taste = rng.normal(size=(num_users, 4)) @ rng.normal(size=(4, num_items))
    bought: np.ndarray = taste + rng.normal(size=num_items) > 1.5
    np.fill_diagonal(bought, val=True)  # everything is bought
    return bought


def by_inverse(bought: np.ndarray, l2: float) -> np.ndarray:
    x = bought.astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + l2 * np.eye(x.shape[1]))
    return np.eye(x.shape[1]) - inverse / np.diag(inverse)


@given(purchases, st.sampled_from([0.5, 10.0]))
def test_a_column_is_the_ridge_regression_of_its_item_on_the_others(
    bought: np.ndarray, l2: float
) -> None:
    x, weights = bought.astype(np.float64), fit(bought, l2)
    assert not np.diag(weights).any()
    for item in range(x.shape[1]):
        others = np.delete(x, item, axis=1)
        normal = others.T @ others + l2 * np.eye(others.shape[1])
        ridge = np.linalg.solve(normal, others.T @ x[:, item])
        np.testing.assert_allclose(np.delete(weights[:, item], item), ridge, atol=TOLERANCE)


@pytest.mark.parametrize("block", [1, 7, 16, 35, 70, 512])
@pytest.mark.parametrize("l2", [0.5, 20.0])
def test_blocks_of_any_size_give_the_direct_inverse(
    monkeypatch: pytest.MonkeyPatch, block: int, l2: float
) -> None:
    monkeypatch.setattr(ease, "_BLOCK", block)
    bought = some_purchases()
    np.testing.assert_allclose(fit(bought, l2), by_inverse(bought, l2), atol=TOLERANCE)


def test_the_inverse_takes_the_place_of_the_matrix() -> None:
    """A second dense matrix would double the memory."""
    matrix = ease._gram(sparse(some_purchases()), 1.0)
    expected = -np.linalg.inv(matrix.double().numpy())
    inverse = ease._negative_inverse_(matrix)
    assert inverse.data_ptr() == matrix.data_ptr()
    np.testing.assert_allclose(inverse, expected, atol=1e-6)


@pytest.mark.parametrize("block", [16, 512])
def test_each_column_keeps_its_largest_weights_of_either_sign(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    bought = some_purchases()
    everything = fit(bought)
    monkeypatch.setattr(ease, "KEPT_PER_ITEM", 5)
    monkeypatch.setattr(ease, "_BLOCK", block)
    kept = fit(bought)
    assert (kept < 0).any()
    assert (kept > 0).any()
    for full, column in zip(everything.T, kept.T, strict=True):
        expected = np.argsort(-np.abs(full))[:5]
        assert set(np.flatnonzero(column)) == set(expected)
        np.testing.assert_allclose(column[expected], full[expected], atol=TOLERANCE)


def test_no_column_keeps_more_where_weights_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "KEPT_PER_ITEM", 2)
    weights = fit(np.ones((4, 6), dtype=bool))
    assert (np.count_nonzero(weights, axis=0) == 2).all()


@given(purchases, permutations)
def test_items_without_interactions_change_nothing(
    bought: np.ndarray, rng: np.random.Generator
) -> None:
    """They stand between the others; their rows and columns are empty."""
    num_items = bought.shape[1] + 5
    places = np.sort(rng.choice(num_items, size=bought.shape[1], replace=False))
    spread = np.zeros((len(bought), num_items), dtype=bool)
    spread[:, places] = bought
    expected = np.zeros((num_items, num_items))
    expected[np.ix_(places, places)] = fit(bought)
    assert np.array_equal(fit(spread), expected)


@given(purchases, permutations)
def test_neither_the_order_of_users_nor_empty_users_change_anything(
    bought: np.ndarray, rng: np.random.Generator
) -> None:
    more = np.vstack([bought, np.zeros((3, bought.shape[1]), dtype=bool)])
    assert np.array_equal(fit(more[rng.permutation(len(more))]), fit(bought))


@given(purchases, permutations)
def test_relabelling_items_relabels_the_weights(
    bought: np.ndarray, rng: np.random.Generator
) -> None:
    items = rng.permutation(bought.shape[1])
    relabelled = fit(bought)[np.ix_(items, items)]
    np.testing.assert_allclose(fit(bought[:, items]), relabelled, atol=TOLERANCE)


def test_the_same_interactions_give_the_same_bits_and_stay_as_they_were() -> None:
    interactions = sparse(some_purchases())
    before = interactions.copy()
    first, second = (fit_ease(interactions, l2=3.0) for _ in range(2))
    assert isinstance(first, csr_matrix)
    assert first.dtype == np.float32
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
        assert np.array_equal(getattr(interactions, name), getattr(before, name))


def test_only_items_with_interactions_count_towards_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bought = np.zeros((3, 20), dtype=bool)
    bought[:, ::4] = True
    monkeypatch.setattr(ease, "MAX_ITEMS", 5)
    fit(bought)
    bought[0, 1] = True
    with pytest.raises(ValueError, match=r"found 6 items with interactions, expected at most 5"):
        fit(bought)


def test_items_that_no_chain_of_users_connects_have_no_weight_that_is_stored() -> None:
    bought = np.kron(np.eye(3), some_purchases(6, 4)).astype(bool)
    weights = fit_ease(sparse(bought), l2=1.0)
    connected = np.kron(np.eye(3), np.ones((4, 4))) > 0
    assert not weights.toarray()[~connected].any()
    assert (weights.data != 0.0).all()


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.float64])
def test_the_type_of_the_ones_does_not_matter(dtype: type[np.generic]) -> None:
    bought = np.repeat(some_purchases(), 5, axis=0)  # int8 could not count them
    weights = fit_ease(csr_matrix(bought.astype(dtype)), l2=2.0)
    assert np.array_equal(weights.toarray(), fit(bought))


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 1)])
def test_without_interactions_there_are_no_weights(shape: tuple[int, int]) -> None:
    weights = fit_ease(csr_matrix(shape, dtype=np.float32), l2=1.0)
    assert weights.shape == (shape[1], shape[1])
    assert weights.nnz == 0


@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan")])
def test_without_a_penalty_equal_items_have_no_weights_to_find(l2: float) -> None:
    with pytest.raises(ValueError, match="expected it above 0"):
        fit(np.ones((3, 2), dtype=bool), l2=l2)
