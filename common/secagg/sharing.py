"""Shamir's secret sharing: any ``needed`` shares of a secret give it, fewer say nothing about it.

Shamir 1979, "How to share a secret", over the integers modulo a prime above 2^256.
"""

from __future__ import annotations

import secrets
from functools import lru_cache
from typing import TYPE_CHECKING

from common.errors import InvalidRelease

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SECRET_BYTES = 32
SHARE_BYTES = 33

_PRIME = 2**256 + 297


def split(secret: bytes, points: Sequence[int], needed: int) -> dict[int, bytes]:
    """Shares of ``secret`` (32 bytes) for each of ``points`` (different numbers from 1).

    Args:
        secret: what is shared; coefficients come from the operating system's generator.
        points: one for each holder.
        needed: shares that give the secret, 1 to the number of points.
    """
    if not 1 <= needed <= len(set(points)) or len(secret) != SECRET_BYTES or min(points) < 1:
        msg = f"cannot share {len(secret)} bytes among {len(points)} holders, {needed} needed"
        raise ValueError(msg)
    coefficients = [secrets.randbelow(_PRIME) for _ in range(needed - 1)]
    coefficients.append(int.from_bytes(secret, "big"))
    shares = {}
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value * point + coefficient) % _PRIME
        shares[point] = value.to_bytes(SHARE_BYTES, "big")
    return shares


def join(shares: Mapping[int, bytes], needed: int) -> bytes:
    """The secret that ``needed`` of the ``shares`` (by point) give.

    Whether it is the one that was shared is for the caller to check: wrong shares give a wrong one.

    Raises:
        InvalidRelease: if there are too few, or no 32 bytes have these shares.
    """
    if len(shares) < needed:
        msg = f"found {len(shares)} shares, {needed} are needed."
        raise InvalidRelease(msg)
    points = tuple(sorted(shares)[:needed])
    weights = _weights(points)
    value = sum(
        weight * int.from_bytes(shares[point], "big")
        for point, weight in zip(points, weights, strict=True)
    )
    secret = value % _PRIME
    if secret >= 2**256:
        msg = "the shares do not belong together."
        raise InvalidRelease(msg)
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights of the value at 0."""
    weights = []
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = above * other % _PRIME
                below = below * (other - point) % _PRIME
        weights.append(above * pow(below, -1, _PRIME) % _PRIME)
    return tuple(weights)
