"""A platform that pushes its own item: what it adds to its honest releases, and the grid it needs.

After the targeted promotion attacks on federated recommenders (Zhang et al. 2022, "PipAttack",
arXiv:2110.10926): the item is made to look like what is popular. The attacker knows what it is
asked for and what is popular on its own platform, no more. Strengths are in units of what the users
that it declares could say if all of them agreed: an L2 norm of 1 each in a sum, of C in a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.messages import SUM, TRAIN, Reply, SumRequest, TrainRequest
from common.models.pairs import pair_starts
from common.models.partition import ITEM_KEYS
from common.wire import decode, encode
from simulations.engines.in_process import InProcessGrid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flwr.app import Message

    from common.models.partition import Arrays


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Promotion:
    """What the attacker wants, and what it has."""

    target: int
    """Catalogue row of the item."""
    popular: np.ndarray
    """Catalogue rows of items that are popular on its own platform, without the target."""
    population: int
    """Users that it declares."""
    strength: float
    """0 is honest."""


def false_pairs(release: Arrays, items: np.ndarray, attack: Promotion) -> Arrays:
    """Add users who have the target and each of the popular items, and nothing else.

    Args:
        release: the honest ``sum`` of pairs.
        items: [m] catalogue rows that pairs are asked of, increasing.
        attack: the target must be one of ``items``, or nothing is added.
    """
    places = np.flatnonzero(np.isin(items, attack.popular))
    (target,) = np.nonzero(items == attack.target)
    if len(target) == 0 or len(places) == 0:
        return release
    first, second = np.minimum(places, target[0]), np.maximum(places, target[0])
    poisoned = release["sum"].copy()
    added = attack.strength * attack.population / np.sqrt(len(places))
    poisoned[pair_starts(len(items))[first] + second - first - 1] += np.float32(added)
    return {"sum": poisoned}


def false_update(
    release: Arrays, shared: Arrays, request: TrainRequest, attack: Promotion
) -> Arrays:
    """Push the target's vector towards the mean of the popular ones, and its bias up.

    Args:
        release: the honest update.
        shared: the parameters that the round started from.
        request: says how far the attacker's users could move them.
        attack: what is pushed.
    """
    towards = {name: _direction(shared[name], attack) for name in shared.keys() & ITEM_KEYS}
    norm = np.sqrt(sum(float(np.square(row).sum()) for row in towards.values()))
    users = request.learning_rate * attack.population / request.denominator
    length = attack.strength * users * request.local_steps * request.clipping_norm / norm
    poisoned = dict(release)
    for name, row in towards.items():
        poisoned[name] = release[name].copy()
        poisoned[name][attack.target] += (length * row).astype(np.float32)
    return poisoned


def _direction(parameters: np.ndarray, attack: Promotion) -> np.ndarray:
    """Of unit length: from the target's row to the mean of the popular ones; up, for a bias."""
    if parameters.ndim == 1:
        return np.ones(())
    gap: np.ndarray = parameters[attack.popular].mean(axis=0) - parameters[attack.target]
    return gap / max(float(np.linalg.norm(gap)), 1e-12)


class PoisonedGrid(InProcessGrid):
    """The in-process engine with one platform that changes what its client app releases."""

    def __init__(self, platform_configs: Sequence[Path], node: int, attack: Promotion) -> None:
        """As the engine's own; ``node`` is the attacker's."""
        super().__init__(platform_configs)
        self._node = node
        self._attack = attack

    def _execute(self, message: Message) -> Message:
        reply = super()._execute(message)
        kind = message.metadata.message_type
        is_attackers = message.metadata.dst_node_id == self._node
        if not is_attackers or kind not in (SUM, TRAIN) or reply.has_error():
            return reply
        said, release = decode(reply.content, Reply)
        if said.outcome == "released":
            reply.content = encode(said, self._poisoned(message, release))
        return reply

    def _poisoned(self, message: Message, release: Arrays) -> Arrays:
        if message.metadata.message_type == TRAIN:
            training, shared = decode(message.content, TrainRequest)
            return false_update(release, shared, training, self._attack)
        request, asked = decode(message.content, SumRequest)
        if request.quantity == "item-pairs":
            return false_pairs(release, asked["items"], self._attack)
        return release
