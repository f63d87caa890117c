"""Which parameters may leave a platform: an allow-list, with shapes.

Whatever is not listed here is private and stays. Everything that goes into or comes out of a
message is checked against this list, on both sides.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from common.errors import InvalidRelease

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.models.ncf import NcfConfig

Arrays = dict[str, np.ndarray]
"""Named float32 arrays, in the order of :func:`shared_shapes`."""

ITEM_KEYS = frozenset({"items.weight", "items.bias", "tower_items.weight"})
"""Shared arrays with one row per item of the catalogue."""


def shared_shapes(config: NcfConfig, num_items: int) -> dict[str, tuple[int, ...]]:
    """The exact arrays that platforms share, by name, in order."""
    shapes: dict[str, tuple[int, ...]] = {}
    if config.kind != "mlp":
        shapes["items.weight"] = (num_items, config.dim)
    shapes["items.bias"] = (num_items,)
    if config.kind != "gmf":
        shapes["tower_items.weight"] = (num_items, config.dim)
        widths = (2 * config.dim, *config.hidden, 1)
        for layer, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            shapes[f"tower.{2 * layer}.weight"] = (width_out, width_in)
            shapes[f"tower.{2 * layer}.bias"] = (width_out,)
    return shapes


def check_shared(arrays: Mapping[str, np.ndarray], config: NcfConfig, num_items: int) -> Arrays:
    """Return ``arrays`` in canonical order if they are exactly the shared ones, all finite.

    Raises:
        InvalidRelease: for a missing or foreign key, another shape or type, NaN or infinity.
    """
    shapes = shared_shapes(config, num_items)
    missing, foreign = shapes.keys() - arrays.keys(), arrays.keys() - shapes.keys()
    if missing or foreign:
        msg = (
            f"shared arrays: missing {sorted(missing) or 'none'}, "
            f"not allowed {sorted(foreign) or 'none'}; expected exactly {list(shapes)}."
        )
        raise InvalidRelease(msg)
    for name, shape in shapes.items():
        array = arrays[name]
        if array.dtype != np.float32 or array.shape != shape:
            msg = (
                f"{name}: found {array.dtype} of shape {array.shape}, "
                f"expected float32 of shape {shape}."
            )
            raise InvalidRelease(msg)
        if not np.isfinite(array).all():
            msg = f"{name}: found NaN or infinity, expected finite values."
            raise InvalidRelease(msg)
    return {name: arrays[name] for name in shapes}


def take_rows(arrays: Mapping[str, np.ndarray], listing: np.ndarray) -> Arrays:
    """Restrict item arrays to the catalogue rows in ``listing`` (a platform's assortment)."""
    return {k: v[listing] if k in ITEM_KEYS else v.copy() for k, v in arrays.items()}


def put_rows(local: Mapping[str, np.ndarray], listing: np.ndarray, num_items: int) -> Arrays:
    """Undo :func:`take_rows` for an update: rows outside the public ``listing`` are zero."""
    update: Arrays = {}
    for name, array in local.items():
        if name in ITEM_KEYS:
            full = np.zeros((num_items, *array.shape[1:]), array.dtype)
            full[listing] = array
            update[name] = full
        else:
            update[name] = array
    return update
