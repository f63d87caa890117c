"""Checkpoints of a run: the state after each round, written whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import StateError
from common.storage import pack_arrays, read_arrays, write_durably
from server.strategy import ServerState

if TYPE_CHECKING:
    from pathlib import Path

    from common.models.partition import Arrays

_PARTS = ("parameters", "first_moment", "second_moment")


class Checkpoints:
    """The latest checkpoint of one run in ``folder``; older ones are replaced."""

    def __init__(self, folder: Path, run_id: str) -> None:
        """Name the place; nothing is read or written yet."""
        self._path = folder / "checkpoint.safetensors"
        self._run_id = run_id

    def save(self, state: ServerState) -> None:
        """Write ``state`` atomically.

        Raises:
            StateError: if it cannot be written; the previous checkpoint stays.
        """
        arrays = {f"{part}/{k}": v for part in _PARTS for k, v in getattr(state, part).items()}
        metadata = {"run": self._run_id, "rounds_done": str(state.rounds_done)}
        write_durably(self._path, pack_arrays(arrays, metadata))

    def load(self) -> ServerState | None:
        """The latest state, or None if no round was closed yet.

        Raises:
            StateError: if the file is damaged, is no checkpoint, or belongs to another run.
        """
        if not self._path.exists():
            return None
        arrays, metadata = read_arrays(self._path)
        if metadata.get("run") != self._run_id:
            msg = (
                f"{self._path}: belongs to run {metadata.get('run')!r}, expected "
                f"{self._run_id!r}. Choose another state folder or the run's own configuration."
            )
            raise StateError(msg)
        parts: dict[str, Arrays] = {part: {} for part in _PARTS}
        try:
            for key, array in arrays.items():
                part, _, name = key.partition("/")
                parts[part][name] = array
            return ServerState(rounds_done=int(metadata["rounds_done"]), **parts)
        except (KeyError, ValueError) as error:
            msg = f"{self._path}: is not a checkpoint of a run ({error})."
            raise StateError(msg) from error
