"""How likely each canary is to be in, given the noisy gradients of every round.

The adversary broadcasts the parameters (or sees them), so it knows what each user's gradient would
be, but for her private vector: it starts at random. So it does what the platform does, with vectors
of its own: the gradients of a canary are averaged over several starts, and those of everybody else
are taken away as they come out of one. What is left is weighed at the rows of the canary's own
items, where nearly all of her gradient is.

A canary's vector is fitted in every round, as if she had been sampled in each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix

from client.trainer import TrainingPlan, clipped_sums
from client.user_vectors import UserVectors
from common.data.batches import make_batch
from common.messages import TrainRequest
from common.models.losses import user_losses
from common.models.ncf import SharedNcf
from common.models.partition import ITEM_KEYS, shared_shapes, take_rows, unflatten
from common.privacy.randomness import SeededRandom
from common.rng import derive_seed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from common.data.interactions import UserItems
    from common.models.ncf import NcfConfig
    from common.models.partition import Arrays
    from simulations.attacks.membership.canaries import Canaries
    from simulations.attacks.membership.observer import Handed, Seen

NUM_STARTS = 4
"""Starts of a canary's vector that her gradient is averaged over."""
FITTING_STEPS = 40
_MOST_IN_GROUP = 64


def score_rounds(
    canaries: Canaries, seen: Iterable[Seen], known: Mapping[str, UserItems], *, seed: int
) -> np.ndarray:
    """Logarithm of the likelihood ratio of each canary, from all rounds that hold its platform.

    Args:
        canaries: users or interactions of one platform.
        seen: releases, or sums of them; sums of counts and pairs are passed over.
        known: by platform, what everybody but the canaries trains with; columns as listed.
        seed: of the adversary's own draws.

    Returns:
        [m] float64, higher for in; zeros if there are no rounds.
    """
    rounds = [
        one
        for one in seen
        if isinstance(one.request, TrainRequest) and canaries.platform in one.platforms
    ]
    total = np.zeros(canaries.number)
    if not rounds:
        return total
    listing = known[canaries.platform].listing
    everybody = {name: _Crowd(known[name].matrix, seed, name) for name in rounds[0].platforms}
    inside = [
        _Probes(canaries, listing, (True, True), derive_seed(seed, "in", start))
        for start in range(NUM_STARTS)
    ]
    outside = [
        _Probes(canaries, listing, (True, False), derive_seed(seed, "out", start))
        for start in range(NUM_STARTS if canaries.unit == "interaction" else 0)
    ]
    for one in rounds:
        request = one.request
        assert isinstance(request, TrainRequest)
        numbers = _summed_gradients(one, request)
        for name, crowd in everybody.items():
            rows = known[name].listing
            numbers[rows] -= crowd.gradients(request, take_rows(one.asked, rows))
        shared = take_rows(one.asked, listing)
        more = np.mean([probes.gradients(request, shared) for probes in inside], axis=0)
        found = numbers[canaries.items]
        if outside:
            less = np.mean([probes.gradients(request, shared) for probes in outside], axis=0)
            more, found = more - less, found - request.sampling_rate * request.local_steps * less
        total += _log_ratio(found, more, request, one.noise_std)
    return total


def score_handed_model(canaries: Canaries, handed: Handed, listing: np.ndarray) -> np.ndarray:
    """How well what a run made fits each canary: minus her loss, with a vector of her own.

    Args:
        canaries: whose items are hers.
        handed: shared parameters of the whole catalogue.
        listing: catalogue rows that her platform lists.
    """
    config = handed.request.model
    arrays = {name: handed.arrays[name] for name in shared_shapes(config, 1)}
    shared = take_rows(arrays, listing)
    model = SharedNcf(config, len(listing))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in shared.items()})
    number = canaries.number
    rows = np.repeat(np.arange(number), 2)
    columns = np.searchsorted(listing, canaries.items).ravel()
    own = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), (number, len(listing)))
    num_negatives = 0 if config.loss == "softmax" else config.num_negatives
    batch = make_batch(own, np.arange(number), num_negatives, np.random.default_rng(0))
    vectors = UserVectors.initial(number, config.user_dim, SeededRandom(0))
    fitted = vectors.fit_(model, torch.arange(number), batch, FITTING_STEPS)
    with torch.no_grad():
        losses: np.ndarray = user_losses(model, fitted, batch).double().numpy()
    return -losses


