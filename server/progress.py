"""A progress display that follows the server's journal: the same for every engine."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self, get_args

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from common.models.partition import SumQuantity
from server.journal import read_journal
from server.status import DONE, stage_of

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rich.console import Console
    from rich.progress import TaskID

_POLL_SECONDS = 0.2
_SUMS = get_args(SumQuantity)


class JournalProgress:
    """Shows sums and rounds, and what each platform did in the current one, while a run goes on.

    A line appears when there is something to show on it.
    """

    def __init__(self, folder: Path, console: Console, *, start: int = 0) -> None:
        """Follow the journal in ``folder`` from byte ``start`` on."""
        self._folder = folder
        self._offset = start
        self._states: dict[str, str] = {}
        self._stage = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._progress = Progress(
            # On a narrow terminal it is the platforms that go over several lines.
            TextColumn("{task.description}"),
            BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            # Platforms choose their names: no markup.
            TextColumn("{task.fields[states]}", markup=False, table_column=Column()),
            console=console,
        )
        self._sums = self._add("Private sums", total=len(_SUMS))
        self._rounds = self._add("Private rounds")
        self._adapting = self._add("Private adaptation")

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

    def _add(self, description: str, total: int | None = None) -> TaskID:
        return self._progress.add_task(description, total=total, visible=False, states="")

    def _follow(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._read()

    def _read(self) -> None:
        for offset, event in read_journal(self._folder, start=self._offset):
            self._offset = offset
            self._show(event)

    def _show(self, event: dict[str, Any]) -> None:  # noqa: C901 - one case for each event
        kind = event["event"]
        if kind == "run-started":
            self._progress.update(
                self._rounds,
                total=event["rounds"],
                completed=event["rounds_done"],
                visible=event["rounds"] > 0,
            )
        elif kind == "sum-started":
            self._begin(self._sums, event, completed=_SUMS.index(event["quantity"]))
        elif kind == "sum-reply":
            self._answered(self._sums, event)
        elif kind == "secagg-stage":
            task = self._sums if event["what"] in _SUMS else self._rounds
            self._at_stage(task, stage_of(event))
        elif kind == "sum-closed":
            self._progress.advance(self._sums)
            self._at_stage(self._sums, "")
        elif kind == "round-started":
            self._begin(self._rounds, event)
        elif kind == "reply":
            self._answered(self._rounds, event)
        elif kind == "round-closed":
            self._progress.update(self._rounds, completed=event["round"])
            self._at_stage(self._rounds, "")
        elif kind == "handing-over":
            self._begin(self._adapting, event, total=len(event["platforms"]))
        elif kind == "handed-over":
            self._answered(self._adapting, event)
            self._progress.advance(self._adapting)

    def _begin(
        self,
        task: TaskID,
        event: dict[str, Any],
        *,
        total: int | None = None,
        completed: int | None = None,
    ) -> None:
        self._states, self._stage = dict.fromkeys(event["platforms"], "…"), ""
        self._progress.update(
            task, visible=True, total=total, completed=completed, states=self._summary()
        )

    def _at_stage(self, task: TaskID, stage: str) -> None:
        self._stage = stage
        self._progress.update(task, states=self._summary())

    def _answered(self, task: TaskID, event: dict[str, Any]) -> None:
        self._states[event["platform"]] = _sign(event["outcome"])
        self._progress.update(task, states=self._summary())

    def _summary(self) -> str:
        shown = [f"{name} {sign}" for name, sign in list(self._states.items())[:8]]
        more = len(self._states) - len(shown)
        shown = [f"{self._stage}:", *shown] if self._stage else shown
        return "  ".join(shown) + (f"  (+{more} more)" if more > 0 else "")


def _sign(outcome: str) -> str:
    return "✓" if outcome in DONE else outcome.split(":", maxsplit=1)[0]
