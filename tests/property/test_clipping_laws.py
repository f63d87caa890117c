"""Every way to a clipped sum is one function: fast, ghost norms, Opacus' hooks, a plain loop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from client.trainer import TrainingPlan, train_round
from client.user_vectors import UserVectors
from common.data.batches import ROWS, UserBatch
from common.privacy.randomness import SeededRandom
from tests.laws.training import (
    ENGINES,
    MODELS,
    check_equals_naive,
    check_sensitivity,
    clipped_sum,
    difference,
    model_id,
    norm,
    random_case,
    random_model,
    wild_batch,
)

if TYPE_CHECKING:
    from common.models.ncf import NcfConfig
    from common.models.partition import Arrays
    from common.privacy.engines import ClippingEngine
    from tests.laws.training import Case

EXTREMES = (
    (1.0, 1.0, 1e-5),
    (0.1, 0.3, 1e-5),
    (1.0, 0.0, 1e-5),
    # Large scores are float32 with fewer digits behind the point.
    (2.0, 3.0, 1e-3),
)
"""Scale of the parameters, length of the vectors, and how well the sums must then agree."""

CLIPPING_NORMS = st.sampled_from([1e-6, 1e-2, 0.3, 1.0, 100.0])


@settings(max_examples=60)
@given(
    config=st.sampled_from(MODELS),
    num_users=st.integers(0, 6),
    seed=st.integers(0, 2**16),
    clipping_norm=CLIPPING_NORMS,
    extreme=st.sampled_from(EXTREMES),
    is_wild=st.booleans(),
)
@example(MODELS[0], 2 * ROWS + 3, 0, 0.3, EXTREMES[0], True)
@example(MODELS[1], ROWS + 1, 0, 0.3, EXTREMES[0], True)
@example(MODELS[6], ROWS + 1, 0, 0.3, EXTREMES[0], False)
def test_all_engines_and_the_naive_loop_are_one_function(
    config: NcfConfig,
    num_users: int,
    seed: int,
    clipping_norm: float,
    extreme: tuple[float, float, float],
    is_wild: bool,
) -> None:
    scale, length, rounding = extreme
    case = random_case(
        config,
        num_users,
        seed,
        model=random_model(config, seed, scale=scale),
        clipping_norm=clipping_norm,
    )
    case = replace(case, user_vectors=case.user_vectors * length)
    if is_wild:
        case = replace(case, batch=wild_batch(config, num_users, seed))
    for engine in ENGINES:
        check_equals_naive(partial(clipped_sum, engine=engine), [case], rounding=rounding)


def one_row_per_interaction(case: Case) -> Case:
    """The same data with the interaction as the privacy unit."""
    users, places = case.batch.is_positive.nonzero(as_tuple=True)
    negatives = case.batch.is_negative.any(0).nonzero().squeeze(1)
    own = case.batch.items[users, places][:, None]
    items = torch.cat([own, case.batch.items[users][:, negatives]], 1)
    is_negative = case.batch.is_negative[users][:, negatives]
    first = torch.ones(len(users), 1, dtype=torch.bool)
    return replace(
        case,
        user_vectors=case.user_vectors[users],
        batch=UserBatch(
            items=items,
            is_positive=torch.cat([first, torch.zeros_like(is_negative)], 1),
            is_negative=torch.cat([~first, is_negative], 1),
        ),
    )


@settings(max_examples=40)
@given(
    config=st.sampled_from(MODELS),
    seed=st.integers(0, 2**16),
    clipping_norm=st.sampled_from([1e-3, 0.05]),
)
def test_one_interaction_as_the_unit_is_one_row_per_interaction(
    config: NcfConfig, seed: int, clipping_norm: float
) -> None:
    """Removing one interaction then moves the sum by at most C; a user with k of them, by k C."""
    users = random_case(config, 3, seed, clipping_norm=clipping_norm)
    case = one_row_per_interaction(users)
    assert case.batch.is_positive.sum(1).tolist() == [1] * int(users.batch.is_positive.sum())
    check_sensitivity(clipped_sum, [case])
    check_equals_naive(clipped_sum, [case])


# --- Several noisy steps of the real trainer ------------------------------------------------

NUM_USERS, NUM_ITEMS = 90, 30
PLAN = TrainingPlan(
    clipping_norm=0.3,
    noise_std=0.1,
    sampling_rate=0.5,
    local_steps=4,
    denominator=45.0,
    learning_rate=1.0,
    user_steps=2,
    dropout=0.5,
)


def train_with(engine: ClippingEngine, config: NcfConfig) -> tuple[Arrays, UserVectors]:
    rng = np.random.default_rng(3)
    matrix = (rng.random((NUM_USERS, NUM_ITEMS)) < rng.random((NUM_USERS, 1)) ** 3).astype("f4")
    matrix[:5] = 0.0
    model = random_model(config, 0, num_items=NUM_ITEMS)
    shared = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    vectors = UserVectors.initial(NUM_USERS, config.user_dim, SeededRandom(1))
    source = SeededRandom(5)
    return train_round(config, shared, vectors, csr_matrix(matrix), PLAN, source, engine=engine)


@pytest.mark.parametrize("config", MODELS, ids=model_id)
def test_all_engines_train_the_same_model(config: NcfConfig) -> None:
    """Same seed, four noisy steps: rounding may shift a sum by a point of the noise's grid."""
    update, vectors = train_with("fast", config)
    assert norm(update) > 0.01
    for engine in ENGINES[1:]:
        other, other_vectors = train_with(engine, config)
        assert norm(difference(update, other)) <= 1e-5 * norm(update), engine
        torch.testing.assert_close(vectors.values, other_vectors.values, rtol=1e-3, atol=1e-4)
        assert torch.equal(vectors.num_steps, other_vectors.num_steps)


def test_training_notices_another_clipping_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users without signal would make all engines equal, whatever they do."""
    update, _ = train_with("fast", MODELS[0])
    monkeypatch.setattr("common.privacy.opacus_clipping.clip_scales", lambda s, _: s * 0 + 1)
    other, _ = train_with("opacus-ghost", MODELS[0])
    assert norm(difference(update, other)) > 0.01 * norm(update)
