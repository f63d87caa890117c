"""iALS against each row's normal equations in float64, and the loss that it descends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_matrix

from client.local_models import als
from client.local_models.als import AlsFactors, fit_als

DIM, L2, UNOBSERVED = 4, 0.05, 0.2


def some_purchases(num_users: int = 30, num_items: int = 20) -> csr_matrix:
    """Rows of very different lengths; the last user and the first item have none."""
    rng = np.random.default_rng(0)
    bought = rng.random((num_users, num_items)) < rng.random((num_users, 1)) ** 2
    bought[0] = True
    bought[-1] = bought[:, 0] = False
    return csr_matrix(bought.astype(np.float32))


def fit(interactions: csr_matrix, epochs: int = 3, seed: int = 0, dim: int = DIM) -> AlsFactors:
    return fit_als(
        interactions, dim=dim, l2=L2, unobserved_weight=UNOBSERVED, epochs=epochs, seed=seed
    )


def best_rows(
    bought: np.ndarray, others: np.ndarray, l2: float = L2, unobserved: float = UNOBSERVED
) -> np.ndarray:
    """Each row's normal equations: the loss differentiated by hand, one pair at a time."""
    others = others.astype(np.float64)
    rows = []
    for row in bought:
        penalty = l2 * (row.sum() + unobserved * len(others))
        normal, right = penalty * np.eye(others.shape[1]), np.zeros(others.shape[1])
        for is_bought, vector in zip(row, others, strict=True):
            normal += (unobserved + is_bought) * np.outer(vector, vector)
            right += is_bought * vector
        rows.append(np.linalg.solve(normal, right))
    return np.array(rows)


def loss(bought: np.ndarray, users: np.ndarray, items: np.ndarray) -> float:
    """Equation of Rendle et al. 2022 with nu = 1."""
    users, items = users.astype(np.float64), items.astype(np.float64)
    scores = users @ items.T
    num_users, num_items = bought.shape
    user_scale = bought.sum(axis=1) + UNOBSERVED * num_items
    item_scale = bought.sum(axis=0) + UNOBSERVED * num_users
    penalty = user_scale @ (users**2).sum(axis=1) + item_scale @ (items**2).sum(axis=1)
    observed = (bought * (scores - 1.0) ** 2).sum()
    return float(observed + UNOBSERVED * (scores**2).sum() + L2 * penalty)


@pytest.mark.parametrize("block", [1, 200, 4_000_000])
def test_each_half_step_solves_the_normal_equations(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(als, "_BLOCK_FLOATS", block)
    interactions = some_purchases()
    bought = interactions.toarray()
    before, after = fit(interactions, epochs=2), fit(interactions, epochs=3)
    np.testing.assert_allclose(after.users, best_rows(bought, before.items), atol=1e-5)
    np.testing.assert_allclose(after.items, best_rows(bought.T, after.users), atol=1e-5)


@given(
    arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 9))),
    st.integers(1, 40),
    st.sampled_from([0.01, 1.0]),
    st.sampled_from([0.0, 0.5]),
)
def test_any_rows_are_solved_in_blocks_of_any_size(
    bought: np.ndarray, block: int, l2: float, unobserved: float
) -> None:
    others = np.random.default_rng(0).normal(size=(bought.shape[1], 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(als, "_BLOCK_FLOATS", block)
        interactions = csr_matrix(bought.astype(np.float32))
        found = als._solve(interactions, torch.from_numpy(others), l2, unobserved).numpy()
    filled = bought.any(axis=1)
    assert not found[~filled].any()
    expected = best_rows(bought[filled], others, l2, unobserved)
    np.testing.assert_allclose(found[filled], expected.reshape(-1, 3), atol=1e-3)


def test_no_half_step_raises_the_loss() -> None:
    interactions = some_purchases()
    bought = interactions.toarray()
    fits = [fit(interactions, epochs=epochs) for epochs in range(1, 12)]
    losses = [loss(bought, fits[0].users, fits[0].items)]
    for before, after in itertools.pairwise(fits):
        losses.append(loss(bought, after.users, before.items))
        losses.append(loss(bought, after.users, after.items))
    rises = np.diff(losses) / losses[:-1]
    assert rises.max() < 1e-6
    assert losses[-1] < 0.99 * losses[0]


def test_the_start_is_small_random_vectors() -> None:
    start = fit(csr_matrix((300, 200), dtype=np.float32), epochs=0, dim=64)
    assert (start.users @ start.items.T).std() == pytest.approx(0.1**2 / 8, rel=0.1)


@given(
    arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 50)),
    st.integers(1, 8),
    st.integers(1, 1000),
)
def test_a_block_stays_small_or_is_a_single_row(counts: np.ndarray, dim: int, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(als, "_BLOCK_FLOATS", limit)
        blocks = list(als._blocks(counts, dim))
    for rows in blocks:
        floats = len(rows) * max(int(counts[rows].max()), dim) * dim
        assert len(rows) == 1 or floats <= limit
    placed = sorted(itertools.chain.from_iterable(rows.tolist() for rows in blocks))
    assert placed == np.flatnonzero(counts).tolist()


def test_short_rows_share_a_block() -> None:
    assert len(list(als._blocks(np.full(1000, 3), 8))) == 1


def test_the_order_of_users_changes_nothing_but_the_order_of_their_vectors() -> None:
    interactions = some_purchases()
    order = np.random.default_rng(1).permutation(interactions.shape[0])
    plain, shuffled = fit(interactions), fit(interactions[order])
    np.testing.assert_allclose(shuffled.users, plain.users[order], atol=1e-5)
    np.testing.assert_allclose(shuffled.items, plain.items, atol=1e-5)


def test_the_seed_decides_and_nothing_else_is_touched() -> None:
    interactions = some_purchases()
    before = interactions.copy()
    state = torch.get_rng_state()
    first, second, other = fit(interactions), fit(interactions), fit(interactions, seed=1)
    assert np.array_equal(first.users, second.users)
    assert np.array_equal(first.items, second.items)
    assert not np.allclose(first.items, other.items, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(interactions, name), getattr(before, name))


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 1)])
def test_without_interactions_all_vectors_are_zero(shape: tuple[int, int]) -> None:
    factors = fit(csr_matrix(shape, dtype=np.float32))
    assert factors.users.shape == (shape[0], DIM)
    assert factors.items.shape == (shape[1], DIM)
    assert factors.users.dtype == factors.items.dtype == np.float32
    assert not factors.users.any()
    assert not factors.items.any()
