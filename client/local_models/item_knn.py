"""ItemKNN: items that the same users bought (Deshpande and Karypis 2004, ACM TOIS 22(1))."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix, vstack

_BLOCK_PAIRS = 4_000_000
"""Pairs of items held at once, about; each takes some 40 bytes."""


def fit_item_knn(interactions: csr_matrix, *, neighbours: int, shrink: float) -> csr_matrix:
    """Shrunk cosine similarity of items, the strongest neighbours of each.

    ``W_ij = n_ij / (sqrt(n_i n_j) + shrink)`` with ``n_ij`` the users of both; 0 on the diagonal.
    Pairs are counted for a block of items at a time, so memory grows with what is kept and not
    with the square of the catalogue, however much a single user bought.

    Args:
        interactions: CSR, [num_users, num_items], of ones; not changed.
        neighbours: entries kept in each column at most; of equal ones the first.
        shrink: how much evidence a similarity needs, >= 0.

    Returns:
        [num_items, num_items] float32; ``interactions @ W`` are scores.
    """
    by_user = interactions.astype(np.float32)
    by_item = by_user.T.tocsr()
    counts = np.asarray(by_user.sum(axis=0)).ravel()
    columns = []
    for items in _blocks(by_user, by_item):
        block = by_item[items] @ by_user  # n_ij is symmetric: a row here is a column of W
        block.sort_indices()
        own, other = np.repeat(items, np.diff(block.indptr)), block.indices
        block.data /= np.sqrt(counts[own] * counts[other]) + np.float32(shrink)
        block.data[own == other] = 0.0
        for first, last in zip(block.indptr[:-1], block.indptr[1:], strict=True):
            _keep_largest_(block.data[first:last], neighbours)
        block.eliminate_zeros()
        columns.append(block.copy())  # without the room of what was dropped
    return vstack(columns, format="csr").T.tocsr()


def _blocks(by_user: csr_matrix, by_item: csr_matrix) -> list[np.ndarray]:
    """Cut the items into runs, each as long as its pairs, counted from above, fill a block."""
    num_items = by_item.shape[0]
    pairs = np.minimum(by_item @ np.diff(by_user.indptr), num_items)
    filled = np.cumsum(pairs) // _BLOCK_PAIRS
    return np.split(np.arange(num_items), np.flatnonzero(np.diff(filled)) + 1)


def _keep_largest_(values: np.ndarray, number: int) -> None:
    """Set all but the ``number`` largest to 0, in place; of equal ones the first stay."""
    if len(values) <= number:
        return
    border = np.partition(values, -number)[-number]
    equal = np.flatnonzero(values == border)
    values[values < border] = 0.0
    values[equal[number - np.count_nonzero(values > border) :]] = 0.0