class _Crowd:
    """Everybody whom the adversary knows, with vectors of its own for them."""

    def __init__(self, own: csr_matrix, seed: int, name: str) -> None:
        self._own, self._source = own, SeededRandom(derive_seed(seed, "crowd", name))
        self._vectors: UserVectors | None = None

    def gradients(self, request: TrainRequest, shared: Arrays) -> np.ndarray:
        """What they can be expected to release together: [num_listed, features]."""
        vectors = self._vectors or UserVectors.initial(
            self._own.shape[0], request.model.user_dim, self._source
        )
        sums, self._vectors = clipped_sums(
            request.model, shared, vectors, self._own, _plan(request, request.dropout), self._source
        )
        return request.sampling_rate * request.local_steps * _item_rows(request.model, sums)


class _Probes:
    """The canaries themselves, as users of the platform with one start of their vectors."""

    def __init__(
        self, canaries: Canaries, listing: np.ndarray, has: tuple[bool, bool], seed: int
    ) -> None:
        self._places = np.searchsorted(listing, canaries.items)
        self._groups = _disjoint_groups(self._places)
        self._has, self._num_listed = np.flatnonzero(has), len(listing)
        self._source = SeededRandom(seed)
        self._vectors: dict[int, UserVectors] = {}

    def gradients(self, request: TrainRequest, shared: Arrays) -> np.ndarray:
        """The clipped gradient of each at her own items: [m, 2, features].

        Users with different items are computed together: at her items, the others' are next to
        nothing.
        """
        found = []
        for number, group in enumerate(self._groups):
            columns = self._places[group][:, self._has]
            rows = np.repeat(np.arange(len(group)), len(self._has))
            own = csr_matrix(
                (np.ones(columns.size, np.float32), (rows, columns.ravel())),
                (len(group), self._num_listed),
            )
            vectors = self._vectors.get(number) or UserVectors.initial(
                len(group), request.model.user_dim, self._source
            )
            sums, self._vectors[number] = clipped_sums(
                request.model, shared, vectors, own, _plan(request, 0.0), self._source
            )
            found.append(_item_rows(request.model, sums)[self._places[group]])
        gradients: np.ndarray = np.concatenate(found)[np.argsort(np.concatenate(self._groups))]
        return gradients


def _disjoint_groups(places: np.ndarray) -> list[np.ndarray]:
    """Cut canaries into groups without a common item: each goes where there is room first."""
    groups: list[list[int]] = []
    taken: list[set[int]] = []
    for number, items in enumerate(places.tolist()):
        for group, used in zip(groups, taken, strict=True):
            if len(group) < _MOST_IN_GROUP and used.isdisjoint(items):
                break
        else:
            group, used = [], set()
            groups.append(group)
            taken.append(used)
        group.append(number)
        used.update(items)
    return [np.array(group) for group in groups]


def _summed_gradients(one: Seen, request: TrainRequest) -> np.ndarray:
    """The noisy sum of gradients behind a release: [num_items, features]."""
    if request.secagg is None:
        factor = -request.denominator / request.learning_rate
        return factor * _item_rows(request.model, one.numbers)
    shapes = {name: array.shape for name, array in one.asked.items()}
    return _item_rows(request.model, unflatten(one.numbers["sum"], shapes))


def _item_rows(config: NcfConfig, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> np.ndarray:
    """Everything that belongs to an item, side by side: [num_items, features] float64."""
    names = [name for name in shared_shapes(config, 1) if name in ITEM_KEYS]
    blocks = [np.asarray(arrays[name], dtype=np.float64) for name in names]
    return np.concatenate([block.reshape(len(block), -1) for block in blocks], axis=1)


def _log_ratio(
    found: np.ndarray, gradients: np.ndarray, request: TrainRequest, noise_std: float
) -> np.ndarray:
    """Of taking part with ``gradients`` in every step, or not, each by the coin of the sampling."""
    moved = request.local_steps * gradients
    variance = max(request.local_steps * noise_std**2, 1e-6)
    axes = (1, 2)
    ratio: np.ndarray = (
        (moved * found).sum(axis=axes) - 0.5 * np.square(moved).sum(axis=axes)
    ) / variance
    rate = request.sampling_rate
    if rate == 1.0:
        return ratio
    sampled: np.ndarray = np.logaddexp(np.log1p(-rate), np.log(rate) + ratio)
    return sampled


def _plan(request: TrainRequest, dropout: float) -> TrainingPlan:
    """What the platform is asked for, with everybody in the sample and no noise."""
    return TrainingPlan(
        clipping_norm=request.clipping_norm,
        noise_std=0.0,
        sampling_rate=1.0,
        local_steps=1,
        denominator=request.denominator,
        learning_rate=request.learning_rate,
        user_steps=request.user_steps,
        dropout=dropout,
    )
