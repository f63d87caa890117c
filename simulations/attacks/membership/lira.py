"""Membership inference by likelihood ratio, with shadow runs. Pure: scores in, guesses out.

Carlini et al. 2022, "Membership inference attacks from first principles", arXiv:2112.03570,
section 4 (online attack): each run is attacked with all the others as its shadows.
"""

from __future__ import annotations

import numpy as np

FEWEST_SHADOWS = 16
"""With fewer on a side, records share one variance (section 4.2 of the paper)."""
FEWEST_RUNS = 4


def likelihood_ratios(scores: np.ndarray, is_in: np.ndarray) -> np.ndarray:
    """How much likelier each record's score in a run is if it was in, given the other runs.

    A record's scores in and out are taken for Gaussians, whose means (and, with enough runs,
    variances) follow from the runs other than the one that is attacked. A record that the others
    have on one side only is not guessed: its ratio is 0.

    Args:
        scores: [runs, records], at least ``FEWEST_RUNS`` runs.
        is_in: [runs, records] bool.

    Returns:
        [runs, records] float64, logarithms, higher for in.

    Raises:
        ValueError: if there are too few runs.
    """
    if len(scores) < FEWEST_RUNS:
        raise ValueError(f"found {len(scores)} runs, expected at least {FEWEST_RUNS}")
    inside, outside = (_others(scores, side) for side in (is_in, ~is_in))
    count = np.minimum(inside[0], outside[0])
    shared = _pooled_variance(scores, is_in)
    log_ratio = np.zeros(scores.shape)
    for sign, (number, mean, variance) in ((1.0, inside), (-1.0, outside)):
        own = np.where(count >= FEWEST_SHADOWS, variance, shared[:, None])
        # A mean of few runs is itself uncertain.
        spread = np.maximum(own * (1 + 1 / np.maximum(number, 1)), 1e-12)
        log_ratio += sign * -0.5 * (np.square(scores - mean) / spread + np.log(spread))
    return np.where(count > 0, log_ratio, 0.0)


def _others(scores: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean and variance of each record's scores on one side, in all runs but each one."""
    marked = np.where(side, scores, 0.0)
    number = side.sum(axis=0) - side
    safe = np.maximum(number, 1)
    mean = (marked.sum(axis=0) - marked) / safe
    squares = (np.square(marked).sum(axis=0) - np.square(marked)) / safe - np.square(mean)
    return number, mean, np.maximum(squares, 0.0) * safe / np.maximum(number - 1, 1)


def _pooled_variance(scores: np.ndarray, is_in: np.ndarray) -> np.ndarray:
    """One variance of all records around their own means, in all runs but each one: [runs]."""
    variances = np.empty(len(scores))
    for run in range(len(scores)):
        rest = np.arange(len(scores)) != run
        squares = degrees = 0.0
        for side in (is_in[rest], ~is_in[rest]):
            number = side.sum(axis=0)
            mean = np.where(side, scores[rest], 0.0).sum(axis=0) / np.maximum(number, 1)
            squares += float((np.square(scores[rest] - mean) * side).sum())
            degrees += float(np.maximum(number - 1, 0).sum())
        variances[run] = squares / max(degrees, 1.0)
    return variances
