"""Private adaptation: fit the model to the platform's own users, alone or from the shared one.

Everything here looks at the platform's raw interactions without noise, and none of it is ever
released: not the item vectors it ends with, not a loss, not the number of epochs. Training for a
release never reads it back (a user's released gradient would then depend on other users).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.trainer import blocks_of_users, user_batch
from common.evaluation.metrics import evaluate, paired_difference
from common.models.losses import user_losses
from common.models.ncf import SharedNcf, initialise

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from torch import Tensor

    from client.user_vectors import UserVectors
    from common.evaluation.metrics import RankingMetrics
    from common.models.ncf import NcfConfig
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
class PersonalModel:
    """A platform's own model: item parameters of its listed items, and one vector per user."""

    config: NcfConfig
    """The model."""
    items: Arrays
    """Named like the shared parameters, restricted to the platform's listing."""
    user_vectors: np.ndarray
    """[num_users, user_dim] float32."""
    validation_ndcg: float
    """NDCG@10 on the validation users; chooses between models, and stays on the platform."""
    epochs: int = 0
    """Epochs that were kept; the cap itself means that it was still improving."""

    def scores(self, users: np.ndarray) -> np.ndarray:
        """Scores of all listed items for ``users`` (row numbers): float32 [B, num_listed]."""
        model = SharedNcf(self.config, len(self.items["items.bias"]))
        model.load_state_dict({name: torch.from_numpy(a) for name, a in self.items.items()})
        with torch.inference_mode():
            scores: np.ndarray = model.score_all(torch.from_numpy(self.user_vectors[users])).numpy()
        return scores


def fit_personal_model(
    config: NcfConfig,
    interactions: csr_matrix,
    validation: csr_matrix,
    *,
    max_epochs: int,
    seed: int,
    shared: Arrays | None = None,
    user_vectors: np.ndarray | None = None,
) -> PersonalModel:
    """Fit item parameters and user vectors by Adam; keep the epoch that validates best.

    Without ``shared`` this is what the platform can do alone. With it, items start at the shared
    parameters and weight decay pulls them back there, so that what is learned on top is the
    private residual per item.

    Args:
        config: the model.
        interactions: [num_users, num_listed] to fit.
        validation: same shape, held-out items of the validation users; may be empty, then the
            last epoch is kept.
        max_epochs: upper bound on passes over the users.
        seed: initialisation, batches, dropout; no guarantee hangs on it.
        shared: shared parameters of the listed items, or None.
        user_vectors: where the user vectors start, or None for small random ones.
    """
    num_users, num_items = interactions.shape
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = initialise(config, num_items, generator)
    anchors = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    if shared is not None:
        anchors = {name: torch.from_numpy(array.copy()) for name, array in shared.items()}
        model.load_state_dict(anchors)
    start = torch.randn(num_users, config.user_dim, generator=generator) * 0.1
    if user_vectors is not None:
        start = torch.from_numpy(user_vectors.copy())
    vectors = torch.nn.Parameter(start)
    optimiser = torch.optim.Adam([*model.parameters(), vectors], lr=LEARNING_RATE)
    active = np.flatnonzero(np.diff(interactions.indptr))
    batch_users = min(BATCH_USERS, max(64, num_users // 8))
    best, waited = _snapshot(model, vectors, interactions, validation), 0
    for epoch in range(1, max_epochs + 1):
        order = rng.permutation(active)
        for first in range(0, len(order), batch_users):
            users = order[first : first + batch_users]
            optimiser.zero_grad()
            for block in blocks_of_users(config, interactions, users):
                rows = vectors[torch.from_numpy(block)]
                batch = user_batch(config, interactions, block, rng)
                kept = _dropout(rows, generator)
                penalty = WEIGHT_DECAY * rows.square().sum()
                part = (user_losses(model, kept, batch).sum() + penalty) / len(users)
                part.backward()
            pull = sum((p - anchors[name]).square().sum() for name, p in model.named_parameters())
            (WEIGHT_DECAY / num_users * pull).backward()
            optimiser.step()
        if epoch % EPOCHS_PER_CHECK == 0 or epoch == max_epochs:
            found = replace(_snapshot(model, vectors, interactions, validation), epochs=epoch)
            if found.validation_ndcg > best.validation_ndcg or not validation.nnz:
                best, waited = found, 0
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
    validation: csr_matrix,
    *,
    seed: int,
) -> PersonalModel:
    """Keep the shared item parameters as they are and fit every user's vector to them.

    This is what the federation alone brings: no item parameter is the platform's own.

    Args:
        config: the model.
        shared: shared parameters of the listed items.
        vectors: where the user vectors start; not changed.
        interactions: [num_users, num_listed] to fit.
        validation: same shape, held-out items of the validation users.
        seed: negatives of the sampled losses.
    """
    model = SharedNcf(config, interactions.shape[1])
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in shared.items()})
    vectors, rng = vectors.copy(), np.random.default_rng(seed)
    everyone = np.arange(interactions.shape[0])
    for users in blocks_of_users(config, interactions, everyone):
        batch = user_batch(config, interactions, users, rng)
        vectors.fit_(model, torch.from_numpy(users), batch, USER_STEPS)
    return _snapshot(model, vectors.values, interactions, validation)


def joining_pays(
    alone: PersonalModel,
    joined: PersonalModel,
    interactions: csr_matrix,
    validation: csr_matrix,
) -> bool:
    """The gate: serve what joining brought only if the validation users clearly prefer it.

    Their held-out items must stand higher with joining, by more than one standard error of the
    paired difference of the logarithms of their ranks (the one-standard-error rule: Breiman et al.
    1984, section 3.4.3), and NDCG@10 must not fall. Ranks tell more than NDCG@10, which is 0 for
    most users of either model; NDCG@10 keeps the top honest. Without validation users the platform
    stays alone.
    """
    if not validation.nnz:
        return False
    num_items = interactions.shape[1]
    with_joining, without = (
        evaluate(
            model.scores,
            interactions,
            validation,
            cutoffs=(CUTOFF, num_items),
            rng=np.random.default_rng(0),
        )
        for model in (joined, alone)
    )
    gains = _log_reciprocal_ranks(with_joining, num_items) - _log_reciprocal_ranks(
        without, num_items
    )
    stderr = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else math.inf
    top = paired_difference(with_joining, without, f"ndcg@{CUTOFF}")
    return bool(gains.mean() > stderr and top.mean >= 0.0)


def _log_reciprocal_ranks(metrics: RankingMetrics, num_items: int) -> np.ndarray:
    """Minus the logarithm of each validation user's best rank; last where it cannot be reached."""
    reciprocal = metrics.per_user[f"mrr@{num_items}"]
    logs: np.ndarray = np.log(np.maximum(reciprocal, 1.0 / (num_items + 1)))
    return logs


def _dropout(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Dropout whose coins come from ``generator`` (torch's own uses the global one)."""
    kept = torch.rand(rows.shape, generator=generator) >= DROPOUT
    return rows * kept / (1.0 - DROPOUT)


def _snapshot(
    model: SharedNcf, vectors: Tensor, interactions: csr_matrix, validation: csr_matrix
) -> PersonalModel:
    items = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    personal = PersonalModel(
        config=model.config,
        items=items,
        user_vectors=vectors.detach().numpy().copy(),
        validation_ndcg=-1.0,
    )
    if not validation.nnz:
        return personal
    metrics = evaluate(
        personal.scores, interactions, validation, cutoffs=(CUTOFF,), rng=np.random.default_rng(0)
    )
    return replace(personal, validation_ndcg=metrics.mean[f"ndcg@{CUTOFF}"])
