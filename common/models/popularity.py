"""Popularity: what most users of the platform bought. The line every model has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def popularity_scores(interactions: csr_matrix) -> np.ndarray:
    """Number of users per item, float32, shape [num_items]. Local: it never leaves a platform."""
    return np.asarray(interactions.sum(axis=0), dtype=np.float32).ravel()
