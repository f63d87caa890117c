"""The clipped sum of per-user gradients, at nearly the speed of training without privacy.

One row of a batch is one privacy unit: here a user with all her interactions. What makes it fast
is what a user's gradient looks like:

- of the item table of GMF it has **rank one**: row i is ``r_i * z``, where ``z`` is her vector and
  ``r_i`` the derivative of her loss in the score of item i. Its norm is a product of two norms, and
  the clipped sum of all users is one matrix product;
- of the other item tables only the rows that she touches are not zero;
- of the tower's small layers it is small, and is built as it is.

So no tensor of shape [users, items, dim] exists (Opacus' hooks build one), and nothing is computed
twice (ghost clipping goes backward twice).

Rounding never lets more than C pass. A user's gradient is computed in float32 in blocks of one
shape, so its bits depend on nobody else, whatever parameters a hostile server chose. The very
numbers that are summed are normed; from there on everything is float64, and however many users
there are and however their gradients line up, rounding moves the sum by less than 1e-12 of it.

:mod:`common.privacy.opacus_clipping` does the same through Opacus, for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear

from common.data.batches import ROWS, fixed_blocks
from common.models.losses import LOSSES, softmax_residuals

if TYPE_CHECKING:
    from torch import Tensor

    from common.data.batches import UserBatch
    from common.models.ncf import SharedNcf


def zero_sums(model: SharedNcf) -> dict[str, Tensor]:
    """Float64 zeros in the shapes of the model's parameters, to add clipped gradients to."""
    return {
        name: torch.zeros_like(p, dtype=torch.float64, requires_grad=False)
        for name, p in model.named_parameters()
    }


