"""The clipped sum: its bound holds on neighbouring data sets, and the check finds planted bugs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping

from common.models.losses import LOSSES
from common.privacy import clipping
from common.privacy.clipping import clipped_gradient_sum
from tests.laws import (
    MODELS,
    Case,
    adversarial_cases,
    check_sensitivity,
    difference,
    model_id,
    naive_clipped_sum,
    norm,
    random_case,
    random_model,
)

if TYPE_CHECKING:
    from torch import Tensor

    from common.data.batches import UserBatch
    from common.models.ncf import NcfConfig, SharedNcf
    from common.privacy.clipping import ClippingMode
    from tests.laws import ClippedSum

every_model = pytest.mark.parametrize("config", MODELS, ids=model_id)


@every_model
@pytest.mark.parametrize("mode", ["ghost", "hooks"])
def test_a_user_moves_the_sum_by_at_most_the_clipping_norm(
    config: NcfConfig, mode: ClippingMode
) -> None:
    def clipped_sum(
        model: SharedNcf, user_vectors: Tensor, batch: UserBatch, clipping_norm: float
    ) -> dict[str, Tensor]:
        return clipped_gradient_sum(model, user_vectors, batch, clipping_norm, mode)

    cases = adversarial_cases(config)
    check_sensitivity(clipped_sum, cases if mode == "ghost" else cases[:1])


@every_model
def test_nobody_is_clipped_below_a_large_clipping_norm(config: NcfConfig) -> None:
    case = random_case(config, 5, 3, clipping_norm=1e6)
    losses = LOSSES[config.loss](case.model, case.user_vectors, case.batch)
    plain = torch.autograd.grad(losses.sum(), list(case.model.parameters()))
    found = case.sum_by(clipped_gradient_sum)
    for name, gradient in zip(found, plain, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@every_model
def test_the_model_is_left_as_it_was(config: NcfConfig) -> None:
    case = random_case(config, 4, 3)
    before = copy.deepcopy(case.model.state_dict())
    first, second = (case.sum_by(clipped_gradient_sum) for _ in range(2))
    assert norm(difference(first, second)) == 0
    assert all(torch.equal(p, before[name]) for name, p in case.model.state_dict().items())
    assert all(p.grad is None and not vars(p) for p in case.model.parameters())
    assert {name: p.dtype for name, p in first.items()} == dict.fromkeys(first, torch.float32)


@every_model
def test_users_without_interactions_and_empty_batches_add_nothing(config: NcfConfig) -> None:
    case = random_case(config, 3, 3)
    assert norm(case.of([]).sum_by(clipped_gradient_sum)) == 0
    if config.loss != "bce":  # BCE pushes negatives down for everybody; they carry no taste
        assert norm(case.of([0]).sum_by(clipped_gradient_sum)) == 0


@every_model
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_a_user_whose_gradient_is_not_finite_adds_nothing_and_stops_nobody(
    config: NcfConfig, poison: float
) -> None:
    case = random_case(config, 5, 3)
    user_vectors = case.user_vectors.clone()
    user_vectors[2] = poison
    poisoned = replace(case, user_vectors=user_vectors).sum_by(clipped_gradient_sum)
    without = case.of([0, 1, 3, 4]).sum_by(clipped_gradient_sum)
    moved = norm(difference(poisoned, without))
    assert moved <= (case.clipping_norm * (1 + 1e-4) if poison == 1e30 else 0)


@pytest.mark.parametrize("mode", ["ghost", "hooks"])
def test_shared_parameters_cannot_make_one_user_stop_the_round(mode: ClippingMode) -> None:
    """A server that overflows the scores of one item must not learn whether anybody has it."""
    case = random_case(MODELS[0], 4, 3)
    with torch.no_grad():
        case.model.items.bias[5] = 3e38
        case.model.items.weight[5] = 3e38  # type: ignore[index]
    found = clipped_gradient_sum(
        case.model, case.user_vectors, case.batch, case.clipping_norm, mode
    )
    assert all(torch.isfinite(array).all() for array in found.values())


def without_clipping(
    model: SharedNcf, user_vectors: Tensor, batch: UserBatch, clipping_norm: float
) -> dict[str, Tensor]:
    del clipping_norm
    return naive_clipped_sum(model, user_vectors, batch, float("inf"))


def mean_instead_of_sum(
    model: SharedNcf, user_vectors: Tensor, batch: UserBatch, clipping_norm: float
) -> dict[str, Tensor]:
    total = naive_clipped_sum(model, user_vectors, batch, clipping_norm)
    return {name: array / max(1, len(user_vectors)) for name, array in total.items()}


def clipped_array_by_array(
    model: SharedNcf, user_vectors: Tensor, batch: UserBatch, clipping_norm: float
) -> dict[str, Tensor]:
    everyone = Case(
        model=model, user_vectors=user_vectors, batch=batch, clipping_norm=clipping_norm
    )
    total = naive_clipped_sum(model, user_vectors[:0], batch, clipping_norm)
    for row in range(len(user_vectors)):
        user = everyone.of([row])
        whole = naive_clipped_sum(model, user.user_vectors, user.batch, float("inf"))
        for name, array in whole.items():
            total[name] += array * min(1.0, clipping_norm / max(norm({name: array}), 1e-300))
    return total


def clipped_after_the_sum(
    model: SharedNcf, user_vectors: Tensor, batch: UserBatch, clipping_norm: float
) -> dict[str, Tensor]:
    total = naive_clipped_sum(model, user_vectors, batch, float("inf"))
    scale = min(1.0, clipping_norm / max(norm(total), 1e-300))
    return {name: array * scale for name, array in total.items()}


def users_centred_on_their_mean(
    model: SharedNcf, user_vectors: Tensor, batch: UserBatch, clipping_norm: float
) -> dict[str, Tensor]:
    if len(user_vectors):
        user_vectors = user_vectors - user_vectors.mean(0)
    return naive_clipped_sum(model, user_vectors, batch, clipping_norm)


@every_model
@pytest.mark.parametrize(
    "broken",
    [
        without_clipping,
        mean_instead_of_sum,
        clipped_array_by_array,
        clipped_after_the_sum,
        users_centred_on_their_mean,
    ],
)
def test_planted_bugs_are_found(config: NcfConfig, broken: ClippedSum) -> None:
    with pytest.raises(AssertionError):
        check_sensitivity(broken, adversarial_cases(config)[:2])


@every_model
def test_the_naive_loop_passes(config: NcfConfig) -> None:
    check_sensitivity(naive_clipped_sum, adversarial_cases(config)[:2])


@pytest.mark.parametrize("config", [c for c in MODELS if c.loss != "softmax"], ids=model_id)
def test_a_norm_that_forgets_repeated_items_is_found(
    config: NcfConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeated = random_case(config, 3, 3, clipping_norm=1e-3)
    repeated.batch.items[:, -config.num_negatives :] = 0
    repeated.batch.is_negative[:, -config.num_negatives :] = True
    repeated.batch.is_positive[repeated.batch.items == 0] = False
    check_sensitivity(clipped_gradient_sum, [repeated])
    monkeypatch.setattr(clipping, "_per_item", lambda _, backprops: backprops)
    with pytest.raises(AssertionError, match="more than C"):
        check_sensitivity(clipped_gradient_sum, [repeated])


def test_ghost_norms_of_linear_layers_are_found_to_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the tower's norms are taken from real gradients, and in float64."""
    config = replace(MODELS[3], num_negatives=20)
    cases = [
        random_case(config, 3, seed, clipping_norm=1e-3, model=random_model(config, seed))
        for seed in range(4)
    ]
    cases = [replace(case, user_vectors=case.user_vectors * 1e4) for case in cases]
    check_sensitivity(clipped_gradient_sum, cases)
    monkeypatch.setattr(clipping, "_Ghost", GradSampleModuleFastGradientClipping)
    monkeypatch.setattr(torch.nn.Module, "double", lambda module: module)
    monkeypatch.setattr(torch.Tensor, "double", lambda tensor: tensor)
    with pytest.raises(AssertionError):
        check_sensitivity(clipped_gradient_sum, cases)
