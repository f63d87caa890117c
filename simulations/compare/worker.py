"""Run the cells of one scenario and seed, one after another, and keep what the statistics need.

A cell's folder holds a whole simulated federation while it runs, and only its result once it has
ended. Killed at any point, it goes on where it was.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.config import dump_config
from common.errors import CrossRecError
from common.storage import write_durably
from simulations.result import read_result
from simulations.simulate import OPTIONS_FILE, PER_USER_FILE, RESULT_FILE, SimulationRun

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from simulations.compare.cells import Cell
    from simulations.options import SimulationOptions
    from simulations.result import RunResult

FAILED_FILE = "failed.json"
KEPT_FILES = frozenset({OPTIONS_FILE, RESULT_FILE, PER_USER_FILE, FAILED_FILE})

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Cells that share local models, and where they live."""

    folder: Path
    """Of the comparison."""
    base: SimulationOptions
    """What all cells have in common."""
    cells: tuple[Cell, ...]
    """Of one scenario and seed."""


def finished_cell(folder: Path, cell: Cell, base: SimulationOptions) -> RunResult | None:
    """The result of a cell that has ended well; None of any other.

    Raises:
        StateError: if its result cannot be read.
    """
    home = folder / cell.folder
    if not all((home / name).exists() for name in (OPTIONS_FILE, RESULT_FILE, PER_USER_FILE)):
        return None
    if (home / OPTIONS_FILE).read_text(encoding="utf-8") != dump_config(cell.options(base)):
        return None
    result = read_result(home / RESULT_FILE)
    return result if result.status == "complete" else None


def failure_of(folder: Path, cell: Cell) -> str | None:
    """Why a cell failed; None if it did not."""
    path = folder / cell.folder / FAILED_FILE
    return str(json.loads(path.read_bytes())["reason"]) if path.exists() else None


def needs_work(folder: Path, cells: Sequence[Cell], left: Collection[Cell]) -> bool:
    """Whether something of a group is among ``left``, or was not cleaned up."""
    return any(cell in left or (folder / cell.folder / "platforms").exists() for cell in cells)


def run_group(group: Group, ended: Callable[[Cell, str | None], None]) -> bool:
    """Run what is not finished yet; False after Ctrl-C.

    Cells that failed before are tried again. ``ended`` is called with each cell that ends now, and
    with the reason if it failed.
    """
    warm: Path | None = None
    try:
        for cell in group.cells:
            home = group.folder / cell.folder
            if finished_cell(group.folder, cell, group.base) is None:
                try:
                    if not _run(group, cell, warm):
                        return False
                except Exception as error:  # noqa: BLE001 - one cell must not stop the others
                    ended(cell, _fail(home, error))
                    continue
                ended(cell, None)
            if warm is None and (home / "platforms").exists():
                warm = home
            else:
                _prune(home)
        if warm is not None:
            _prune(warm)
    except KeyboardInterrupt:
        return False
    return True


def _run(group: Group, cell: Cell, warm: Path | None) -> bool:
    home = group.folder / cell.folder
    options = cell.options(group.base)
    path = home / OPTIONS_FILE
    is_begun = path.exists() and path.read_text(encoding="utf-8") == dump_config(options)
    if home.exists() and (not is_begun or (home / FAILED_FILE).exists()):
        shutil.rmtree(home)
    result = SimulationRun.open(options, home).execute(
        warm_from=warm, in_comparison=True, pooled=cell.epsilon is None
    )
    return result.status == "complete"


def _fail(home: Path, error: Exception) -> str:
    """Write down why, and delete the rest: it would fail again."""
    if isinstance(error, CrossRecError):
        reason = str(error)
    else:  # its text may hold what belongs to a user
        log.error("%s failed", home, exc_info=error)
        reason = f"{type(error).__name__}: see the log"
    write_durably(home / FAILED_FILE, json.dumps({"reason": reason}).encode())
    for name in (OPTIONS_FILE, RESULT_FILE, PER_USER_FILE):
        (home / name).unlink(missing_ok=True)
    _prune(home)
    return reason


def _prune(home: Path) -> None:
    """Delete what platforms and server had: it is big, and holds users' interactions."""
    for path in home.iterdir():
        if path.name in KEPT_FILES:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
