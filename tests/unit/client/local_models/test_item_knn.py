"""Similarities against counting by hand, how many are kept, and what memory they take."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_matrix

from client.local_models import item_knn
from client.local_models.item_knn import fit_item_knn

purchases = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)
permutations = st.integers(0, 2**32).map(np.random.default_rng)


def sparse(bought: np.ndarray) -> csr_matrix:
    return csr_matrix(bought.astype(np.float32))


def fit(bought: np.ndarray, neighbours: int = 1000, shrink: float = 2.0) -> np.ndarray:
    weights = fit_item_knn(sparse(bought), neighbours=neighbours, shrink=shrink)
    dense: np.ndarray = weights.toarray()
    return dense


def by_hand(bought: np.ndarray, shrink: float) -> np.ndarray:
    buyers = [set(np.flatnonzero(column)) for column in bought.T]
    weights = np.zeros((len(buyers), len(buyers)))
    for i, of_i in enumerate(buyers):
        for j, of_j in enumerate(buyers):
            if i != j and of_i & of_j:
                cosine_part = (len(of_i) * len(of_j)) ** 0.5
                weights[i, j] = len(of_i & of_j) / (cosine_part + shrink)
    return weights


@given(purchases, st.sampled_from([0.0, 3.0]))
def test_weights_are_shrunk_cosines_of_different_items(bought: np.ndarray, shrink: float) -> None:
    np.testing.assert_allclose(fit(bought, shrink=shrink), by_hand(bought, shrink), rtol=1e-6)


@given(purchases, st.integers(1, 4))
def test_each_column_keeps_its_largest_weights(bought: np.ndarray, neighbours: int) -> None:
    everything, kept = fit(bought), fit(bought, neighbours)
    assert np.isin(kept, [0.0, *everything.ravel()]).all()
    for full, column in zip(everything.T, kept.T, strict=True):
        largest = np.sort(full)[::-1][:neighbours]
        assert np.array_equal(np.sort(column)[::-1][: len(largest)], largest)
        assert np.count_nonzero(column) <= neighbours


def test_of_equal_weights_the_first_are_kept() -> None:
    weights = fit(np.ones((3, 5), dtype=bool), neighbours=2)
    assert [np.flatnonzero(column).tolist() for column in weights.T] == [
        [1, 2],
        [0, 2],
        [0, 1],
        [0, 1],
        [0, 1],
    ]


@given(purchases, st.integers(1, 4), permutations)
def test_the_order_of_users_changes_nothing(
    bought: np.ndarray, neighbours: int, rng: np.random.Generator
) -> None:
    shuffled = bought[rng.permutation(len(bought))]
    assert np.array_equal(fit(bought, neighbours), fit(shuffled, neighbours))


@given(purchases, permutations)
def test_relabelling_items_relabels_the_weights(
    bought: np.ndarray, rng: np.random.Generator
) -> None:
    items = rng.permutation(bought.shape[1])
    assert np.array_equal(fit(bought[:, items]), fit(bought)[np.ix_(items, items)])


@given(purchases, st.integers(1, 4), st.integers(1, 20))
def test_blocks_change_nothing(bought: np.ndarray, neighbours: int, pairs: int) -> None:
    whole = fit(bought, neighbours)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_knn, "_BLOCK_PAIRS", pairs)
        assert np.array_equal(fit(bought, neighbours), whole)


def test_a_user_who_bought_everything_does_not_take_the_square_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(item_knn, "_BLOCK_PAIRS", 50_000)
    num_items = 2000
    interactions = sparse(np.ones((1, num_items), dtype=bool))
    tracemalloc.start()
    try:
        fit_item_knn(interactions, neighbours=10, shrink=1.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * num_items**2 / 2  # half of the counts alone, without indices


def test_weights_are_float32_and_the_interactions_stay_as_they_were() -> None:
    interactions = sparse(np.random.default_rng(0).random((6, 5)) < 0.5)
    before = interactions.copy()
    weights = fit_item_knn(interactions, neighbours=2, shrink=1.0)
    assert isinstance(weights, csr_matrix)
    assert weights.dtype == np.float32
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(interactions, name), getattr(before, name))


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.float64])
def test_the_type_of_the_ones_does_not_matter(dtype: type[np.generic]) -> None:
    bought = np.random.default_rng(0).random((400, 5)) < 0.7  # int8 could not count them
    weights = fit_item_knn(csr_matrix(bought.astype(dtype)), neighbours=3, shrink=2.0)
    assert np.array_equal(weights.toarray(), fit(bought, neighbours=3))


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 1)])
def test_without_interactions_there_are_no_weights(shape: tuple[int, int]) -> None:
    weights = fit_item_knn(csr_matrix(shape, dtype=np.float32), neighbours=3, shrink=0.0)
    assert weights.shape == (shape[1], shape[1])
    assert weights.nnz == 0
