"""ItemKNN: items that the same users bought (Deshpande and Karypis 2004, sections 4.1 and 4.2)."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix


def fit_item_knn(interactions: csr_matrix, *, neighbours: int, shrink: float) -> csr_matrix:
    """Shrunk cosine similarity of items, the strongest neighbours of each.

    ``W_ij = n_ij / (sqrt(n_i n_j) + shrink)`` with ``n_ij`` the users of both; 0 on the diagonal.
    Memory grows with the pairs of items that some user has, not with the square of the catalogue.

    Args:
        interactions: [num_users, num_items] of zeros and ones.
        neighbours: entries kept in each column (more where they tie at the border).
        shrink: how much evidence a similarity needs.

    Returns:
        [num_items, num_items] float32; ``interactions @ W`` are scores.
    """
    binary = interactions.astype(np.float32)
    together = (binary.T @ binary).tocoo()
    counts = np.asarray(binary.sum(axis=0)).ravel()
    apart = together.row != together.col
    rows, columns, both = together.row[apart], together.col[apart], together.data[apart]
    similarity = both / (np.sqrt(counts[rows] * counts[columns]) + shrink)
    weights = csc_matrix((similarity, (rows, columns)), shape=together.shape, dtype=np.float32)
    for column in range(weights.shape[1]):
        part = weights.data[weights.indptr[column] : weights.indptr[column + 1]]
        if len(part) > neighbours:
            part[part < np.partition(part, -neighbours)[-neighbours]] = 0.0
    weights.eliminate_zeros()
    return weights.tocsr()
