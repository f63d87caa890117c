"""What may leave a platform, key by key."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InvalidRelease
from common.models.ncf import NcfConfig, SharedNcf
from common.models.partition import check_shared, put_rows, shared_shapes, take_rows

GMF = {"items.weight": (9, 4), "items.bias": (9,)}
TOWER = {
    "tower.0.weight": (6, 8),
    "tower.0.bias": (6,),
    "tower.2.weight": (3, 6),
    "tower.2.bias": (3,),
    "tower.4.weight": (1, 3),
    "tower.4.bias": (1,),
}
ALLOWED = {
    "gmf": GMF,
    "mlp": {"items.bias": (9,), "tower_items.weight": (9, 4), **TOWER},
    "neumf": {**GMF, "tower_items.weight": (9, 4), **TOWER},
}


def config(kind: str) -> NcfConfig:
    loss = "softmax" if kind == "gmf" else "bce"
    return NcfConfig(kind=kind, dim=4, hidden=(6, 3), loss=loss)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ALLOWED)
def test_the_allow_list_is_this_and_nothing_else(kind: str) -> None:
    assert shared_shapes(config(kind), 9) == ALLOWED[kind]
    model = SharedNcf(config(kind), 9)
    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == ALLOWED[kind]


def good() -> dict[str, np.ndarray]:
    return {name: np.ones(shape, np.float32) for name, shape in GMF.items()}


@pytest.mark.parametrize(
    "change",
    [
        {"user_vectors": np.ones((5, 4), np.float32)},
        {"items.bias": np.ones(9)},
        {"items.bias": np.ones(8, np.float32)},
        {"items.bias": np.full(9, np.nan, np.float32)},
        {"items.weight": np.full((9, 4), np.inf, np.float32)},
    ],
)
def test_anything_else_is_refused(change: dict[str, np.ndarray]) -> None:
    assert check_shared(good(), config("gmf"), 9).keys() == GMF.keys()
    with pytest.raises(InvalidRelease):
        check_shared(good() | change, config("gmf"), 9)
    missing = good()
    del missing["items.bias"]
    with pytest.raises(InvalidRelease, match=r"items\.bias"):
        check_shared(missing, config("gmf"), 9)


def test_rows_outside_the_listing_are_zero() -> None:
    listing = np.array([1, 4, 8])
    rng = np.random.default_rng(0)
    full = {name: rng.random(shape).astype(np.float32) for name, shape in ALLOWED["neumf"].items()}
    back = put_rows(take_rows(full, listing), listing, 9)
    for name, array in back.items():
        if name in {"items.weight", "items.bias", "tower_items.weight"}:
            assert np.array_equal(array[listing], full[name][listing])
            assert not np.delete(array, listing, axis=0).any()
        else:
            assert np.array_equal(array, full[name])
