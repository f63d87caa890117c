"""The clipped sum: its bound holds on neighbouring data sets, and the check finds planted bugs."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping

from common.data.batches import ROWS
from common.models.losses import user_losses
from common.privacy import clipping, opacus_clipping
from common.privacy.clipping import add_clipped_gradients_, clip_scales, zero_sums
from tests.laws.training import (
    ENGINES,
    MODELS,
    Case,
    adversarial_cases,
    check_equals_naive,
    check_sensitivity,
    clipped_sum,
    crowded_cases,
    difference,
    model_id,
    naive_clipped_sum,
    norm,
    random_case,
    random_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from common.data.batches import UserBatch
    from common.models.ncf import NcfConfig, SharedNcf
    from common.privacy.engines import ClippingEngine
    from tests.laws.training import ClippedSum

    Forget = Callable[[str, Tensor], Tensor]

SOFTMAX = MODELS[0]
WITH_SAMPLES = [config for config in MODELS if config.loss != "softmax"]
WITH_TOWER = [config for config in MODELS if config.kind != "gmf"]
EXACT = 1e-9
"""What the whole-catalogue path may be off by, in units of C, however many users there are."""

every_model = pytest.mark.parametrize("config", MODELS, ids=model_id)
every_engine = pytest.mark.parametrize("engine", ENGINES)


# --- The bound ------------------------------------------------------------------------------


@every_model
@every_engine
def test_a_user_moves_the_sum_by_at_most_the_clipping_norm(
    config: NcfConfig, engine: ClippingEngine
) -> None:
    cases = adversarial_cases(config)
    by_engine = partial(clipped_sum, engine=engine)
    check_sensitivity(by_engine, cases[:2] if engine == "opacus-hooks" else cases)


@every_model
def test_the_bound_holds_in_a_crowd(config: NcfConfig) -> None:
    check_sensitivity(clipped_sum, crowded_cases(config), rounding=1e-5)


def test_under_a_softmax_a_users_part_does_not_feel_the_crowd() -> None:
    """To 1e-9 of C: not even rounding may tell who else is there, or how many."""
    cases = [*adversarial_cases(SOFTMAX), *crowded_cases(SOFTMAX)]
    check_sensitivity(clipped_sum, cases, rounding=EXACT)


@pytest.mark.parametrize("engine", ["opacus-ghost", "opacus-hooks"])
def test_opacus_feels_the_crowd_a_little(engine: ClippingEngine) -> None:
    """It sums in float32: good enough to compare with, and found by the exact check."""
    by_engine = partial(clipped_sum, engine=engine)
    check_sensitivity(by_engine, crowded_cases(SOFTMAX))
    with pytest.raises(AssertionError):
        check_sensitivity(by_engine, crowded_cases(SOFTMAX), rounding=EXACT)


def test_the_order_of_users_changes_nothing() -> None:
    for case in crowded_cases(SOFTMAX):
        users = range(len(case.user_vectors))
        forward, backward = case.sum_by(clipped_sum), case.of(users[::-1]).sum_by(clipped_sum)
        assert norm(difference(forward, backward)) <= EXACT * case.clipping_norm


@every_model
def test_blocks_add_up(config: NcfConfig) -> None:
    """A sample that is cut in blocks has the sum of the whole."""
    case = crowded_cases(config)[0]
    sums = zero_sums(case.model)
    for rows in (slice(0, 1), slice(1, ROWS + 1), slice(ROWS + 1, None)):
        part = replace(case, user_vectors=case.user_vectors[rows], batch=case.batch.of(rows))
        add_clipped_gradients_(sums, part.model, part.user_vectors, part.batch, part.clipping_norm)
    gap = norm(difference(sums, case.sum_by(clipped_sum)))
    assert gap <= 1e-5 * case.clipping_norm


@every_model
@every_engine
def test_nobody_is_clipped_below_a_large_clipping_norm(
    config: NcfConfig, engine: ClippingEngine
) -> None:
    case = random_case(config, 5, 3, clipping_norm=1e6)
    losses = user_losses(case.model, case.user_vectors, case.batch)
    plain = torch.autograd.grad(losses.sum(), list(case.model.parameters()))
    found = case.sum_by(partial(clipped_sum, engine=engine))
    for name, gradient in zip(found, plain, strict=True):
        torch.testing.assert_close(found[name].float(), gradient, rtol=1e-4, atol=1e-6)


@every_model
@every_engine
def test_the_model_is_left_as_it_was(config: NcfConfig, engine: ClippingEngine) -> None:
    case = random_case(config, 4, 3)
    before = copy.deepcopy(case.model.state_dict())
    vectors = case.user_vectors.clone()
    by_engine = partial(clipped_sum, engine=engine)
    first, second = (case.sum_by(by_engine) for _ in range(2))
    assert norm(difference(first, second)) == 0
    assert all(torch.equal(p, before[name]) for name, p in case.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())
    assert torch.equal(case.user_vectors, vectors)
    assert not case.user_vectors.requires_grad
    assert {name: p.dtype for name, p in first.items()} == dict.fromkeys(first, torch.float64)
    assert not any(array.requires_grad for array in first.values())


@every_model
@every_engine
def test_users_without_interactions_and_empty_batches_add_nothing(
    config: NcfConfig, engine: ClippingEngine
) -> None:
    case, by_engine = random_case(config, 3, 3), partial(clipped_sum, engine=engine)
    assert norm(case.of([]).sum_by(by_engine)) == 0
    if config.loss != "bce":  # BCE pushes negatives down for everybody; they carry no taste
        assert norm(case.of([0]).sum_by(by_engine)) == 0


# --- A hostile server -----------------------------------------------------------------------


@every_model
@every_engine
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_a_user_whose_gradient_is_not_finite_adds_nothing_and_stops_nobody(
    config: NcfConfig, engine: ClippingEngine, poison: float
) -> None:
    case, by_engine = random_case(config, 5, 3), partial(clipped_sum, engine=engine)
    user_vectors = case.user_vectors.clone()
    user_vectors[2] = poison
    poisoned = replace(case, user_vectors=user_vectors).sum_by(by_engine)
    without = case.of([0, 1, 3, 4]).sum_by(by_engine)
    moved = norm(difference(poisoned, without))
    rounding = EXACT if config.loss == "softmax" and engine == "fast" else 1e-5
    assert moved <= case.clipping_norm * (1 + 1e-4 if poison == 1e30 else rounding)


@every_engine
def test_shared_parameters_cannot_make_one_user_stop_the_round(engine: ClippingEngine) -> None:
    """A server that overflows the scores of one item must not learn whether anybody has it."""
    case = random_case(SOFTMAX, 4, 3)
    with torch.no_grad():
        case.model.items.bias[5] = 3e38
        case.model.items.weight[5] = 3e38  # type: ignore[index]
    found = case.sum_by(partial(clipped_sum, engine=engine))
    assert all(torch.isfinite(array).all() for array in found.values())


def hostile_tower(config: NcfConfig, seed: int) -> Case:
    """Equal items, and a last layer that magnifies what rounding leaves between them."""
    config = replace(config, dim=8, hidden=(16, 8), num_negatives=50)
    case = random_case(config, 12, seed, num_items=200, clipping_norm=1.0)
    assert case.model.tower is not None
    assert case.model.tower_items is not None
    with torch.no_grad():
        case.model.tower_items.weight.fill_(1.0)
        case.model.tower[-1].weight.mul_(1e8)  # type: ignore[operator]
    return case


@pytest.mark.parametrize("config", WITH_TOWER, ids=model_id)
def test_a_hostile_tower_cannot_make_rounding_tell_who_else_is_there(config: NcfConfig) -> None:
    check_sensitivity(clipped_sum, [hostile_tower(config, seed) for seed in range(6)])


# --- Planted bugs in the sum ----------------------------------------------------------------


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


def divided_by_the_number_of_interactions(
    model: SharedNcf, user_vectors: Tensor, batch: UserBatch, clipping_norm: float
) -> dict[str, Tensor]:
    total = naive_clipped_sum(model, user_vectors, batch, clipping_norm)
    count = max(1, int(batch.is_positive.sum()))
    return {name: array / count for name, array in total.items()}


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


def a_neighbours_vector_leaks(
    model: SharedNcf, user_vectors: Tensor, batch: UserBatch, clipping_norm: float
) -> dict[str, Tensor]:
    leaked = user_vectors + 0.01 * user_vectors.roll(1, 0)
    return naive_clipped_sum(model, leaked, batch, clipping_norm)


@every_model
@pytest.mark.parametrize(
    "broken",
    [
        without_clipping,
        mean_instead_of_sum,
        divided_by_the_number_of_interactions,
        clipped_array_by_array,
        clipped_after_the_sum,
        users_centred_on_their_mean,
        a_neighbours_vector_leaks,
    ],
)
def test_planted_bugs_are_found(config: NcfConfig, broken: ClippedSum) -> None:
    with pytest.raises(AssertionError):
        check_sensitivity(broken, adversarial_cases(config)[:2])


@every_model
def test_the_naive_loop_passes(config: NcfConfig) -> None:
    check_sensitivity(naive_clipped_sum, adversarial_cases(config)[:2])


def summed_in_float32(
    model: SharedNcf, user_vectors: Tensor, batch: UserBatch, clipping_norm: float
) -> dict[str, Tensor]:
    """Right parts, one added to the other."""
    total = {name: torch.zeros_like(p).detach() for name, p in model.named_parameters()}
    for row in range(len(user_vectors)):
        user = slice(row, row + 1)
        part = clipped_sum(model, user_vectors[user], batch.of(user), clipping_norm)
        for name, array in part.items():
            total[name] += array.float()
    return total


@pytest.mark.parametrize("which", [0, 1], ids=["all different", "all the same"])
def test_float32_sums_are_found_in_a_crowd(which: int) -> None:
    """Why sums are float64: rounding alone would move the others' parts."""
    crowd = crowded_cases(SOFTMAX)[which]
    check_sensitivity(summed_in_float32, [crowd])
    with pytest.raises(AssertionError):
        check_sensitivity(summed_in_float32, [crowd], rounding=EXACT)


