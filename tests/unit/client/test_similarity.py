"""Item similarities out of pair sums and of federated item vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from client import similarity as module
from client.similarity import similarity, similarity_of_pairs, similarity_of_vectors
from common.models.pairs import PairSum, num_pairs

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def plain(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    cosine: np.ndarray = np.maximum(unit @ unit.T, 0.0) ** 4
    np.fill_diagonal(cosine, 0.0)
    return cosine


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_equals_the_dense_computation(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    vectors = np.random.default_rng(0).normal(size=(50, 6))
    assert np.allclose(similarity_of_vectors(vectors).toarray(), plain(vectors), atol=1e-6)


def test_only_the_largest_of_each_row_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NEIGHBOURS", 5)
    vectors = np.abs(np.random.default_rng(1).normal(size=(40, 3)))
    found, expected = similarity_of_vectors(vectors).toarray(), plain(vectors)
    for row, whole in zip(found, expected, strict=True):
        largest = np.sort(np.argsort(whole)[-5:])
        assert np.flatnonzero(row).tolist() == largest.tolist()
        assert np.allclose(row[largest], whole[largest], atol=1e-6)


def test_a_row_of_zeros_is_similar_to_nothing_and_length_does_not_matter() -> None:
    vectors = np.random.default_rng(2).normal(size=(10, 4))
    vectors[3] = 0.0
    scaled = vectors * np.linspace(0.1, 50.0, 10)[:, None]
    found = similarity_of_vectors(vectors)
    assert found[3].nnz == 0
    assert found[:, 3].nnz == 0
    assert np.allclose(found.toarray(), similarity_of_vectors(scaled).toarray(), atol=1e-6)


def test_a_single_item() -> None:
    assert similarity_of_vectors(np.ones((1, 3))).nnz == 0


# --- Of pairs ------------------------------------------------------------------------------------

LISTING = np.array([1, 3, 4, 8, 9])
ASKED = np.array([0, 3, 5, 8, 9, 12])
"""Of these 3, 8 and 9 are listed here, in columns 1, 3 and 4."""


def summed(sums: dict[tuple[int, int], float], noise_std: float = 0.0) -> PairSum:
    """Of all items asked for; pairs that are not named are 0."""
    upper = np.zeros((len(ASKED), len(ASKED)), dtype=np.float32)
    for (first, second), value in sums.items():
        upper[np.searchsorted(ASKED, first), np.searchsorted(ASKED, second)] = value
    return PairSum(
        items=ASKED,
        weights=np.ones(len(ASKED), dtype=np.float32),
        total=upper[np.triu_indices(len(ASKED), 1)],
        noise_std=noise_std,
    )


def test_exact_sums_of_listed_items_come_to_their_columns() -> None:
    found = similarity_of_pairs(
        summed({(3, 8): 2.0, (8, 9): 0.5, (0, 3): 7.0, (3, 5): 7.0, (5, 12): 7.0, (9, 12): 7.0}),
        LISTING,
    )
    sums = np.zeros((5, 5))
    sums[1, 3] = sums[3, 1] = 2.0
    sums[3, 4] = sums[4, 3] = 0.5
    # Items that are not listed here count for nothing, not even for an item's sum over all pairs.
    strength = sums.sum(axis=1) + 1.0
    np.testing.assert_allclose(
        found.toarray(), sums / np.sqrt(np.outer(strength, strength)), rtol=1e-6
    )
    assert found.dtype == np.float32
    assert found.nnz == 4


def test_rounding_dust_and_negative_sums_of_no_noise_are_nothing() -> None:
    found = similarity_of_pairs(summed({(3, 8): 5e-7, (3, 9): -3.0, (8, 9): 2e-6}), LISTING)
    assert {tuple(place) for place in np.argwhere(found.toarray())} == {(3, 4), (4, 3)}


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_a_pair_similarity_is_symmetric_with_a_zero_diagonal_and_not_negative(
    noise_std: float,
) -> None:
    rng = np.random.default_rng(0)
    items = np.sort(rng.choice(60, 40, replace=False))
    listing = np.sort(rng.choice(60, 30, replace=False))
    total = rng.exponential(1.0, num_pairs(40)) * (rng.random(num_pairs(40)) < 0.3)
    total += rng.normal(0.0, noise_std, len(total)) if noise_std else 0.0
    pairs = PairSum(
        items=items,
        weights=np.ones(40, dtype=np.float32),
        total=total.astype(np.float32),
        noise_std=noise_std,
    )
    found = similarity_of_pairs(pairs, listing).toarray()
    assert found.shape == (30, 30)
    np.testing.assert_allclose(found, found.T, rtol=1e-6)
    assert not np.diag(found).any()
    assert found.min() >= 0
    assert found.any()
    assert not found[~np.isin(listing, items)].any()


def test_the_order_of_listed_items_is_that_of_the_columns() -> None:
    """A platform that lists more has the same similarities, at other places."""
    pairs = summed({(3, 8): 2.0, (8, 9): 0.5})
    few = similarity_of_pairs(pairs, LISTING).toarray()
    many = similarity_of_pairs(pairs, np.arange(1, 12)).toarray()
    np.testing.assert_array_equal(many[np.ix_(LISTING - 1, LISTING - 1)], few)
    assert np.count_nonzero(many) == np.count_nonzero(few)


@pytest.mark.parametrize("listing", [[1, 2], [3], [13, 14]], ids=["none", "one", "beyond"])
@pytest.mark.parametrize("noise_std", [0.0, 1.0])
def test_without_two_common_items_nothing_is_similar(listing: list[int], noise_std: float) -> None:
    found = similarity_of_pairs(summed({(3, 8): 2.0}, noise_std), np.array(listing))
    assert found.shape == (len(listing), len(listing))
    assert found.nnz == 0


def noisy(seed: int, strong: int) -> tuple[PairSum, np.ndarray]:
    """Pure noise, but for ``strong`` pairs far above it."""
    rng = np.random.default_rng(seed)
    total = rng.normal(0.0, 10.0, num_pairs(80))
    total[:strong] += 100.0
    weights = np.ones(80, dtype=np.float32)
    pairs = PairSum(
        items=np.arange(80), weights=weights, total=total.astype(np.float32), noise_std=10.0
    )
    return pairs, np.arange(80)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What is left of the sums, before it is divided by what the items have in all."""
    seen: list[np.ndarray] = []

    def watch(sums: csr_matrix) -> csr_matrix:
        seen.append(sums.toarray())
        return similarity(sums)

    monkeypatch.setattr(module, "similarity", watch)
    return seen


@pytest.mark.parametrize("seed", range(8))
def test_of_noise_alone_next_to_nothing_is_left(kept: list[np.ndarray], seed: int) -> None:
    """Taken for exact, half of all pairs would count with all they are."""
    pairs, listing = noisy(seed, 0)
    similarity_of_pairs(pairs, listing)
    similarity_of_pairs(replace(pairs, noise_std=0.0), listing)
    with_noise, exact = kept
    assert np.count_nonzero(exact) > 0.45 * 80 * 79
    assert with_noise.sum() < 0.1 * exact.sum()
    assert with_noise.max() < 0.1 * pairs.noise_std


def test_what_stands_out_of_the_noise_is_kept(kept: list[np.ndarray]) -> None:
    pairs, listing = noisy(0, 20)
    similarity_of_pairs(pairs, listing)
    (sums,) = kept
    np.testing.assert_allclose(sums[0, 1:21], pairs.total[:20], rtol=0.2)
    assert sums[0, 1:21].sum() > 0.8 * np.triu(sums, 1).sum()
