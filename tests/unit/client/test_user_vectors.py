"""A user's vector follows, to the last bit, from her own interactions and shared parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from client import user_vectors
from client.trainer import user_batch
from client.user_vectors import UserVectors
from common.models.ncf import NcfConfig, initialise
from common.privacy.randomness import SeededRandom

NUM_ITEMS, STEPS = 60, 100
GMF = NcfConfig(dim=6)
SAMPLED = NcfConfig(kind="neumf", dim=4, hidden=(6,), loss="bce", num_negatives=6)


def purchases(num_users: int) -> csr_matrix:
    rows = np.zeros((num_users, NUM_ITEMS), dtype=np.float32)
    for user in range(num_users):
        rows[user, np.random.default_rng(user).permutation(NUM_ITEMS)[: 1 + user % 5]] = 1
    return csr_matrix(rows)


def fitted(config: NcfConfig, num_users: int, scale: float) -> UserVectors:
    """Vectors of the first ``num_users``; what is drawn for each depends on nobody else."""
    model = initialise(config, NUM_ITEMS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    vectors = UserVectors.initial(100, config.user_dim, SeededRandom(1))
    users = np.arange(num_users)
    batch = user_batch(config, purchases(100), np.arange(100), np.random.default_rng(0))
    own = batch.of(torch.from_numpy(users))
    vectors.fit_(model, torch.from_numpy(users), own, STEPS)
    return vectors


@pytest.mark.parametrize("config", [GMF, SAMPLED], ids=["gmf", "neumf"])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_a_vector_has_the_same_bits_whoever_else_is_fitted(config: NcfConfig, scale: float) -> None:
    """For every size of a batch from less than one vector register to more than a block."""
    everyone = fitted(config, 97, scale)
    for num_users in (1, 7, 15, 30, 31, 32, 33, 40, 47, 48, 63, 64, 65, 80, 96):
        some = fitted(config, num_users, scale)
        for name in UserVectors.__slots__:
            mine, theirs = (getattr(v, name)[:num_users] for v in (some, everyone))
            assert torch.equal(mine, theirs), f"{name} with {num_users} users"


def test_a_power_of_the_whole_array_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was: the ends of an array are rounded in another way than its middle."""
    steps = torch.arange(1, 200, dtype=torch.float32)
    differs = [
        not torch.equal((0.9 ** torch.full((97,), t))[:31], 0.9 ** torch.full((31,), t))
        for t in steps.tolist()
    ]
    if not any(differs):
        pytest.skip("this processor rounds both alike")
    monkeypatch.setattr(user_vectors, "_debias", lambda beta, taken: (1 - beta**taken)[:, None])
    everyone = fitted(GMF, 97, 300.0)
    assert any(
        not torch.equal(fitted(GMF, n, 300.0).values[:n], everyone.values[:n]) for n in (30, 31, 40)
    )


def test_a_user_whose_vector_overflows_starts_anew() -> None:
    model = initialise(GMF, NUM_ITEMS, torch.Generator().manual_seed(0))
    vectors = UserVectors.initial(3, GMF.user_dim, SeededRandom(1))
    vectors.second_moment[1] = 3e38
    vectors.num_steps[:] = 7
    batch = user_batch(GMF, purchases(3), np.arange(3), np.random.default_rng(0))
    broken = replace(vectors, values=vectors.values.clone())
    broken.values[1] = 3e38
    broken.fit_(model, torch.arange(3), batch, 2)
    assert not broken.values[1].any()
    assert broken.num_steps.tolist() == [9.0, 0.0, 9.0]
    assert torch.isfinite(broken.values).all()
