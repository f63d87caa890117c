"""Sums over a platform's users, made to be released once with noise: counts of items and of pairs.

Every user contributes one vector whose L2 norm is at most 1, by construction: what she did is
divided by its own norm, so nobody is clipped and nothing depends on anybody else. A part is made of
whole numbers, in units of 2^-40 and rounded towards zero, and parts are added as whole numbers:

- her part is the same whoever else is there, and the order of users does not matter;
- the sum with her differs from the sum without her by her part, exactly.

So ``count_sum(...) + N(0, sigma^2)`` is a Gaussian mechanism of noise multiplier sigma under adding
or removing one user with all her interactions (:func:`noisy`). A whole number is below 2^63 for up
to ``MAX_USERS`` users. It becomes a float64 at last: exactly for sums up to 8,192, and beyond with
the 53 bits that adding the noise keeps as well.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from common.errors import DataError
from common.models.pairs import num_pairs, pair_starts
from common.privacy.noise import add_gaussian_noise_

if TYPE_CHECKING:
    from common.privacy.randomness import RandomSource

UNIT_BITS = 40
"""A user's part is in units of 2^-40; what a pair has is a product of two numbers of 20 bits."""

MAX_USERS = 2**23 - 1
"""Beyond, a sum of parts could reach 2^63."""

_BELOW = 1.0 - 1e-12
"""Float64 is off by less for up to ``MAX_PAIRED_ITEMS`` items: see :func:`_factors`."""

_CELLS_IN_BLOCK = 1 << 21
"""Pairs whose sums are held densely at a time."""


def on_items(interactions: sp.csr_matrix, listing: np.ndarray, items: np.ndarray) -> sp.csr_matrix:
    """Restrict interactions to ``items``; what the platform does not list stays empty.

    Args:
        interactions: [num_users, num_listed].
        listing: [num_listed] catalogue rows of the columns, increasing.
        items: [m] catalogue rows, increasing.

    Returns:
        [num_users, m], with columns in the order of ``items``.
    """
    places = np.minimum(np.searchsorted(listing, items), len(listing) - 1)
    is_listed = listing[places] == items
    kept = interactions[:, places[is_listed]].tocsr()
    columns = np.flatnonzero(is_listed)[kept.indices]
    shape = (interactions.shape[0], len(items))
    return sp.csr_matrix((kept.data, columns, kept.indptr), shape=shape)


def count_sum(interactions: sp.csr_matrix) -> np.ndarray:
    """Sum of the users' counts: one who has n of the items gives each of them 1/sqrt(n).

    Args:
        interactions: [num_users, m]; whatever is not zero is an interaction.

    Returns:
        [m] float64.
    """
    own = _distinct(interactions)
    sizes = np.diff(own.indptr)
    kinds, kind_of = np.unique(sizes, return_inverse=True)
    # floor(2^40 / sqrt(n)), in whole numbers: n of them squared are at most 2^80.
    each = [math.isqrt((1 << 2 * UNIT_BITS) // int(n)) if n else 0 for n in kinds]
    parts = np.array(each, dtype=np.int64)[kind_of]
    total = np.zeros(own.shape[1], dtype=np.int64)
    np.add.at(total, own.indices, np.repeat(parts, sizes))
    return total * 2.0**-UNIT_BITS


def pair_sum(interactions: sp.csr_matrix, weights: np.ndarray) -> np.ndarray:
    """Sum of the users' pairs: each pair of her items gets w_i w_j, divided by their L2 norm.

    Whoever has fewer than two of the items contributes nothing.

    Args:
        interactions: [num_users, m]; whatever is not zero is an interaction.
        weights: [m] public weights from ``MIN_WEIGHT`` to 1.

    Returns:
        [m (m-1) / 2] float64, strict upper triangle, row by row.
    """
    own = _distinct(interactions)
    num_items = own.shape[1]
    own = own[np.flatnonzero(np.diff(own.indptr) >= 2)]
    # Unsigned: squares on the diagonal, which nobody asks for, may pass 2^64 and wrap around.
    factors = sp.csr_matrix((_factors(own, weights), own.indices, own.indptr), shape=own.shape)
    by_column = factors.tocsc()
    total = np.zeros(num_pairs(num_items), dtype=np.float64)
    starts = pair_starts(num_items)
    rows_in_block = max(1, _CELLS_IN_BLOCK // num_items)
    for first in range(0, num_items - 1, rows_in_block):
        rows = by_column[:, first : first + rows_in_block].T
        block = (rows @ factors[:, first:]).toarray()
        for place, sums in enumerate(block):
            row = first + place
            end = starts[row] + num_items - 1 - row
            np.multiply(sums[place + 1 :], 2.0**-UNIT_BITS, out=total[starts[row] : end])
    return total


def noisy(total: np.ndarray, std: float, source: RandomSource) -> np.ndarray:
    """Make a sum a release: add N(0, ``std``^2) to every number of it, in place; float32.

    Guarantee: with parts of L2 norm at most 1 this is
    ``SampledGaussian(noise_multiplier=std, sampling_rate=1, steps=1)`` over the users.
    """
    add_gaussian_noise_(torch.from_numpy(total), std, source)
    return total.astype(np.float32)


def _factors(own: sp.csr_matrix, weights: np.ndarray) -> np.ndarray:
    """For each interaction a whole number q_i, so that q_i q_j are a user's pairs in 2^-40.

    With e = sum over i < j of (w_i w_j)^2, a pair has w_i w_j / sqrt(e) = (s w_i) (s w_j), where
    s = e^(-1/4). All terms of e are positive and n items mean 2n roundings in it, so that s w_i is
    off by less than (n + 4) 2^-53, relatively; ``_BELOW`` is more, hence q_i <= 2^20 s w_i exactly.
    """
    exact = weights.astype(np.float64)[own.indices]
    squares = exact * exact
    sizes = np.diff(own.indptr)
    sums, pairs = np.zeros((2, own.shape[0]))
    users = np.arange(own.shape[0])
    # One item of each user at a time: her numbers are rounded in the order of her own items only.
    for place in range(int(sizes.max(initial=0))):
        users = users[sizes[users] > place]
        square = squares[own.indptr[users] + place]
        pairs[users] += square * sums[users]
        sums[users] += square
    scales = 2.0 ** (UNIT_BITS // 2) * _BELOW / np.sqrt(np.sqrt(pairs))
    factors: np.ndarray = np.floor(np.repeat(scales, sizes) * exact).astype(np.uint64)
    return factors


def _distinct(interactions: sp.csr_matrix) -> sp.csr_matrix:
    """Each pair of user and item once, in order."""
    if interactions.shape[0] > MAX_USERS:
        raise DataError(
            "too many users for exact sums",
            source="interactions",
            found=f"{interactions.shape[0]}",
            expected=f"at most {MAX_USERS}",
        )
    own = sp.csr_matrix(interactions, copy=True)
    own.sum_duplicates()
    own.eliminate_zeros()
    return own
