"""Means that a few hostile platforms cannot move at will: Flower's median, trimmed mean and Krum.

They need all releases of a round in memory, and each one by itself: under secure aggregation there
is only the sum. What they cost: an item that fewer than half of the platforms list has a median of
zero, since others release zeros for it; a trimmed mean cuts it likewise; and Krum takes one
platform's noisy release for all. What they prevent, and what not:
``tests/benchmarks/promotion.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg

if TYPE_CHECKING:
    from common.models.partition import Arrays
    from server.config import AggregationName


def releases_needed(aggregation: AggregationName, max_hostile: int) -> int:
    """Releases below which ``max_hostile`` platforms could move the result at will.

    Median and trimmed mean: Yin et al. 2018, arXiv:1803.01498. Krum: Blanchard et al. 2017,
    arXiv:1703.02757, proposition 4.2.
    """
    if aggregation == "mean":
        return 1
    return 2 * max_hostile + (3 if aggregation == "krum" else 1)


class RobustMean:
    """Keeps the releases of a round and combines them; the order of arrival plays no part."""

    def __init__(self, aggregation: AggregationName, max_hostile: int) -> None:
        """Start empty.

        Args:
            aggregation: ``median``, ``trimmed-mean`` or ``krum``.
            max_hostile: platforms that may lie: so many are cut at each end, or expected by Krum.
        """
        self._aggregation = aggregation
        self._max_hostile = max_hostile
        self._releases: list[Arrays] = []

    @property
    def count(self) -> int:
        """Releases so far."""
        return len(self._releases)

    def add(self, release: Arrays) -> None:
        """Keep one release; all must have the same names and shapes."""
        self._releases.append(release)

    def mean(self) -> Arrays:
        """What is taken for the mean, float32.

        Raises:
            ValueError: for fewer releases than :func:`releases_needed`.
        """
        if self.count < releases_needed(self._aggregation, self._max_hostile):
            msg = f"{self._aggregation} of {self.count} releases with {self._max_hostile} hostile"
            raise ValueError(msg)
        # By content: where Krum finds two equally good, the order of arrival must not decide.
        ordered = sorted(self._releases, key=lambda r: [a.tobytes() for a in r.values()])
        # Flower weighs by examples; here all count alike: numbers of users are nobody's business.
        results = [(list(release.values()), 1) for release in ordered]
        if self._aggregation == "median":
            combined = aggregate_median(results)
        elif self._aggregation == "trimmed-mean":
            # Flower cuts int(share * count) at each end: exactly max_hostile.
            combined = aggregate_trimmed_avg(results, (self._max_hostile + 0.25) / self.count)
        else:
            combined = aggregate_krum(results, self._max_hostile, to_keep=0)
        return {
            name: np.asarray(array, dtype=np.float32)
            for name, array in zip(ordered[0], combined, strict=True)
        }
