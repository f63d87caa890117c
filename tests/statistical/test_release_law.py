"""What leaves a platform is what the ledger says: noise, clipping and denominator, end to end.

Each check is run on the real trainer, where it must pass, and on trainers with a planted bug,
where it must fail. Seeded; a Kolmogorov-Smirnov check at 1e-6 on 2,500 draws rejects a standard
deviation that is off by a third with certainty for all practical purposes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.sparse import csr_matrix

from client.trainer import TrainingPlan, train_round
from client.user_vectors import UserVectors
from common.models.ncf import NcfConfig, initialise
from common.privacy.clipping import clipped_gradient_sum
from common.privacy.randomness import SeededRandom

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.models.partition import Arrays

Gradients = dict[str, torch.Tensor]

CONFIG = NcfConfig(dim=8)
NUM_USERS, NUM_ITEMS = 40, 300
ALPHA = 1e-6


def market(num_users: int = NUM_USERS) -> csr_matrix:
    rng = np.random.default_rng(7)
    return csr_matrix((rng.random((NUM_USERS, NUM_ITEMS)) < 0.05).astype(np.float32)[:num_users])


def plan(**changes: float) -> TrainingPlan:
    numbers = {
        "clipping_norm": 0.1,
        "noise_std": 2.0,
        "sampling_rate": 1.0,
        "denominator": 10.0,
        "learning_rate": 1.0,
        **changes,
    }
    return TrainingPlan(local_steps=1, user_steps=1, **numbers)


def release(seed: int, the_plan: TrainingPlan, num_users: int = NUM_USERS) -> Arrays:
    shared = initialise(CONFIG, NUM_ITEMS, torch.Generator().manual_seed(0))
    arrays = {name: p.detach().numpy() for name, p in shared.named_parameters()}
    vectors = UserVectors.initial(NUM_USERS, CONFIG.user_dim, torch.Generator().manual_seed(1))
    mine = UserVectors(**{n: getattr(vectors, n)[:num_users] for n in UserVectors.__slots__})
    update, _ = train_round(CONFIG, arrays, mine, market(num_users), the_plan, SeededRandom(seed))
    return update


def noise_is_as_accounted() -> bool:
    """The release minus the same release without noise is N(0, (noise_std / denominator)^2)."""
    quiet = release(0, plan(noise_std=0.0))
    loud = release(0, plan())
    for name in quiet:
        noise = (loud[name].astype(float) - quiet[name]).ravel() * 10.0 / 2.0
        if noise.std() == 0 or stats.kstest(noise, "norm").pvalue < ALPHA:
            return False
    return True


def noise_is_fresh() -> bool:
    first, second = (
        np.concatenate([a.ravel() for a in release(seed, plan()).values()]) for seed in (0, 1)
    )
    return bool(abs(np.corrcoef(first, second)[0, 1]) < 6 / np.sqrt(len(first)))


def a_user_moves_it_by_at_most_c() -> bool:
    quiet = plan(noise_std=0.0)
    everyone, without = release(0, quiet), release(0, quiet, NUM_USERS - 1)
    moved = np.sqrt(sum(float(((everyone[k] - without[k]) ** 2).sum()) for k in everyone))
    bound = quiet.clipping_norm / quiet.denominator
    assert moved > 0.9 * bound, "the user is not clipped: the check would prove nothing"
    return bool(moved <= bound * 1.001)


CHECKS: list[Callable[[], bool]] = [
    noise_is_as_accounted,
    noise_is_fresh,
    a_user_moves_it_by_at_most_c,
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_release_keeps_its_promise(check: Callable[[], bool]) -> None:
    assert check()


def _noise(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        draw = SeededRandom.gaussian
        patch.setattr(
            SeededRandom, "gaussian", lambda self, shape, std: change(draw(self, shape, std))
        )

    return plant


def _sum(change: Callable[..., Gradients]) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(
            "client.trainer.clipped_gradient_sum",
            lambda *args: change(clipped_gradient_sum, *args),
        )

    return plant


def _reuse_the_seed(patch: pytest.MonkeyPatch) -> None:
    start = SeededRandom.__init__
    patch.setattr(SeededRandom, "__init__", lambda self, _seed: start(self, 0))


def _unclipped(real: Callable[..., Gradients], *args: Any) -> Gradients:  # noqa: ANN401 - as the trainer calls it
    model, vectors, batch, _clipping_norm, mode = args
    return real(model, vectors, batch, 1e9, mode)


def _mean(real: Callable[..., Gradients], *args: Any) -> Gradients:  # noqa: ANN401 - as the trainer calls it
    return {k: v * 200.0 / len(args[1]) for k, v in real(*args).items()}


PLANTED = {
    "noise off": (_noise(np.zeros_like), noise_is_as_accounted),
    "noise of 2/3": (_noise(lambda draw: draw * 2 / 3), noise_is_as_accounted),
    "noise of 3/2": (_noise(lambda draw: draw * 3 / 2), noise_is_as_accounted),
    "biases without noise": (
        _noise(lambda draw: draw * (draw.ndim > 1)),
        noise_is_as_accounted,
    ),
    "the same noise every round": (_reuse_the_seed, noise_is_fresh),
    "clipping off": (_sum(_unclipped), a_user_moves_it_by_at_most_c),
    "mean over the sample": (_sum(_mean), a_user_moves_it_by_at_most_c),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, check = PLANTED[name]
    plant(monkeypatch)
    assert not check()
