from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pytest

from common.errors import StateError
from common.storage import pack_arrays, write_durably
from server.checkpoint import Checkpoints
from server.strategy import ServerState

if TYPE_CHECKING:
    from pathlib import Path

FILE = "checkpoint.safetensors"


def state(rounds_done: int = 3) -> ServerState:
    rng = np.random.default_rng(rounds_done)

    def arrays() -> dict[str, np.ndarray]:
        return {
            # Numbers that text would not carry: subnormal, huge, minus zero.
            "items.weight": rng.standard_normal((5, 2)).astype(np.float32),
            "items.bias": np.array([1e-45, -0.0, 3e38, 1 / 3, -1], np.float32),
        }

    return ServerState(
        rounds_done=rounds_done,
        parameters=arrays(),
        first_moment=arrays(),
        second_moment=arrays(),
    )


def assert_same(found: ServerState | None, expected: ServerState) -> None:
    assert found is not None
    assert found.rounds_done == expected.rounds_done
    for field in fields(ServerState)[1:]:
        for name, array in getattr(expected, field.name).items():
            back = getattr(found, field.name)[name]
            assert back.dtype == array.dtype
            assert back.tobytes() == array.tobytes()


def test_it_comes_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "state", "spring")
    assert checkpoints.load() is None
    checkpoints.save(state())
    assert_same(Checkpoints(tmp_path / "state", "spring").load(), state())


def test_the_latest_one_replaces_the_earlier(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "spring")
    for rounds_done in (1, 2):
        checkpoints.save(state(rounds_done))
    assert_same(checkpoints.load(), state(2))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_another_run_is_refused_and_named(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "spring").save(state())
    with pytest.raises(StateError, match=r"'spring'.*'autumn'"):
        Checkpoints(tmp_path, "autumn").load()


@pytest.mark.parametrize("keep", [0, 1, 7, 60, 200])
def test_half_a_file_is_an_error(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, "spring")
    checkpoints.save(state())
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:keep])
    with pytest.raises(StateError, match=FILE):
        checkpoints.load()


@pytest.mark.parametrize(
    "metadata", [{}, {"rounds_done": "two"}, {"rounds_done": ""}], ids=["none", "text", "empty"]
)
def test_a_file_without_a_round_number_is_an_error(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    write_durably(tmp_path / FILE, pack_arrays({}, {"run": "spring", **metadata}))
    with pytest.raises(StateError, match="checkpoint"):
        Checkpoints(tmp_path, "spring").load()


def test_a_file_with_foreign_arrays_is_an_error(tmp_path: Path) -> None:
    arrays = {"user_vectors": np.zeros(2, np.float32)}
    content = pack_arrays(arrays, {"run": "spring", "rounds_done": "1"})
    write_durably(tmp_path / FILE, content)
    with pytest.raises(StateError, match="user_vectors"):
        Checkpoints(tmp_path, "spring").load()


def test_a_failed_save_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, "spring")
    checkpoints.save(state(1))

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StateError, match="No space left"):
        checkpoints.save(state(2))
    assert_same(checkpoints.load(), state(1))
