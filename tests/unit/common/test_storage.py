"""Files are written whole or not at all, and damaged ones are named."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save

from common.errors import StateError
from common.storage import (
    FOR_ALL,
    make_private,
    pack_arrays,
    read_arrays,
    sha256,
    unpack_arrays,
    write_durably,
)

if TYPE_CHECKING:
    from pathlib import Path

ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(2, dtype=np.float32)}
METADATA = {"request": "spring/1/north", "users": '["ü", "b"]'}


class Crash(BaseException):
    """The process dies here; no handler of errors may help."""


def explode(kind: type[BaseException]) -> Any:  # noqa: ANN401 - stands in for any function of os
    def fail(*_: object, **__: object) -> None:
        raise Crash if kind is Crash else OSError(errno.ENOSPC, "No space left on device")

    return fail


@pytest.mark.parametrize("kind", [Crash, OSError])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_crash_on_the_way_leaves_the_old_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    kind: type[BaseException],
    old: bytes | None,
) -> None:
    path = tmp_path / "state" / "file"
    if old is not None:
        write_durably(path, old)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, explode(kind))
        with pytest.raises(Crash if kind is Crash else StateError):
            write_durably(path, b"new")
    assert (path.read_bytes() if path.exists() else None) == old
    write_durably(path, b"newer")
    assert path.read_bytes() == b"newer"
    if kind is OSError:
        assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_content_is_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")
        fsync(handle)

    def named(source: Path, target: Path) -> None:
        done.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    write_durably(tmp_path / "file", b"x")
    assert done == ["content", "name", "folder"]


def test_files_are_the_owners_unless_they_are_meant_for_all(tmp_path: Path) -> None:
    write_durably(tmp_path / "private", b"x")
    write_durably(tmp_path / "public", b"x", mode=FOR_ALL)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "public").stat().st_mode & 0o700 == 0o600
    write_durably(tmp_path / "public", b"y")
    assert (tmp_path / "public").stat().st_mode & 0o777 == 0o600


def test_a_private_folder_is_closed_even_if_it_was_open(tmp_path: Path) -> None:
    folder = tmp_path / "market/state"
    for _ in range(2):
        make_private(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="file: cannot be made"):
        make_private(tmp_path / "file")


def test_two_writers_never_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have written their drafts before either takes the name."""
    both, replace = threading.Barrier(2), os.replace

    def wait_for_the_other(source: Path, target: Path) -> None:
        both.wait(10)
        replace(source, target)

    monkeypatch.setattr(os, "replace", wait_for_the_other)
    contents = [b"a" * 100_000, b"b" * 200_000]
    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write_durably, tmp_path / "file", c) for c in contents]
    assert [writer.exception() for writer in writers] == [None, None]
    assert (tmp_path / "file").read_bytes() in contents
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_written_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_bytes(b"")
    with pytest.raises(StateError, match=r"occupied.file: cannot be written \(.+\)"):
        write_durably(tmp_path / "occupied" / "file", b"x")


def test_arrays_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "arrays.safetensors"
    write_durably(path, pack_arrays(ARRAYS, METADATA))
    arrays, metadata = read_arrays(path)
    assert metadata == METADATA
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)


def test_packing_is_deterministic_and_sees_every_difference() -> None:
    packed = pack_arrays(ARRAYS, METADATA)
    backwards = dict(reversed(ARRAYS.items()))
    fortran = {name: np.asfortranarray(array) for name, array in ARRAYS.items()}
    sliced = {"b": np.repeat(ARRAYS["b"], 2, axis=1)[:, ::2], "a": ARRAYS["a"]}
    metadata = dict(reversed(METADATA.items()))
    for arrays in (backwards, fortran, sliced):
        assert pack_arrays(arrays, metadata) == packed
    changed = [
        pack_arrays({**ARRAYS, "a": np.nextafter(ARRAYS["a"], np.float32(2))}, METADATA),
        pack_arrays({**ARRAYS, "a": ARRAYS["a"].astype(np.float64)}, METADATA),
        pack_arrays({**ARRAYS, "b": ARRAYS["b"].reshape(3, 2)}, METADATA),
        pack_arrays({"b": ARRAYS["b"], "c": ARRAYS["a"]}, METADATA),
        pack_arrays(ARRAYS, {**METADATA, "request": "spring/2/north"}),
    ]
    assert len({sha256(content) for content in [packed, *changed]}) == 6


def test_packing_no_arrays_works() -> None:
    assert unpack_arrays(pack_arrays({}, {}), "nothing") == ({}, {})


def header(table: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


GOOD = pack_arrays(ARRAYS, METADATA)
OURS = {"__metadata__": {"crossrec": "{}"}}
DAMAGED = {
    "nothing": b"",
    "cut short": GOOD[:-1],
    "one byte too long": GOOD + b"x",
    "cut in the header": GOOD[:40],
    "no header": b"\xff" * 64,
    "a header of 2^62 bytes": (2**62).to_bytes(8, "little") + b"{}",
    "a pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "somebody else's file": save(ARRAYS),
    "somebody else's metadata": save(ARRAYS, metadata={"format": "pt"}),
    "metadata that is no table": header({"__metadata__": {"crossrec": "[1]"}}),
    "metadata that is no JSON": header({"__metadata__": {"crossrec": "{"}}),
    "metadata that is too deep": header({"__metadata__": {"crossrec": "[" * 50_000}}),
    "metadata of numbers": header({"__metadata__": {"crossrec": '{"a": 1}'}}),
    "a type that numpy has not": header(
        {"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}, **OURS}, b"ab"
    ),
    "an array beyond the file": header(
        {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}, **OURS}, b"abcd"
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_and_never_half_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "arrays.safetensors"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(StateError, match=r"arrays\.safetensors"):
        read_arrays(path)


def test_every_cut_is_noticed() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(StateError):
            unpack_arrays(GOOD[:length], "cut")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="missing"):
        read_arrays(tmp_path / "missing")
