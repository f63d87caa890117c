"""Private user vectors: fitted on the platform, kept on the platform.

A user's vector is a function of her own interactions and of shared parameters only. That is what
makes a user's gradient depend on no other user. Recommendations from shared parameters and her own
vector have no further price (billboard lemma: Kearns et al. 2014; Jain et al. 2021, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from common.data.batches import fixed_blocks
from common.models.losses import softmax_residuals, user_losses

if TYPE_CHECKING:
    from torch import Tensor

    from common.data.batches import UserBatch
    from common.models.ncf import SharedNcf
    from common.privacy.randomness import RandomSource

LEARNING_RATE = 0.1
WEIGHT_DECAY = 0.02
_INITIAL_STD = 0.3
BETA_1, BETA_2, TINY = 0.9, 0.99, 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class UserVectors:
    """Vectors and Adam moments, one row per user; rows never mix."""

    values: Tensor
    """[num_users, user_dim] float32."""
    first_moment: Tensor
    """Same shape."""
    second_moment: Tensor
    """Same shape."""
    num_steps: Tensor
    """[num_users] float32: Adam steps taken by each user."""

    @classmethod
    def initial(cls, num_users: int, user_dim: int, source: RandomSource) -> UserVectors:
        """Small random vectors; no data is looked at.

        Where a release follows from them, ``source`` is that of its noise: the guarantee takes
        the vectors of different users for independent.
        """
        draws = source.gaussian(num_users * user_dim, _INITIAL_STD)
        values = draws.float().view(num_users, user_dim)
        return cls(
            values=values,
            first_moment=torch.zeros_like(values),
            second_moment=torch.zeros_like(values),
            num_steps=torch.zeros(num_users),
        )

    def copy(self) -> UserVectors:
        """A deep copy."""
        return UserVectors(**{name: getattr(self, name).clone() for name in self.__slots__})

    def to(self, device: str) -> UserVectors:
        """The same vectors on another device; not a copy where they are there already."""
        return UserVectors(**{name: getattr(self, name).to(device) for name in self.__slots__})

    def fit_(self, model: SharedNcf, users: Tensor, batch: UserBatch, num_steps: int) -> Tensor:
        """Take ``num_steps`` Adam steps on the vectors of ``users``, in place; return them.

        Args:
            model: frozen shared parameters.
            users: row numbers, shape [B].
            batch: their interactions, in the same order.
            num_steps: Adam steps.
        """
        vectors, first = self.values[users], self.first_moment[users]
        second, taken = self.second_moment[users], self.num_steps[users]
        for _ in range(num_steps):
            gradient = _gradient_of_vectors(model, vectors, batch) + WEIGHT_DECAY * vectors
            taken = taken + 1
            first = BETA_1 * first + (1 - BETA_1) * gradient
            second = BETA_2 * second + (1 - BETA_2) * gradient.square()
            mean = first / _debias(BETA_1, taken)
            spread = (second / _debias(BETA_2, taken)).sqrt()
            vectors = vectors - LEARNING_RATE * mean / (spread + TINY)
        # A server can send parameters under which a user's vector overflows: she starts anew, so
        # that nothing downstream fails because of her.
        broken = ~torch.isfinite(vectors + first + second).all(1)
        for array in (vectors, first, second, taken):
            array[broken] = 0.0
        self.values[users], self.first_moment[users] = vectors, first
        self.second_moment[users], self.num_steps[users] = second, taken
        return vectors


def _debias(beta: float, taken: Tensor) -> Tensor:
    """``1 - beta^t`` of each user's step count, [B, 1].

    One number at a time: torch's `pow` of an array rounds an entry by its place in the array, which
    depends on who else is in it, and a hostile server can make a last bit grow.
    """
    steps, place = taken.unique(return_inverse=True)
    values = torch.tensor([1.0 - beta ** int(step) for step in steps], device=taken.device)
    return values[place][:, None]


def _gradient_of_vectors(model: SharedNcf, vectors: Tensor, batch: UserBatch) -> Tensor:
    """Gradient of each user's loss in her own vector; the shared parameters stay constant."""
    if model.config.loss == "softmax":
        assert model.items.weight is not None
        weight = model.items.weight.detach()
        blocks = softmax_residuals(model, vectors, batch)
        return torch.cat([(block @ weight)[: users.stop - users.start] for users, block in blocks])
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)  # noqa: FBT003 - torch names it `mode`
    gradients = []
    try:
        for users, part_vectors, part in fixed_blocks(vectors, batch):
            leaf = part_vectors.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(user_losses(model, leaf, part).sum(), leaf)
            gradients.append(gradient[: users.stop - users.start])
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)  # noqa: FBT003
    return torch.cat(gradients)
