"""Sum and mean of releases, one at a time: memory does not grow with the number of platforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from common.models.partition import Arrays

_LOWEST = -149  # 2^-149 is the smallest number of float32
_WIDTH = 32
_NUM_BINS = 9  # up to 2^139; float32 ends at 2^128
_CHUNK = 1 << 16  # numbers that are taken apart at a time: they stay in the cache


class ExactSum:
    """Sum of float32 arrays of one shape, exact and so the same in whatever order they come.

    Every number is cut into pieces of 32 bits, and equal places are added in float64, which is
    exact for up to 2^21 arrays. A place takes 8 bytes for each number of the array once one of them
    needs it: two or three places in practice, nine at most (the "pre-rounded" reproducible sum of
    Demmel and Nguyen 2015, "Parallel reproducible summation", with bins at fixed exponents).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Start with zeros."""
        self._shape = shape
        self._bins: dict[int, np.ndarray] = {}

    def add(self, array: np.ndarray) -> None:
        """Add finite float32 numbers of the sum's shape.

        Raises:
            ValueError: for another shape or type.
        """
        if array.shape != self._shape or array.dtype != np.float32:
            msg = f"found {array.dtype} {array.shape}, expected float32 {self._shape}"
            raise ValueError(msg)
        flat = array.reshape(-1)
        for first in range(0, flat.size, _CHUNK):
            part = slice(first, first + _CHUNK)
            self._add_chunk(part, flat[part].astype(np.float64))

    def _add_chunk(self, part: slice, rest: np.ndarray) -> None:
        largest = float(np.abs(rest).max())
        for place in reversed(range(_NUM_BINS)):
            unit = 2.0 ** (_LOWEST + _WIDTH * place)
            if largest < unit:
                continue
            piece = np.trunc(rest / unit) * unit
            if place not in self._bins:
                self._bins[place] = np.zeros(int(np.prod(self._shape)), dtype=np.float64)
            self._bins[place][part] += piece
            rest = rest - piece
            largest = float(np.abs(rest).max())

    def total(self) -> np.ndarray:
        """The sum in float64, off by rounding: the same for the same arrays in any order."""
        total = np.zeros(int(np.prod(self._shape)), dtype=np.float64)
        for place in sorted(self._bins, reverse=True):
            total += self._bins[place]
        return total.reshape(self._shape)


class StreamingSum:
    """Sum with uniform weights: no weight can depend on anyone's data.

    Exact, so that neither result depends on the order of arrival, not even in its last bit.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._sums: dict[str, ExactSum] = {}
        self.count = 0

    def add(self, release: Arrays) -> None:
        """Add one release of finite float32 arrays; all must have the same names and shapes."""
        for name, array in release.items():
            if name not in self._sums:
                self._sums[name] = ExactSum(array.shape)
            self._sums[name].add(array)
        self.count += 1

    def total(self) -> Arrays:
        """The sum, float32."""
        return {name: added.total().astype(np.float32) for name, added in self._sums.items()}

    def mean(self) -> Arrays:
        """The mean, float32.

        Raises:
            ValueError: if nothing was added.
        """
        if self.count == 0:
            msg = "the mean of no releases is undefined"
            raise ValueError(msg)
        return {
            name: (added.total() / self.count).astype(np.float32)
            for name, added in self._sums.items()
        }
