"""Laws of one round of training: noise as accounted on every array, one user's part bounded.

Each check runs :func:`client.trainer.train_round` as it is found there, so that a planted bug is
met. Draws of the operating system are not seeded: each of their checks gives a false alarm once in
a million runs (``FALSE_ALARM``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_matrix

import client.trainer
from client.trainer import TrainingPlan
from client.user_vectors import UserVectors
from common.models.ncf import NcfConfig
from common.privacy.randomness import SeededRandom, SystemRandom
from tests.laws.training import (
    FALSE_ALARM,
    check_gaussian,
    check_uncorrelated,
    difference,
    norm,
    random_model,
)

if TYPE_CHECKING:
    from common.models.partition import Arrays
    from common.privacy.engines import ClippingEngine
    from common.privacy.randomness import RandomSource

NUM_USERS, NUM_ITEMS = 12, 150
GMF = NcfConfig(dim=8)
NEUMF = NcfConfig(kind="neumf", dim=4, hidden=(16, 8), loss="sampled-softmax", num_negatives=5)
PLAN = TrainingPlan(
    clipping_norm=0.05,
    noise_std=0.3,
    sampling_rate=1.0,
    local_steps=1,
    denominator=40.0,
    learning_rate=2.0,
    user_steps=2,
    dropout=0.0,
)
STD = PLAN.noise_std * PLAN.learning_rate / PLAN.denominator
REPEATS = 40

NewSource = type[SystemRandom] | type[SeededRandom]


def source_of(new_source: NewSource, seed: int) -> RandomSource:
    return SeededRandom(seed) if new_source is SeededRandom else SystemRandom()


def purchases(users: list[int]) -> csr_matrix:
    """A user's purchases do not depend on the other users; the last three bought nothing."""
    rows = np.zeros((len(users), NUM_ITEMS), dtype=np.float32)
    for place, user in enumerate(users):
        if user < NUM_USERS - 3:
            rows[place, np.random.default_rng(user).permutation(NUM_ITEMS)[: 2 + user]] = 1
    return csr_matrix(rows)


def release(
    config: NcfConfig,
    plan: TrainingPlan,
    source: RandomSource,
    users: list[int],
    engine: ClippingEngine = "fast",
) -> Arrays:
    """The update of one round; private vectors belong to the user, not to her place."""
    model = random_model(config, 0, num_items=NUM_ITEMS)
    shared = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    start = UserVectors.initial(NUM_USERS, config.user_dim, SeededRandom(1))
    mine = UserVectors(**{name: getattr(start, name)[users] for name in UserVectors.__slots__})
    update, _ = client.trainer.train_round(
        config, shared, mine, purchases(users), plan, source, engine=engine
    )
    return update


def noise_of(config: NcfConfig, plan: TrainingPlan, new_source: NewSource, seed: int) -> Arrays:
    """The noise in one release, found without trusting the trainer.

    A seeded release is compared with the same release without noise. With other sources the
    users are those who bought nothing: under a softmax their gradients are zero.
    """
    source = source_of(new_source, seed)
    if not source.is_simulation:
        return release(config, plan, source, [9, 10, 11])
    silent = release(config, replace(plan, noise_std=0.0), SeededRandom(seed), [0, 3, 7, 11])
    return difference(release(config, plan, source, [0, 3, 7, 11]), silent)


def check_noise_is_as_accounted(config: NcfConfig, new_source: NewSource) -> None:
    """Each array by itself, and one round by itself: nothing can hide in the crowd."""
    draws = [noise_of(config, PLAN, new_source, seed) for seed in range(REPEATS)]
    for name in draws[0]:
        check_gaussian(np.stack([draw[name] for draw in draws]), STD)
    check_gaussian(np.concatenate([array.ravel() for array in draws[0].values()]), STD)


def check_steps_add_up(config: NcfConfig, new_source: NewSource) -> None:
    """Noise of three local steps is independent: its variances add up."""
    noise = noise_of(config, replace(PLAN, local_steps=3, learning_rate=0.01), new_source, 0)
    std = PLAN.noise_std * 0.01 / PLAN.denominator * np.sqrt(3)
    # Later gradients depend on earlier noise, by far less than the noise itself.
    check_gaussian(np.concatenate([array.ravel() for array in noise.values()]), std)


def check_noise_is_fresh(config: NcfConfig, new_source: NewSource) -> None:
    first, second = (
        np.concatenate([a.ravel() for a in noise_of(config, PLAN, new_source, seed).values()])
        for seed in (0, 1)
    )
    check_uncorrelated(first, second)
    check_uncorrelated(first[1:], second[:-1])


def check_chunks_are_independent(config: NcfConfig, new_source: NewSource) -> None:
    """Noise is drawn in pieces; no piece may be used for two places."""
    size = 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.privacy.noise.CHUNK", size)
        noise = noise_of(config, PLAN, new_source, 0)
    for array in noise.values():
        flat = array.ravel()
        if len(flat) > 2 * size:
            check_uncorrelated(flat[size:], flat[:-size])


def check_an_empty_sample_releases_noise(config: NcfConfig, new_source: NewSource) -> None:
    """On every array, so that nobody learns from a release that nobody took part."""
    plan = replace(PLAN, sampling_rate=1e-12)
    draws = [
        release(config, plan, source_of(new_source, seed), list(range(NUM_USERS)))
        for seed in range(4)
    ]
    check_gaussian(np.concatenate([a.ravel() for draw in draws for a in draw.values()]), STD)
    for name in draws[0]:
        # A coordinate is 0, as a point of the grid, with probability below 1e-5.
        assert np.any([draw[name] != 0 for draw in draws], axis=0).all(), f"{name} stands still"


def check_one_user_moves_it_by_her_bounded_part(
    config: NcfConfig, new_source: NewSource, engine: ClippingEngine = "fast"
) -> None:
    """Neighbouring platforms: all users, and all but one; the scale must not know how many."""
    del new_source  # without noise and with everybody there is nothing random under a softmax
    plan = replace(PLAN, noise_std=0.0)
    bound = plan.learning_rate * plan.clipping_norm / plan.denominator
    everyone = list(range(NUM_USERS))
    whole, largest = release(config, plan, SeededRandom(0), everyone, engine), 0.0
    for user in everyone:
        others = [u for u in everyone if u != user]
        without = release(config, plan, SeededRandom(0), others, engine)
        moved = difference(whole, without)
        assert norm(moved) <= bound * (1 + 1e-3), "a user moves the release by more than allowed"
        alone = release(config, plan, SeededRandom(0), [user], engine)
        assert norm(difference(moved, alone)) <= 1e-3 * bound, "her part depends on others"
        largest = max(largest, norm(moved) / bound)
    assert largest > 0.99, "nobody was clipped: the check could not have failed"


def check_negatives_are_public() -> None:
    """Uniform over what the platform lists: who buys what must not show in others' gradients."""
    owned = np.zeros((30, 40), dtype=np.float32)
    owned[1:, :4] = 1  # everybody but the first has the same four items
    batch = client.trainer.user_batch(
        replace(NEUMF, num_negatives=500),
        csr_matrix(owned),
        np.arange(30),
        np.random.default_rng(5),
    )
    drawn = batch.items[0][batch.is_negative[0]].numpy()
    counts = np.bincount(drawn, minlength=40)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM, "negatives follow what others bought"