@dataclass(slots=True)
class Scratch:
    """Memory for the scores of one block, kept from call to call: touching new memory is slow."""

    scores: Tensor | None = None
    """[ROWS, num_items] float32."""
    doubles: Tensor | None = None
    """The same, float64."""

    def room(self, model: SharedNcf, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both, for the items of ``model`` and on the device of ``like``."""
        shape = (ROWS, model.num_items)
        if self.scores is None or self.doubles is None or self.scores.shape != shape:
            self.scores = like.new_empty(shape)
            self.doubles = like.new_empty(shape, dtype=torch.float64)
        return self.scores, self.doubles


@torch.no_grad()
def add_clipped_gradients_(
    sums: dict[str, Tensor],
    model: SharedNcf,
    user_vectors: Tensor,
    batch: UserBatch,
    clipping_norm: float,
    scratch: Scratch | None = None,
) -> None:
    """Add sum over users of ``g_u * min(1, C / ||g_u||)`` to ``sums``, by parameter name.

    ``||g_u||`` is the L2 norm of user u's gradient over *all* shared parameters together, and
    rows that she touches twice add up before the norm is taken.

    Guarantee: adding or removing one user (row) moves the result by at most C in L2, whatever the
    others are, provided that her row of ``user_vectors`` and of ``batch`` depends on no other user.

    | edge case | result |
    |---|---|
    | no rows | nothing is added |
    | a user without interactions | she adds nothing (BCE: her negatives, which are no taste) |
    | a user's gradient is NaN or infinite | she adds nothing |

    The last one is no error on purpose: a refusal would tell whoever chose the shared parameters
    that such a user is there.

    Args:
        sums: float64, from :func:`zero_sums`; changed in place.
        model: shared parameters; its loss comes from its configuration.
        user_vectors: [B, user_dim]; treated as constants.
        batch: B users; see :mod:`common.data.batches`.
        clipping_norm: C > 0.
        scratch: memory to use again in the next call.
    """
    if not len(user_vectors):
        return
    if model.config.loss == "softmax":
        scratch = scratch or Scratch()
        _add_whole_catalogue(sums, model, user_vectors, batch, clipping_norm, scratch)
    else:
        _add_touched_rows(sums, model, user_vectors, batch, clipping_norm)


def clip_scales(squared_norms: Tensor, clipping_norm: float) -> Tensor:
    """``min(1, C / norm)`` for each user, and 0 where the norm is not finite: float64 [B]."""
    scales = (clipping_norm / squared_norms.sqrt()).clamp(max=1.0)
    return scales.where(squared_norms.isfinite(), 0.0)


def _add_whole_catalogue(
    sums: dict[str, Tensor],
    model: SharedNcf,
    user_vectors: Tensor,
    batch: UserBatch,
    clipping_norm: float,
    scratch: Scratch,
) -> None:
    """Full softmax without a tower: every item has a derivative, and everything has rank one."""
    scores, doubles = scratch.room(model, user_vectors)
    for users, block in softmax_residuals(model, user_vectors, batch, out=scores):
        vectors = user_vectors[users].double()
        residuals = doubles[: len(vectors)].copy_(block[: len(vectors)])
        squared = squared_norms(residuals) * (1.0 + squared_norms(vectors))
        scales = clip_scales(squared, clipping_norm)
        if not scales.all():  # 0 * NaN is NaN
            residuals[scales == 0.0], vectors[scales == 0.0] = 0.0, 0.0
        sums["items.weight"].addmm_(residuals.T, scales[:, None] * vectors)
        sums["items.bias"].addmv_(residuals.T, scales)


def _add_touched_rows(
    sums: dict[str, Tensor],
    model: SharedNcf,
    user_vectors: Tensor,
    batch: UserBatch,
    clipping_norm: float,
) -> None:
    """Losses over chosen items: only their rows, and the tower."""
    for _, vectors, part in fixed_blocks(user_vectors, batch):
        _add_touched_rows_of_block(sums, model, vectors, part, clipping_norm)


def _add_touched_rows_of_block(
    sums: dict[str, Tensor],
    model: SharedNcf,
    user_vectors: Tensor,
    batch: UserBatch,
    clipping_norm: float,
) -> None:
    for_gmf, for_tower = model.split(user_vectors)
    gradients = _gradients_at_places(model, for_gmf, for_tower, batch)
    items = batch.items.clone()
    at_scores, at_rows = gradients.at_scores.double(), gradients.at_rows.double()
    sum_equal_items_(items, at_scores, at_rows)
    for_gmf, for_tower = for_gmf.double(), for_tower.double()
    at_bias = {name: layer.double() for name, layer in gradients.at_bias.items()}
    at_weight = {name: layer.double() for name, layer in gradients.at_weight.items()}
    squared = squared_norms(at_scores) * (1.0 + squared_norms(for_gmf))
    squared += squared_norms(at_rows)
    for layer in (*at_bias.values(), *at_weight.values()):
        squared += squared_norms(layer)
    if at_bias:
        # The user half of the first layer's weight has rank one: her vector times the bias'.
        squared += squared_norms(at_bias["tower.0"]) * squared_norms(for_tower)
    scales = clip_scales(squared, clipping_norm)
    left_out = scales == 0.0
    if left_out.any():  # 0 * NaN is NaN
        everything = (at_scores, at_rows, for_gmf, for_tower)
        for array in (*everything, *at_bias.values(), *at_weight.values()):
            array[left_out] = 0.0

    places = items.flatten()
    at_scores *= scales[:, None]
    sums["items.bias"].index_add_(0, places, at_scores.flatten())
    if model.items.weight is not None:
        rows = at_scores[:, :, None] * for_gmf[:, None, :]
        sums["items.weight"].index_add_(0, places, rows.flatten(0, 1))
    if model.tower_items is not None:
        at_rows *= scales[:, None, None]
        sums["tower_items.weight"].index_add_(0, places, at_rows.flatten(0, 1))
    for name, layer in at_bias.items():
        sums[f"{name}.bias"].addmv_(layer.T, scales)
        weight = torch.tensordot(scales, at_weight[name], dims=1)
        if name == "tower.0":
            weight = torch.cat([layer.T @ (scales[:, None] * for_tower), weight], dim=1)
        sums[f"{name}.weight"] += weight


def squared_norms(values: Tensor) -> Tensor:
    """Squared L2 norm of each row of ``values`` ([B, ...]), float64 as they are: [B]."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms.square()


class _Gradients(NamedTuple):
    """Each user's gradients, before equal items are added up; of the tower by layer name."""

    at_scores: Tensor
    """[B, m]: in her scores."""
    at_rows: Tensor
    """[B, m, dim]: in the tower's item vectors; dim is 0 without a tower."""
    at_bias: dict[str, Tensor]
    """[B, width_out]."""
    at_weight: dict[str, Tensor]
    """[B, width_out, width_in]; of the first layer only the half that faces the item."""


def _gradients_at_places(
    model: SharedNcf, for_gmf: Tensor, for_tower: Tensor, batch: UserBatch
) -> _Gradients:
    loss = LOSSES[model.config.loss]
    scores = model.items(for_gmf, batch.items)
    if model.tower is None or model.tower_items is None:
        with torch.enable_grad():
            scores.requires_grad_()
            losses = loss(scores, batch, model.num_items)
            (at_scores,) = torch.autograd.grad(losses.sum(), [scores])
        return _Gradients(at_scores, at_scores.new_zeros(*at_scores.shape, 0), {}, {})
    layers = [
        (f"tower.{i}", layer) for i, layer in enumerate(model.tower) if isinstance(layer, nn.Linear)
    ]
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    with torch.enable_grad():
        rows = model.tower_items(batch.items).requires_grad_()
        for _, layer in layers:
            if outputs:
                inputs.append(outputs[-1].relu())
                outputs.append(linear(inputs[-1], layer.weight.detach(), layer.bias.detach()))
            else:
                # The first layer is linear in the pair: its user half is the same at every place.
                inputs.append(rows)
                user_half, item_half = layer.weight.detach().split(model.config.dim, dim=1)
                user_part = linear(for_tower, user_half, layer.bias.detach())
                outputs.append(linear(rows, item_half) + user_part[:, None, :])
        scores = scores + outputs[-1].squeeze(-1)
        losses = loss(scores, batch, model.num_items)
        at_scores, at_rows, *at_outputs = torch.autograd.grad(
            losses.sum(), [scores, rows, *outputs]
        )
    names = [name for name, _ in layers]
    at_bias = [at_output.sum(1) for at_output in at_outputs]
    at_weight = [
        torch.bmm(at_output.transpose(1, 2), layer_input.detach())
        for at_output, layer_input in zip(at_outputs, inputs, strict=True)
    ]
    return _Gradients(
        at_scores,
        at_rows,
        dict(zip(names, at_bias, strict=True)),
        dict(zip(names, at_weight, strict=True)),
    )


def sum_equal_items_(items: Tensor, at_scores: Tensor, at_rows: Tensor) -> None:
    """Add up what belongs to the same item of a user, in place; places left over hold zeros.

    Args:
        items: [B, m].
        at_scores: [B, m].
        at_rows: [B, m, dim].
    """
    ordered, order = items.sort(dim=1)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    users = (~is_new.all(1)).nonzero().squeeze(1)
    if not len(users):
        return
    places = is_new[users].cumsum(1) - 1
    group = torch.empty_like(places).scatter_(1, order[users], places)
    items[users] = torch.zeros_like(group).scatter_(1, group, items[users])
    at_scores[users] = torch.zeros_like(at_scores[users]).scatter_add_(1, group, at_scores[users])
    every_group = group[:, :, None].expand(-1, -1, at_rows.shape[2])
    at_rows[users] = torch.zeros_like(at_rows[users]).scatter_add_(1, every_group, at_rows[users])
