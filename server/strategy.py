"""How the server applies the mean of the releases: FedAvg and FedAdam, as pure functions.

State is a value; ``apply`` returns the next one, so a run resumes from a checkpoint exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from common.models.partition import Arrays
    from server.config import TrainingSection

BETA_2 = 0.99
TINY = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerState:
    """Everything a round starts from."""

    rounds_done: int
    """Closed rounds."""
    parameters: Arrays
    """Shared parameters, float32."""
    first_moment: Arrays
    """Decayed mean of the updates, float32."""
    second_moment: Arrays
    """Decayed mean of their squares, float32; zero under FedAvg."""


def initial_state(parameters: Arrays) -> ServerState:
    """State before the first round."""
    zeros = {name: np.zeros_like(array) for name, array in parameters.items()}
    return ServerState(
        rounds_done=0, parameters=parameters, first_moment=zeros, second_moment=dict(zeros)
    )


def step_length(training: TrainingSection, rounds_done: int, num_rounds: int) -> float:
    """Step length of the next round.

    FedAdam's falls from ``server_learning_rate`` to 0 along half a cosine over the planned rounds
    (Loshchilov and Hutter 2017, "SGDR", arXiv:1608.03983, equation 5, without restarts): what
    Adam makes of small updates is as long as of large ones, so only this lets a run settle.
    FedAvg keeps it, and takes what the platforms did as it is.
    """
    if training.strategy == "fedavg":
        return training.server_learning_rate
    return training.server_learning_rate * 0.5 * (1 + math.cos(math.pi * rounds_done / num_rounds))


def apply_update(
    state: ServerState, update: Arrays, training: TrainingSection, num_rounds: int
) -> ServerState:
    """Close a round with the mean ``update`` of its releases.

    FedAvg with server momentum, or FedAdam with bias correction (Reddi et al. 2021,
    "Adaptive federated optimization", arXiv:2003.00295, algorithm 2). Post-processing of what
    was released and of public numbers: no further price.

    Args:
        state: before the round.
        update: mean of its releases.
        training: public numbers of the run.
        num_rounds: rounds that the run plans, see :func:`step_length`.
    """
    count = state.rounds_done + 1
    beta_1, rate = training.momentum, step_length(training, state.rounds_done, num_rounds)
    parameters: Arrays = {}
    first: Arrays = {}
    second: Arrays = {}
    for name, old in state.parameters.items():
        change = update[name].astype(np.float32)
        if training.strategy == "fedavg":
            first[name] = np.float32(beta_1) * state.first_moment[name] + change
            second[name] = state.second_moment[name]
            step = first[name]
        else:
            first[name] = (beta_1 * state.first_moment[name] + (1 - beta_1) * change).astype(
                np.float32
            )
            second[name] = (
                BETA_2 * state.second_moment[name] + (1 - BETA_2) * np.square(change)
            ).astype(np.float32)
            spread = np.sqrt(second[name] / (1 - BETA_2**count))
            step = first[name] / (1 - beta_1**count) / (spread + TINY)
        parameters[name] = (old + rate * step).astype(np.float32)
    return ServerState(
        rounds_done=count, parameters=parameters, first_moment=first, second_moment=second
    )
