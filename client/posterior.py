"""From the noisy pair sum of other platforms to what one platform makes of it: post-processing.

The posterior treats each pair as either nothing or a positive sum, with shares that are fitted to
the noisy sums themselves (empirical Bayes: Efron 2010, Large-scale inference, chapters 1 and 2).
No step here has a price: it sees what was released, and the platform's own data stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize
from scipy.special import erfcx, expit, log_ndtr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

_CHUNK = 1 << 20
_BINS = 4000
_MIN_PROBABILITY = 0.02
"""Pairs that are less likely than this to be more than noise count as nothing."""
_LOG_SQRT_2PI = 0.5 * np.log(2 * np.pi)
_SQRT_HALF_PI, _SQRT_2 = (0.5 * np.pi) ** 0.5, 2.0**0.5


def posterior_means(noisy: np.ndarray, noise_std: float) -> FloatArray:
    """What each noisy sum is worth, given all of them: the posterior mean; 0 where it is noise.

    The model: a sum is 0 with probability 1 - p, else exponential with mean m; the noise is
    Gaussian. p and m maximise the likelihood of all the sums (type II).

    Args:
        noisy: [n], each a true sum >= 0 plus N(0, ``noise_std``^2).
        noise_std: standard deviation of the noise, > 0.
    """
    means = np.empty(len(noisy))
    if not len(noisy):
        return means
    share, rate = _fit_prior(noisy, noise_std)
    for chunk, part in _chunks(noisy, noise_std):
        # Given that there is something: a normal distribution cut off below 0. The ratio of its
        # mass to its density at 0 (Mills) gives its mean, and how likely it is.
        shifted = part - rate
        with np.errstate(over="ignore"):  # infinite far above 0, where there surely is something
            mills = _SQRT_HALF_PI * erfcx(-shifted / _SQRT_2)
            odds = share / (1.0 - share) * rate * mills
        probability = 1.0 / (1.0 + 1.0 / odds)
        probability[probability < _MIN_PROBABILITY] = 0.0
        means[chunk] = probability * np.maximum(shifted + 1.0 / mills, 0.0) * noise_std
    return means


def _chunks(noisy: np.ndarray, noise_std: float) -> Iterator[tuple[slice, FloatArray]]:
    """Runs of the sums in units of the noise, and where they are: what is computed stays small."""
    for first in range(0, len(noisy), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        yield chunk, noisy[chunk].astype(np.float64) / noise_std


def _fit_prior(noisy: np.ndarray, noise_std: float) -> tuple[float, float]:
    """Share of pairs that are something, and the rate of their sums in units of the noise."""
    middles, counts = _histogram(noisy, noise_std)
    spike = _log_spike(middles)

    def cost(parameters: FloatArray) -> float:
        share, rate = _prior(parameters)
        mixed = np.logaddexp(np.log1p(-share) + spike, np.log(share) + _log_slab(middles, rate))
        return -float(counts @ mixed) / float(counts.sum())

    starts = ((-3.0, 0.0), (-6.0, -1.2))
    found = [
        minimize(cost, start, method="Nelder-Mead", options={"maxiter": 200}) for start in starts
    ]
    return _prior(min(found, key=lambda result: float(result.fun)).x)


def _histogram(noisy: np.ndarray, noise_std: float) -> tuple[FloatArray, NDArray[np.int64]]:
    """Middles, in units of the noise, and counts of the bins that are not empty.

    Bins are equally wide in the inverse hyperbolic sine: narrow where the noise is, however far out
    the largest sum lies.
    """
    low, high = (np.arcsinh(np.float64(end) / noise_std) for end in (noisy.min(), noisy.max()))
    edges = np.histogram_bin_edges(np.empty(0), _BINS, (low, high))
    counts = np.zeros(_BINS, dtype=np.int64)
    for _, part in _chunks(noisy, noise_std):
        counts += np.histogram(np.arcsinh(part), edges)[0]
    return np.sinh(0.5 * (edges[:-1] + edges[1:]))[counts > 0], counts[counts > 0]


def _prior(parameters: FloatArray) -> tuple[float, float]:
    return float(expit(np.clip(parameters[0], -18.0, 4.0))), float(
        np.exp(np.clip(parameters[1], -7.0, 4.0))
    )


def _log_spike(values: FloatArray) -> FloatArray:
    """Log density of noise alone, in units of its standard deviation."""
    spike: FloatArray = -0.5 * values**2 - _LOG_SQRT_2PI
    return spike


def _log_slab(values: FloatArray, rate: float) -> FloatArray:
    """Log density of an exponential sum plus noise."""
    slab: FloatArray = np.log(rate) + 0.5 * rate**2 - rate * values + log_ndtr(values - rate)
    return slab
