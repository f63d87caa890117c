"""Where noise and sampling coins come from: the operating system, or a seed in a simulation.

Floating point: noise is drawn in float64 and added to float32 sums, without a discrete grid, so
the attack of Mironov 2012 ("On significance of the least significant bits") is not excluded by
construction; the audit report says so.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_CHUNK = 1 << 20


class RandomSource(Protocol):
    """Randomness of one release, from :class:`SystemRandom` or :class:`SeededRandom`."""

    is_simulation: bool
    """True if an observer who knows the seed can predict the draws."""

    def gaussian(self, shape: tuple[int, ...], std: float) -> np.ndarray:
        """Independent N(0, ``std``^2) draws, float64."""

    def uniform(self, size: int) -> np.ndarray:
        """Independent draws from [0, 1), float64, shape [``size``]."""

    def seed(self) -> int:
        """A fresh 63-bit seed for randomness that carries no guarantee (negatives)."""


class SystemRandom:
    """Deployment: AES-256 in counter mode under a fresh key from ``os.urandom``.

    A new instance has a new key, so no two releases share a stream. Gaussians by Box and
    Muller 1958 from 53-bit uniforms in (0, 1].
    """

    is_simulation = False

    def __init__(self) -> None:
        """Draw the key; it is never stored or shown."""
        cipher = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(os.urandom(16)))
        self._stream = cipher.encryptor()

    def uniform(self, size: int) -> np.ndarray:
        """See :class:`RandomSource`."""
        words = np.frombuffer(self._stream.update(bytes(8 * size)), dtype=np.uint64)
        return (words >> np.uint64(11)) * 2.0**-53

    def gaussian(self, shape: tuple[int, ...], std: float) -> np.ndarray:
        """See :class:`RandomSource`."""
        size = int(np.prod(shape))
        out = np.empty(size + size % 2)
        for start in range(0, len(out), _CHUNK):
            pair = self.uniform(len(out[start : start + _CHUNK])).reshape(2, -1)
            radius = std * np.sqrt(-2.0 * np.log1p(-pair[0]))  # 1 - u lies in (0, 1]
            angle = 2.0 * np.pi * pair[1]
            out[start : start + _CHUNK] = np.concatenate(
                [radius * np.cos(angle), radius * np.sin(angle)]
            )
        return out[:size].reshape(shape)

    def seed(self) -> int:
        """See :class:`RandomSource`."""
        return int.from_bytes(os.urandom(8), "big") >> 1


class SeededRandom:
    """Simulation only: repeatable draws. Whoever knows the seed can remove the noise."""

    is_simulation = True

    def __init__(self, seed: int) -> None:
        """Start the stream of ``seed`` (see :func:`common.rng.derive_seed`)."""
        self._rng = np.random.default_rng(seed)

    def uniform(self, size: int) -> np.ndarray:
        """See :class:`RandomSource`."""
        return self._rng.random(size)

    def gaussian(self, shape: tuple[int, ...], std: float) -> np.ndarray:
        """See :class:`RandomSource`."""
        return std * self._rng.standard_normal(shape)

    def seed(self) -> int:
        """See :class:`RandomSource`."""
        return int(self._rng.integers(2**63))


def poisson_sample(num_users: int, sampling_rate: float, source: RandomSource) -> np.ndarray:
    """Include each user independently with probability ``sampling_rate``.

    Guarantee: exactly the sampler that :class:`common.privacy.mechanisms.SampledGaussian`
    prices; the sample may be empty, and then noise alone is released.

    Returns:
        sorted row numbers, int64, of random length.
    """
    if sampling_rate >= 1.0:
        return np.arange(num_users)
    return np.flatnonzero(source.uniform(num_users) < sampling_rate)
