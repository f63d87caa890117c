"""What leaves a platform: noise as accounted on every array, one user's part bounded.

The checks are in tests/laws/rounds.py; that they reject planted bugs is in planted_bugs/.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import client.trainer
from client.trainer import train_round
from client.user_vectors import UserVectors
from common.privacy.randomness import SeededRandom, SystemRandom
from tests.laws.rounds import (
    GMF,
    NEUMF,
    NUM_ITEMS,
    NUM_USERS,
    PLAN,
    STD,
    NewSource,
    check_an_empty_sample_releases_noise,
    check_chunks_are_independent,
    check_noise_is_as_accounted,
    check_noise_is_fresh,
    check_one_user_moves_it_by_her_bounded_part,
    check_steps_add_up,
    noise_of,
    purchases,
    release,
)
from tests.laws.training import ENGINES, check_gaussian, difference, model_id, norm, random_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.models.ncf import NcfConfig
    from common.privacy.engines import ClippingEngine
    from common.privacy.randomness import RandomSource

both_sources = pytest.mark.parametrize("new_source", [SystemRandom, SeededRandom])
both_models = pytest.mark.parametrize("config", [GMF, NEUMF], ids=model_id)


@both_models
@both_sources
@pytest.mark.parametrize(
    "check",
    [
        check_noise_is_as_accounted,
        check_steps_add_up,
        check_noise_is_fresh,
        check_chunks_are_independent,
        check_an_empty_sample_releases_noise,
    ],
)
def test_noise_keeps_its_law(
    check: Callable[[NcfConfig, NewSource], None], config: NcfConfig, new_source: NewSource
) -> None:
    check(config, new_source)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_user_moves_the_release_by_her_bounded_part(engine: ClippingEngine) -> None:
    check_one_user_moves_it_by_her_bounded_part(GMF, SeededRandom, engine)


def test_the_noise_does_not_know_how_many_users_there_are() -> None:
    """Same seed, other users: the same noise, to the grid that it is rounded to."""
    noises = []
    for users in ([0], [0, 3, 7, 11]):
        silent = release(GMF, replace(PLAN, noise_std=0.0), SeededRandom(5), users)
        noises.append(difference(release(GMF, PLAN, SeededRandom(5), users), silent))
    assert norm(difference(*noises)) <= 1e-5 * norm(noises[0])


def test_only_sampled_users_take_part_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def sample(num_users: int, rate: float, source: RandomSource) -> np.ndarray:
        asked.append((num_users, rate, source.is_simulation))
        return np.array([[1], [1, 4], []][len(asked) - 1], dtype=np.int64)

    monkeypatch.setattr(client.trainer, "poisson_sample", sample)
    shared = {
        name: p.detach().numpy()
        for name, p in random_model(GMF, 0, num_items=NUM_ITEMS).named_parameters()
    }
    before = UserVectors.initial(NUM_USERS, GMF.user_dim, SeededRandom(1))
    untouched = before.copy()
    plan = replace(PLAN, local_steps=3, sampling_rate=0.25)
    everyone = purchases(list(range(NUM_USERS)))
    _, after = train_round(GMF, shared, before, everyone, plan, SeededRandom(0))
    assert asked == [(NUM_USERS, 0.25, True)] * 3
    changed = (after.values != before.values).any(1)
    assert np.flatnonzero(changed).tolist() == [1, 4]
    assert after.num_steps[[1, 4]].tolist() == [2 * plan.user_steps, plan.user_steps]
    assert torch.equal(before.values, untouched.values)


@both_models
@pytest.mark.parametrize("dropout", [0.5, 0.9])
def test_a_user_is_bounded_and_noised_whatever_is_dropped_out(
    config: NcfConfig, dropout: float
) -> None:
    """What is kept is scaled up, so a bound that is applied before would not hold."""
    plan = replace(PLAN, dropout=dropout)
    bound = plan.clipping_norm * plan.learning_rate / plan.denominator
    silent = replace(plan, noise_std=0.0)
    norms = [norm(release(config, silent, SeededRandom(seed), [5])) for seed in range(10)]
    assert max(norms) <= bound * (1 + 1e-5)
    assert max(norms) > 0.99 * bound
    noise = noise_of(config, plan, SeededRandom, 0)
    check_gaussian(np.concatenate([array.ravel() for array in noise.values()]), STD)
