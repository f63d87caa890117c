"""Item similarities out of pair sums and of federated item vectors."""

from __future__ import annotations

import numpy as np
import pytest

from client import similarity as module
from client.similarity import similarity_of_vectors


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
