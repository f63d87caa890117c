"""Implicit ALS with frequency-scaled regularisation (Hu et al. 2008; Rendle et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csr_matrix
    from torch import Tensor

_START_SPREAD = 0.1
"""Standard deviation of a score of the start, about, as in the paper's experiments."""

_BLOCK_FLOATS = 4_000_000
"""Size of the largest array of a block of rows that are solved together."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AlsFactors:
    """Vectors of users and items; a score is the product of two."""

    users: np.ndarray
    """[num_users, dim] float32; 0 for users without interactions."""
    items: np.ndarray
    """[num_items, dim] float32; 0 for items without interactions."""


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

    The loss is that of Rendle et al. 2022 (arXiv:2110.14037), with its exponent nu = 1: squared
    error of 1 at interactions plus, with weight ``unobserved_weight``, of 0 at all pairs; the
    penalty of a row grows with what it takes part in,
    ``l2 (interactions of the row + unobserved_weight * pairs of the row)``.

    Args:
        interactions: CSR, [num_users, num_items], of ones; not changed.
        dim: length of a vector.
        l2: strength of the penalty, > 0.
        unobserved_weight: weight of a pair as such, observed or not.
        epochs: alternations, at least 1.
        seed: of the start.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = _START_SPREAD / dim**0.5
    users, items = (
        spread * torch.randn(size, dim, generator=generator) for size in interactions.shape
    )
    by_item = interactions.T.tocsr()
    for _ in range(epochs):
        users = _solve(interactions, items, l2, unobserved_weight)
        items = _solve(by_item, users, l2, unobserved_weight)
    return AlsFactors(users=users.numpy(), items=items.numpy())


def _solve(observed: csr_matrix, others: Tensor, l2: float, unobserved_weight: float) -> Tensor:
    """The best vector of each row, given the vectors of the columns; 0 for an empty row.

    Args:
        observed: [num_rows, num_columns], CSR of ones.
        others: [num_columns, dim].
        l2: as in `fit_als`.
        unobserved_weight: as in `fit_als`.
    """
    dim = others.shape[1]
    counts = np.diff(observed.indptr)
    found = torch.zeros(len(counts), dim)
    everywhere = unobserved_weight * (others.T @ others)
    penalty = torch.from_numpy(l2 * (counts + unobserved_weight * len(others))).float()
    for rows in _blocks(counts, dim):
        part = observed[rows]
        owner = np.repeat(np.arange(len(rows)), counts[rows])
        place = np.arange(part.nnz) - np.repeat(part.indptr[:-1], counts[rows])
        vectors = torch.zeros(len(rows), int(counts[rows].max()), dim)
        vectors[owner, place] = others[part.indices]
        normal = vectors.mT @ vectors + everywhere
        normal.diagonal(dim1=1, dim2=2).add_(penalty[rows, None])
        factor = torch.linalg.cholesky(normal)
        found[rows] = torch.cholesky_solve(vectors.sum(1)[:, :, None], factor).squeeze(2)
    return found


def _blocks(counts: np.ndarray, dim: int) -> Iterator[np.ndarray]:
    """Rows that have entries, the shortest first, in blocks whose arrays stay small.

    A block's rows are padded to the longest of them, its last one.

    Args:
        counts: entries of each row.
        dim: length of a vector.
    """
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    # [rows, width, dim] vectors and [rows, dim, dim] normal matrices.
    sizes = np.maximum(counts[order], dim).astype(np.int64) * dim
    first = 0
    while first < len(order):
        lengths = np.arange(1, len(order) - first + 1)
        last = first + max(1, int(np.searchsorted(lengths * sizes[first:], _BLOCK_FLOATS, "right")))
        yield order[first:last]
        first = last
