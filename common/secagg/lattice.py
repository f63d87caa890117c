"""From noisy numbers to whole numbers modulo 2^32 or 2^64, with the Gaussian guarantee unbroken.

Each platform p has real numbers s_p (float64 sums over its users), adds Gaussian noise, and rounds
to a lattice of steps: Y_p = round((s_p + N(0, sigma^2)) / step). Only the sum of the Y_p is opened.

**Why the sum is priced as a Gaussian.** In units of the step, let X_p = s_p + g_p before rounding,
for the m platforms whose noise an observer does not know, and T the sum of the X_p. T is what the
Gaussian mechanism of variance m sigma^2 releases about the sum of the s_p. The sum of the Y_p is a
function of T and of the fractional parts F of X_1 .. X_(m-1). Given T, these X are Gaussian with
covariance sigma^2 (I - 11'/m), so by Poisson summation the density of F on the torus differs from 1
by at most the sum over whole k != 0 of exp(-2 pi^2 k' Cov k) <= sum exp(-2 pi^2 sigma^2 |k|^2 / m),
whatever the s_p are (:func:`rounding_divergence`). So F is uniform and independent of the data but
for a factor near 1, and what is opened is, but for that factor, a randomised function of T: it
costs what T costs, with and without sampling, and rounding adds nothing to the sensitivity. For m
= 1 it is a function of T outright.

The discrete Gaussian (Canonne, Kamath and Steinke 2020, arXiv:2004.00010) is made for sums that are
whole numbers already; there rounding comes before the noise and adds sqrt(d) steps to the
sensitivity of d numbers (Kairouz, Liu and Steinke 2021, arXiv:2102.06387, section 4).

**Nothing wraps.** The s_p are cut to what leaves room for K of them and for all noise that the
generator can make. Cutting each number brings two sums no farther apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.errors import ConfigError
from common.privacy.noise import GRID_BITS, add_noise_in_steps_
from common.privacy.randomness import MAX_DEVIATION

if TYPE_CHECKING:
    from torch import Tensor

    from common.privacy.randomness import RandomSource

BITS = (32, 64)
_EXACT_BITS = 52
"""Whole numbers up to 2^52 are computed exactly in float64."""
_ROOM = MAX_DEVIATION + 1.0
"""Standard deviations that are kept free for the noise."""
_FINE_BITS = 9
"""With 32 bits the noise of a platform is at least 2^9 steps: rounding adds 2e-7 of its variance"""
MIN_STEPS = 64.0
"""Least noise of one platform, in steps, that is accepted from anybody."""
MAX_STEPS = 2.0 ** (GRID_BITS + 2)
"""Most noise of one platform, in steps: no lattice is finer than half the grid of other releases.
In far finer steps computed noise takes few values of all, and a release shows which they are."""
MAX_DIVERGENCE = 1e-12
"""Most that rounding may add to epsilon."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lattice:
    """Multiples of 2^``exponent``, modulo 2^``bits`` of them."""

    bits: int
    """32 or 64."""
    exponent: int
    """The step is 2^exponent."""

    def __post_init__(self) -> None:
        """Refuse what no number fits into."""
        if self.bits not in BITS or not -120 <= self.exponent <= 120:
            msg = (
                f"lattice: found {self.bits} bits and exponent {self.exponent}, expected 32 or 64 "
                "and -120 to 120."
            )
            raise ConfigError(msg)

    @property
    def step(self) -> float:
        """Distance of neighbouring numbers."""
        return float(2.0**self.exponent)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of arrays of its numbers; little-endian on every machine."""
        return np.dtype(f"<u{self.bits // 8}")

    def check_number(self, number: int) -> None:
        """Refuse more platforms than there is room for."""
        if self.largest(number) < 2**20:
            msg = f"lattice: {self.bits} bits are not enough for {number} platforms."
            raise ConfigError(msg)

    def largest(self, number: int) -> int:
        """Most steps in a number of one of ``number`` platforms: all add up to half the modulus."""
        return min(((1 << (self.bits - 1)) - 1) // number, 1 << _EXACT_BITS)

    def check_noise(self, std: float, number: int, size: int) -> None:
        """Refuse a lattice on which the guarantee would not hold, or nothing would be left.

        Args:
            std: standard deviation of one platform's noise.
            number: of platforms.
            size: numbers in a release.

        Raises:
            ConfigError: saying which.
        """
        steps = std / self.step
        if steps < MIN_STEPS or rounding_divergence(steps, number, size) > MAX_DIVERGENCE:
            msg = (
                f"lattice: a platform's noise is {steps:.3g} steps, expected at least "
                f"{MIN_STEPS:g} and enough for {number} platforms: rounding would show the data."
            )
            raise ConfigError(msg)
        if _ROOM * steps > self.largest(number):
            msg = f"lattice: {self.bits} bits leave no room beside noise of {steps:.3g} steps."
            raise ConfigError(msg)
        if steps > MAX_STEPS:
            msg = (
                f"lattice: a platform's noise is {steps:.3g} steps, expected at most "
                f"{MAX_STEPS:g}: how it is computed would show the data."
            )
            raise ConfigError(msg)

    def bound(self, std: float, number: int) -> float:
        """What sums are cut to before noise, in absolute value, see :func:`noisy_lattice`."""
        return self.largest(number) * self.step - _ROOM * std

    def values(self, total: np.ndarray) -> np.ndarray:
        """What numbers modulo 2^bits stand for, float64: from minus to plus half the modulus."""
        signed = np.ascontiguousarray(total, dtype=self.dtype).view(f"<i{self.bits // 8}")
        numbers: np.ndarray = signed.astype(np.float64) * self.step
        return numbers


def choose_lattice(std: float, largest_sum: float, number: int) -> Lattice:
    """The finest lattice of 32 bits that holds ``number`` sums with their noise, or one of 64.

    Args:
        std: standard deviation of one platform's noise.
        largest_sum: public bound on the numbers of one platform's sum, without noise.
        number: of platforms.

    Raises:
        ConfigError: for noise that is 0 or too small, or sums that are too large.
    """
    if not (std > 0 and math.isfinite(std)):
        msg = f"secure aggregation: found noise of {std:g}, expected a positive number."
        raise ConfigError(msg)
    finest = math.floor(math.log2(std)) - GRID_BITS
    for bits in BITS:
        room = Lattice(bits=bits, exponent=0).largest(number)
        least = math.ceil(math.log2((largest_sum + _ROOM * std) / room))
        exponent = max(finest, least)
        if bits == BITS[-1] or std >= 2.0 ** (exponent + _FINE_BITS):
            break
    lattice = Lattice(bits=bits, exponent=exponent)
    lattice.check_noise(std, number, 1)
    return lattice


def noisy_lattice(
    total: Tensor, std: float, lattice: Lattice, number: int, source: RandomSource
) -> np.ndarray:
    """Add noise to a platform's sum and round it to the lattice; ``total`` is used up.

    Guarantee: see above. With every unit's part at most C in L2, the sum of what t platforms
    release is the Gaussian mechanism of standard deviation sqrt(t - c) ``std`` to whoever knows c
    of them, up to :func:`rounding_divergence`.

    Args:
        total: float64, contiguous, any shape.
        std: standard deviation of this platform's noise.
        lattice: of the sum.
        number: K, platforms that are asked.
        source: of the noise.

    Returns:
        whole numbers modulo 2^bits, of the shape of ``total``.
    """
    bound = lattice.bound(std, number)
    total.clamp_(-bound, bound)
    add_noise_in_steps_(total, std, lattice.step, source)
    signed: np.ndarray = total.numpy().astype(f"<i{lattice.bits // 8}")
    return signed.view(lattice.dtype)


def rounding_divergence(steps: float, number: int, size: int) -> float:
    """Most that rounding adds to epsilon (a max-divergence), for noise of so many ``steps``.

    Over whole k != 0 in m - 1 dimensions, sum exp(-a |k|^2) <= (1 + 3 exp(-a))^(m-1) - 1 for
    a = 2 pi^2 steps^2 / m >= 1; once for each number and on both sides of the ratio.

    Args:
        steps: standard deviation of one platform's noise, in steps.
        number: m, platforms in the sum.
        size: numbers in a release.
    """
    rate = 2.0 * math.pi**2 * steps * steps / number
    if rate < 1.0:
        return math.inf
    off = math.expm1((number - 1) * math.log1p(3.0 * math.exp(-rate)))
    return math.inf if off >= 0.5 else 2.0 * size * -math.log1p(-2.0 * off)
