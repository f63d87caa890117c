"""One round of differentially private training on one platform (DP-FedSGD, DP-FedAvg).

``local_steps`` times: draw a Poisson sample of users, fit their private vectors, drop a part of
each vector, sum the clipped gradients of the shared parameters, add noise, divide by a public
constant, step.
One step is DP-FedSGD, several are DP-FedAvg with noise in every step (Abadi et al. 2016,
arXiv:1607.00133, algorithm 1; McMahan et al. 2018, arXiv:1710.06963).
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.data.batches import MAX_POSITIVES, ROWS, make_batch, places_of
from common.errors import NonFiniteUpdate
from common.models.ncf import SharedNcf
from common.privacy.clipping import zero_sums
from common.privacy.engines import clipping_engine
from common.privacy.noise import add_gaussian_noise_
from common.privacy.randomness import poisson_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csr_matrix
    from torch import Tensor

    from client.user_vectors import UserVectors
    from common.data.batches import UserBatch
    from common.models.ncf import NcfConfig
    from common.models.partition import Arrays
    from common.privacy.engines import ClippingEngine
    from common.privacy.randomness import RandomSource

NUMBERS_IN_BLOCK = 4_000_000
"""Scores (or gathered numbers) that one block of users may hold; larger samples go in blocks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """The numbers of one round, all public."""

    clipping_norm: float
    """C: bound on the L2 norm of one user's summed gradient."""
    noise_std: float
    """Standard deviation of the noise that this platform adds to each coordinate of a sum."""
    sampling_rate: float
    """Probability that a user takes part in one step."""
    local_steps: int
    """Noisy steps in the round."""
    denominator: float
    """Public constant that every sum is divided by, the same for all platforms."""
    learning_rate: float
    """Step length."""
    user_steps: int
    """Private Adam steps on the sampled users' vectors before their gradients are taken."""
    dropout: float
    """Probability with which each number of a fitted vector is left out of her gradient."""


def train_round(
    config: NcfConfig,
    shared: Arrays,
    vectors: UserVectors,
    interactions: csr_matrix,
    plan: TrainingPlan,
    source: RandomSource,
    *,
    engine: ClippingEngine = "fast",
    device: str = "cpu",
) -> tuple[Arrays, UserVectors]:
    """Train one round and return the release and the new private user vectors.

    Guarantee: with ``noise_std = z C`` the returned update is a post-processing of
    ``SampledGaussian(noise_multiplier=z, sampling_rate, steps=local_steps)`` over the users, with
    any adaptively chosen ``shared``. A user's private vector may follow from earlier rounds in
    which she was sampled. To see it, fix what is drawn for every other user (first vector, sampling
    and dropout coins, negatives): with it and the releases so far, the sum under absence is
    fixed, and under presence it is a mixture over her own draws of sums within C of it, so each
    step has the dominating pair of its mechanism. What is drawn for others has the same
    distribution with and without her, so averaging over it keeps the bound (hockey-stick
    divergences are jointly convex). This needs draws of different users to be independent: all
    are the source's, negatives those of a generator with 2^128 starts. Dropout precedes clipping.

    Args:
        config: the model.
        shared: shared parameters restricted to the platform's listed items.
        vectors: private vectors, one row per user; not changed.
        interactions: [num_users, num_listed], 1 where the user interacted.
        plan: public numbers of the round.
        source: sampling coins and noise.
        engine: what computes the clipped sums; all agree up to rounding.
        device: where they are computed; noise is always drawn and added on the processor.

    Returns:
        the update (new minus old shared parameters, float32) and the new vectors.

    Raises:
        NonFiniteUpdate: if the update holds NaN or infinity.
    """
    sampling = _Sampling(config, shared, vectors, interactions, plan, source, engine, device)
    for _ in range(plan.local_steps):
        sampling.add_clipped_sample_()
        take_noisy_step_(sampling.model, sampling.sums, plan, source)
    update = {
        name: parameter.detach().cpu().numpy() - shared[name]
        for name, parameter in sampling.model.named_parameters()
    }
    if not all(np.isfinite(array).all() for array in update.values()):
        msg = "the update holds NaN or infinity; nothing was released. Lower the learning rate."
        raise NonFiniteUpdate(msg)
    return update, sampling.vectors.to("cpu")


