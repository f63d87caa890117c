"""EASE: the linear item-item model with a closed form (Steck 2019, arXiv:1905.03375)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csc_matrix, csr_matrix
from torch import Tensor

MAX_ITEMS = 12_000
"""Items with interactions up to which EASE is fitted: it inverts a dense matrix over them (800 MB
and up to a minute on two cores at this size; they grow with the square and the cube)."""

KEPT_PER_ITEM = 1000
"""Weights kept in each column, the largest in magnitude: what is stored and multiplied."""

_BLOCK = 512
"""Rows of the dense matrix that are worked on at once."""


def fit_ease(interactions: csr_matrix, *, l2: float) -> csr_matrix:
    """Weights W with a zero diagonal that minimise ``|X - X W|^2 + l2 |W|^2``.

    Equation 8 of the paper: ``W = I - P / diag(P)`` with ``P = (X'X + l2 I)^-1``, of which each
    column keeps its ``KEPT_PER_ITEM`` largest weights. Items without interactions have empty rows
    and columns.

    Args:
        interactions: X, [num_users, num_items] of zeros and ones; not changed. At most
            ``MAX_ITEMS`` columns may have any.
        l2: strength of the penalty, > 0.

    Returns:
        [num_items, num_items] float32; ``interactions @ W`` are scores.

    Raises:
        ValueError: if too many items have interactions, or ``l2`` is not above 0.
    """
    if not l2 > 0.0:
        raise ValueError(f"EASE: found l2 = {l2}, expected it above 0")
    num_items = interactions.shape[1]
    bought = np.flatnonzero(np.asarray(interactions.sum(axis=0)).ravel())
    if len(bought) > MAX_ITEMS:
        raise ValueError(
            f"EASE: found {len(bought)} items with interactions, expected at most {MAX_ITEMS}"
        )
    values, places = _largest_weights(_negative_inverse_(_gram(interactions[:, bought], l2)))
    stored = np.zeros(num_items + 1, dtype=np.int64)
    stored[bought + 1] = values.shape[1]
    weights = csc_matrix(
        (values.ravel(), bought[places].ravel(), stored.cumsum()), shape=(num_items, num_items)
    )
    weights.eliminate_zeros()
    return weights.tocsr()


def _gram(interactions: csr_matrix, l2: float) -> Tensor:
    """``X'X + l2 I``, dense."""
    by_user = interactions.astype(np.float32)
    by_item = by_user.T.tocsr()
    gram = torch.empty(by_item.shape[0], by_item.shape[0])
    for first in range(0, len(gram), _BLOCK):
        rows = slice(first, first + _BLOCK)
        gram[rows] = torch.from_numpy((by_item[rows] @ by_user).toarray())
    gram.diagonal().add_(l2)
    return gram


def _negative_inverse_(matrix: Tensor) -> Tensor:
    """Overwrite a symmetric positive definite matrix with minus its inverse.

    The sweep operator (Goodnight 1979, The American Statistician 33(3)), a block of pivots at a
    time. It needs no second matrix, and nearly all of it is matrix products: several times faster
    than ``torch.cholesky_inverse``. Going through the pivots' Cholesky factor, not their inverse,
    keeps the matrix symmetric, and the result as accurate as that of one large factor.
    """
    for first in range(0, len(matrix), _BLOCK):
        pivots = slice(first, first + _BLOCK)
        factor = torch.linalg.cholesky(matrix[pivots, pivots])
        columns = matrix[:, pivots].clone()
        scaled = torch.linalg.solve_triangular(factor.mT, columns, upper=True, left=False)
        matrix.addmm_(scaled, scaled.mT, alpha=-1.0)
        swept = torch.linalg.solve_triangular(factor, scaled, upper=False, left=False)
        matrix[:, pivots] = swept
        matrix[pivots] = swept.mT
        matrix[pivots, pivots] = -torch.cholesky_inverse(factor)
    return matrix


def _largest_weights(negative_inverse: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Values and rows of the weights kept in each column of W, both [columns, kept]."""
    size = len(negative_inverse)
    kept = min(KEPT_PER_ITEM, size)
    values = np.empty((size, kept), dtype=np.float32)
    places = np.empty((size, kept), dtype=np.int32)
    for first in range(0, size, _BLOCK):
        # -P is symmetric, so its rows, which lie together in memory, stand for its columns.
        block = negative_inverse[first : first + _BLOCK]
        diagonal = block.diagonal(first)
        block = block / -diagonal.clone()[:, None]
        block.diagonal(first).zero_()
        largest = block.abs().topk(kept, dim=1, sorted=False).indices
        values[first : first + _BLOCK] = block.gather(1, largest).numpy()
        places[first : first + _BLOCK] = largest.numpy()
    return values, places
