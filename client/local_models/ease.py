"""EASE: the linear item-item model with a closed form (Steck 2019, arXiv:1905.03375)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix

MAX_ITEMS = 12_000
"""Items with interactions up to which EASE is fitted: it inverts a dense matrix over them (600 MB
and half a minute here at this size; both grow with the square and the cube)."""

KEPT_PER_ITEM = 1000
"""Weights kept in each column, the largest in magnitude: what is stored and multiplied."""


def fit_ease(interactions: csr_matrix, *, l2: float) -> csr_matrix:
    """Weights W with a zero diagonal that minimise ``|X - X W|^2 + l2 |W|^2``.

    Equation 8 of the paper: ``W = I - P / diag(P)`` with ``P = (X'X + l2 I)^-1``. Items without
    interactions have empty rows and columns.

    Args:
        interactions: X, [num_users, num_items] of zeros and ones; at most ``MAX_ITEMS`` columns
            may have any.
        l2: strength of the penalty, > 0.

    Returns:
        [num_items, num_items] float32; ``interactions @ W`` are scores.

    Raises:
        ValueError: if too many items have interactions.
    """
    bought = np.flatnonzero(np.asarray(interactions.sum(axis=0)).ravel())
    if len(bought) > MAX_ITEMS:
        msg = f"EASE: found {len(bought)} items with interactions, expected at most {MAX_ITEMS}."
        raise ValueError(msg)
    compact = interactions[:, bought].astype(np.float32)
    gram = torch.from_numpy((compact.T @ compact).toarray())
    gram.diagonal().add_(l2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    inverse.div_(-inverse.diagonal().clone())
    inverse.fill_diagonal_(0.0)
    if len(bought) > KEPT_PER_ITEM:
        border = inverse.abs().topk(KEPT_PER_ITEM, dim=0).values[-1]
        inverse[inverse.abs() < border] = 0.0
    weights = csr_matrix(inverse.numpy())
    place = csr_matrix(
        (np.ones(len(bought), dtype=np.float32), (np.arange(len(bought)), bought)),
        shape=(len(bought), interactions.shape[1]),
    )
    spread: csr_matrix = (place.T @ weights @ place).tocsr()
    return spread
