"""Per-user training losses: each user's loss depends on her own interactions only.

A loss is a function of the user's scores and of her row of the batch, and returns one number per
user, shape [B]. It is a mean over her own interactions, so one heavy user does not outweigh the
rest. Negatives are drawn uniformly from the platform's public assortment
(:mod:`common.data.batches`), never from what others bought.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softplus

from common.data.batches import ROWS, fixed_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from common.data.batches import UserBatch
    from common.models.ncf import SharedNcf

BCE_NEGATIVES_PER_POSITIVE = 4.0
"""Weight of the negatives in the classical NCF loss (He et al. 2017, section 4.1)."""


def user_losses(model: SharedNcf, user_vectors: Tensor, batch: UserBatch) -> Tensor:
    """The model's loss of each user, [B], with a graph to vectors and parameters."""
    scores = batch_scores(model, user_vectors, batch)
    return LOSSES[model.config.loss](scores, batch, model.num_items)


def batch_scores(model: SharedNcf, user_vectors: Tensor, batch: UserBatch) -> Tensor:
    """What the loss looks at: all items for the full softmax ([B, num_items]), else the batch's."""
    if model.config.loss == "softmax":
        scores: Tensor = model.items(user_vectors)
    else:
        scores = model(user_vectors, batch.items)
    return scores


def softmax_loss(scores: Tensor, batch: UserBatch, num_items: int) -> Tensor:
    """Cross-entropy of the user's items under a softmax over the whole catalogue.

    The multinomial likelihood of Liang et al. 2018 (arXiv:1802.05814, section 2.1), divided by
    the user's number of items.
    """
    del num_items  # all of them are scored
    losses: Tensor = _MeanCrossEntropy.apply(  # type: ignore[no-untyped-call]
        scores, batch.items, batch.is_positive
    )
    return losses


@torch.no_grad()
def softmax_residuals(
    model: SharedNcf, user_vectors: Tensor, batch: UserBatch, out: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Gradient of :func:`softmax_loss` in the scores, without a graph, block by block.

    Probabilities minus the user's share of each of her items; 0 for a user without any.

    Yields:
        which users, and their residuals: [ROWS, num_items], zeros beyond the users. The next
        block is written over them (to ``out``, if it is given).
    """
    residuals = user_vectors.new_empty(ROWS, model.num_items) if out is None else out
    for users, vectors, part in fixed_blocks(user_vectors, batch):
        model.items(vectors, out=residuals)
        _residuals_(residuals, part.items, _shares(part.is_positive))
        active = part.is_positive.any(1)
        if not active.all():
            residuals[~active] = 0.0
        yield users, residuals


def _shares(is_positive: Tensor) -> Tensor:
    return is_positive / is_positive.sum(1, keepdim=True).clamp(min=1)


def _residuals_(scores: Tensor, items: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax minus ``shares`` over the scores, and the log of the softmax' denominator."""
    top = scores.amax(1, keepdim=True)
    total = scores.sub_(top).exp_().sum(1, keepdim=True)
    residuals = scores.div_(total).scatter_add_(1, items, -shares.to(scores.dtype))
    return residuals, (top + total.log()).squeeze(1)


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
        shares, active = _shares(is_positive), is_positive.any(1)
        at_positives = (scores.gather(1, items) * shares).sum(1)
        residuals, log_mass = _residuals_(scores.clone(), items, shares)
        ctx.save_for_backward(residuals, active)
        return (log_mass - at_positives) * active

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        upstream: Tensor,
    ) -> tuple[Tensor, None, None]:
        residuals, active = ctx.saved_tensors
        return residuals * (upstream * active)[:, None], None, None


def sampled_softmax_loss(scores: Tensor, batch: UserBatch, num_items: int) -> Tensor:
    """Softmax of each positive against the user's uniform negatives.

    The negatives' mass is scaled up to the catalogue, so that the loss estimates the full
    softmax (Bengio and Senecal 2008, "Adaptive importance sampling", section III).
    """
    num_drawn = batch.is_negative.sum(1, keepdim=True).clamp(min=1)
    negative_mass = torch.logsumexp(
        scores.masked_fill(~batch.is_negative, -torch.inf), 1, keepdim=True
    )
    negative_mass = negative_mass + torch.log(num_items / num_drawn)
    losses = torch.logaddexp(scores, negative_mass) - scores
    return _mean_over(losses, batch.is_positive)


def bce_loss(scores: Tensor, batch: UserBatch, num_items: int) -> Tensor:
    """Binary cross-entropy, the classical NCF loss (He et al. 2017, equation 7)."""
    del num_items
    return _mean_over(softplus(-scores), batch.is_positive) + (
        BCE_NEGATIVES_PER_POSITIVE * _mean_over(softplus(scores), batch.is_negative)
    )


LOSSES: dict[str, Callable[[Tensor, UserBatch, int], Tensor]] = {
    "softmax": softmax_loss,
    "sampled-softmax": sampled_softmax_loss,
    "bce": bce_loss,
}
"""Each takes scores, the batch and the number of items in the catalogue."""


def _mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row over ``mask``; 0 for a row without any (and no NaN in its gradient)."""
    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)
