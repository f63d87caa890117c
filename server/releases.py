"""What a release may be at most: exact arrays, and what an honest platform of its size could send.

Array shapes, types and finite values are checked in :mod:`common.models.partition`, the size of
numbers here, by the bounds in :mod:`common.privacy.bounds`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from common.errors import InvalidRelease
from common.models.partition import check_shared, check_sum
from common.privacy.bounds import sum_norm_bound, sum_number_bounds, update_norm_bound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.messages import SumRequest, TrainRequest
    from common.models.partition import Arrays

_CHUNK = 1 << 20
_HEADER = 4096
"""Bytes of an array's name and header, at most."""


def norm_of(arrays: Mapping[str, np.ndarray]) -> float:
    """L2 norm of all arrays together."""
    total = 0.0
    for array in arrays.values():
        flat = array.reshape(-1)
        for first in range(0, flat.size, _CHUNK):
            chunk = flat[first : first + _CHUNK].astype(np.float64)
            total += float(chunk @ chunk)
    return math.sqrt(total)


def release_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of a release of such float32 arrays, at most."""
    return sum(4 * math.prod(shape) + _HEADER for shape in shapes.values())


def check_update(
    arrays: Arrays,
    request: TrainRequest,
    *,
    num_items: int,
    num_users: float,
    max_norm: float | None,
) -> Arrays:
    """Return the release of a round if it can be an honest one.

    Args:
        arrays: the release.
        request: what the platform was asked for.
        num_items: items in the catalogue.
        num_users: users of the platform at most.
        max_norm: the operator's own limit, if any.

    Raises:
        InvalidRelease: as :func:`check_shared`, or if its norm is too large.
    """
    checked = check_shared(arrays, request.model, num_items)
    bound = update_norm_bound(
        num_users,
        clipping_norm=request.clipping_norm,
        noise_std=request.noise_std,
        sampling_rate=request.sampling_rate,
        steps=request.local_steps,
        learning_rate=request.learning_rate,
        denominator=request.denominator,
        size=sum(array.size for array in checked.values()),
    )
    _check_norm(checked, bound if max_norm is None else min(bound, max_norm))
    return checked


def check_sum_release(
    arrays: Arrays, request: SumRequest, *, num_asked: int, num_users: float
) -> Arrays:
    """Return the release of a sum if it can be an honest one.

    Args:
        arrays: the release.
        request: what the platform was asked for.
        num_asked: items that it was asked for.
        num_users: users of the platform at most.

    Raises:
        InvalidRelease: as :func:`check_sum`, or if a number or the norm is out of bounds.
    """
    checked = check_sum(arrays, request.quantity, num_asked)
    numbers = checked["sum"]
    noise_std = request.noise_std
    low, high = sum_number_bounds(num_users, noise_std=noise_std, size=numbers.size)
    least, largest = float(numbers.min()), float(numbers.max())
    if not (least >= low and largest <= high):
        msg = (
            f"sum: found numbers from {least:.4g} to {largest:.4g}; a platform of "
            f"the declared population sends from {low:.4g} to {high:.4g}."
        )
        raise InvalidRelease(msg)
    _check_norm(checked, sum_norm_bound(num_users, noise_std=noise_std, size=numbers.size))
    return checked


def _check_norm(arrays: Arrays, bound: float) -> None:
    norm = norm_of(arrays)
    if not norm <= bound:
        msg = (
            f"norm: found {norm:.4g}; a platform of the declared population sends at most "
            f"{bound:.4g}."
        )
        raise InvalidRelease(msg)
