"""Checkpoints of a run: its sums, and the state after each round, written whole or not at all."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from common.errors import ConfigError, StateError
from common.secagg.lattice import Lattice
from common.storage import pack_arrays, read_arrays, write_durably
from server.strategy import ServerState

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from common.models.partition import Arrays, SumQuantity

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
        arrays, metadata = _read_own(self._path, self._run_id)
        parts: dict[str, Arrays] = {part: {} for part in _PARTS}
        try:
            for key, array in arrays.items():
                part, _, name = key.partition("/")
                parts[part][name] = array
            return ServerState(rounds_done=int(metadata["rounds_done"]), **parts)
        except (KeyError, ValueError) as error:
            msg = f"{self._path}: is not a checkpoint of a run ({error})."
            raise StateError(msg) from error


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CollectedSum:
    """What platforms released of one quantity, added up."""

    asked: Arrays
    """What they were asked for: ``items``, and for pairs ``weights``."""
    total: np.ndarray
    """The sum of their releases, float32."""
    platforms: tuple[str, ...]
    """Whose releases are in it."""
    noise_std: float
    """Standard deviation of the noise in each of these releases."""
    lattice: Lattice | None = None
    """What they were summed on under secure aggregation; None without."""


class CollectedSums:
    """The sums of one run in ``folder``, one file for each quantity."""

    def __init__(self, folder: Path, run_id: str) -> None:
        """Name the place; nothing is read or written yet."""
        self._folder = folder
        self._run_id = run_id

    def save(self, quantity: SumQuantity, collected: CollectedSum) -> None:
        """Write a sum atomically.

        Raises:
            StateError: if it cannot be written.
        """
        metadata = {
            "run": self._run_id,
            "platforms": json.dumps(collected.platforms),
            "noise_std": repr(collected.noise_std),
            "lattice": json.dumps(collected.lattice and asdict(collected.lattice)),
        }
        content = pack_arrays({**collected.asked, "sum": collected.total}, metadata)
        write_durably(self._file(quantity), content)

    def load(self, quantity: SumQuantity) -> CollectedSum | None:
        """A sum, or None if it was not collected yet.

        Raises:
            StateError: if the file is damaged, is no sum, or belongs to another run.
        """
        path = self._file(quantity)
        if not path.exists():
            return None
        asked, metadata = _read_own(path, self._run_id)
        try:
            total, platforms = asked.pop("sum"), json.loads(metadata["platforms"])
            noise_std = float(metadata["noise_std"])
            lattice = json.loads(metadata["lattice"])
            lattice = lattice and Lattice(**lattice)
        except (KeyError, ValueError, TypeError, ConfigError) as error:
            msg = f"{path}: is not a sum of a run ({error})."
            raise StateError(msg) from error
        is_list = isinstance(platforms, list) and all(isinstance(n, str) for n in platforms)
        if not is_list or not platforms or not (math.isfinite(noise_std) and noise_std >= 0):
            msg = f"{path}: is not a sum of a run (platforms or noise)."
            raise StateError(msg)
        return CollectedSum(
            asked=asked,
            total=total,
            platforms=tuple(platforms),
            noise_std=noise_std,
            lattice=lattice,
        )

    def _file(self, quantity: SumQuantity) -> Path:
        return self._folder / f"{quantity}.safetensors"


def _read_own(path: Path, run_id: str) -> tuple[Arrays, dict[str, str]]:
    arrays, metadata = read_arrays(path)
    if metadata.get("run") != run_id:
        msg = (
            f"{path}: belongs to run {metadata.get('run')!r}, expected "
            f"{run_id!r}. Choose another state folder or the run's own configuration."
        )
        raise StateError(msg)
    return arrays, metadata
