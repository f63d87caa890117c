"""How far a comparison is: a bar on a terminal, one line per ended cell elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from simulations.compare.cells import Cell

_HOUR = 3600.0
"""The estimate looks back so far: cells take minutes."""


class CellProgress:
    """Counts cells; without a console it is silent."""

    def __init__(self, console: Console | None, *, done: int, total: int) -> None:
        """Start at ``done`` cells of ``total``."""
        self._console = console
        self._done, self._total = done, total
        self._began = time.monotonic()
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[last]}", markup=False),  # platforms choose their names
                console=console,
                speed_estimate_period=_HOUR,
            )
            self._task = self._bar.add_task("Runs", total=total, completed=done, last="")

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Draw the last state and stop."""
        if self._bar is not None:
            self._bar.stop()

    def ended(self, cell: Cell, reason: str | None) -> None:
        """Count a cell; ``reason`` says why it failed."""
        self._done += 1
        outcome = "done" if reason is None else f"FAILED: {reason}"
        if self._bar is not None:
            self._bar.update(self._task, advance=1, last=str(cell))
            if reason is not None:
                self._bar.console.print(f"{cell}: {outcome}", markup=False, highlight=False)
        elif self._console is not None:
            minutes = (time.monotonic() - self._began) / 60
            self._console.print(
                f"{self._done} of {self._total} after {minutes:.1f} min: {cell}: {outcome}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
