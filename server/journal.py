"""The run's diary: one JSON line for each thing that happened, for progress and status.

Holds platform names, outcomes and times of the server: nothing that platforms did not send.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_NAME = "journal.jsonl"


class Journal:
    """Appends events to ``journal.jsonl`` in the server's state folder."""

    def __init__(self, folder: Path) -> None:
        """Open the journal for appending; the folder is created if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / FILE_NAME).open("a", encoding="utf-8")

    def write(self, event: str, **facts: object) -> None:
        """Append one event with the current time; visible to readers at once."""
        entry = {"event": event, "time": time.time(), **facts}
        self._file.write(json.dumps(entry, sort_keys=True) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
