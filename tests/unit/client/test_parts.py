"""Parts score as they say, and come back from a file as they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from client import parts
from client.parts import Blend, Factors, ItemScores, ItemWeights, Part, pack_parts, unpack_parts
from client.personal_ncf import PersonalNcf
from common.errors import StateError
from common.models.ncf import NcfConfig
from common.models.partition import shared_shapes
from common.storage import pack_arrays, read_arrays, write_durably

if TYPE_CHECKING:
    from pathlib import Path

    from common.models.partition import Arrays

NUM_USERS, NUM_ITEMS, DIM = 7, 11, 4
RNG = np.random.default_rng(0)
HISTORY = csr_matrix((RNG.random((NUM_USERS, NUM_ITEMS)) < 0.4).astype(np.float32))
NEUMF = NcfConfig(kind="neumf", dim=3, hidden=(5,), loss="bce", num_negatives=2)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def ncf(config: NcfConfig) -> PersonalNcf:
    return PersonalNcf(
        config=config,
        items={name: normal(*shape) for name, shape in shared_shapes(config, NUM_ITEMS).items()},
        user_vectors=normal(NUM_USERS, config.user_dim),
        epochs=12,
    )


WEIGHTS = csr_matrix(normal(NUM_ITEMS, NUM_ITEMS) * (RNG.random((NUM_ITEMS, NUM_ITEMS)) < 0.3))
PARTS: dict[str, Part] = {
    "popularity": ItemScores(values=normal(NUM_ITEMS)),
    "neighbours": ItemWeights(weights=WEIGHTS),
    "nothing": ItemWeights(weights=csr_matrix((NUM_ITEMS, NUM_ITEMS), dtype=np.float32)),
    "als": Factors(users=normal(NUM_USERS, DIM), items=normal(NUM_ITEMS, DIM)),
    "ncf": ncf(NcfConfig(dim=DIM)),
    "ncf.2": ncf(NEUMF),
}
USERS = np.array([5, 0, 3])


def stored() -> tuple[Arrays, str]:
    arrays, kinds = pack_parts(PARTS)
    return {name: array.copy() for name, array in arrays.items()}, kinds


@pytest.mark.parametrize("block", [1, 2, 256])
def test_each_part_scores_as_it_says(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_BLOCK", block)
    popularity, neighbours, _, als, *_ = PARTS.values()
    assert isinstance(popularity, ItemScores)
    assert isinstance(als, Factors)
    expected = {
        "popularity": np.stack([popularity.values] * len(USERS)),
        "neighbours": HISTORY.toarray()[USERS] @ WEIGHTS.toarray(),
        "nothing": np.zeros((len(USERS), NUM_ITEMS)),
        "als": als.users[USERS] @ als.items.T,
    }
    assert isinstance(neighbours, ItemWeights)
    for name, values in expected.items():
        np.testing.assert_allclose(PARTS[name].scores(USERS, HISTORY), values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("users", [USERS, USERS[:1], USERS[:0]], ids=len)
def test_scores_have_the_shape_and_type_of_scores(name: str, users: np.ndarray) -> None:
    scores = PARTS[name].scores(users, HISTORY)
    assert scores.shape == (len(users), NUM_ITEMS)
    assert scores.dtype == np.float32
    alone = [PARTS[name].scores(users[[row]], HISTORY)[0] for row in range(len(users))]
    np.testing.assert_allclose(scores, np.reshape(alone, scores.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PARTS)
def test_what_is_done_to_scores_is_not_done_to_the_part(name: str) -> None:
    before = PARTS[name].scores(USERS, HISTORY)
    PARTS[name].scores(USERS, HISTORY)[:] = np.nan
    np.testing.assert_array_equal(PARTS[name].scores(USERS, HISTORY), before)


@pytest.mark.filterwarnings("error::UserWarning")
def test_parts_come_back_bit_for_bit(tmp_path: Path) -> None:
    arrays, kinds = pack_parts(PARTS)
    file = tmp_path / "parts.safetensors"
    write_durably(file, pack_arrays({**arrays, "other": np.zeros(3)}, {"kinds": kinds}))
    read, metadata = read_arrays(file)
    found = unpack_parts(read, metadata["kinds"])
    assert list(found) == list(PARTS)
    for name, part in PARTS.items():
        assert type(found[name]) is type(part)
        np.testing.assert_array_equal(
            found[name].scores(USERS, HISTORY), part.scores(USERS, HISTORY)
        )
        again = found[name].arrays()
        assert again.keys() == part.arrays().keys()
        for key, array in part.arrays().items():
            assert again[key].dtype == array.dtype
            assert again[key].tobytes() == array.tobytes()
    repacked, kinds_again = pack_parts(found)
    assert pack_arrays(repacked, {"kinds": kinds_again}) == pack_arrays(arrays, {"kinds": kinds})


def test_weights_of_a_large_catalogue_come_back() -> None:
    size = 70_000
    weights = csr_matrix(([1.0, 2.0], ([0, 69_999], [40_000, 3])), shape=(size, size), dtype="f4")
    arrays, kinds = pack_parts({"pairs": ItemWeights(weights=weights)})
    part = unpack_parts(arrays, kinds)["pairs"]
    assert isinstance(part, ItemWeights)
    assert part.weights.shape == (size, size)
    assert part.weights[0, 40_000] == 1.0
    assert part.weights[69_999, 3] == 2.0


def test_no_parts_are_stored_as_none() -> None:
    assert unpack_parts({"other": np.zeros(2)}, pack_parts({})[1]) == {}


def test_names_that_could_collide_are_refused() -> None:
    # "a" with an array "b/values" and "a/b" with an array "values" would be one name.
    with pytest.raises(ValueError, match="slash"):
        pack_parts({"a/b": PARTS["popularity"]})


@pytest.mark.parametrize("name", [name for name in pack_parts(PARTS)[0] if "tower" not in name])
def test_a_missing_array_is_a_damaged_state(name: str) -> None:
    arrays, kinds = stored()
    del arrays[name]
    with pytest.raises(StateError, match="hand the shared model over again"):
        unpack_parts(arrays, kinds)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("popularity/extra", np.zeros(2)),
        ("ncf/extra", np.zeros(2)),
        ("neighbours/indices", np.full(WEIGHTS.nnz, NUM_ITEMS, dtype=np.int32)),
        ("neighbours/indices", np.full(WEIGHTS.nnz, -1, dtype=np.int32)),
        ("neighbours/indptr", np.arange(NUM_ITEMS + 1)[::-1].copy()),
        ("neighbours/indptr", np.zeros(0, dtype=np.int64)),
        ("neighbours/data", np.zeros(3, dtype=np.float32)),
        ("popularity/values", np.zeros((2, 2), dtype=np.float32)),
        ("als/users", np.zeros((NUM_USERS, DIM + 1), dtype=np.float32)),
        ("ncf/config", np.array([255, 1], dtype=np.uint8)),
        ("ncf/config", np.frombuffer(b'{"kind": "other"}', dtype=np.uint8)),
        ("ncf/config", np.frombuffer(b"[" * 10_000, dtype=np.uint8)),
        ("ncf/epochs", np.zeros(0, dtype=np.int64)),
        ("ncf/items.weight", np.zeros((NUM_ITEMS, DIM + 1), dtype=np.float32)),
        ("ncf/items.bias", np.full(NUM_ITEMS, np.nan, dtype=np.float32)),
        ("ncf/user_vectors", np.zeros((NUM_USERS, DIM + 1), dtype=np.float32)),
    ],
)
def test_a_damaged_array_is_a_damaged_state(name: str, array: np.ndarray) -> None:
    arrays, kinds = stored()
    with pytest.raises(StateError, match="cannot be read"):
        unpack_parts({**arrays, name: array}, kinds)


@pytest.mark.parametrize(
    "kinds", ["", "{", "[]", "3", '{"a": 3}', '{"a": "other"}', '{"a": []}', "[" * 100_000]
)
def test_kinds_of_no_known_part_are_a_damaged_state(kinds: str) -> None:
    with pytest.raises(StateError, match="cannot be read"):
        unpack_parts(stored()[0], kinds)


def test_a_blend_is_the_weighted_sum_of_those_with_a_weight() -> None:
    weights = {"als": 0.5, "popularity": -2.0}
    blend = Blend(parts={**PARTS, "broken": Broken()}, weights=weights)
    expected = 0.5 * PARTS["als"].scores(USERS, HISTORY) - 2.0 * PARTS["popularity"].scores(
        USERS, HISTORY
    )
    found = blend.scores(USERS, HISTORY)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    nothing = Blend(parts=PARTS, weights={}).scores(USERS, HISTORY)
    np.testing.assert_array_equal(nothing, np.zeros((len(USERS), NUM_ITEMS)))


class Broken:
    """Without a weight it is asked for nothing."""

    def scores(self, users: np.ndarray, history: csr_matrix) -> np.ndarray:
        raise NotImplementedError

    def arrays(self) -> Arrays:
        raise NotImplementedError
