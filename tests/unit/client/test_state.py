from __future__ import annotations

import os
import shutil
import signal
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import client.state
from client.adaptation import Adapted
from client.parts import Blend, ItemScores
from client.state import MOST_HANDOVERS_A_DAY, STOPPED_FILE, PlatformState
from client.user_vectors import UserVectors
from common.errors import RequestRefused, StateError
from common.privacy.account import Budget, Spend
from common.privacy.ledger import LEDGER_FILE
from common.privacy.mechanisms import SampledGaussian
from common.privacy.randomness import SeededRandom
from common.storage import pack_arrays, write_durably
from tests.harm import TAMPERING, fill, in_processes, read_only, small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from common.models.partition import Arrays

USERS = ("ada", "ben", "cem", "dan", "eva")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[PlatformState]:
    state = PlatformState(tmp_path / "state", keep_releases=3)
    yield state
    state.close()


def reserve(state: PlatformState, request_id: str) -> str:
    mechanism = SampledGaussian(noise_multiplier=50.0, sampling_rate=1.0, steps=1)
    spend = Spend(
        request_id=request_id,
        request_digest="d",
        description=request_id,
        mechanism=mechanism,
        mechanism_if_broken=mechanism,
    )
    state.ledger.reserve(spend, Budget(epsilon=8.0, delta=1e-5))
    return request_id


def arrays(seed: int) -> Arrays:
    return {"items.bias": np.random.default_rng(seed).standard_normal(4).astype(np.float32)}


def vectors(seed: int) -> UserVectors:
    return UserVectors.initial(5, 2, SeededRandom(seed))


def store(state: PlatformState, request_id: str, seed: int = 0) -> None:
    reserve(state, request_id)
    state.store_release(request_id, arrays(seed), vectors(seed), USERS)


def files(state_folder: Path, kind: str) -> int:
    return len(list((state_folder / kind).glob("*")))


FRESH = 99
"""Seed of the vectors that are given where nothing is stored."""


def loaded(state: PlatformState, run_id: str, users: Sequence[str] = USERS) -> UserVectors:
    fresh = UserVectors.initial(len(users), 2, SeededRandom(FRESH))
    return state.load_vectors(run_id, users, fresh)


def same(found: UserVectors, seed: int) -> bool:
    return torch.equal(found.values, vectors(seed).values)


def test_a_release_comes_back_bit_for_bit_after_a_restart(tmp_path: Path) -> None:
    first = PlatformState(tmp_path, keep_releases=3)
    store(first, "spring/1/north")
    first.close()
    second = PlatformState(tmp_path, keep_releases=3)
    back = second.load_release("spring/1/north")
    second.close()
    assert back is not None
    assert pack_arrays(back, {}) == pack_arrays(arrays(0), {})


def test_a_reservation_alone_is_no_release(state: PlatformState) -> None:
    reserve(state, "spring/1/north")
    assert state.load_release("spring/1/north") is None
    assert state.load_release("spring/2/north") is None


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_release_that_is_not_what_was_recorded_is_never_sent(
    state: PlatformState, tmp_path: Path, damage: str
) -> None:
    store(state, "spring/1/north")
    (path,) = (tmp_path / "state/releases").iterdir()
    content = path.read_bytes()
    if damage == "changed":
        path.write_bytes(pack_arrays(arrays(1), {"request": "spring/1/north"}))
    elif damage == "cut":
        path.write_bytes(content[:-3])
    else:
        path.unlink()
    with pytest.raises(StateError):
        state.load_release("spring/1/north")


def test_only_the_latest_releases_and_vectors_are_kept(
    state: PlatformState, tmp_path: Path
) -> None:
    for number in range(1, 6):
        store(state, f"spring/{number}/north", seed=number)
    assert files(tmp_path / "state", "releases") == 3
    assert files(tmp_path / "state", "private") == 3
    for number in (3, 4, 5):
        assert state.load_release(f"spring/{number}/north") is not None
    with pytest.raises(StateError, match="no longer kept"):
        state.load_release("spring/2/north")


