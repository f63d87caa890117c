"""Sum and mean of releases, one at a time: memory does not grow with the number of platforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from common.models.partition import Arrays


class StreamingSum:
    """Sum with uniform weights: no weight can depend on anyone's data.

    Sums in float64, so that the order of arrival changes the float32 result by rounding at most.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._sums: dict[str, np.ndarray] = {}
        self.count = 0

    def add(self, release: Arrays) -> None:
        """Add one release; all must have the same names and shapes."""
        for name, array in release.items():
            if name in self._sums:
                self._sums[name] += array
            else:
                self._sums[name] = array.astype(np.float64)
        self.count += 1

    def total(self) -> Arrays:
        """The sum, float32."""
        return {name: total.astype(np.float32) for name, total in self._sums.items()}

    def mean(self) -> Arrays:
        """The mean, float32.

        Raises:
            ValueError: if nothing was added.
        """
        if self.count == 0:
            msg = "the mean of no releases is undefined"
            raise ValueError(msg)
        return {name: (total / self.count).astype(np.float32) for name, total in self._sums.items()}
