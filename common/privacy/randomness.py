"""Where noise and sampling coins come from: the operating system, or a seed in a simulation.

One generator for both: the key stream of AES-256 in counter mode, turned into numbers. Only the
origin of the key differs.
"""

from __future__ import annotations

import hashlib
import math
import os
from typing import TYPE_CHECKING

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 16
"""Draws made at a time, so that they stay in the processor's cache."""

MAX_DEVIATION = 9.4
"""No draw of :meth:`RandomSource.gaussian` is farther out, in standard deviations."""

_KEY_BYTES = 32
_ZEROS = bytes(8 * CHUNK)


class RandomSource:
    """Randomness of one release; :class:`SystemRandom` or :class:`SeededRandom`."""

    is_simulation: bool
    """True if an observer who knows the seed can predict the draws."""

    def __init__(self, key: bytes) -> None:
        """Start the stream of ``key`` (32 bytes), at counter 0."""
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        self._block = bytearray(len(_ZEROS) + 15)  # the cipher wants room for one block more
        self._cosines = torch.empty(CHUNK // 2, dtype=torch.float64)

    def gaussian(self, size: int, std: float, out: Tensor | None = None) -> Tensor:
        """``size`` independent N(0, ``std``^2) draws, float64, in ``out`` if it is given.

        Box and Muller 1958, from uniforms with 63 bits (the radius reaches 9.35 standard
        deviations).
        """
        draws = torch.empty(size, dtype=torch.float64) if out is None else out[:size]
        for start in range(0, size, CHUNK):
            part = draws[start : start + CHUNK]
            half, odd = (len(part) + 1) // 2, len(part) % 2
            words = self._words(len(part) + odd)
            # An odd number below 2^63 is not zero, so its logarithm is finite.
            radius = part[:half].copy_(words[:half].bitwise_or_(1)).abs_().mul_(2.0**-63).log_()
            radius.mul_(-2.0 * std * std).sqrt_()
            angle = part[half:].copy_(words[half : len(part)]).mul_(math.pi * 2.0**-63)
            cosine = torch.cos(angle, out=self._cosines[: len(angle)])
            angle.sin_().mul_(radius[: len(angle)])
            radius[: len(angle)].mul_(cosine)
            if odd:
                radius[-1:].mul_(words[-1:].double().mul_(math.pi * 2.0**-63).cos_())
        return draws

    def uniform(self, size: int) -> np.ndarray:
        """``size`` independent draws from [0, 1) with 53 bits, float64."""
        draws = np.empty(size)
        for start in range(0, size, CHUNK):
            part = draws[start : start + CHUNK]
            words: np.ndarray = self._words(len(part)).numpy().view(np.uint64)
            np.multiply(words >> np.uint64(11), 2.0**-53, out=part)
        return draws

    def split(self) -> RandomSource:
        """An independent stream, keyed by this one: what is drawn from it moves nothing here."""
        child = RandomSource(self._words(_KEY_BYTES // 8).numpy().tobytes())
        child.is_simulation = self.is_simulation
        return child

    def seed(self) -> int:
        """A fresh 128-bit seed of another generator (for negatives): too many to go through.

        Draws of that generator shift from user to user when one of them leaves, so the guarantee
        takes them for independent; torch's generators, with 2^32 starts, are no such thing.
        """
        first, second = (int(word) & (2**64 - 1) for word in self._words(2).tolist())
        return first << 64 | second

    def _words(self, size: int) -> Tensor:
        """The next ``size`` (at most ``CHUNK``) 64-bit words of the stream, until the next call."""
        self._stream.update_into(memoryview(_ZEROS)[: 8 * size], self._block)
        return torch.frombuffer(self._block, dtype=torch.int64, count=size)


class SystemRandom(RandomSource):
    """Deployment: a fresh key from the operating system, so no two releases share a stream."""

    is_simulation = False

    def __init__(self) -> None:
        """Draw the key; it is never stored or shown."""
        super().__init__(os.urandom(_KEY_BYTES))


class SeededRandom(RandomSource):
    """Simulation only: repeatable draws. Whoever knows the seed can remove the noise."""

    is_simulation = True

    def __init__(self, seed: int) -> None:
        """Start the stream of ``seed`` (see :func:`common.rng.derive_seed`)."""
        super().__init__(hashlib.blake2b(str(seed).encode(), digest_size=_KEY_BYTES).digest())


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
