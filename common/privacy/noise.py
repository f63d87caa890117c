"""The Gaussian mechanism on floating-point numbers: noise, then a grid.

In exact arithmetic a sum plus N(0, sigma^2) hides what was summed. In floating point the last bits
of ``sum + noise`` follow from both, and can tell neighbouring sums apart (Mironov 2012, "On
significance of the least significant bits for differential privacy"). So here

- sum and noise are float64, and noise has 63 random bits in radius and in angle;
- the result is rounded to a multiple of a power of two near sigma / 65,536, which is public and
  depends on sigma alone. About 2^36 different values of the noise fall on each point of the grid,
  so the bits that the attack reads are gone.

Rounding is post-processing of the noisy sum and costs nothing. What remains is that the noise is
computed, not exact: the probability of a grid point differs from the ideal one by a relative error
near 2^-36, which is not priced. This is not an exact discrete Gaussian (Canonne et al. 2020).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from common.errors import ConfigError
from common.privacy.randomness import CHUNK

if TYPE_CHECKING:
    from torch import Tensor

    from common.privacy.randomness import RandomSource

GRID_BITS = 16
"""The noise is 2^16 to 2^17 steps of the grid."""
_SMALLEST = 1e-30  # float32 ends near 1e-38


def grid_step(std: float) -> float:
    """Distance between neighbouring values of a noisy sum: a power of two."""
    return 2.0 ** (math.floor(math.log2(std)) - GRID_BITS)


def add_gaussian_noise_(total: Tensor, std: float, source: RandomSource) -> None:
    """Add independent N(0, ``std``^2) to each coordinate and round to the grid, in place.

    Guarantee: with ``std = z C`` and a sum that one unit moves by at most C in L2, the result is
    a post-processed Gaussian mechanism of noise multiplier z (Dwork and Roth 2014, theorem A.1).

    Args:
        total: float64, contiguous.
        std: standard deviation; 0 adds nothing and guarantees nothing.
        source: where the noise comes from.

    Raises:
        ConfigError: for a standard deviation at the ends of what float32 holds.
    """
    if std == 0.0:
        return
    if not _SMALLEST <= std <= 1.0 / _SMALLEST:
        msg = (
            f"noise: found a standard deviation of {std:g}, expected {_SMALLEST:g} to its inverse."
        )
        raise ConfigError(msg)
    step = grid_step(std)
    add_noise_in_steps_(total, std, step, source)
    total.mul_(step)  # a power of two: nothing is rounded


def add_noise_in_steps_(total: Tensor, std: float, step: float, source: RandomSource) -> None:
    """Add independent N(0, ``std``^2) to each number and make it a whole number of steps, in place.

    Args:
        total: float64, contiguous.
        std: standard deviation, positive.
        step: a power of two.
        source: where the noise comes from.
    """
    draws = torch.empty(CHUNK, dtype=torch.float64)  # allocated once: it stays in the cache
    for chunk in total.view(-1).split(CHUNK):
        # A power of two scales without rounding, so what is rounded is the sum of both.
        noise = source.gaussian(len(chunk), std / step, out=draws)
        torch.round(noise.add_(chunk, alpha=1.0 / step), out=chunk)
