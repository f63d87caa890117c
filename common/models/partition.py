"""Which arrays may leave a platform: an allow-list, with shapes.

Whatever is not listed here is private and stays. Everything that goes into or comes out of a
message is checked against this list, on both sides. Keys, signatures and shares, which know nothing
of any user, are checked in :mod:`common.secagg.wire`.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from common.errors import InvalidRelease
from common.models.pairs import MAX_COUNTED_ITEMS, MAX_PAIRED_ITEMS, MIN_WEIGHT, num_pairs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from common.models.ncf import NcfConfig
    from common.secagg.lattice import Lattice

Arrays = dict[str, np.ndarray]
"""Named arrays: float32 in the order of :func:`shared_shapes`, or those of a sum."""

PAIRS = "pairs."
"""What the names of :func:`check_pairs` begin with where shared arrays travel beside them."""

SumQuantity = Literal["item-counts", "item-pairs"]
"""What a platform sums over its users, once: one number for each item, or each pair of items."""

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
    return _exactly(arrays, shared_shapes(config, num_items), "shared arrays")


def check_asked(arrays: Mapping[str, np.ndarray], quantity: SumQuantity, num_items: int) -> Arrays:
    """Return what a sum is asked for if it is well formed: items, and for pairs their weights.

    Args:
        arrays: ``items`` [m] int64 catalogue rows, increasing; ``weights`` [m] float32.
        quantity: what is asked for.
        num_items: items in the catalogue.

    Raises:
        InvalidRelease: for another key, shape, type or order, an item that is not in the
            catalogue, too few or too many of them, or a weight out of range.
    """
    number = arrays["items"].size if "items" in arrays else 0
    names = ("items",) if quantity == "item-counts" else ("items", "weights")
    shapes = dict.fromkeys(names, (number,))
    asked = _exactly(arrays, shapes, f"arrays of {quantity}", integers={"items"})
    low, high = (1, MAX_COUNTED_ITEMS) if quantity == "item-counts" else (2, MAX_PAIRED_ITEMS)
    if not low <= number <= high:
        msg = f"items: found {number}, expected {low} to {high} for {quantity}."
        raise InvalidRelease(msg)
    items = asked["items"]
    if not (np.diff(items) > 0).all() or items[0] < 0 or items[-1] >= num_items:
        msg = f"items: expected increasing rows of a catalogue of {num_items}, each once."
        raise InvalidRelease(msg)
    weights = asked.get("weights")
    if weights is not None and not ((weights >= MIN_WEIGHT) & (weights <= 1.0)).all():
        msg = f"weights: found {weights.min():g} to {weights.max():g}, expected {MIN_WEIGHT} to 1."
        raise InvalidRelease(msg)
    return asked


def check_sum(arrays: Mapping[str, np.ndarray], quantity: SumQuantity, num_asked: int) -> Arrays:
    """Return the release of a sum if it is exactly one finite number for each item or pair.

    Raises:
        InvalidRelease: for another key, shape or type, NaN or infinity.
    """
    size = num_asked if quantity == "item-counts" else num_pairs(num_asked)
    return _exactly(arrays, {"sum": (size,)}, quantity)


def check_pairs(arrays: Mapping[str, np.ndarray], num_items: int) -> Arrays:
    """Return a sum of pairs, to be handed over, as fields of :class:`common.models.pairs.PairSum`.

    Args:
        arrays: ``items`` and ``weights`` as they were asked for, and the ``sum``.
        num_items: items in the catalogue.

    Raises:
        InvalidRelease: as :func:`check_asked` and :func:`check_sum`.
    """
    total = {name: array for name, array in arrays.items() if name == "sum"}
    rest = {name: array for name, array in arrays.items() if name != "sum"}
    asked = check_asked(rest, "item-pairs", num_items)
    found = check_sum(total, "item-pairs", len(asked["items"]))
    return {**asked, "total": found["sum"]}


def _exactly(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    integers: Collection[str] = (),
) -> Arrays:
    """``arrays`` in the order of ``shapes`` if they are these, finite, float32 or int64."""
    missing, foreign = shapes.keys() - arrays.keys(), arrays.keys() - shapes.keys()
    if missing or foreign:
        msg = (
            f"{what}: missing {sorted(missing) or 'none'}, "
            f"not allowed {sorted(foreign) or 'none'}; expected exactly {list(shapes)}."
        )
        raise InvalidRelease(msg)
    for name, shape in shapes.items():
        array, kind = arrays[name], "int64" if name in integers else "float32"
        if array.dtype != np.dtype(kind) or array.shape != shape:
            msg = (
                f"{name}: found {array.dtype} of shape {array.shape}, "
                f"expected {kind} of shape {shape}."
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


LATTICE = "lattice"
"""The one array of a release that secure aggregation sums: all numbers, in the order of names."""


def check_lattice(arrays: Mapping[str, np.ndarray], lattice: Lattice, size: int) -> Arrays:
    """Return a release on a lattice if it is exactly ``size`` of its whole numbers.

    Raises:
        InvalidRelease: for another key, shape or type.
    """
    if set(arrays) != {LATTICE}:
        msg = f"release: found {sorted(arrays)}, expected exactly ['{LATTICE}']."
        raise InvalidRelease(msg)
    array = arrays[LATTICE]
    if array.dtype != lattice.dtype or array.shape != (size,):
        msg = (
            f"{LATTICE}: found {array.dtype} of shape {array.shape}, expected {lattice.dtype} of "
            f"shape {(size,)}."
        )
        raise InvalidRelease(msg)
    return dict(arrays)


def flatten(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """All numbers of arrays in one, in the order of the mapping."""
    return np.concatenate([array.reshape(-1) for array in arrays.values()])


def unflatten(numbers: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Undo :func:`flatten`.

    Raises:
        ValueError: if ``numbers`` are not as many as the shapes hold.
    """
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    if numbers.shape != (ends[-1],):
        msg = f"found {numbers.shape} numbers, expected {ends[-1]}"
        raise ValueError(msg)
    parts = np.split(numbers, ends[:-1])
    return {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
