"""Randomness as an argument: derived seeds for simulations, the operating system for deployment.

A simulation derives every stream from ``(seed, purpose, *place)``, so that the same seed
gives the same result whatever the order, the engine or the number of workers. Nothing here
touches a global generator.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, purpose: str, *place: str | int) -> int:
    """Return a 64-bit seed that is a function of ``seed``, ``purpose`` and ``place`` only.

    Two different argument lists give independent-looking seeds (BLAKE2b of their
    unambiguous encoding).

    Args:
        seed: the run's seed.
        purpose: what the stream is for, e.g. ``"split"`` or ``"poisson-sampling"``.
        place: where it is used, e.g. platform name and round.
    """
    text = "\x1f".join([str(seed), purpose, *(f"{type(p).__name__}:{p}" for p in place)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def derived_generator(seed: int, purpose: str, *place: str | int) -> np.random.Generator:
    """A numpy generator seeded by :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(seed, purpose, *place))
