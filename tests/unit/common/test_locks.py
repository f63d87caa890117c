from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import StateError
from common.locks import FileLock, holder_of
from tests.harm import fill, small_disk

PROGRAM = (
    "import sys, time; from pathlib import Path; from common.locks import FileLock; "
    "lock = FileLock(Path(sys.argv[1]), busy=''); print('held', flush=True); time.sleep(600)"
)


def test_one_holder_at_a_time_who_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder_of(path) is None
    lock = FileLock(path, busy="first")
    assert holder_of(path) == os.getpid()
    with pytest.raises(StateError, match="lock: another one"):
        FileLock(path, busy="another one")
    lock.close()
    assert holder_of(path) is None
    FileLock(path, busy="again").close()


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    other = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert other.stdout is not None
    with other.stdout:
        other.stdout.readline()
    assert holder_of(path) == other.pid
    with pytest.raises(StateError):
        FileLock(path, busy="held", patience=0.2)
    os.kill(other.pid, signal.SIGKILL)
    FileLock(path, busy="held", patience=30.0).close()
    other.wait()


def test_a_full_disk_does_not_hinder_a_lock(tmp_path: Path) -> None:
    with small_disk(tmp_path, kilobytes=64):
        path = tmp_path / "lock"
        path.touch()
        fill(tmp_path)
        lock = FileLock(path, busy="first")
        with pytest.raises(StateError, match="lock: another one"):
            FileLock(path, busy="another one")
        lock.close()
        FileLock(path, busy="again").close()


def test_a_place_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be opened"):
        FileLock(tmp_path / "nowhere/lock", busy="")
