"""Laws of one user's part in what a platform sums: bounded, her own, and taken as charged.

As in tests/laws/platforms.py each check raises an AssertionError where the law is broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import client.platform
import client.trainer
from client.platform import Platform
from client.user_vectors import UserVectors
from common.privacy.randomness import SeededRandom
from tests.laws.platforms import PLENTY, QUANTITIES, SILENT, charged, home, sum_of, taken
from tests.laws.training import check_coins
from tests.unit.client.homes import (
    NUM_USERS,
    asked_arrays,
    shared_arrays,
    train_request,
    write_users,
)

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from client.config import PlatformConfig


def check_one_user_moves_a_sum_by_her_bounded_part(folder: Path) -> None:
    """Neighbouring platforms, with and without her: by 1 at most, and by what she brings alone."""
    platforms: dict[str, PlatformConfig] = {}
    everyone = range(NUM_USERS)
    users = (0, 7, NUM_USERS - 1)
    groups = {"all": list(everyone)}
    for user in users:
        groups |= {f"without {user}": [u for u in everyone if u != user], f"only {user}": [user]}
    for name, group in groups.items():
        platforms[name] = home(folder, name, **SILENT)
        write_users(folder / name / "purchases.csv", group)
    for quantity in QUANTITIES:
        asked = asked_arrays(quantity)
        if "weights" in asked:
            asked["weights"][:] = 1.0
        found = {
            name: sum_of(config, quantity, asked, noise_multiplier=0.0)["sum"].astype(float)
            for name, config in platforms.items()
        }
        for user in users:
            moved = found["all"] - found[f"without {user}"]
            gap = float(np.abs(moved - found[f"only {user}"]).max())
            assert gap <= 1e-4, f"{quantity}: her part depends on others"
            length = float(np.linalg.norm(moved))
            assert length <= 1 + 1e-4, f"{quantity}: a user moves the sum by {length:.2f}"
            assert length > 0.99, f"{quantity}: noise is for 1, and she moves it by {length:.2f}"


def check_users_take_part_by_the_coins_that_are_charged(folder: Path, *, steps: int = 150) -> None:
    """Whose vectors are fitted in each step, at the ledger's sampling rate."""
    config = home(folder, "home", epsilon=PLENTY)
    request = train_request(config, sampling_rate=0.5, noise_multiplier=20.0, local_steps=steps)
    coins: list[np.ndarray] = []
    real = UserVectors.fit_

    def watch(self: UserVectors, model: Any, users: torch.Tensor, *rest: Any) -> torch.Tensor:  # noqa: ANN401
        coins.append(np.isin(np.arange(NUM_USERS), users.numpy()))
        return real(self, model, users, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UserVectors, "fit_", watch)
        taken(Platform(config).train(request, shared_arrays()))
    spent = charged(config, request.request_id)["mechanism"]
    # An empty sample fits nobody; of 20 users at .5 none of a thousand steps has one.
    assert len(coins) == spent["steps"], "other steps than those charged"
    check_coins(np.array(coins, dtype=float), spent["sampling_rate"])


def check_the_sampler_is_poisson(*, steps: int = 3000) -> None:
    """The trainer's own sampler, many times."""
    coins = np.zeros((steps, NUM_USERS))
    source, sampler = SeededRandom(8), vars(client.trainer)["poisson_sample"]
    for row in coins:
        row[sampler(NUM_USERS, 0.3, source)] = 1
    check_coins(coins, 0.3)


def check_a_part_of_a_sum_is_exact() -> None:
    """What the platform adds up moves by her part to the last bit, of norm 1 at most."""
    owned = np.random.default_rng(3).random((12, 9)) < 0.5
    weights = np.linspace(0.5, 1.0, 9, dtype=np.float32)
    used = vars(client.platform)
    for add_up in (used["count_sum"], lambda own: used["pair_sum"](own, weights)):
        everybody = add_up(csr_matrix(owned.astype(np.float32)))
        for user, own in enumerate(owned):
            others = add_up(csr_matrix(np.delete(owned, user, axis=0).astype(np.float32)))
            alone = add_up(csr_matrix(own[None].astype(np.float32)))
            assert np.array_equal(everybody - others, alone), "her part depends on others"
            assert np.square(alone).sum() <= 1.0, "a part beyond norm 1"
