"""Implicit ALS with frequency-scaled regularisation (Hu et al. 2008; Rendle et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from torch import Tensor

_ROWS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class AlsFactors:
    """Vectors of users and items; a score is a product of two."""

    users: np.ndarray
    """[num_users, dim] float32."""
    items: np.ndarray
    """[num_items, dim] float32."""


def fit_als(
    interactions: csr_matrix,
    *,
    dim: int,
    l2: float,
    unobserved_weight: float,
    epochs: int,
    seed: int,
) -> AlsFactors:
    """Alternate exact solutions for users and for items.

    The loss is that of Rendle et al. 2022 (arXiv:2110.14037, section 3): squared error of 1 at
    interactions and, with weight ``unobserved_weight``, of 0 at all pairs; the penalty of a row
    grows with what it takes part in.

    Args:
        interactions: [num_users, num_items] of zeros and ones.
        dim: length of a vector.
        l2: strength of the penalty.
        unobserved_weight: weight of a pair that nobody observed.
        epochs: alternations.
        seed: of the start.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = 0.1 / dim**0.5
    users, items = (
        spread * torch.randn(size, dim, generator=generator) for size in interactions.shape
    )
    by_item = interactions.T.tocsr()
    for _ in range(epochs):
        users = _solve(interactions, items, l2, unobserved_weight)
        items = _solve(by_item, users, l2, unobserved_weight)
    return AlsFactors(users=users.numpy(), items=items.numpy())


def _solve(observed: csr_matrix, others: Tensor, l2: float, unobserved_weight: float) -> Tensor:
    """The best vector of each row, given the vectors of the columns; 0 for an empty row."""
    counts = np.diff(observed.indptr)
    found = torch.zeros(observed.shape[0], others.shape[1])
    everywhere = unobserved_weight * (others.T @ others)
    penalty = l2 * (counts + unobserved_weight * len(others))
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    for first in range(0, len(order), _ROWS):
        rows = order[first : first + _ROWS]
        part = observed[rows]
        width = int(counts[rows].max())
        owner = np.repeat(np.arange(len(rows)), counts[rows])
        place = np.arange(part.nnz) - np.repeat(part.indptr[:-1], counts[rows])
        vectors = torch.zeros(len(rows), width, others.shape[1])
        vectors[owner, place] = others[torch.from_numpy(part.indices.astype(np.int64))]
        normal = vectors.transpose(1, 2) @ vectors + everywhere
        ridge = torch.from_numpy(penalty[rows].astype(np.float32))
        normal.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        found[rows] = torch.linalg.solve(normal, vectors.sum(1)[:, :, None]).squeeze(2)
    return found
