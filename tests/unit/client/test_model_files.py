"""What was fitted comes back for the same data only, and no crash leaves what cannot be loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from client import model_files
from client.adaptation import Adapted
from client.data import PlatformData
from client.model_files import ModelFiles, fitted_to
from client.parts import Blend, Factors, ItemScores, ItemWeights, pack_parts
from client.validation import Fold
from common.data.interactions import UserItems
from common.errors import StateError
from common.models.ncf import NcfConfig
from common.storage import pack_arrays, read_arrays, write_durably
from tests.unit.client.worlds import matrix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.model_files import ServedName
    from client.parts import Part

NUM_USERS, NUM_ITEMS = 4, 6
DIGEST, USERS = "fitted", "users"
LOCAL, FEDERATED, SERVED = "local.safetensors", "federated.safetensors", "served.txt"


def weights_between_items(seed: int) -> ItemWeights:
    drawn = np.random.default_rng(seed).random((NUM_ITEMS, NUM_ITEMS))
    return ItemWeights(weights=csr_matrix((drawn * (drawn > 0.5)).astype(np.float32)))


def alone(seed: int = 0) -> Adapted:
    rng = np.random.default_rng(seed)
    parts: dict[str, Part] = {
        "popularity": ItemScores(values=rng.random(NUM_ITEMS, dtype=np.float32)),
        "ease": weights_between_items(seed + 1),
        "als": Factors(
            users=rng.random((NUM_USERS, 2), dtype=np.float32),
            items=rng.random((NUM_ITEMS, 2), dtype=np.float32),
        ),
    }
    scores = tuple(rng.random((size, NUM_ITEMS), dtype=np.float32) for size in (4, 2))
    return Adapted(blend=Blend(parts=parts, weights={"als": 0.1, "ease": 1 / 3}), scores=scores)


def joined(seed: int = 0) -> Blend:
    """Two parts more than :func:`alone`, one of them with a weight."""
    own = alone(seed).blend
    return Blend(
        parts={
            **own.parts,
            "pairs": weights_between_items(seed + 2),
            "shared": weights_between_items(seed + 3),
        },
        weights={**own.weights, "pairs": 0.7},
    )


def assert_same(found: Blend | None, expected: Blend) -> None:
    """The same parts bit for bit, and the same weights in the same order."""
    assert found is not None
    assert list(found.weights.items()) == list(expected.weights.items())
    assert found.parts.keys() == expected.parts.keys()
    (ours, kinds), (theirs, expected_kinds) = pack_parts(found.parts), pack_parts(expected.parts)
    assert json.loads(kinds) == json.loads(expected_kinds)
    assert pack_arrays(ours, {}) == pack_arrays(theirs, {})


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles(tmp_path)


def save(files: ModelFiles, seed: int = 0, serve: ServedName = "joined") -> None:
    files.save_alone(alone(seed), DIGEST, USERS)
    files.save_joined(joined(seed), serve)


def test_before_the_first_hand_over_there_is_nothing(files: ModelFiles, tmp_path: Path) -> None:
    assert files.load_alone(DIGEST) is None
    assert files.load(USERS) is None
    assert files.served() is None
    assert list(tmp_path.iterdir()) == []


def test_what_was_fitted_alone_comes_back_with_how_it_was_judged(files: ModelFiles) -> None:
    files.save_alone(alone(), DIGEST, USERS)
    found = files.load_alone(DIGEST)
    assert found is not None
    assert_same(found.blend, alone().blend)
    assert len(found.scores) == 2
    for ours, theirs in zip(found.scores, alone().scores, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


def test_what_was_fitted_to_something_else_counts_as_missing(files: ModelFiles) -> None:
    save(files)
    assert files.load_alone("b" * 64) is None
    assert files.load_alone(USERS) is None
    assert files.load("b" * 64) is None
    assert files.load(DIGEST) is None


@pytest.mark.parametrize("serve", ["alone", "joined"])
def test_all_models_come_back_and_which_one_is_served(files: ModelFiles, serve: ServedName) -> None:
    save(files, serve=serve)
    found = files.load(USERS)
    assert found is not None
    assert_same(found.alone, alone().blend)
    assert_same(found.joined, joined())
    assert found.parts.keys() == joined().parts.keys()
    assert files.served() == serve


def test_only_what_joining_added_is_in_the_second_file(files: ModelFiles, tmp_path: Path) -> None:
    save(files)
    arrays, _ = read_arrays(tmp_path / FEDERATED)
    assert {name.partition("/")[0] for name in arrays} == {"pairs", "shared"}


@pytest.mark.parametrize("serve", ["alone", "joined"])
def test_joining_may_add_nothing(files: ModelFiles, serve: ServedName) -> None:
    files.save_alone(alone(), DIGEST, USERS)
    files.save_joined(alone().blend, serve)
    found = files.load(USERS)
    assert found is not None
    assert_same(found.joined, alone().blend)
    assert files.served() == serve


def test_the_next_hand_over_forgets_what_the_last_one_added(files: ModelFiles) -> None:
    save(files)
    files.save_joined(alone().blend, "alone")
    found = files.load(USERS)
    assert found is not None
    assert found.parts.keys() == alone().blend.parts.keys()
    assert files.served() == "alone"


def test_the_same_models_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(ModelFiles(tmp_path / name))
    for name in (LOCAL, FEDERATED, SERVED):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# --- Crashes -------------------------------------------------------------------------------------


def crash_before(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def write(path: Path, content: bytes) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        write_durably(path, content)

    monkeypatch.setattr(model_files, "write_durably", write)


@pytest.mark.parametrize("before", [None, "alone", "joined"])
def test_a_crash_between_both_files_leaves_a_platform_that_serves_alone(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch, before: ServedName | None
) -> None:
    if before is not None:
        save(files, seed=0, serve=before)
    crash_before(monkeypatch, FEDERATED)
    with pytest.raises(KeyboardInterrupt):
        save(files, seed=9)
    found = files.load(USERS)
    assert found is not None
    assert_same(found.alone, alone(9).blend)
    assert found.joined is None, "what joining added to other models is not used"
    assert found.parts.keys() == alone().blend.parts.keys()
    assert files.served() == (None if before is None else "alone")
    assert files.load_alone(DIGEST) is not None
    monkeypatch.undo()
    files.save_joined(joined(9), "joined")  # the next hand-over need not fit alone again
    found = files.load(USERS)
    assert found is not None
    assert_same(found.joined, joined(9))
    assert files.served() == "joined"


@pytest.mark.parametrize("before", [None, "alone", "joined"])
def test_a_crash_before_it_is_said_what_is_served_leaves_what_was_said(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch, before: ServedName | None
) -> None:
    if before is not None:
        save(files, seed=0, serve=before)
    crash_before(monkeypatch, SERVED)
    with pytest.raises(KeyboardInterrupt):
        save(files, seed=9)
    found = files.load(USERS)
    assert found is not None
    assert_same(found.alone, alone(9).blend)
    assert_same(found.joined, joined(9))
    assert files.served() == before


def test_a_lost_second_file_leaves_a_platform_that_serves_alone(
    files: ModelFiles, tmp_path: Path
) -> None:
    save(files)
    (tmp_path / FEDERATED).unlink()
    found = files.load(USERS)
    assert found is not None
    assert found.joined is None
    assert files.served() == "alone"


# --- Damage --------------------------------------------------------------------------------------


def metadata_changed(**changes: str | None) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        arrays, metadata = read_arrays(path)
        changed: dict[str, Any] = {**metadata, **changes}
        kept = {name: text for name, text in changed.items() if text is not None}
        path.write_bytes(pack_arrays(arrays, kept))

    return act


def array_added(name: str) -> Callable[[Path], None]:
    """A foreign array within the first part of the file."""

    def act(path: Path) -> None:
        arrays, metadata = read_arrays(path)
        first = next(iter(json.loads(metadata["kinds"])))
        path.write_bytes(pack_arrays({**arrays, f"{first}/{name}": np.zeros(1)}, metadata))

    return act


def array_removed(path: Path) -> None:
    arrays, metadata = read_arrays(path)
    first = next(iter(json.loads(metadata["kinds"])))
    gone = next(name for name in arrays if name.startswith(first))
    path.write_bytes(pack_arrays({k: v for k, v in arrays.items() if k != gone}, metadata))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"not arrays at all, but long enough"),
    "foreign-array": array_added("more"),
    "array-gone": array_removed,
    "kinds-gone": metadata_changed(kinds=None),
    "kinds-no-json": metadata_changed(kinds="{"),
    "kinds-no-table": metadata_changed(kinds="[]"),
    "kind-unknown": metadata_changed(kinds='{"ease": "oracle"}'),
    "weights-gone": metadata_changed(weights=None),
    "weights-no-json": metadata_changed(weights="{"),
    "weights-no-table": metadata_changed(weights="[1]"),
    "weights-no-numbers": metadata_changed(weights='{"ease": "much"}'),
    "weights-nothing": metadata_changed(weights='{"ease": null}'),
    "weights-deep": metadata_changed(weights="[" * 100_000),
    "weight-of-no-part": metadata_changed(weights='{"ease": 1.0, "probe": 1.0}'),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("name", [LOCAL, FEDERATED])
def test_a_damaged_file_is_named(files: ModelFiles, tmp_path: Path, name: str, case: str) -> None:
    save(files)
    DAMAGE[case](tmp_path / name)
    if name == LOCAL:
        with pytest.raises(StateError, match=r"local\.safetensors"):
            files.load_alone(DIGEST)
    else:
        assert files.load_alone(DIGEST) is not None
    with pytest.raises(StateError, match=name.replace(".", r"\.")):
        files.load(USERS)


@pytest.mark.parametrize("folds", [None, "many", "3"])
def test_lost_judgements_are_damage(files: ModelFiles, tmp_path: Path, folds: str | None) -> None:
    save(files)
    metadata_changed(folds=folds)(tmp_path / LOCAL)
    with pytest.raises(StateError, match=r"local\.safetensors"):
        files.load_alone(DIGEST)


@pytest.mark.parametrize("digest", [None, "", "a" * 64])
def test_a_second_file_that_belongs_to_another_first_one_counts_as_missing(
    files: ModelFiles, tmp_path: Path, digest: str | None
) -> None:
    save(files)
    metadata_changed(beside=digest)(tmp_path / FEDERATED)
    found = files.load(USERS)
    assert found is not None
    assert found.joined is None
    assert files.served() == "alone"


def test_a_damaged_second_file_is_not_taken_for_a_missing_one(
    files: ModelFiles, tmp_path: Path
) -> None:
    save(files, serve="joined")
    DAMAGE["cut"](tmp_path / FEDERATED)
    with pytest.raises(StateError, match=r"federated\.safetensors"):
        files.served()
    save(files, serve="alone")
    DAMAGE["cut"](tmp_path / FEDERATED)
    assert files.served() == "alone"


@pytest.mark.parametrize("content", [b"", b"join\xff", b"joined\n", b"shared"])
def test_a_record_of_what_is_served_that_names_nothing_is_an_error(
    files: ModelFiles, tmp_path: Path, content: bytes
) -> None:
    save(files)
    (tmp_path / SERVED).write_bytes(content)
    with pytest.raises(StateError, match=r"served\.txt"):
        files.served()


def test_saving_mends_what_was_damaged(files: ModelFiles, tmp_path: Path) -> None:
    save(files)
    for name in (LOCAL, FEDERATED, SERVED):
        DAMAGE["cut"](tmp_path / name)
    save(files)
    found = files.load(USERS)
    assert found is not None
    assert_same(found.joined, joined())
    assert files.served() == "joined"


# --- What models alone depend on -----------------------------------------------------------------

BOUGHT = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 0), (2, 3), (3, 1), (3, 3)]


def data(
    bought: list[tuple[int, int]] = BOUGHT,
    held_out: tuple[tuple[int, int], ...] = ((0, 1), (1, 2)),
    num_items: int = NUM_ITEMS,
    num_folds: int = 2,
) -> PlatformData:
    def of(pairs: list[tuple[int, int]]) -> csr_matrix:
        return matrix(pairs, NUM_USERS, num_items)

    folds = tuple(
        Fold(history=of([pair for pair in bought if pair != given_up]), held_out=of([given_up]))
        for given_up in held_out[:num_folds]
    )
    users = UserItems(user_ids=tuple("abcd"), listing=np.arange(num_items), matrix=of(bought))
    return PlatformData(
        num_catalogue_items=num_items + 2, users_digest=USERS, users=users, folds=folds
    )


MODEL = NcfConfig(dim=4)


def digest(
    of: PlatformData | None = None,
    model: NcfConfig = MODEL,
    max_epochs: int = 3,
    seed: int = 0,
) -> str:
    return fitted_to(of or data(), model, max_epochs=max_epochs, seed=seed)


OTHER: dict[str, Callable[[], str]] = {
    "one interaction": lambda: digest(data([*BOUGHT[:-1], (3, 4)])),
    "one interaction more": lambda: digest(data([*BOUGHT, (3, 4)])),
    "another fold": lambda: digest(data(held_out=((0, 1), (1, 1)))),
    "folds in another order": lambda: digest(data(held_out=((1, 2), (0, 1)))),
    "fewer folds": lambda: digest(data(num_folds=1)),
    "an item that nobody bought": lambda: digest(data(num_items=NUM_ITEMS + 1)),
    "other users": lambda: digest(replace(data(), users_digest="others")),
    "another model": lambda: digest(model=replace(MODEL, dim=5)),
    "another loss": lambda: digest(model=replace(MODEL, loss="bce")),
    "more epochs": lambda: digest(max_epochs=4),
    "another seed": lambda: digest(seed=1),
}


@pytest.mark.parametrize("what", OTHER)
def test_models_alone_are_for_the_data_and_settings_that_they_were_fitted_to(what: str) -> None:
    assert digest() == digest(data())
    assert OTHER[what]() != digest()


def test_what_another_version_fitted_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    monkeypatch.setattr(model_files, "_ALGORITHM", model_files._ALGORITHM + "1")
    assert digest() != before
