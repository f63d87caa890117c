"""From what a run brought to item similarities, the form in which it joins a platform's score.

Post-processing of what was released: it has no price. Of federated item vectors only which items
they place close together is used: as a start for the platform's own training they did not help
(measured).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags

from client.posterior import posterior_means
from common.models.pairs import symmetric

if TYPE_CHECKING:
    from common.models.pairs import PairSum

_TINY = 1e-6  # of a sum without noise: what rounding leaves of the platform's own part

_MIN_STRENGTH = 1.0
"""Added to an item's sum over all pairs before it divides: little evidence stays little."""

_POWER = 4
_NEIGHBOURS = 200
_ROWS = 512


def similarity_of_pairs(pairs: PairSum, listing: np.ndarray) -> csr_matrix:
    """Which listed items go together on other platforms, as far as the noise lets one know.

    Args:
        pairs: the sum over the other platforms.
        listing: [n] catalogue rows of the platform's items, increasing.

    Returns:
        [n, n] float32, symmetric, not negative, with a zero diagonal.
    """
    places = np.minimum(np.searchsorted(listing, pairs.items), len(listing) - 1)
    known = np.flatnonzero(listing[places] == pairs.items)
    first, second = np.triu_indices(len(known), 1)
    sums = symmetric(pairs.total, len(pairs.items))[known[first], known[second]]
    if pairs.noise_std > 0:
        sums = posterior_means(sums, pairs.noise_std)
    kept = np.flatnonzero(sums > _TINY)
    rows, columns = (places[known[ends[kept]]] for ends in (first, second))
    half = coo_matrix((sums[kept], (rows, columns)), shape=(len(listing), len(listing)))
    return similarity((half + half.T).tocsr())


def similarity(sums: csr_matrix) -> csr_matrix:
    """Divide each pair's sum by the square roots of what its two items have in all.

    Args:
        sums: [n, n], symmetric, not negative, zero diagonal.
    """
    strength = np.asarray(sums.sum(axis=1)).ravel() + _MIN_STRENGTH
    scale = diags(strength**-0.5)
    scaled: csr_matrix = (scale @ sums @ scale).tocsr().astype(np.float32)
    return scaled


def similarity_of_vectors(vectors: np.ndarray) -> csr_matrix:
    """Cosine of item vectors to the power of four, where it is positive: close items only.

    Args:
        vectors: [n, dim], one row per listed item; a row of zeros is similar to nothing.

    Returns:
        [n, n] float32 with a zero diagonal and at most 200 entries in each row, the largest.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32)
    size, kept = len(unit), min(_NEIGHBOURS, len(unit))
    columns = np.empty((size, kept), dtype=np.int32)
    values = np.empty((size, kept), dtype=np.float32)
    for first in range(0, size, _ROWS):
        block = np.maximum(unit[first : first + _ROWS] @ unit.T, 0.0) ** _POWER
        places = np.arange(len(block))
        block[places, first + places] = 0.0
        best = np.sort(np.argpartition(block, size - kept, axis=1)[:, size - kept :], axis=1)
        columns[first : first + _ROWS] = best
        values[first : first + _ROWS] = np.take_along_axis(block, best, axis=1)
    starts = np.arange(0, size * kept + 1, kept)
    similar = csr_matrix((values.ravel(), columns.ravel(), starts), shape=(size, size))
    similar.eliminate_zeros()
    return similar
