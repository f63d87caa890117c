"""Mistakes and cheats in what is summed: clipping, units, weights, samples, negatives."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import client.platform
import client.trainer
from client.sums import pair_sum
from client.user_vectors import UserVectors
from common.privacy import clipping, engines
from common.privacy.clipping import add_clipped_gradients_, zero_sums
from common.privacy.randomness import poisson_sample

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from scipy.sparse import csr_matrix

    from common.data.batches import UserBatch
    from common.models.ncf import NcfConfig, SharedNcf
    from common.privacy.randomness import RandomSource

    Plant = Callable[[pytest.MonkeyPatch], None]
    Sums = dict[str, torch.Tensor]


# --- A user's part of a round -------------------------------------------------------------------


def plant_engine(patch: pytest.MonkeyPatch, engine: Callable[..., None]) -> None:
    def add(*arguments: Any, scratch: Any = None) -> None:  # noqa: ANN401
        del scratch
        engine(*arguments)

    patch.setattr(engines, "add_clipped_gradients_", add)


def not_clipped(patch: pytest.MonkeyPatch) -> None:
    def unclipped(
        sums: Sums, model: SharedNcf, vectors: torch.Tensor, batch: UserBatch, _: float
    ) -> None:
        add_clipped_gradients_(sums, model, vectors, batch, 1e9)

    plant_engine(patch, unclipped)


def tower_left_out(patch: pytest.MonkeyPatch) -> None:
    """The norm is that of the item embeddings and biases; the tower goes unclipped beside them."""
    right = clipping.squared_norms

    def of_matrices(values: torch.Tensor) -> torch.Tensor:
        return right(values) if values.ndim == 2 else values.new_zeros(len(values))

    patch.setattr(clipping, "squared_norms", of_matrices)


def arrays_one_by_one(patch: pytest.MonkeyPatch) -> None:
    """Each array is clipped to C by itself: all of them together have sqrt(arrays) C."""

    def clipped(
        sums: Sums, model: SharedNcf, vectors: torch.Tensor, batch: UserBatch, norm: float
    ) -> None:
        for row in range(len(vectors)):
            own = zero_sums(model)
            one = slice(row, row + 1)
            add_clipped_gradients_(own, model, vectors[one], batch.of(one), 1e9)
            for name, array in own.items():
                sums[name] += array * min(1.0, norm / max(float(array.norm()), 1e-300))

    plant_engine(patch, clipped)


def purchases_one_by_one(patch: pytest.MonkeyPatch) -> None:
    """One purchase is one sample, as Opacus' examples have it: a user has many C."""

    def clipped(
        sums: Sums, model: SharedNcf, vectors: torch.Tensor, batch: UserBatch, norm: float
    ) -> None:
        users, places = batch.is_positive.nonzero(as_tuple=True)
        one = torch.zeros_like(batch.is_positive[users])
        one[torch.arange(len(users)), places] = True
        each = replace(batch.of(users), is_positive=one)
        add_clipped_gradients_(sums, model, vectors[users], each, norm)

    plant_engine(patch, clipped)


def divided_by_the_sample(patch: pytest.MonkeyPatch) -> None:
    """As Opacus' own optimiser does with ``expected_batch_size`` left out."""

    def mean(sums: Sums, model: SharedNcf, *arguments: Any) -> None:  # noqa: ANN401
        total = zero_sums(model)
        add_clipped_gradients_(total, model, *arguments)
        for name, array in total.items():
            sums[name] += array / len(arguments[0])

    plant_engine(patch, mean)