def test_a_block_of_another_shape_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why every block has ``ROWS`` rows: other shapes round a user's scores in other ways."""
    config = replace(SOFTMAX, dim=100)
    crowd = random_case(config, 20, 7, num_items=200)
    crowd = replace(crowd, user_vectors=crowd.user_vectors * 30)
    check_sensitivity(clipped_sum, [crowd], rounding=EXACT)
    for module in ("common.data.batches", "common.models.losses", "common.privacy.clipping"):
        monkeypatch.setattr(f"{module}.ROWS", 1)
    one_by_one = crowd.sum_by(clipped_sum)
    monkeypatch.undo()
    gap = norm(difference(one_by_one, crowd.sum_by(clipped_sum)))
    assert gap > EXACT * crowd.clipping_norm


# --- Planted bugs in the norm ---------------------------------------------------------------


def norm_forgetting(part: Forget) -> ClippedSum:
    """The naive loop with a norm that sees ``part(name, gradient)`` instead of the gradient."""

    def size_of(gradients: dict[str, Tensor]) -> float:
        return norm({name: part(name, array) for name, array in gradients.items()})

    return partial(naive_clipped_sum, size_of=size_of)


def nothing_of(*names: str) -> Forget:
    return lambda name, array: array * 0 if name in names else array


def no_user_half_of_the_first_layer(name: str, array: Tensor) -> Tensor:
    return array[:, array.shape[1] // 2 :] if name == "tower.0.weight" else array


FORGOTTEN = [
    *[(config, nothing_of("items.bias")) for config in MODELS],
    *[(config, nothing_of("items.weight")) for config in MODELS if config.kind != "mlp"],
    *[(config, nothing_of("tower_items.weight")) for config in WITH_TOWER],
    *[
        (config, nothing_of(f"tower.{layer}.weight", f"tower.{layer}.bias"))
        for config in WITH_TOWER
        for layer in (0, 2, 4)
    ],
    *[(config, nothing_of("tower.0.bias")) for config in WITH_TOWER],
    *[(config, no_user_half_of_the_first_layer) for config in WITH_TOWER],
]


@pytest.mark.parametrize(("config", "forgotten"), FORGOTTEN)
def test_a_norm_that_forgets_a_part_is_found(config: NcfConfig, forgotten: Forget) -> None:
    case = random_case(config, 5, 3, clipping_norm=1e-3)
    check_sensitivity(clipped_sum, [case])
    with pytest.raises(AssertionError, match="more than C"):
        check_sensitivity(norm_forgetting(forgotten), [case])


@pytest.mark.parametrize("config", WITH_SAMPLES, ids=model_id)
@every_engine
def test_a_norm_that_forgets_repeated_items_is_found(
    config: NcfConfig, engine: ClippingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeated = random_case(config, 3, 3, clipping_norm=1e-3)
    repeated.batch.items[:, -config.num_negatives :] = 0
    repeated.batch.is_negative[:, -config.num_negatives :] = True
    repeated.batch.is_positive[repeated.batch.items == 0] = False
    by_engine = partial(clipped_sum, engine=engine)
    check_sensitivity(by_engine, [repeated])
    if engine == "opacus-hooks":
        return  # builds dense gradients, where repeated items have always been added
    monkeypatch.setattr(clipping, "sum_equal_items_", lambda *_: None)
    monkeypatch.setattr(opacus_clipping, "_per_item", lambda _, backprops: backprops)
    with pytest.raises(AssertionError, match="more than C"):
        check_sensitivity(by_engine, [repeated])


def of_the_neighbours_norm(squared_norms: Tensor, clipping_norm: float) -> Tensor:
    return clip_scales(squared_norms.roll(1), clipping_norm)


def of_the_squared_norm(squared_norms: Tensor, clipping_norm: float) -> Tensor:
    return clip_scales(squared_norms.square(), clipping_norm)


def of_the_mean_norm(squared_norms: Tensor, clipping_norm: float) -> Tensor:
    return clip_scales(squared_norms.mean().expand_as(squared_norms), clipping_norm)


@every_model
@pytest.mark.parametrize("broken", [of_the_neighbours_norm, of_the_squared_norm, of_the_mean_norm])
def test_scales_of_a_wrong_norm_are_found(
    config: NcfConfig,
    broken: Callable[[Tensor, float], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clipping, "clip_scales", broken)
    with pytest.raises(AssertionError):
        check_sensitivity(clipped_sum, [random_case(config, 5, 3)])


@every_model
def test_small_gradients_scaled_up_are_found(
    config: NcfConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound holds for them too; they are just not the gradients."""

    def normalised(squared_norms: Tensor, clipping_norm: float) -> Tensor:
        return clipping_norm / squared_norms.sqrt().clamp(min=1e-30)

    cases = [random_case(config, 5, 3, clipping_norm=5.0)]
    check_equals_naive(clipped_sum, cases)
    monkeypatch.setattr(clipping, "clip_scales", normalised)
    check_sensitivity(clipped_sum, cases)
    with pytest.raises(AssertionError, match="off by"):
        check_equals_naive(clipped_sum, cases)


def test_scales_by_hand() -> None:
    squared = torch.tensor([0.0, 0.25, 1.0, 4.0, 1e300, torch.inf, torch.nan], dtype=torch.float64)
    expected = torch.tensor([1.0, 1.0, 1.0, 0.5, 1e-150, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(clip_scales(squared, 1.0), expected, rtol=1e-15, atol=0)


def test_ghost_norms_of_linear_layers_are_found_to_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the tower's norms are taken from real gradients, and by Opacus in float64."""
    config = replace(MODELS[3], num_negatives=20)
    cases = [
        random_case(config, 3, seed, clipping_norm=1e-3, model=random_model(config, seed))
        for seed in range(4)
    ]
    cases = [replace(case, user_vectors=case.user_vectors * 1e4) for case in cases]
    by_ghost = partial(clipped_sum, engine="opacus-ghost")
    check_sensitivity(by_ghost, cases)
    monkeypatch.setattr(opacus_clipping, "_Ghost", GradSampleModuleFastGradientClipping)
    monkeypatch.setattr(torch.nn.Module, "double", lambda module: module)
    monkeypatch.setattr(torch.Tensor, "double", lambda tensor: tensor)
    with pytest.raises(AssertionError):
        check_sensitivity(by_ghost, cases)
