"""What an honest platform releases is within the public bound; what is well beyond is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from client.sums import count_sum, noisy, pair_sum
from client.trainer import TrainingPlan, train_round
from client.user_vectors import UserVectors
from common.models.ncf import NcfConfig, initialise
from common.models.pairs import num_pairs
from common.privacy.bounds import sum_norm_bound, sum_number_bounds, update_norm_bound
from common.privacy.randomness import SeededRandom

USERS, ITEMS = 60, 20


def baskets(seed: int = 0) -> csr_matrix:
    rng = np.random.default_rng(seed)
    return csr_matrix((rng.random((USERS, ITEMS)) < 0.2).astype(np.float32))


@pytest.mark.parametrize("noise", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("seed", range(5))
def test_honest_sums_are_within(noise: float, seed: int) -> None:
    weights = np.ones(ITEMS, np.float32)
    for total in (count_sum(baskets(seed)), pair_sum(baskets(seed), weights)):
        release = noisy(total, noise, SeededRandom(seed))
        assert np.linalg.norm(release) <= sum_norm_bound(USERS, noise_std=noise, size=total.size)
        low, high = sum_number_bounds(USERS, noise_std=noise, size=total.size)
        assert low <= release.min()
        assert release.max() <= high


def test_the_bound_of_a_sum_is_reached_by_users_who_are_all_alike() -> None:
    # Everybody bought the same two items: no smaller bound would do.
    alike = csr_matrix(np.tile([[1.0, 1.0, 0.0]], (USERS, 1)))
    weights = np.ones(3, np.float32)
    norm = np.linalg.norm(pair_sum(alike, weights))
    assert norm == pytest.approx(sum_norm_bound(USERS, noise_std=0.0, size=num_pairs(3)), rel=1e-5)


@pytest.mark.parametrize(("rate", "steps", "noise"), [(1.0, 1, 0.0), (0.5, 3, 0.0), (0.5, 3, 2.0)])
def test_honest_updates_are_within(rate: float, steps: int, noise: float) -> None:
    config = NcfConfig(dim=4)
    model = initialise(config, ITEMS, torch.Generator().manual_seed(0))
    shared = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    plan = TrainingPlan(
        clipping_norm=0.01,  # so small that everybody is clipped
        noise_std=noise * 0.01,
        sampling_rate=rate,
        local_steps=steps,
        denominator=rate * 50,
        learning_rate=1.5,
        user_steps=1,
        dropout=0.5,
    )
    vectors = UserVectors.initial(USERS, config.user_dim, SeededRandom(1))
    update, _ = train_round(config, shared, vectors, baskets(), plan, SeededRandom(2))
    norm = math.sqrt(sum(float(np.square(array).sum()) for array in update.values()))
    bound = update_norm_bound(
        1.001 * USERS,  # slack for float32
        clipping_norm=plan.clipping_norm,
        noise_std=plan.noise_std,
        sampling_rate=rate,
        steps=steps,
        learning_rate=plan.learning_rate,
        denominator=plan.denominator,
        size=sum(array.size for array in update.values()),
    )
    assert 0.05 * bound < norm <= bound


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_noise_alone_is_within_and_a_tenth_more_soon_is_not(size: int) -> None:
    draws = np.random.default_rng(size).standard_normal((2000, size))
    largest = np.linalg.norm(draws, axis=1).max()
    bound = sum_norm_bound(0, noise_std=1.0, size=size)
    assert largest < bound
    assert bound < math.sqrt(size) + 8.1 + 0.001 * size
    low, high = sum_number_bounds(0, noise_std=1.0, size=size)
    assert low < draws.min() < draws.max() < high
    assert high < 12.0