def test_a_kept_release_has_its_session(
    state: PlatformState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the process is killed: without its session, the release could be summed again."""
    for number in range(1, 4):
        store(state, f"spring/{number}/north", seed=number)
        write_durably(state.sessions.path(f"spring/{number}/north"), b"who was in the sum")
    removed, unlink = [], type(tmp_path).unlink

    def kill(path: Path, *, missing_ok: bool = False) -> None:
        if path.parent.name in ("releases", "secagg"):
            removed.append(path.parent.name)
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "unlink", kill)
        with pytest.raises(KeyboardInterrupt):
            store(state, "spring/4/north", seed=4)
    assert removed == ["releases"]
    assert files(tmp_path / "state", "secagg") == 3
    store(state, "spring/5/north", seed=5)
    assert files(tmp_path / "state", "secagg") == 1


def test_vectors_are_those_of_the_last_recorded_release_of_the_run(state: PlatformState) -> None:
    assert same(loaded(state, "spring"), FRESH)
    store(state, "spring/1/north", seed=1)
    store(state, "spring/2/north", seed=2)
    store(state, "autumn/1/north", seed=3)
    reserve(state, "spring/3/north")
    assert same(loaded(state, "spring"), 2)
    assert same(loaded(state, "autumn"), 3)
    assert same(loaded(state, "sprin"), FRESH)


def test_who_joins_or_leaves_changes_nothing_for_the_others(state: PlatformState) -> None:
    store(state, "spring/1/north", seed=1)
    found = loaded(state, "spring", ("abe", "ada", "cem", "eva", "zoe"))
    kept, fresh = vectors(1).values, vectors(FRESH).values
    assert torch.equal(found.values, torch.stack([fresh[0], *kept[[0, 2, 4]], fresh[4]]))


def test_vectors_for_a_model_of_another_size_are_not_used(state: PlatformState) -> None:
    store(state, "spring/1/north", seed=1)
    fresh = UserVectors.initial(5, 3, SeededRandom(FRESH))
    assert state.load_vectors("spring", USERS, fresh) is fresh


def test_vectors_come_back_whole(state: PlatformState) -> None:
    reserve(state, "spring/1/north")
    moved = vectors(0)
    moved.first_moment.add_(1.0)
    moved.second_moment.add_(2.0)
    moved.num_steps.add_(3.0)
    state.store_release("spring/1/north", arrays(0), moved, USERS)
    back = loaded(state, "spring")
    for name in UserVectors.__slots__:
        assert torch.equal(getattr(back, name), getattr(moved, name))


def test_damaged_vectors_are_an_error_and_not_a_fresh_start(
    state: PlatformState, tmp_path: Path
) -> None:
    store(state, "spring/1/north")
    (path,) = (tmp_path / "state/private").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateError, match="damaged"):
        loaded(state, "spring")


def test_a_stopped_platform_stays_stopped_until_its_operator_has_looked(
    state: PlatformState, tmp_path: Path
) -> None:
    state.check_running()
    state.start_training()
    state.stop(ValueError("what went wrong"))
    note = tmp_path / "state" / STOPPED_FILE
    assert "what went wrong" in note.read_text(encoding="utf-8")
    for _ in range(2):
        with pytest.raises(RequestRefused, match=STOPPED_FILE) as refused:
            state.check_running()
        assert "what went wrong" not in str(refused.value)
    note.unlink()
    state.check_running()


def test_a_full_disk_stops_a_platform_as_well(
    state: PlatformState, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.start_training()

    def full(*_: object) -> None:
        raise StateError("no space left")

    monkeypatch.setattr("client.state.write_durably", full)
    state.stop(ValueError("what went wrong"))
    with pytest.raises(RequestRefused, match=STOPPED_FILE):
        state.check_running()


def test_two_processes_do_not_work_for_one_platform(state: PlatformState, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="another process"):
        PlatformState(tmp_path / "state", keep_releases=3)
    state.close()
    PlatformState(tmp_path / "state", keep_releases=3).close()


def test_of_many_processes_at_once_one_works_for_a_platform(tmp_path: Path) -> None:
    """Each tries a new folder at the same moment; the winner stays until the others have tried."""

    def work(place: int) -> int:
        try:
            state = PlatformState(tmp_path / "state", keep_releases=3)
        except StateError as error:
            (tmp_path / f"lost-{place}").touch()
            return 3 if "another process works for this platform" in str(error) else 1
        store(state, f"spring/{place}/north")
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("lost-*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        state.close()
        return 0

    assert sorted(in_processes(4, work), key=str) == [0, 3, 3, 3]
    state = PlatformState(tmp_path / "state", keep_releases=3)
    assert len(state.ledger.account().spends) == len(state.ledger.account().releases) == 1
    state.close()


def test_a_process_that_was_killed_lets_the_next_one_in(tmp_path: Path) -> None:
    def die(_: int) -> int:
        reserve(PlatformState(tmp_path / "state", keep_releases=3), "spring/1/north")
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert in_processes(1, die) == [-signal.SIGKILL]
    state = PlatformState(tmp_path / "state", keep_releases=3)
    assert len(state.ledger.account().spends) == 1
    state.close()


@pytest.mark.parametrize("name", TAMPERING)
def test_a_refused_ledger_lets_go_of_the_lock(tmp_path: Path, name: str) -> None:
    """The operator who restores it must not have to look for a process as well."""
    state = PlatformState(tmp_path / "state", keep_releases=3)
    for number in (1, 2, 3):
        store(state, f"spring/{number}/north")
    state.close()
    act, cause = TAMPERING[name]
    shutil.copytree(tmp_path / "state", tmp_path / "backup")
    act(tmp_path / "state" / LEDGER_FILE)
    for _ in range(2):
        with pytest.raises(StateError, match=cause):
            PlatformState(tmp_path / "state", keep_releases=3)
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "backup").rename(tmp_path / "state")
    restored = PlatformState(tmp_path / "state", keep_releases=3)
    assert restored.load_release("spring/3/north") is not None
    restored.close()


def test_a_lost_ledger_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    state = PlatformState(tmp_path, keep_releases=3)
    store(state, "spring/1/north")
    state.close()
    for path in tmp_path.glob("ledger.sqlite*"):  # the head as well: the releases show it
        path.unlink()
    with pytest.raises(StateError, match="forgotten budget"):
        PlatformState(tmp_path, keep_releases=3)


def test_a_release_that_was_not_reserved_cannot_be_recorded(state: PlatformState) -> None:
    with pytest.raises(StateError):
        state.store_release("spring/1/north", arrays(0), vectors(0), USERS)
    assert state.load_release("spring/1/north") is None


def test_a_second_release_for_one_request_is_refused(state: PlatformState) -> None:
    store(state, "spring/1/north", seed=1)
    with pytest.raises(StateError, match="different release"):
        state.store_release("spring/1/north", arrays(2), vectors(2), USERS)


def test_models_are_kept_in_a_folder_of_their_own_and_survive_a_restart(tmp_path: Path) -> None:
    first = PlatformState(tmp_path, keep_releases=3)
    blend = Blend(parts={"own": ItemScores(values=np.ones(3, np.float32))}, weights={"own": 2.0})
    first.models.save_alone(Adapted(blend=blend, scores=()), "digest", "users")
    first.models.save_joined(blend, "alone")
    first.close()
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "local.safetensors",
        "federated.safetensors",
        "served.txt",
    }
    second = PlatformState(tmp_path, keep_releases=3)
    models = second.models.load("users")
    assert models is not None
    assert models.alone.weights == {"own": 2.0}
    assert second.models.served() == "alone"
    second.close()


@pytest.mark.parametrize("kind", ["releases", "private", "model"])
def test_each_trace_of_a_release_shows_that_the_ledger_is_lost(tmp_path: Path, kind: str) -> None:
    (tmp_path / kind).mkdir()
    with pytest.raises(StateError, match="forgotten budget"):
        PlatformState(tmp_path, keep_releases=3)


@pytest.mark.parametrize("kind", ["releases", "private", "model"])
def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path, kind: str) -> None:
    PlatformState(tmp_path, keep_releases=3).close()
    draft = tmp_path / kind / "local.safetensors.7-7.part"
    write_durably(draft, b"vectors of users")
    PlatformState(tmp_path, keep_releases=3).close()
    assert not draft.exists()


def test_a_place_that_cannot_hold_a_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StateError, match="file"):
        PlatformState(tmp_path / "file", keep_releases=3)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    PlatformState(folder, keep_releases=3).close()
    with read_only(folder), pytest.raises(StateError, match=r"state.*: cannot be"):
        PlatformState(folder, keep_releases=3)
    PlatformState(folder, keep_releases=3).close()


def test_a_disk_without_space_is_named_and_leaves_nothing_that_stands_in_the_way(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", kilobytes=256):
        ballast = fill(tmp_path / "disk")
        with pytest.raises(StateError, match="disk"):
            PlatformState(tmp_path / "disk" / "state", keep_releases=3)
        ballast.unlink()
        state = PlatformState(tmp_path / "disk" / "state", keep_releases=3)
        store(state, "spring/1/north")
        ballast = fill(tmp_path / "disk")
        reserved = "spring/2/north"
        with pytest.raises(StateError, match="disk"):
            store(state, reserved)
        assert reserved not in state.ledger.account().releases
        state.close()
        ballast.unlink()
        state = PlatformState(tmp_path / "disk" / "state", keep_releases=3)
        store(state, reserved)
        assert len(state.ledger.account().spends) == 2
        state.close()


def test_a_file_that_is_no_ledger_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database, but long enough" * 100)
    with pytest.raises(StateError, match="ledger"):
        PlatformState(tmp_path, keep_releases=3)


def test_a_platform_that_is_killed_again_and_again_stops(state: PlatformState) -> None:
    """Whether it is killed can depend on its data, so nobody may watch that for ever."""
    for _ in range(10):
        state.start_training()
        state.check_running()
    with pytest.raises(RequestRefused, match=STOPPED_FILE):
        state.start_training()
    with pytest.raises(RequestRefused, match=STOPPED_FILE):
        state.check_running()


def test_a_finished_round_forgives_no_kill_before_it(state: PlatformState) -> None:
    """Whoever chooses what is asked could tell thresholds by kills, if successes wiped them out."""
    for _ in range(9):
        state.start_training()
        state.start_training()  # the first one was killed
        state.finish_training()
    state.start_training()
    with pytest.raises(RequestRefused, match="this platform stopped"):
        state.start_training()
    assert "killed 10 times" in (state._folder / STOPPED_FILE).read_text()
    (state._folder / STOPPED_FILE).unlink()  # the operator has looked
    state.start_training()


def test_only_so_many_hand_overs_are_taken_in_a_day(
    state: PlatformState, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in ("2026-11-22", "2026-11-23"):
        monkeypatch.setattr(client.state, "utc_now", lambda day=day: f"{day}T10:00:00+00:00")
        for _ in range(MOST_HANDOVERS_A_DAY):
            state.begin_handover()
        for _ in range(2):
            with pytest.raises(RequestRefused, match="20 hand-overs were taken today"):
                state.begin_handover()


def test_a_failure_while_old_releases_are_cleared_stops_the_platform_too(
    state: PlatformState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark that `stop` needs is there until nothing can fail any more."""

    def fail(_: PlatformState) -> None:
        raise OSError("cannot be removed")

    monkeypatch.setattr(PlatformState, "_forget_old", fail)
    state.start_training()
    with pytest.raises(OSError, match="cannot be removed") as caught:
        store(state, "spring/1/north")
    state.stop(caught.value)
    with pytest.raises(RequestRefused, match=STOPPED_FILE):
        state.check_running()
