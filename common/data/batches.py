"""Batches of users for the losses, with negatives drawn from the public assortment alone.

A user's negatives are uniform over the items that her platform lists. Items she bought herself
are masked out, which looks at her own data only; nothing depends on any other user, as the
privacy analysis requires.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from torch import Tensor

MAX_POSITIVES = 200
"""A user's positives in one step; of a heavier user a fresh random subset is taken each time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserBatch:
    """What the losses see of B users.

    ``targets`` is for the full softmax, the other three for the sampled losses.
    """

    targets: Tensor | None = None
    """[B, num_items], 1 where the user interacted with the item, else 0."""
    items: Tensor | None = None
    """[B, P + N] item rows: P padded positives, then N negatives."""
    is_positive: Tensor | None = None
    """[B, P + N] bool, True at real (not padded) positives."""
    is_negative: Tensor | None = None
    """[B, P + N] bool, True at negatives that are none of the user's own items."""


def full_batch(matrix: csr_matrix, users: np.ndarray) -> UserBatch:
    """The batch of ``users`` (row numbers) for the full softmax."""
    return UserBatch(targets=torch.from_numpy(matrix[users].toarray()))


def sampled_batch(
    matrix: csr_matrix, users: np.ndarray, num_negatives: int, rng: np.random.Generator
) -> UserBatch:
    """The batch of ``users`` for the sampled losses.

    Args:
        matrix: [num_users, num_items], sorted indices.
        users: row numbers, shape [B].
        num_negatives: uniform negatives per user, with replacement.
        rng: draws negatives and subsets of heavy users.
    """
    rows = matrix[users]
    counts = np.diff(rows.indptr)
    owner = np.repeat(np.arange(len(users)), counts)
    # Shuffle within each user, so that the first MAX_POSITIVES are a random subset.
    order = np.lexsort((rng.random(len(owner)), owner))
    place = np.arange(len(owner)) - np.repeat(rows.indptr[:-1], counts)
    kept = place < MAX_POSITIVES
    width = int(min(counts.max(initial=1), MAX_POSITIVES))
    items = np.zeros((len(users), width + num_negatives), dtype=np.int64)
    is_positive = np.zeros(items.shape, dtype=bool)
    items[owner[kept], place[kept]] = rows.indices[order][kept]
    is_positive[owner[kept], place[kept]] = True

    num_items = matrix.shape[1]
    negatives = rng.integers(num_items, size=(len(users), num_negatives))
    items[:, width:] = negatives
    own = np.sort(owner * num_items + rows.indices)
    drawn = np.arange(len(users))[:, None] * num_items + negatives
    is_negative = np.zeros(items.shape, dtype=bool)
    is_negative[:, width:] = ~np.isin(drawn, own)
    return UserBatch(
        items=torch.from_numpy(items),
        is_positive=torch.from_numpy(is_positive),
        is_negative=torch.from_numpy(is_negative),
    )
