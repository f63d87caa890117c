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


def test_arrays_come_out_in_canonical_order_whatever_order_they_came_in() -> None:
    backwards = dict(reversed(good().items()))
    assert list(check_shared(backwards, config("gmf"), 9)) == list(GMF)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.complex64, object])
def test_float32_is_the_only_type(dtype: type) -> None:
    with pytest.raises(InvalidRelease, match="float32"):
        check_shared(good() | {"items.bias": np.ones(9, dtype)}, config("gmf"), 9)


@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize("name", ["user_vectors", "values", "num_examples", "items.weights", ""])
def test_no_kind_of_model_shares_anything_of_a_user(kind: str, name: str) -> None:
    shared = {key: np.zeros(shape, np.float32) for key, shape in ALLOWED[kind].items()}
    with pytest.raises(InvalidRelease, match="not allowed"):
        check_shared(shared | {name: np.zeros(1, np.float32)}, config(kind), 9)


@pytest.mark.parametrize("listing", [[], [3], [0, 8], [1, 4, 8], list(range(9))])
def test_taking_undoes_putting_and_shares_no_memory(listing: list[int]) -> None:
    rows = np.array(listing, dtype=np.int64)
    rng = np.random.default_rng(0)
    full = {name: rng.random(shape).astype(np.float32) for name, shape in ALLOWED["neumf"].items()}
    local = take_rows(full, rows)
    assert not any(np.shares_memory(local[name], full[name]) for name in full)
    back = take_rows(put_rows(local, rows, 9), rows)
    assert back.keys() == local.keys()
    assert all(np.array_equal(back[name], local[name]) for name in local)