def clipped_sums(
    config: NcfConfig,
    shared: Arrays,
    vectors: UserVectors,
    interactions: csr_matrix,
    plan: TrainingPlan,
    source: RandomSource,
    *,
    engine: ClippingEngine = "fast",
    device: str = "cpu",
) -> tuple[dict[str, Tensor], UserVectors]:
    """The sums of one step **before noise**, for secure aggregation, and the new private vectors.

    What :func:`train_round` does in its first step up to the noise, with the same arguments and
    draws: every unit moves the sums by at most C in L2, all of them together.

    Returns:
        float64 sums by name of the shared parameter, of the platform's listed items; never to
        leave as they are.

    Raises:
        NonFiniteUpdate: if they hold NaN or infinity.
    """
    sampling = _Sampling(config, shared, vectors, interactions, plan, source, engine, device)
    sampling.add_clipped_sample_()
    sums = {name: total.cpu() for name, total in sampling.sums.items()}
    if not all(bool(torch.isfinite(total).all()) for total in sums.values()):
        msg = "the sums hold NaN or infinity; nothing was released. Lower the learning rate."
        raise NonFiniteUpdate(msg)
    return sums, sampling.vectors.to("cpu")


class _Sampling:
    """Draws samples of users, fits their vectors and adds up their clipped gradients."""

    def __init__(
        self,
        config: NcfConfig,
        shared: Arrays,
        vectors: UserVectors,
        interactions: csr_matrix,
        plan: TrainingPlan,
        source: RandomSource,
        engine: ClippingEngine,
        device: str,
    ) -> None:
        """Take copies; the order of draws from ``source`` begins here."""
        self._config, self._interactions = config, interactions
        self._plan, self._source, self._device = plan, source, device
        self.model = SharedNcf(config, interactions.shape[1])
        self.model.load_state_dict({k: torch.from_numpy(array) for k, array in shared.items()})
        self.model.to(device)
        self.vectors = vectors.copy().to(device)
        self._negatives, self._coins = np.random.default_rng(source.seed()), source.split()
        self._add_, self.sums = clipping_engine(engine), zero_sums(self.model)

    def add_clipped_sample_(self) -> None:
        """Add the gradients of a fresh sample to ``sums``, each user's clipped to C."""
        config, interactions = self._config, self._interactions
        with nullcontext() if config.loss == "softmax" else _one_thread():
            sample = poisson_sample(interactions.shape[0], self._plan.sampling_rate, self._source)
            for users in blocks_of_users(config, interactions, sample):
                batch = user_batch(config, interactions, users, self._negatives).to(self._device)
                fitted = self.vectors.fit_(
                    self.model, torch.from_numpy(users), batch, self._plan.user_steps
                )
                draws = uniforms_like(fitted, self._coins)
                kept = dropped_out(fitted, self._plan.dropout, draws)
                self._add_(self.sums, self.model, kept, batch, self._plan.clipping_norm)


def uniforms_like(vectors: Tensor, source: RandomSource) -> Tensor:
    """A draw from [0, 1) for each number, of the source of the noise.

    The guarantee takes the coins of different users for independent, and a generator with few
    starts is not that.
    """
    return torch.from_numpy(source.uniform(vectors.numel())).view(vectors.shape)


def dropped_out(vectors: Tensor, dropout: float, draws: Tensor) -> Tensor:
    """``vectors`` with each number 0 with probability ``dropout``, and the others scaled up to it.

    Srivastava et al. 2014, "Dropout".

    Args:
        vectors: any shape.
        dropout: from 0 to below 1.
        draws: of the same shape, uniform on [0, 1).
    """
    if dropout == 0:
        return vectors
    kept = draws >= dropout
    return vectors * kept.to(vectors.device) / (1.0 - dropout)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads cut small arrays where their number says; ends can be rounded differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def take_noisy_step_(
    model: SharedNcf, sums: dict[str, Tensor], plan: TrainingPlan, source: RandomSource
) -> None:
    """Make the clipped ``sums`` a release of noisy sums, step along it, and begin new sums.

    The only place where noise is added; it is added to every shared parameter, whoever was sampled.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noisy = sums[name].cpu()
            add_gaussian_noise_(noisy, plan.noise_std, source)
            step = noisy.float().to(parameter.device)
            parameter.sub_(step, alpha=plan.learning_rate / plan.denominator)
            sums[name].zero_()


def user_batch(
    config: NcfConfig, interactions: csr_matrix, users: np.ndarray, rng: np.random.Generator
) -> UserBatch:
    """The batch of ``users`` that the model's loss needs."""
    num_negatives = 0 if config.loss == "softmax" else config.num_negatives
    return make_batch(interactions, users, num_negatives, rng)


def blocks_of_users(
    config: NcfConfig, interactions: csr_matrix, sample: np.ndarray
) -> list[np.ndarray]:
    """Cut a sample into blocks whose numbers fit in memory; their sums add up to the same.

    With losses over chosen items a block holds users with equally many places for their items, so
    that the shape of what is computed for a user follows from her own activity alone.
    """
    if config.loss == "softmax":
        groups, width = [sample], interactions.shape[1]
    else:
        places = places_of(np.diff(interactions.indptr)[sample])
        groups = [sample[places == size] for size in np.unique(places)]
        width = (config.num_negatives + MAX_POSITIVES) * config.dim
    size = max(ROWS, NUMBERS_IN_BLOCK // width)
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]
