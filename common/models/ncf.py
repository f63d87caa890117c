"""Neural collaborative filtering: the part of the model that platforms share.

One scoring function with switchable parts (He et al. 2017, "Neural Collaborative Filtering",
arXiv:1708.05031, section 3)::

    score(u, i) = <p_u, q_i>            GMF        (kinds "gmf" and "neumf")
                + tower([p'_u ; q'_i])  MLP        (kinds "mlp" and "neumf")
                + b_i

The output weight h of GMF is absorbed by the item vectors (q_i is free, so any h is), which
spares private training one more noisy parameter. User vectors are an *argument* of
:class:`SharedNcf`, never a parameter: they cannot end up in its state by accident.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn
from torch.nn.functional import embedding

from common.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

MAX_WIDTH, MAX_LAYERS, MAX_NEGATIVES = 1024, 4, 10_000
"""What a server may ask a platform to build."""

ModelKind = Literal["gmf", "mlp", "neumf"]
LossKind = Literal["softmax", "sampled-softmax", "bce"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NcfConfig:
    """What a shared model looks like; the same on the server and on every platform."""

    kind: ModelKind = "gmf"
    """Which parts of the score are switched on."""
    dim: int = 32
    """Length of an item vector in each switched-on part."""
    hidden: tuple[int, ...] = (32, 16)
    """Widths of the tower's hidden layers (kinds ``mlp`` and ``neumf``)."""
    loss: LossKind = "softmax"
    """Per-user training loss, see :mod:`common.models.losses`."""
    num_negatives: int = 200
    """Sampled items per user and step (losses ``sampled-softmax`` and ``bce``)."""

    def __post_init__(self) -> None:
        """Refuse a model that cannot be built, or that would exhaust memory in training."""
        if self.kind not in get_args(ModelKind):
            msg = f"model: found {self.kind!r}, expected one of {', '.join(get_args(ModelKind))}."
            raise ConfigError(msg)
        if self.loss not in get_args(LossKind):
            msg = f"loss: found {self.loss!r}, expected one of {', '.join(get_args(LossKind))}."
            raise ConfigError(msg)
        sizes = {"dim": self.dim, **{f"hidden[{i}]": w for i, w in enumerate(self.hidden)}}
        for name, size in sizes.items():
            if not 1 <= size <= MAX_WIDTH:
                msg = f"{name}: found {size}, expected 1 to {MAX_WIDTH}."
                raise ConfigError(msg)
        if not 1 <= self.num_negatives <= MAX_NEGATIVES or len(self.hidden) > MAX_LAYERS:
            msg = (
                f"found {self.num_negatives} negatives and {len(self.hidden)} hidden layers, "
                f"expected 1 to {MAX_NEGATIVES} and at most {MAX_LAYERS}."
            )
            raise ConfigError(msg)
        if self.kind != "gmf" and not self.hidden:
            msg = f"model {self.kind!r} needs at least one hidden layer, e.g. hidden = [32, 16]."
            raise ConfigError(msg)
        if self.kind != "gmf" and self.loss == "softmax":
            msg = (
                f"loss 'softmax' scores the whole catalogue for every user, which the tower of "
                f"{self.kind!r} cannot do in bounded memory; use 'sampled-softmax'."
            )
            raise ConfigError(msg)

    @property
    def user_dim(self) -> int:
        """Length of a user vector: one part for GMF, one for the tower."""
        return self.dim * (2 if self.kind == "neumf" else 1)

    @property
    def item_vectors(self) -> str:
        """Name of the shared array whose rows say which items are alike."""
        return "tower_items.weight" if self.kind == "mlp" else "items.weight"


