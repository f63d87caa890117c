"""A progress display that follows the server's journal: the same for every engine."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from server.journal import read_journal

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rich.console import Console

_POLL_SECONDS = 0.2


class JournalProgress:
    """Shows rounds, and what each platform did in the current one, while a run goes on."""

    def __init__(self, folder: Path, console: Console, *, start: int = 0) -> None:
        """Follow the journal in ``folder`` from byte ``start`` on."""
        self._folder = folder
        self._offset = start
        self._states: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[states]}", markup=False),  # platforms choose their names
            console=console,
        )
        self._rounds = self._progress.add_task("Private rounds", total=None, states="")
        self._adapting = self._progress.add_task("Private adaptation", total=None, states="")

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Draw the last state and stop."""
        self._stop.set()
        self._thread.join()
        self._read()
        self._progress.stop()

    def _follow(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._read()

    def _read(self) -> None:
        for offset, event in read_journal(self._folder, start=self._offset):
            self._offset = offset
            self._show(event)

    def _show(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "run-started":
            self._progress.update(
                self._rounds, total=event["rounds"], completed=event["rounds_done"]
            )
        elif kind == "round-started":
            self._states = dict.fromkeys(event["platforms"], "…")
            self._progress.update(self._rounds, states=self._summary())
        elif kind == "reply":
            self._states[event["platform"]] = _sign(event["outcome"])
            self._progress.update(self._rounds, states=self._summary())
        elif kind == "round-closed":
            self._progress.update(self._rounds, completed=event["round"])
        elif kind == "handing-over":
            self._states = dict.fromkeys(event["platforms"], "…")
            self._progress.update(
                self._adapting, total=len(event["platforms"]), states=self._summary()
            )
        elif kind == "handed-over":
            self._states[event["platform"]] = _sign(event["outcome"])
            self._progress.update(self._adapting, advance=1, states=self._summary())

    def _summary(self) -> str:
        shown = [f"{name} {sign}" for name, sign in list(self._states.items())[:8]]
        more = len(self._states) - len(shown)
        return "  ".join(shown) + (f"  (+{more} more)" if more > 0 else "")


def _sign(outcome: str) -> str:
    return "✓" if outcome in {"released", "adopted"} else outcome.split(":", maxsplit=1)[0]
