"""Per-user training losses: each user's loss depends on her own interactions only.

Every function returns one loss per user, shape [B]. A user's loss is a mean over her own
interactions, so one heavy user does not outweigh the rest. Negatives are drawn uniformly from
the platform's public assortment (:mod:`common.data.batches`), never from what others bought.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softplus

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from common.data.batches import UserBatch
    from common.models.ncf import SharedNcf

BCE_NEGATIVES_PER_POSITIVE = 4.0
"""Weight of the negatives in the classical NCF loss (He et al. 2017, section 4.1)."""


def softmax_loss(model: SharedNcf, user_vectors: Tensor, batch: UserBatch) -> Tensor:
    """Cross-entropy of the user's items under a softmax over the whole catalogue.

    The multinomial likelihood of Liang et al. 2018 (arXiv:1802.05814, section 2.1), divided by
    the user's number of items.
    """
    losses: Tensor = _MeanCrossEntropy.apply(  # type: ignore[no-untyped-call]
        model.items(user_vectors), batch.items, batch.is_positive
    )
    return losses


class _MeanCrossEntropy(torch.autograd.Function):
    """``logsumexp(scores) - mean(scores at positives)`` per row, with its gradient in two passes.

    Autograd would pass over the [B, num_items] scores twice as often.
    """

    @staticmethod
    def forward(  # torch types ctx without saved_tensors
        ctx: Any,  # noqa: ANN401
        scores: Tensor,
        items: Tensor,
        is_positive: Tensor,
    ) -> Tensor:
        weights = is_positive / is_positive.sum(1, keepdim=True).clamp(min=1)
        at_positives = (scores.gather(1, items) * weights).sum(1)
        top = scores.amax(1, keepdim=True)
        probabilities = (scores - top).exp_()
        total = probabilities.sum(1, keepdim=True)
        probabilities.div_(total)
        ctx.save_for_backward(probabilities, items, weights)
        losses = (top + total.log()).squeeze(1) - at_positives
        return losses * is_positive.any(1)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        upstream: Tensor,
    ) -> tuple[Tensor, None, None]:
        probabilities, items, weights = ctx.saved_tensors
        upstream = upstream * (weights.sum(1) > 0)
        gradient = probabilities * upstream[:, None]
        gradient.scatter_add_(1, items, -weights * upstream[:, None])
        return gradient, None, None


def sampled_softmax_loss(model: SharedNcf, user_vectors: Tensor, batch: UserBatch) -> Tensor:
    """Softmax of each positive against the user's uniform negatives.

    The negatives' mass is scaled up to the catalogue, so that the loss estimates the full
    softmax (Bengio and Senecal 2008, "Adaptive importance sampling", section III).
    """
    scores, positive, negative = _score_sampled(model, user_vectors, batch)
    num_drawn = negative.sum(1, keepdim=True).clamp(min=1)
    negative_mass = torch.logsumexp(scores.masked_fill(~negative, -torch.inf), 1, keepdim=True)
    negative_mass = negative_mass + torch.log(model.num_items / num_drawn)
    losses = torch.logaddexp(scores, negative_mass) - scores
    return _mean_over(losses, positive)


def bce_loss(model: SharedNcf, user_vectors: Tensor, batch: UserBatch) -> Tensor:
    """Binary cross-entropy, the classical NCF loss (He et al. 2017, equation 7)."""
    scores, positive, negative = _score_sampled(model, user_vectors, batch)
    return _mean_over(softplus(-scores), positive) + BCE_NEGATIVES_PER_POSITIVE * _mean_over(
        softplus(scores), negative
    )


LOSSES: dict[str, Callable[[SharedNcf, Tensor, UserBatch], Tensor]] = {
    "softmax": softmax_loss,
    "sampled-softmax": sampled_softmax_loss,
    "bce": bce_loss,
}


def _score_sampled(
    model: SharedNcf, user_vectors: Tensor, batch: UserBatch
) -> tuple[Tensor, Tensor, Tensor]:
    return model(user_vectors, batch.items), batch.is_positive, batch.is_negative


def _mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row over ``mask``; 0 for a row without any (and no NaN in its gradient)."""
    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)
