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
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csr_matrix
    from torch import Tensor

MAX_POSITIVES = 200
"""A user's positives in one step; of a heavier user a fresh random subset is taken each time."""

ROWS = 64
"""Users computed at a time, always as many: see :func:`fixed_blocks`."""

_PLACES = np.array([8, 16, 32, 64, 128, MAX_POSITIVES])


@dataclass(frozen=True, kw_only=True, slots=True)
class UserBatch:
    """What the losses see of B users: P padded positives each, then N negatives."""

    items: Tensor
    """[B, P + N] item rows; padding is row 0. N is 0 for the full softmax, P is one of few."""
    is_positive: Tensor
    """[B, P + N] bool, True at real (not padded) positives."""
    is_negative: Tensor
    """[B, P + N] bool, True at negatives that are none of the user's own items."""

    def of(self, rows: Tensor | slice) -> UserBatch:
        """The batch of some of its users: row numbers, a slice, or True where a row is kept."""
        return UserBatch(
            items=self.items[rows],
            is_positive=self.is_positive[rows],
            is_negative=self.is_negative[rows],
        )

    def to(self, device: str | torch.device) -> UserBatch:
        """The batch on another device."""
        return UserBatch(
            items=self.items.to(device),
            is_positive=self.is_positive.to(device),
            is_negative=self.is_negative.to(device),
        )


def fixed_blocks(
    user_vectors: Tensor, batch: UserBatch
) -> Iterator[tuple[slice, Tensor, UserBatch]]:
    """Cut a batch into blocks of ``ROWS`` users, the last one filled up with nobody.

    In a matrix product of another shape a row can be rounded in another way. With one shape the
    rounding of a user's numbers follows from her own numbers, and hides nobody else's presence.

    Yields:
        which users, their vectors [ROWS, dim] and their batch; zeros and no items beyond them.
    """
    for start in range(0, len(user_vectors), ROWS):
        vectors = user_vectors[start : start + ROWS]
        users, missing = slice(start, start + len(vectors)), ROWS - len(vectors)
        part, fill = batch.of(users), (0, 0, 0, missing)
        yield (
            users,
            pad(vectors, fill),
            UserBatch(
                items=pad(part.items, fill),
                is_positive=pad(part.is_positive, fill),
                is_negative=pad(part.is_negative, fill),
            ),
        )


def places_of(counts: np.ndarray) -> np.ndarray:
    """Places for the positives of users with ``counts`` items: the next of a few sizes."""
    sizes: np.ndarray = _PLACES[np.searchsorted(_PLACES, np.minimum(counts, MAX_POSITIVES))]
    return sizes


def make_batch(
    matrix: csr_matrix, users: np.ndarray, num_negatives: int, rng: np.random.Generator
) -> UserBatch:
    """Gather the positives of ``users`` and draw their negatives.

    Args:
        matrix: [num_users, num_items], sorted indices.
        users: row numbers, shape [B].
        num_negatives: uniform negatives per user, with replacement; 0 for the full softmax.
        rng: draws negatives and subsets of heavy users.
    """
    rows = matrix[users]
    counts = np.diff(rows.indptr)
    owner = np.repeat(np.arange(len(users)), counts)
    place = np.arange(len(owner)) - np.repeat(rows.indptr[:-1], counts)
    kept = np.arange(len(owner))
    if counts.max(initial=0) > MAX_POSITIVES:
        # The first MAX_POSITIVES of each user's items in random order, then in their own order
        # again: whoever has fewer items keeps them as if no heavy user were there.
        shuffled = np.lexsort((rng.random(len(owner)), owner))
        kept = np.sort(shuffled[place < MAX_POSITIVES])
        kept_counts = np.minimum(counts, MAX_POSITIVES)
        starts = np.cumsum(kept_counts) - kept_counts
        place = np.arange(len(kept)) - np.repeat(starts, kept_counts)
    width = int(places_of(counts).max(initial=1))
    items = np.zeros((len(users), width + num_negatives), dtype=np.int64)
    is_positive = np.zeros(items.shape, dtype=bool)
    is_negative = np.zeros(items.shape, dtype=bool)
    items[owner[kept], place] = rows.indices[kept]
    is_positive[owner[kept], place] = True
    if num_negatives:
        num_items = matrix.shape[1]
        negatives = rng.integers(num_items, size=(len(users), num_negatives))
        items[:, width:] = negatives
        drawn = np.arange(len(users))[:, None] * num_items + negatives
        is_negative[:, width:] = ~np.isin(drawn, owner * num_items + rows.indices)
    return UserBatch(
        items=torch.from_numpy(items),
        is_positive=torch.from_numpy(is_positive),
        is_negative=torch.from_numpy(is_negative),
    )
