"""The run's diary: one JSON line for each thing that happened, for progress and status.

Holds platform names, outcomes and times of the server: nothing that platforms did not send.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from common.errors import StateError
from common.locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_NAME = "journal.jsonl"
RUN_LOCK = "run.lock"
LOCK_SECONDS = 30.0
_BUSY = "another program runs this federation; end it, or wait for it."


class Journal:
    """Appends events to ``journal.jsonl`` in the server's state folder."""

    def __init__(self, folder: Path) -> None:
        """Open the journal for appending; the folder is created if needed.

        Raises:
            StateError: if it cannot be opened.
        """
        path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / RUN_LOCK, busy=_BUSY, patience=LOCK_SECONDS)
            self._file = path.open("ab")
            # A crash may have left half a line; what follows must not be glued to it.
            self._file.truncate(path.read_bytes().rfind(b"\n") + 1)
        except OSError as error:
            msg = f"{path}: the journal cannot be opened ({error.strerror})."
            raise StateError(msg) from error

    def write(self, event: str, **facts: object) -> None:
        """Append one event with the current time; visible to readers at once.

        Raises:
            StateError: if the disk is full.
        """
        entry = {"event": event, "time": time.time(), **facts}
        try:
            self._file.write(json.dumps(entry, sort_keys=True).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            msg = f"{self._file.name}: the journal cannot be written ({error.strerror})."
            raise StateError(msg) from error

    def close(self) -> None:
        """Close the file, and let the next program in."""
        self._file.close()
        self._lock.close()


def read_journal(folder: Path, *, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset after the line, event) for every whole line from byte ``start`` on."""
    path = folder / FILE_NAME
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        offset = start
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, json.loads(line)


def journal_size(folder: Path) -> int:
    """Bytes up to the end of the last whole line; 0 if there is no journal yet."""
    path = folder / FILE_NAME
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
