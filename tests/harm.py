"""What hands, disks and clocks can do to a ledger. Each must be found out, or change nothing.

:data:`TAMPERING` works on a closed ledger of at least five entries, as somebody with SQLite, an
editor and write access would: triggers are dropped first.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from common.privacy.account import GENESIS, Entry, entry_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHANGED = r"entry \d+ (\(\w+\) was changed after it was written|stands in the place of entry \d+)"
OLDER = "ends before entry .* or holds another one: an older copy was put in its place"
NO_HEAD = r"ledger\.sqlite\.head: cannot be read"
LOST = r"ledger\.sqlite is missing, and .* shows that"


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> str:
        return self.time.isoformat()

    def move(self, **by: float) -> None:
        self.time += timedelta(**by)


def in_processes(number: int, act: Callable[[int], int]) -> list[int | None]:
    """Exit codes of ``number`` forked processes that start ``act`` at the same moment."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(number)

    def run(place: int) -> None:
        barrier.wait()
        os._exit(act(place))

    processes = [context.Process(target=run, args=(place,)) for place in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def head_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def files_of(path: Path) -> list[Path]:
    """The database and SQLite's own files beside it, without the head."""
    return [file for file in path.parent.glob(f"{path.name}*") if file != head_of(path)]


@contextmanager
def unguarded(path: Path) -> Iterator[sqlite3.Connection]:
    """The database without what guards it against SQL."""
    with closing(sqlite3.connect(path)) as db:
        for kind, name in db.execute("SELECT type, name FROM sqlite_master").fetchall():
            if kind in ("trigger", "index"):
                db.execute(f"DROP {kind} {name}")
        yield db
        db.commit()


def write(path: Path, *statements: str) -> None:
    with unguarded(path) as db:
        for statement in statements:
            db.execute(statement)


_CHANGES = {
    "sequence": "sequence = sequence + 1000",
    "time": "time = '2020-01-01T00:00:00+00:00'",
    "kind": "kind = CASE kind WHEN 'note' THEN 'decline' ELSE 'note' END",
    "request_id": "request_id = request_id || 'x'",
    "body": "body = replace(body, '\"', ' \"')",
    "digest": f"digest = '{'f' * 64}'",
}
_ROWS = {
    "first": "sequence = 1",
    "middle": "sequence = (SELECT max(sequence) / 2 + 1 FROM entry)",
    "last": "sequence = (SELECT max(sequence) FROM entry)",
}


def _renumbered(path: Path) -> None:
    """Take entry 3 out and close the gap."""
    write(path, "DELETE FROM entry WHERE sequence = 3")
    write(path, "UPDATE entry SET sequence = sequence - 1 WHERE sequence > 3")


def _inserted(path: Path) -> None:
    """Put a copy of entry 2 between it and entry 3."""
    write(
        path,
        "UPDATE entry SET sequence = -sequence WHERE sequence > 2",
        "UPDATE entry SET sequence = 1 - sequence WHERE sequence < 0",
        "INSERT INTO entry SELECT 3, time, kind, request_id, body, digest FROM entry "
        "WHERE sequence = 2",
    )


def _rewritten(path: Path) -> None:
    """Turn every spend into a note and compute all digests anew: a whole chain, of a free ride."""
    digest = GENESIS
    with unguarded(path) as db:
        rows = db.execute("SELECT sequence, time, kind, request_id, body FROM entry").fetchall()
        for sequence, time, kind, request_id, body in rows:
            entry = Entry(
                sequence=sequence,
                time=time,
                kind="note" if kind in ("reserve", "commit") else kind,
                request_id=request_id,
                body=body,
                digest="",
            )
            digest = entry_digest(digest, entry)
            db.execute(
                "UPDATE entry SET kind = ?, digest = ? WHERE sequence = ?",
                (replace(entry, digest=digest).kind, digest, sequence),
            )


def _cut(share: float) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return act


def _lose(path: Path) -> None:
    for file in files_of(path):
        file.unlink()


def _head_a_folder(path: Path) -> None:
    head_of(path).unlink()
    head_of(path).mkdir()


def _head_says(content: bytes) -> Callable[[Path], None]:
    return lambda path: void(head_of(path).write_bytes(content))


def _sql(*statements: str) -> Callable[[Path], None]:
    return lambda path: write(path, *statements)


def void(_: object) -> None:
    """Drop a value."""


TAMPERING: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"{column}-of-the-{row}-row": (
            _sql(f"UPDATE entry SET {change} WHERE {where}"),  # noqa: S608
            CHANGED,
        )
        for column, change in _CHANGES.items()
        for row, where in _ROWS.items()
    },
    "values-of-another-type": (
        _sql("UPDATE entry SET body = CAST(body AS BLOB) WHERE sequence = 2"),
        "entry 2 holds values of the wrong type",
    ),
    "text-that-is-none": (
        _sql("UPDATE entry SET body = CAST(x'ff' AS TEXT) WHERE sequence = 2"),
        "the privacy ledger cannot be used .*UTF-8",
    ),
    "row-taken-out": (_sql("DELETE FROM entry WHERE sequence = 3"), CHANGED),
    "row-taken-out-and-renumbered": (_renumbered, CHANGED),
    "rows-swapped": (
        _sql(
            "UPDATE entry SET sequence = -2 WHERE sequence = 3",
            "UPDATE entry SET sequence = 3 WHERE sequence = 2",
            "UPDATE entry SET sequence = 2 WHERE sequence = -2",
        ),
        CHANGED,
    ),
    "row-put-in": (_inserted, CHANGED),
    "row-put-before": (
        _sql("INSERT INTO entry SELECT 0, time, 'note', '', body, digest FROM entry LIMIT 1"),
        CHANGED,
    ),
    "row-put-behind": (
        _sql(
            "INSERT INTO entry SELECT max(sequence) + 1, max(time), 'note', '', '{}', digest "
            "FROM entry"
        ),
        CHANGED,
    ),
    "last-row-cut-off": (_sql("DELETE FROM entry WHERE " + _ROWS["last"]), OLDER),  # noqa: S608
    "most-rows-cut-off": (_sql("DELETE FROM entry WHERE sequence > 1"), OLDER),
    "all-rows-cut-off": (_sql("DELETE FROM entry"), OLDER),
    "chain-computed-anew": (_rewritten, OLDER),
    "table-dropped": (
        _sql("DROP TABLE entry"),
        "the privacy ledger cannot be used .*no such table",
    ),
    "ledger-deleted": (_lose, LOST),
    "file-emptied": (_cut(0.0), "expected a CrossRec ledger"),
    "file-cut-in-its-first-page": (_cut(0.02), "the privacy ledger cannot be used"),
    "file-cut-in-half": (_cut(0.5), "the privacy ledger cannot be used"),
    "file-without-its-last-page": (
        lambda path: void(path.write_bytes(path.read_bytes()[:-4096])),
        "the privacy ledger cannot be used",
    ),
    "head-deleted": (lambda path: head_of(path).unlink(), NO_HEAD),
    "head-a-folder": (_head_a_folder, NO_HEAD),
    "head-empty": (_head_says(b""), NO_HEAD),
    "head-garbage": (_head_says(b"\xff\x00garbage"), NO_HEAD),
    "head-without-a-digest": (_head_says(b"2"), OLDER),
    "head-with-another-digest": (_head_says(b"2 " + b"f" * 64), OLDER),
    "head-of-no-entry": (_head_says(b"0 " + b"f" * 64), OLDER),
    "head-ahead": (_head_says(b"1000 " + b"f" * 64), OLDER),
    "head-beyond-any-number": (_head_says(b"9" * 30 + b" " + b"f" * 64), "ledger"),
}


def _mount(*arguments: str) -> None:
    command = shutil.which("mount")
    if command is None or subprocess.run([command, *arguments], check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")


def _unmount(path: Path) -> None:
    subprocess.run([shutil.which("umount") or "umount", "--lazy", str(path)], check=True)


@contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[None]:
    """A disk of its own at ``path``; skips the test where mounting is not permitted."""
    path.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path))
    try:
        yield
    finally:
        _unmount(path)


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """A file or folder that cannot be written; the superuser heeds only mounts."""
    if os.geteuid() != 0:
        mode = path.stat().st_mode
        path.chmod(mode & 0o555)
        try:
            yield
        finally:
            path.chmod(mode)
        return
    _mount("--bind", str(path), str(path))
    try:
        _mount("-o", "remount,ro,bind", str(path))
        yield
    finally:
        _unmount(path)


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Fill the disk of ``folder`` but for ``leave`` bytes; deleting the file frees it again."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(max(0, file.tell() - leave))
    return ballast
