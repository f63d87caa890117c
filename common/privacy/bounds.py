"""How large an honest release can be: public bounds, from what was asked for and nothing else.

A release is a sum of bounded parts of users, plus Gaussian noise. Each bound below is passed by an
honest platform with probability below ``2e-14`` (e^-32 for the noise, and for the sampling), if it
has at most ``num_users`` users. They are for whoever adds releases up, and cost no privacy.

Noise of d coordinates: its L2 norm exceeds sqrt(d) + t, and its largest coordinate
sqrt(2 ln d) + t, each in standard deviations, with probability at most e^(-t^2/2), because both are
1-Lipschitz (Boucheron, Lugosi and Massart 2013, "Concentration inequalities", theorem 5.6).
"""

from __future__ import annotations

import math

_DEVIATIONS = 8.0
_ROUNDING = 1.001  # of the noise: its grid (2^-17 standard deviations) and float32


def sum_norm_bound(num_users: float, *, noise_std: float, size: int) -> float:
    """Largest L2 norm of a private sum of :mod:`client.sums`: every part has a norm of at most 1.

    Args:
        num_users: users of the platform at most.
        noise_std: standard deviation of the noise in each number of this release.
        size: numbers in it.
    """
    return num_users + _noise_norm(noise_std, size)


def sum_number_bounds(num_users: float, *, noise_std: float, size: int) -> tuple[float, float]:
    """Least and largest number of a private sum: what a user adds to one is from 0 to 1.

    Args:
        num_users: users of the platform at most.
        noise_std: standard deviation of the noise in each number of this release.
        size: numbers in it.
    """
    noise = _ROUNDING * noise_std * (math.sqrt(2.0 * math.log(max(size, 1))) + _DEVIATIONS)
    return -noise, num_users + noise


def update_norm_bound(
    num_users: float,
    *,
    clipping_norm: float,
    noise_std: float,
    sampling_rate: float,
    steps: int,
    learning_rate: float,
    denominator: float,
    size: int,
) -> float:
    """Largest L2 norm of the update of a round, as :func:`client.trainer.train_round` makes it.

    Each of ``steps`` moves the parameters by learning_rate / denominator times a sum over the users
    who were sampled, each clipped to C, plus fresh noise. The rounding of parameters to float32 is
    not in it; whoever compares leaves some slack in ``num_users``.

    Args:
        num_users: users of the platform at most.
        clipping_norm: C, bound on the norm of one user's gradient.
        noise_std: standard deviation of this platform's noise in each coordinate of a sum.
        sampling_rate: q, of the Poisson sample of users in each step.
        steps: noisy steps.
        learning_rate: length of a step.
        denominator: public constant that every sum is divided by.
        size: shared parameters.
    """
    mean = sampling_rate * num_users
    # Bernstein's inequality: a Poisson sample is larger with probability below e^-32.
    sampled = min(num_users, mean + 8.0 * math.sqrt(mean) + 32.0)
    total = steps * sampled * clipping_norm + math.sqrt(steps) * _noise_norm(noise_std, size)
    return learning_rate / denominator * total


def _noise_norm(noise_std: float, size: int) -> float:
    return _ROUNDING * noise_std * (math.sqrt(size) + _DEVIATIONS)
