"""Neural collaborative filtering fitted to one platform's own users, without noise, for itself.

Nothing of it is ever released: not an item vector, not a loss, not the number of epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from client.trainer import blocks_of_users, dropped_out, user_batch
from common.evaluation.metrics import evaluate
from common.messages import from_json, to_json
from common.models.losses import user_losses
from common.models.ncf import NcfConfig, SharedNcf, initialise
from common.models.partition import check_shared

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from torch import Tensor

    from client.user_vectors import UserVectors
    from common.models.partition import Arrays

LEARNING_RATE = 0.02
DROPOUT = 0.5
WEIGHT_DECAY = 0.06
BATCH_USERS = 512
EPOCHS_PER_CHECK = 4
PATIENCE = 3
CUTOFF = 10
USER_STEPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonalNcf:
    """A platform's own model: item parameters of its listed items, and one vector per user."""

    config: NcfConfig
    """The model."""
    items: Arrays
    """Named like the shared parameters, restricted to the platform's listing."""
    user_vectors: np.ndarray
    """[num_users, user_dim] float32."""
    epochs: int = 0
    """Epochs that were kept; the cap itself means that it was still improving."""

    def scores(self, users: np.ndarray, history: csr_matrix | None = None) -> np.ndarray:
        """Scores of all listed items for ``users`` (row numbers): float32 [B, num_listed].

        ``history`` is not read: what she bought is in a user's vector.
        """
        del history
        model = SharedNcf(self.config, len(self.items["items.bias"]))
        model.load_state_dict({name: torch.from_numpy(a) for name, a in self.items.items()})
        with torch.inference_mode():
            scores: np.ndarray = model.score_all(torch.from_numpy(self.user_vectors[users])).numpy()
        return scores

    def arrays(self) -> Arrays:
        """The model as named arrays."""
        return {
            **self.items,
            "user_vectors": self.user_vectors,
            "config": np.frombuffer(to_json(self.config).encode(), dtype=np.uint8),
            "epochs": np.array([self.epochs], dtype=np.int64),
        }

    @classmethod
    def from_arrays(cls, **arrays: np.ndarray) -> Self:
        """Undo :meth:`arrays`.

        Raises:
            CrossRecError: for another configuration, or items that are not those of such a model.
            LookupError: if an array is missing.
            ValueError: if the user vectors do not fit.
        """
        config = from_json(arrays.pop("config").tobytes().decode(), NcfConfig)
        epochs, user_vectors = int(arrays.pop("epochs")[0]), arrays.pop("user_vectors")
        if user_vectors.ndim != 2 or user_vectors.shape[1] != config.user_dim:
            raise ValueError(
                f"user vectors have shape {user_vectors.shape}, expected (any, {config.user_dim})"
            )
        items = check_shared(arrays, config, len(arrays["items.bias"]))
        return cls(config=config, epochs=epochs, user_vectors=user_vectors, items=items)


def fit_personal_ncf(
    config: NcfConfig,
    interactions: csr_matrix,
    validation: csr_matrix,
    *,
    max_epochs: int,
    seed: int,
) -> PersonalNcf:
    """Fit item parameters and user vectors by Adam; keep the epoch that validates best.

    Args:
        config: the model.
        interactions: [num_users, num_listed] to fit.
        validation: same shape, held-out items of the validation users; may be empty, then the
            last epoch is kept.
        max_epochs: upper bound on passes over the users.
        seed: initialisation, batches, dropout; no guarantee hangs on it.
    """
    num_users, num_items = interactions.shape
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = initialise(config, num_items, generator)
    start = torch.randn(num_users, config.user_dim, generator=generator) * 0.1
    vectors = torch.nn.Parameter(start)
    optimiser = torch.optim.Adam([*model.parameters(), vectors], lr=LEARNING_RATE)
    active = np.flatnonzero(np.diff(interactions.indptr))
    batch_users = min(BATCH_USERS, max(64, num_users // 8))
    best, best_ndcg, waited = _snapshot(model, vectors), -1.0, 0
    for epoch in range(1, max_epochs + 1):
        order = rng.permutation(active)
        for first in range(0, len(order), batch_users):
            users = order[first : first + batch_users]
            optimiser.zero_grad()
            for block in blocks_of_users(config, interactions, users):
                rows = vectors[torch.from_numpy(block)]
                batch = user_batch(config, interactions, block, rng)
                kept = dropped_out(rows, DROPOUT, torch.rand(rows.shape, generator=generator))
                penalty = WEIGHT_DECAY * rows.square().sum()
                part = (user_losses(model, kept, batch).sum() + penalty) / len(users)
                part.backward()
            pull = sum(p.square().sum() for p in model.parameters())
            (WEIGHT_DECAY / num_users * pull).backward()
            optimiser.step()
        if epoch % EPOCHS_PER_CHECK == 0 or epoch == max_epochs:
            found = replace(_snapshot(model, vectors), epochs=epoch)
            ndcg = _ndcg(found, interactions, validation)
            if ndcg > best_ndcg or not validation.nnz:
                best, best_ndcg, waited = found, ndcg, 0
            else:
                waited += 1
                if waited == PATIENCE:
                    break
    return best


def fit_user_vectors(
    config: NcfConfig,
    shared: Arrays,
    vectors: UserVectors,
    interactions: csr_matrix,
    *,
    seed: int,
) -> PersonalNcf:
    """Keep the shared item parameters as they are and fit every user's vector to them.

    This is what the federation alone brings: no item parameter is the platform's own.

    Args:
        config: the model.
        shared: shared parameters of the listed items.
        vectors: where the user vectors start; not changed.
        interactions: [num_users, num_listed] to fit.
        seed: negatives of the sampled losses.
    """
    model = SharedNcf(config, interactions.shape[1])
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in shared.items()})
    vectors, rng = vectors.copy(), np.random.default_rng(seed)
    everyone = np.arange(interactions.shape[0])
    for users in blocks_of_users(config, interactions, everyone):
        batch = user_batch(config, interactions, users, rng)
        vectors.fit_(model, torch.from_numpy(users), batch, USER_STEPS)
    return _snapshot(model, vectors.values)


def _snapshot(model: SharedNcf, vectors: Tensor) -> PersonalNcf:
    items = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    return PersonalNcf(
        config=model.config, items=items, user_vectors=vectors.detach().numpy().copy()
    )


def _ndcg(model: PersonalNcf, interactions: csr_matrix, validation: csr_matrix) -> float:
    if not validation.nnz:
        return -1.0
    metrics = evaluate(
        model.scores, interactions, validation, cutoffs=(CUTOFF,), rng=np.random.default_rng(0)
    )
    return metrics.mean[f"ndcg@{CUTOFF}"]
