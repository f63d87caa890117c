"""The clipped sum of per-user gradients: the only place where raw gradients exist.

One row of a batch is one user with all her interactions, so the privacy unit is the user. Norms
are exact and run through Opacus' ghost clipping (Li et al. 2021, arXiv:2110.05679, section 4):
no per-user gradient of the item table is ever built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.grad_sample.utils import register_grad_sampler, register_norm_sampler

from common.errors import NonFiniteUpdate
from common.models.losses import LOSSES
from common.models.ncf import ItemLayer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from common.data.batches import UserBatch
    from common.models.ncf import SharedNcf

ClippingMode = Literal["ghost", "hooks"]
"""``ghost``: norms without gradients (default). ``hooks``: Opacus' per-sample gradients, the
slow reference that tests compare with."""


def clipped_gradient_sum(
    model: SharedNcf,
    user_vectors: Tensor,
    batch: UserBatch,
    clipping_norm: float,
    mode: ClippingMode = "ghost",
) -> dict[str, Tensor]:
    """Return sum over users of ``g_u * min(1, C / ||g_u||)``, by parameter name.

    ``||g_u||`` is the L2 norm of user u's gradient over *all* shared parameters together, and
    rows that she touches twice add up before the norm is taken.

    Guarantee: adding or removing one user (row) moves the result by at most C in L2, whatever
    the others are, provided that her row of ``user_vectors`` and of ``batch`` depends on no
    other user.

    Args:
        model: shared parameters; its loss comes from its configuration.
        user_vectors: [B, user_dim]; treated as constants.
        batch: B users; see :mod:`common.data.batches`.
        clipping_norm: C > 0.
        mode: how Opacus computes norms.

    Raises:
        NonFiniteUpdate: if a norm is NaN or infinite.
    """
    if user_vectors.shape[0] == 0:
        return {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    wrap = GradSampleModuleFastGradientClipping if mode == "ghost" else GradSampleModule
    hooked = wrap(model, loss_reduction="sum", strict=True)
    try:
        # Opacus' hooks want an input that requires a gradient; this one is never used.
        losses = LOSSES[model.config.loss](model, user_vectors.detach().requires_grad_(), batch)
        losses.sum().backward(retain_graph=mode == "ghost")
        if mode == "ghost":
            scale = _scale(hooked.get_norm_sample(), clipping_norm)
            model.zero_grad(set_to_none=True)
            hooked.disable_hooks()
            (scale * losses).sum().backward()
            return {name: _gradient(p) for name, p in model.named_parameters()}
        per_user: dict[str, Tensor] = {
            name: p.grad_sample  # type: ignore[attr-defined]
            for name, p in model.named_parameters()
        }
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in per_user.values()]).norm(dim=0)
        scale = _scale(norms, clipping_norm)
        return {name: torch.einsum("b,b...->...", scale, g) for name, g in per_user.items()}
    finally:
        hooked.to_standard_module()
        model.zero_grad(set_to_none=True)


def _scale(norms: Tensor, clipping_norm: float) -> Tensor:
    if not torch.isfinite(norms).all():
        msg = "a per-user gradient norm is NaN or infinite; nothing was released."
        raise NonFiniteUpdate(msg)
    return (clipping_norm / norms.clamp(min=1e-12)).clamp(max=1.0).detach()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()


@register_norm_sampler(ItemLayer)  # type: ignore[untyped-decorator]
def _item_layer_norms(
    layer: ItemLayer, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Norms of a user's gradient of the item table: row i is ``r_i * z``, so a product of two.

    ``r_i`` is the backprop of item i's score, summed over every place where she has item i.
    """
    squared = _per_item(activations, backprops).square().sum(1)
    norms: dict[nn.Parameter, Tensor] = {layer.bias: squared.sqrt()}
    if layer.weight is not None:
        norms[layer.weight] = (squared * activations[0].square().sum(1)).sqrt()
    return norms


@register_grad_sampler(ItemLayer)  # type: ignore[untyped-decorator]
def _item_layer_gradients(
    layer: ItemLayer, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Per-user gradients of the item table, dense [B, num_items, dim]: the slow reference."""
    dense = backprops
    if len(activations) > 1:
        dense = torch.zeros(backprops.shape[0], len(layer.bias), dtype=backprops.dtype)
        dense = dense.scatter_add(1, activations[1], backprops)
    gradients: dict[nn.Parameter, Tensor] = {layer.bias: dense}
    if layer.weight is not None:
        gradients[layer.weight] = torch.einsum("bi,bd->bid", dense, activations[0])
    return gradients


def _per_item(activations: list[Tensor], backprops: Tensor) -> Tensor:
    """Sum backprops over equal items of a user: [B, m] -> [B, m], zeros at repeated places."""
    if len(activations) == 1:
        return backprops
    items, order = activations[1].sort(dim=1, stable=True)
    sorted_backprops = backprops.gather(1, order)
    starts = torch.ones_like(items, dtype=torch.bool)
    starts[:, 1:] = items[:, 1:] != items[:, :-1]
    group = starts.cumsum(1) - 1
    return torch.zeros_like(sorted_backprops).scatter_add(1, group, sorted_backprops)