class ItemLayer(nn.Module):
    """Item vectors and item biases: ``z -> <z, q_i> + b_i`` for all items or for chosen ones.

    Kept as one layer because a user's gradient of it has rank one (every row is a multiple of
    ``z``), which makes its exact norm cheap: see :func:`common.privacy.clipping`.
    """

    def __init__(self, num_items: int, dim: int) -> None:
        """Build a layer of ``num_items`` rows; ``dim`` 0 leaves only the biases."""
        super().__init__()
        self.weight: nn.Parameter | None
        self.register_parameter(
            "weight", nn.Parameter(torch.zeros(num_items, dim)) if dim else None
        )
        self.bias = nn.Parameter(torch.zeros(num_items))

    def forward(
        self, user_vectors: Tensor, items: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Score ``items`` (shape [B, m], or all of them) for ``user_vectors`` ([B, dim]).

        All scores of items go to ``out``, if it is given and no gradient is wanted.
        """
        if self.weight is None:
            # The empty sum keeps the input in the graph; Opacus' hooks would not run without.
            bias = self.bias if items is None else self.bias[items]
            return bias + user_vectors.sum(1, keepdim=True)
        if items is None:
            return torch.addmm(self.bias, user_vectors, self.weight.T, out=out)
        rows = embedding(items, self.weight)  # faster than indexing, backward too
        return torch.einsum("bd,bmd->bm", user_vectors, rows) + self.bias[items]


class SharedNcf(nn.Module):
    """The shared parameters of an NCF model over ``num_items`` items, and its score."""

    def __init__(self, config: NcfConfig, num_items: int) -> None:
        """Build with zeros for items and torch's defaults for the tower; see :func:`initialise`."""
        super().__init__()
        self.config = config
        self.num_items = num_items
        has_gmf, has_mlp = config.kind != "mlp", config.kind != "gmf"
        self.items = ItemLayer(num_items, config.dim if has_gmf else 0)
        self.tower_items: nn.Embedding | None = None
        self.tower: nn.Sequential | None = None
        if has_mlp:
            self.tower_items = nn.Embedding(num_items, config.dim)
            widths = (2 * config.dim, *config.hidden)
            layers: list[nn.Module] = []
            for width_in, width_out in itertools.pairwise(widths):
                layers += [nn.Linear(width_in, width_out), nn.ReLU()]
            self.tower = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, user_vectors: Tensor, items: Tensor) -> Tensor:
        """Score chosen items.

        Args:
            user_vectors: shape [B, ``config.user_dim``].
            items: item rows, int64, shape [B, m].

        Returns:
            scores, shape [B, m].
        """
        for_gmf, for_tower = self.split(user_vectors)
        scores: Tensor = self.items(for_gmf, items)
        if self.tower_items is not None and self.tower is not None:
            pairs = torch.cat(
                [for_tower[:, None, :].expand(-1, items.shape[1], -1), self.tower_items(items)],
                dim=-1,
            )
            scores = scores + self.tower(pairs).squeeze(-1)
        return scores

    def score_all(self, user_vectors: Tensor) -> Tensor:
        """Score the whole catalogue: [B, ``user_dim``] -> [B, ``num_items``].

        The tower's first layer is linear in the pair, so its user half and its item half are
        computed once each and added.
        """
        for_gmf, for_tower = self.split(user_vectors)
        scores: Tensor = self.items(for_gmf)
        if self.tower_items is not None and self.tower is not None:
            first = self.tower[0]
            assert isinstance(first, nn.Linear)
            user_half = for_tower @ first.weight[:, : self.config.dim].T
            item_half = self.tower_items.weight @ first.weight[:, self.config.dim :].T + first.bias
            hidden = user_half[:, None, :] + item_half[None, :, :]
            scores = scores + self.tower[1:](hidden).squeeze(-1)
        return scores

    def split(self, user_vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Split user vectors into the part for GMF and the part for the tower."""
        if self.config.kind == "mlp":
            return user_vectors[:, :0], user_vectors
        return user_vectors[:, : self.config.dim], user_vectors[:, self.config.dim :]


def initialise(config: NcfConfig, num_items: int, generator: torch.Generator) -> SharedNcf:
    """Build a :class:`SharedNcf` with item vectors from N(0, 0.1^2) and a Glorot tower.

    Deterministic in ``generator``; no data is looked at.
    """
    model = SharedNcf(config, num_items)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.startswith("tower."):
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                parameter.normal_(0.0, 0.1, generator=generator)
    return model
