"""One program at a time: lock files that name the process which holds them.

The operating system frees a lock when its holder ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from common.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

_POLL_SECONDS = 0.1


class FileLock:
    """Holds ``path`` until closed; the file holds the id of this process, if there is space."""

    def __init__(self, path: Path, *, busy: str, patience: float = 0.0) -> None:
        """Take the lock.

        Args:
            path: the folder is there.
            busy: what to say if another program holds it.
            patience: seconds to wait for that program to end.

        Raises:
            StateError: with ``busy``, or if the file cannot be opened.
        """
        give_up = time.monotonic() + patience
        try:
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", 0)
        except OSError as error:
            msg = f"{path}: cannot be opened ({error.strerror})."
            raise StateError(msg) from error
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if time.monotonic() >= give_up:
                    self._file.close()
                    raise StateError(f"{path}: {busy}") from error
                time.sleep(_POLL_SECONDS)
            else:
                break
        self._file.truncate(0)
        with suppress(OSError):  # the disk is full: the lock is held, and says not by whom
            self._file.write(str(os.getpid()).encode())

    def close(self) -> None:
        """Let the next program in."""
        self._file.close()


def holder_of(path: Path) -> int | None:
    """Id of the process that holds the lock; None if nobody does."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read() or 0) or None
    except (FileNotFoundError, ValueError):
        pass
    return None