def divided_by_its_users(patch: pytest.MonkeyPatch) -> None:
    """By how many users the platform has, in the place of a public constant."""
    right = client.trainer.train_round

    def train(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        config, shared, vectors, interactions, plan, *rest = arguments
        plan = replace(plan, denominator=float(interactions.shape[0]))
        return right(config, shared, vectors, interactions, plan, *rest, **options)

    for place in (client.trainer, client.platform):
        patch.setattr(place, "train_round", train)


def weighted_by_activity(patch: pytest.MonkeyPatch) -> None:
    """Each user by her purchases over the most that anybody in the sample has."""

    def weighted(
        sums: Sums, model: SharedNcf, vectors: torch.Tensor, batch: UserBatch, norm: float
    ) -> None:
        activity = batch.is_positive.sum(1).double()
        for row, weight in enumerate((activity / activity.max().clamp(min=1)).tolist()):
            own, one = zero_sums(model), slice(row, row + 1)
            add_clipped_gradients_(own, model, vectors[one], batch.of(one), norm)
            for name, array in own.items():
                sums[name] += weight * array

    plant_engine(patch, weighted)


def vectors_centred_on_the_sample(patch: pytest.MonkeyPatch) -> None:
    right = UserVectors.fit_

    def fit(self: UserVectors, *arguments: Any) -> torch.Tensor:  # noqa: ANN401
        fitted = right(self, *arguments)
        return fitted - fitted.mean(0)

    patch.setattr(UserVectors, "fit_", fit)


def negatives_in_the_batch(patch: pytest.MonkeyPatch) -> None:
    """What others bought is a user's negative, as "in-batch" losses have it."""
    right = client.trainer.user_batch

    def batch_of(
        config: NcfConfig, interactions: csr_matrix, users: np.ndarray, rng: np.random.Generator
    ) -> UserBatch:
        batch = right(config, interactions, users, rng)
        if config.loss == "softmax":
            return batch
        bought = interactions[users].indices
        places = slice(batch.items.shape[1] - config.num_negatives, None)
        drawn = rng.choice(bought, size=(len(users), config.num_negatives))
        batch.items[:, places] = torch.from_numpy(drawn.astype(np.int64))
        return batch

    patch.setattr(client.trainer, "user_batch", batch_of)


# --- A user's part of a sum ---------------------------------------------------------------------


def pairs_as_they_are(patch: pytest.MonkeyPatch) -> None:
    """Every pair of a user counts its full weight, whatever the norm of all of them."""

    def raw(interactions: csr_matrix, weights: np.ndarray) -> np.ndarray:
        owned = (interactions.toarray() != 0) * weights.astype(np.float64)
        total: np.ndarray = (owned.T @ owned)[np.triu_indices(len(weights), 1)]
        return total

    patch.setattr(client.platform, "pair_sum", raw)


def counts_as_they_are(patch: pytest.MonkeyPatch) -> None:
    def raw(interactions: csr_matrix) -> np.ndarray:
        total: np.ndarray = (interactions.toarray() != 0).sum(0).astype(np.float64)
        return total

    patch.setattr(client.platform, "count_sum", raw)


def pairs_weighted_by_own_counts(patch: pytest.MonkeyPatch) -> None:
    """Weights of the items by what the platform's own users bought, not those that were sent."""

    def weighted(interactions: csr_matrix, weights: np.ndarray) -> np.ndarray:
        counts = np.asarray(interactions.sum(0)).ravel()
        return pair_sum(interactions, (weights / np.maximum(counts, 1.0)).astype(np.float32))

    patch.setattr(client.platform, "pair_sum", weighted)


# --- Who takes part -----------------------------------------------------------------------------


def sampled_by(sampler: Callable[[int, float, RandomSource], np.ndarray]) -> Plant:
    return lambda patch: patch.setattr(client.trainer, "poisson_sample", sampler)


def _shuffled(num_users: int, rate: float, source: RandomSource) -> np.ndarray:
    order = np.argsort(source.uniform(num_users))
    return np.sort(order[: round(rate * num_users)])


shuffled_batches = sampled_by(_shuffled)
more_than_priced = sampled_by(
    lambda num_users, rate, source: poisson_sample(num_users, min(1.0, 1.5 * rate), source)
)
everybody_each_time = sampled_by(lambda num_users, _, __: np.arange(num_users))


class _Epochs:
    """Batches of one shuffled order, one after the other: nobody twice before all were there."""

    def __init__(self) -> None:
        self.rest = np.zeros(0, dtype=np.int64)

    def __call__(self, num_users: int, rate: float, source: RandomSource) -> np.ndarray:
        if not len(self.rest):
            self.rest = np.argsort(source.uniform(num_users))
        size = round(rate * num_users)
        batch, self.rest = self.rest[:size], self.rest[size:]
        return np.sort(batch)


def epochs(patch: pytest.MonkeyPatch) -> None:
    sampled_by(_Epochs())(patch)
