"""How much two models differ, over users and over seeds: pure functions of numbers.

Units. A seed is a repetition of the whole run. The same person is often tested in several seeds, so
her values there are no independent observations: users are clusters. With one seed everything
reduces to the usual paired comparison over users, and nothing is known about other seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from simulations.result import Checked, finite_or_none

NUM_FLIPS = 4999
_FLIP_SEED = 0
_BLOCK = 250
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedMean(Checked):
    """A metric over seeds.

    Attributes:
        mean: over seeds of the mean over users; None where undefined.
        sd: standard deviation over seeds; None for one seed.
    """

    mean: float | None
    sd: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SeededGain(Checked):
    """One model minus another, on the same users.

    Attributes:
        mean: over seeds of the mean difference over users.
        stderr: root of the sum of the squares of the next two: users and seeds together. It is
            somewhat too large (a user's own luck in a seed is in both), never too small but for
            the few seeds. None if the first is; with one seed it is the first.
        stderr_users: standard error over users, each a cluster over her seeds; None below two.
        stderr_seeds: standard deviation over seeds of the mean difference, over the root of their
            number; None for one seed.
        p_value: of a two-sided sign-flip test over users (a user's differences in all her seeds
            are flipped together); does not cover seeds. None below two users, or not asked for.
        num_users: distinct users.
        num_seeds: seeds.
    """

    mean: float | None
    stderr: float | None
    stderr_users: float | None
    stderr_seeds: float | None
    p_value: float | None
    num_users: int
    num_seeds: int


def seed_mean(values: list[float]) -> SeedMean:
    """Mean and standard deviation of one value per seed."""
    if not values:
        return SeedMean(mean=None, sd=None)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return SeedMean(mean=finite_or_none(float(np.mean(values))), sd=finite_or_none(sd))


def seeded_gain(
    seeds: np.ndarray, users: np.ndarray, differences: np.ndarray, *, test: bool = False
) -> SeededGain:
    """Sum up paired differences, one per user and seed.

    Args:
        seeds: of each difference.
        users: the same number for the same person in all seeds.
        differences: one model's value minus the other's.
        test: compute the p value, too.
    """
    _, seed_places, per_seed = np.unique(seeds, return_inverse=True, return_counts=True)
    _, user_places = np.unique(users, return_inverse=True)
    num_seeds, num_users = len(per_seed), int(user_places.max(initial=-1)) + 1
    if not num_seeds:
        return SeededGain(
            mean=None, stderr=None, stderr_users=None, stderr_seeds=None, p_value=None,
            num_users=0, num_seeds=0,
        )  # fmt: skip
    weights = 1.0 / (num_seeds * per_seed[seed_places])
    seed_means = np.bincount(seed_places, differences) / per_seed
    centred = np.bincount(user_places, weights * (differences - seed_means[seed_places]))
    stderr_users = stderr_seeds = stderr = None
    if num_users > 1:
        stderr = stderr_users = math.sqrt(num_users / (num_users - 1) * float(centred @ centred))
    if num_seeds > 1:
        stderr_seeds = float(seed_means.std(ddof=1)) / math.sqrt(num_seeds)
        stderr = None if stderr_users is None else math.hypot(stderr_users, stderr_seeds)
    parts = np.bincount(user_places, weights * differences)
    return SeededGain(
        mean=float(seed_means.mean()),
        stderr=stderr,
        stderr_users=stderr_users,
        stderr_seeds=stderr_seeds,
        p_value=sign_flip_p_value(parts) if test and num_users > 1 else None,
        num_users=num_users,
        num_seeds=num_seeds,
    )


def sign_flip_p_value(parts: np.ndarray) -> float:
    """Chance that a sum this far from 0 arises if each part could as well have the other sign.

    Two-sided, by ``NUM_FLIPS`` random flips of a fixed seed, the observed signs counted in: it is
    at least 1 / (NUM_FLIPS + 1). Source: Edgington and Onghena 2007, Randomization Tests.
    """
    parts = parts[parts != 0.0]
    observed = abs(float(parts.sum())) * (1.0 - _ROUNDING)
    rng = np.random.default_rng(_FLIP_SEED)
    as_far, done = 1, 0
    while done < NUM_FLIPS:
        number = min(_BLOCK, NUM_FLIPS - done)
        bits = np.frombuffer(rng.bytes(number * (len(parts) // 8 + 1)), dtype=np.uint8)
        signs = np.unpackbits(bits.reshape(number, -1), axis=1)[:, : len(parts)]
        sums = 2.0 * (signs @ parts) - parts.sum()
        as_far += int(np.count_nonzero(np.abs(sums) >= observed))
        done += number
    return as_far / (NUM_FLIPS + 1)
