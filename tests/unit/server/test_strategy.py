"""The server's steps against independent implementations of the same published rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from common.storage import pack_arrays
from server.config import TrainingSection
from server.strategy import BETA_2, TINY, ServerState, apply_update, initial_state, step_length
from simulations.engines.in_process import InProcessGrid

if TYPE_CHECKING:
    from common.models.partition import Arrays

SHAPES = {"items.weight": (7, 3), "items.bias": (7,)}
ROUNDS = 6


def draw(seed: int, scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def updates(scale: float = 1.0) -> list[Arrays]:
    return [draw(seed, scale) for seed in range(1, ROUNDS + 1)]


def run(training: TrainingSection, scale: float = 1.0) -> ServerState:
    state = initial_state(draw(0))
    for update in updates(scale):
        state = apply_update(state, update, training, ROUNDS)
    return state


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("strategy", ["fedadam", "fedavg"])
def test_steps_are_those_of_torch_on_the_negative_update(
    strategy: str, momentum: float, scale: float
) -> None:
    training = TrainingSection(
        strategy="fedadam" if strategy == "fedadam" else "fedavg",
        server_learning_rate=0.05,
        momentum=momentum,
    )
    parameters = {name: torch.from_numpy(array.copy()) for name, array in draw(0).items()}
    optimiser: torch.optim.Optimizer = (
        torch.optim.Adam(parameters.values(), lr=0.05, betas=(momentum, BETA_2), eps=TINY)
        if strategy == "fedadam"
        else torch.optim.SGD(parameters.values(), lr=0.05, momentum=momentum)
    )
    schedule: torch.optim.lr_scheduler.LRScheduler = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, ROUNDS)
        if strategy == "fedadam"
        else torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    )
    for update in updates(scale):
        for name, parameter in parameters.items():
            parameter.grad = -torch.from_numpy(update[name])
        optimiser.step()
        schedule.step()
    for name, array in run(training, scale).parameters.items():
        np.testing.assert_allclose(array, parameters[name].numpy(), rtol=1e-5, atol=2e-7)


def test_fedadam_is_the_one_of_flower() -> None:
    InProcessGrid([])  # lets messages be made outside a run
    training = TrainingSection(strategy="fedadam", server_learning_rate=0.05, momentum=0.9)
    theirs = flower.FedAdam(eta=0.05, beta_1=0.9, beta_2=BETA_2, tau=1e-12)
    parameters = draw(0)
    for number, update in enumerate(updates()):  # its bias correction counts rounds from 0
        theirs.current_arrays, theirs.eta = parameters, step_length(training, number, ROUNDS)
        record = RecordDict(
            {
                "arrays": ArrayRecord({k: Array(parameters[k] + update[k]) for k in update}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        asked = Message(RecordDict(), 1, "train")
        asked.metadata.__dict__["_message_id"] = str(number)
        arrays, _ = theirs.aggregate_train(number, [Message(record, reply_to=asked)])
        assert arrays is not None
        parameters = {k: v.numpy().astype(np.float32) for k, v in arrays.items()}
    ours = run(training)
    for name, array in ours.parameters.items():
        np.testing.assert_allclose(array, parameters[name], rtol=1e-4, atol=1e-5)


def test_fedavg_of_the_mean_update_is_the_mean_of_the_models() -> None:
    shared, changes = draw(0), updates()
    mean = {name: np.mean([c[name] for c in changes], axis=0) for name in shared}
    training = TrainingSection(strategy="fedavg", server_learning_rate=1.0, momentum=0.0)
    state = apply_update(initial_state(shared), mean, training, ROUNDS)
    for name, array in state.parameters.items():
        models = [shared[name] + change[name] for change in changes]
        np.testing.assert_allclose(array, np.mean(models, axis=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", ["fedadam", "fedavg"])
def test_a_step_changes_no_earlier_state_and_stays_float32(strategy: str) -> None:
    training = TrainingSection(strategy="fedadam" if strategy == "fedadam" else "fedavg")
    before = initial_state(draw(0))
    kept = pack_arrays(before.parameters, {})
    update = {name: array.astype(np.float64) for name, array in draw(1).items()}
    after = apply_update(before, update, training, ROUNDS)
    assert pack_arrays(before.parameters, {}) == kept
    assert not any(array.any() for array in before.first_moment.values())
    for part in (after.parameters, after.first_moment, after.second_moment):
        assert list(part) == list(SHAPES)
        assert {array.dtype for array in part.values()} == {np.dtype(np.float32)}


def test_without_an_update_fedadam_stands_still() -> None:
    zeros = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    state = apply_update(initial_state(draw(0)), zeros, TrainingSection(momentum=0.0), ROUNDS)
    for name, array in draw(0).items():
        np.testing.assert_array_equal(state.parameters[name], array)


def test_steps_shrink_to_almost_nothing_over_the_planned_rounds() -> None:
    training = TrainingSection(strategy="fedadam", server_learning_rate=0.2)
    lengths = [step_length(training, done, 10) for done in range(10)]
    assert lengths[0] == 0.2
    assert lengths[5] == pytest.approx(0.1)
    assert lengths == sorted(lengths, reverse=True)
    assert 0 < lengths[9] < 0.01
