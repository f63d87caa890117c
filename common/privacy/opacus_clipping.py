"""The same clipped sum through Opacus: what :mod:`common.privacy.clipping` must equal.

``ghost`` takes norms without gradients (Li et al. 2021, arXiv:2110.05679, section 4) and goes
backward twice; ``hooks`` builds every user's gradient of every parameter, [B, num_items, dim] too.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.grad_sample.utils import register_grad_sampler, register_norm_sampler
from torch import nn

from common.models.losses import user_losses
from common.models.ncf import ItemLayer
from common.privacy.clipping import clip_scales

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from common.data.batches import UserBatch
    from common.models.ncf import SharedNcf

OpacusMode = Literal["ghost", "hooks"]


def add_clipped_gradients_by_opacus_(
    sums: dict[str, Tensor],
    model: SharedNcf,
    user_vectors: Tensor,
    batch: UserBatch,
    clipping_norm: float,
    *,
    mode: OpacusMode = "ghost",
) -> None:
    """Like :func:`common.privacy.clipping.add_clipped_gradients_`, with the same guarantee.

    Sums over a batch are in float32 (float64 with a tower), so rounding is larger.

    Args:
        sums: float64; changed in place.
        model: shared parameters; left as they were.
        user_vectors: [B, user_dim]; treated as constants.
        batch: B users.
        clipping_norm: C > 0.
        mode: how Opacus computes norms.
    """
    if not len(user_vectors):
        return
    working, vectors = model, user_vectors.detach()
    if model.tower is not None:
        # Ghost norms come from one backward pass and the sum from another. A tower can amplify
        # the rounding between them, and a hostile server chooses its weights: float64 leaves no
        # room. Without a tower an item's gradient is one product, with nothing to amplify.
        working, vectors = copy.deepcopy(model).double(), vectors.double()
    hooked = (_Ghost if mode == "ghost" else GradSampleModule)(working, loss_reduction="sum")
    try:
        # Opacus' hooks want an input that requires a gradient; this one is never used.
        losses = user_losses(working, vectors.requires_grad_(), batch)
        _backward(losses.sum(), retain_graph=mode == "ghost")
        per_user = {} if mode == "ghost" else _per_user_gradients(working)
        norms = _joint_norms(per_user.values()) if per_user else hooked.get_norm_sample()
        scales = clip_scales(norms.double().square(), clipping_norm).to(norms.dtype)
        kept = scales > 0.0
        if kept.all():
            if mode == "ghost":
                working.zero_grad(set_to_none=True)
                hooked.disable_hooks()
                _backward((scales * losses).sum())
            for name, parameter in working.named_parameters():
                if mode == "hooks":
                    sums[name] += torch.einsum("b,b...->...", scales, per_user[name])
                elif parameter.grad is not None:
                    sums[name] += parameter.grad
            return
    finally:
        hooked.to_standard_module()
        working.zero_grad(set_to_none=True)
    add_clipped_gradients_by_opacus_(
        sums, model, user_vectors[kept], batch.of(kept), clipping_norm, mode=mode
    )


def _backward(loss: Tensor, *, retain_graph: bool = False) -> None:
    with warnings.catch_warnings():
        # Item numbers are integers; the hook of their embedding needs no gradient of them.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        loss.backward(retain_graph=retain_graph)


def _per_user_gradients(model: SharedNcf) -> dict[str, Tensor]:
    return {
        name: p.grad_sample  # type: ignore[attr-defined]
        for name, p in model.named_parameters()
    }


def _joint_norms(per_user: Iterable[Tensor]) -> Tensor:
    norms: Tensor = torch.stack([g.flatten(1).norm(dim=1) for g in per_user]).norm(dim=0)
    return norms


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


class _Ghost(GradSampleModuleFastGradientClipping):  # type: ignore[misc]
    """Opacus' ghost clipping, but with real per-user gradients of the tower's small layers.

    Opacus' ghost norm of a linear layer adds up two [B, m, m] matrices whose terms can cancel:
    in float32 the norm then comes out too small, and more than C would pass (15 C was measured).
    """

    NORM_SAMPLERS: ClassVar[dict[type[nn.Module], object]] = {
        layer: sampler
        for layer, sampler in GradSampleModuleFastGradientClipping.NORM_SAMPLERS.items()
        if layer is not nn.Linear
    }
