"""What leaves a platform: noise as accounted on every array, one user's part bounded.

Each check runs on the real trainer, where it must pass, and on trainers with a planted bug,
where it must fail. Draws of the operating system are not seeded: each of their checks gives a
false alarm once in a million runs (``FALSE_ALARM``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import client.trainer
from client.trainer import TrainingPlan, train_round
from client.user_vectors import UserVectors
from common.models.ncf import NcfConfig
from common.privacy.clipping import add_clipped_gradients_, zero_sums
from common.privacy.noise import add_gaussian_noise_
from common.privacy.randomness import SeededRandom, SystemRandom, poisson_sample
from tests.laws import (
    ENGINES,
    check_gaussian,
    check_uncorrelated,
    difference,
    model_id,
    norm,
    random_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.models.ncf import SharedNcf
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
both_sources = pytest.mark.parametrize("new_source", [SystemRandom, SeededRandom])
both_models = pytest.mark.parametrize("config", [GMF, NEUMF], ids=model_id)


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


# --- Planted bugs ---------------------------------------------------------------------------


def scaled_noise(factor: float) -> Callable[[pytest.MonkeyPatch, NewSource], None]:
    def plant(patch: pytest.MonkeyPatch, new_source: NewSource) -> None:
        del new_source

        def add(total: torch.Tensor, std: float, source: RandomSource) -> None:
            add_gaussian_noise_(total, factor * std, source)

        patch.setattr(client.trainer, "add_gaussian_noise_", add)

    return plant


def scaled_draws(patch: pytest.MonkeyPatch, new_source: NewSource) -> None:
    """The standard deviation in units of the grid is forgotten half-way."""
    right = new_source.gaussian

    def gaussian(self: Any, size: int, std: float, **options: Any) -> torch.Tensor:  # noqa: ANN401
        return right(self, size, std, **options).mul_(1.5)

    patch.setattr(new_source, "gaussian", gaussian)


def without_noise_on(is_spared: Callable[[torch.Tensor], bool]) -> Any:  # noqa: ANN401
    def plant(patch: pytest.MonkeyPatch, new_source: NewSource) -> None:
        del new_source

        def add(total: torch.Tensor, std: float, source: RandomSource) -> None:
            if not is_spared(total):
                add_gaussian_noise_(total, std, source)

        patch.setattr(client.trainer, "add_gaussian_noise_", add)

    return plant


biases_without_noise = without_noise_on(lambda total: total.ndim == 1)
last_bias_without_noise = without_noise_on(lambda total: total.shape == (1,))
zeros_without_noise = without_noise_on(lambda total: not total.any())


def noise_reused(patch: pytest.MonkeyPatch, new_source: NewSource) -> None:
    right = new_source.gaussian
    first: dict[int, torch.Tensor] = {}

    def replay(self: Any, size: int, std: float, **options: Any) -> torch.Tensor:  # noqa: ANN401
        if size not in first:
            first[size] = right(self, size, std, **options).clone()
        return first[size].clone()

    patch.setattr(new_source, "gaussian", replay)


def no_noise_without_users(patch: pytest.MonkeyPatch, new_source: NewSource) -> None:
    del new_source
    sizes = []

    def sample(num_users: int, rate: float, source: RandomSource) -> np.ndarray:
        found = poisson_sample(num_users, rate, source)
        sizes.append(len(found))
        return found

    def add(total: torch.Tensor, std: float, source: RandomSource) -> None:
        add_gaussian_noise_(total, std if sizes[-1] else 0.0, source)

    patch.setattr(client.trainer, "poisson_sample", sample)
    patch.setattr(client.trainer, "add_gaussian_noise_", add)


def plant_engine(patch: pytest.MonkeyPatch, engine: Callable[..., None]) -> None:
    patch.setattr(client.trainer, "clipping_engine", lambda _: engine)


def clipping_off(patch: pytest.MonkeyPatch, new_source: NewSource) -> None:
    del new_source

    def unclipped(*arguments: Any) -> None:  # noqa: ANN401
        sums, model, vectors, batch, _ = arguments
        add_clipped_gradients_(sums, model, vectors, batch, 1e9)

    plant_engine(patch, unclipped)


def divided_by_the_sample(patch: pytest.MonkeyPatch, new_source: NewSource) -> None:
    """As Opacus' own optimiser does with ``expected_batch_size`` left out."""
    del new_source

    def mean(sums: dict[str, torch.Tensor], model: SharedNcf, *arguments: Any) -> None:  # noqa: ANN401
        total = zero_sums(model)
        add_clipped_gradients_(total, model, *arguments)
        for name, array in total.items():
            sums[name] += array / len(arguments[0])

    plant_engine(patch, mean)


def vectors_centred_on_the_sample(patch: pytest.MonkeyPatch, new_source: NewSource) -> None:
    del new_source
    right = UserVectors.fit_

    def fit(self: UserVectors, *arguments: Any) -> torch.Tensor:  # noqa: ANN401
        fitted = right(self, *arguments)
        return fitted - fitted.mean(0)

    patch.setattr(UserVectors, "fit_", fit)


PLANTED: dict[str, tuple[Any, Any]] = {
    "noise off": (scaled_noise(0.0), check_noise_is_as_accounted),
    "noise of 2/3": (scaled_noise(2 / 3), check_noise_is_as_accounted),
    "noise of 3/2": (scaled_noise(1.5), check_noise_is_as_accounted),
    "draws of 3/2": (scaled_draws, check_noise_is_as_accounted),
    "biases without noise": (biases_without_noise, check_noise_is_as_accounted),
    "last bias without noise": (last_bias_without_noise, check_noise_is_as_accounted),
    "the same noise in every round": (noise_reused, check_noise_is_fresh),
    "the same noise in every step": (noise_reused, check_steps_add_up),
    "the same noise in every chunk": (noise_reused, check_chunks_are_independent),
    "no noise on arrays that nobody touched": (
        zeros_without_noise,
        check_an_empty_sample_releases_noise,
    ),
    "no noise on biases without users": (
        biases_without_noise,
        check_an_empty_sample_releases_noise,
    ),
    "no noise without users": (no_noise_without_users, check_an_empty_sample_releases_noise),
}

PLANTED_IN_SUMS: dict[str, Any] = {
    "clipping off": clipping_off,
    "divided by the sample": divided_by_the_sample,
    "vectors centred on the sample": vectors_centred_on_the_sample,
}


@both_sources
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_in_the_noise_is_caught(
    name: str, new_source: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, check = PLANTED[name]
    plant(monkeypatch, new_source)
    with pytest.raises(AssertionError):
        check(NEUMF, new_source)


@pytest.mark.parametrize("name", PLANTED_IN_SUMS)
def test_a_planted_bug_in_the_sum_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED_IN_SUMS[name](monkeypatch, SeededRandom)
    with pytest.raises(AssertionError):
        check_one_user_moves_it_by_her_bounded_part(GMF, SeededRandom)
