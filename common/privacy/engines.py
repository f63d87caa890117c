"""The interchangeable ways to a clipped sum: one is trained with, the others check it."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Literal, Protocol

from common.privacy.clipping import Scratch, add_clipped_gradients_

if TYPE_CHECKING:
    from torch import Tensor

    from common.data.batches import UserBatch
    from common.models.ncf import SharedNcf

ClippingEngine = Literal["fast", "opacus-ghost", "opacus-hooks"]
"""``fast``: :mod:`common.privacy.clipping`. The others: :mod:`common.privacy.opacus_clipping`."""


class AddClippedGradients(Protocol):
    """The signature of :func:`common.privacy.clipping.add_clipped_gradients_`."""

    def __call__(
        self,
        sums: dict[str, Tensor],
        model: SharedNcf,
        user_vectors: Tensor,
        batch: UserBatch,
        clipping_norm: float,
    ) -> None:
        """Add the clipped gradients of the batch to ``sums``."""


def clipping_engine(name: ClippingEngine) -> AddClippedGradients:
    """The function behind a name; one for each round, since it keeps memory between calls.

    Opacus' hooks are loaded only when they are asked for.
    """
    if name == "fast":
        return partial(add_clipped_gradients_, scratch=Scratch())
    opacus = import_module("common.privacy.opacus_clipping")
    engine: AddClippedGradients = partial(
        opacus.add_clipped_gradients_by_opacus_, mode=name.removeprefix("opacus-")
    )
    return engine
