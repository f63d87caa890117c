"""Three ways to the same clipped sum: ghost norms, Opacus' per-user gradients, a plain loop."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.privacy.clipping import clipped_gradient_sum
from tests.laws import MODELS, difference, naive_clipped_sum, norm, random_case, random_model

if TYPE_CHECKING:
    from common.models.ncf import NcfConfig
    from common.privacy.clipping import ClippingMode


@settings(max_examples=60)
@given(
    config=st.sampled_from(MODELS),
    num_users=st.integers(0, 6),
    seed=st.integers(0, 2**16),
    clipping_norm=st.sampled_from([1e-6, 1e-2, 0.3, 1.0, 100.0]),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    length=st.sampled_from([0.0, 0.3, 1.0, 30.0]),
)
def test_ghost_equals_hooks_equals_the_naive_loop(
    config: NcfConfig,
    num_users: int,
    seed: int,
    clipping_norm: float,
    scale: float,
    length: float,
) -> None:
    case = random_case(
        config,
        num_users,
        seed,
        model=random_model(config, seed, scale=scale),
        clipping_norm=clipping_norm,
    )
    case = replace(case, user_vectors=case.user_vectors * length)
    naive = case.sum_by(naive_clipped_sum)
    parts = [norm(case.of([user]).sum_by(naive_clipped_sum)) for user in range(num_users)]
    modes: tuple[ClippingMode, ...] = ("ghost", "hooks")
    for mode in modes:
        found = clipped_gradient_sum(case.model, case.user_vectors, case.batch, clipping_norm, mode)
        assert norm(difference(found, naive)) <= 1e-5 * sum(parts)
        assert list(found) == list(case.model.state_dict())
        assert all(torch.isfinite(array).all() for array in found.values())
