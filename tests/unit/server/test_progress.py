from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from server.journal import Journal, read_journal
from server.progress import JournalProgress

if TYPE_CHECKING:
    from pathlib import Path

RUN: list[tuple[str, dict[str, Any]]] = [
    ("run-started", {"rounds": 3, "rounds_done": 0}),
    ("platform-joined", {"platform": "north"}),
    ("round-started", {"round": 1, "platforms": ["north", "south"]}),
    ("reply", {"round": 1, "platform": "north", "outcome": "released"}),
    ("reply", {"round": 1, "platform": "south", "outcome": "declined: budget: all spent"}),
    ("round-closed", {"round": 1, "releases": 1, "update_norm": 0.5}),
]
PAIRS: list[tuple[str, dict[str, Any]]] = [
    ("run-started", {"rounds": 0, "rounds_done": 0}),
    ("sum-started", {"quantity": "item-counts", "items": 5, "platforms": ["north", "south"]}),
    ("sum-reply", {"quantity": "item-counts", "platform": "north", "outcome": "released"}),
    ("sum-reply", {"quantity": "item-counts", "platform": "south", "outcome": "declined: no"}),
    ("sum-closed", {"quantity": "item-counts", "releases": 1}),
    ("sum-started", {"quantity": "item-pairs", "items": 4, "platforms": ["north", "south"]}),
    ("sum-reply", {"quantity": "item-pairs", "platform": "north", "outcome": "released"}),
    ("sum-closed", {"quantity": "item-pairs", "releases": 1}),
]
HAND_OVER: list[tuple[str, dict[str, Any]]] = [
    ("handing-over", {"platforms": ["north", "south"]}),
    ("handed-over", {"platform": "north", "outcome": "adopted"}),
]


def shown(
    folder: Path, events: list[tuple[str, dict[str, Any]]], *, start: int = 0, width: int = 140
) -> list[str]:
    """The last picture, line by line, after ``events`` were written while it was shown."""
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=False)
    with JournalProgress(folder, console, start=start):
        journal = Journal(folder)
        for kind, facts in events:
            journal.write(kind, **facts)
        journal.close()
    return screen.getvalue().splitlines()


def test_it_shows_rounds_and_what_each_platform_did(tmp_path: Path) -> None:
    (rounds,) = shown(tmp_path, RUN)
    assert "Private rounds" in rounds
    assert "1/3" in rounds
    assert "north ✓" in rounds
    assert "south declined" in rounds
    assert "all spent" not in rounds  # the reason is in the journal


def test_it_shows_sums_and_no_rounds_where_there_are_none(tmp_path: Path) -> None:
    (sums,) = shown(tmp_path / "counts", PAIRS[:5])
    assert "Private sums" in sums
    assert "1/2" in sums
    assert "south declined" in sums
    sums, adapting = shown(tmp_path / "both", [*PAIRS, *HAND_OVER])
    assert "2/2" in sums
    assert "north ✓" in sums
    assert "south …" in sums
    assert "Private adaptation" in adapting
    sums, rounds = shown(tmp_path / "rounds", [*PAIRS, *RUN])
    assert "Private sums" in sums
    assert "Private rounds" in rounds


def test_it_shows_the_stage_of_a_secure_sum_while_it_runs(tmp_path: Path) -> None:
    stage = ("secagg-stage", {"what": "item-pairs", "stage": "share", "platforms": 2})
    (sums,) = shown(tmp_path / "sum", [PAIRS[0], PAIRS[5], stage])
    assert "stage mask (2 platforms):  north …  south …" in sums
    (sums,) = shown(tmp_path / "over", [PAIRS[0], PAIRS[5], stage, *PAIRS[6:]])
    assert "stage" not in sums
    (sums,) = shown(tmp_path / "next", [*PAIRS[:2], stage, PAIRS[5]])
    assert "stage" not in sums
    in_round = ("secagg-stage", {"what": "round 1", "stage": "mask", "platforms": 2})
    (rounds,) = shown(tmp_path / "round", [*RUN[:3], in_round])
    assert "Private rounds" in rounds
    assert "stage confirm (2 platforms):  north …" in rounds
    (rounds,) = shown(tmp_path / "closed", [*RUN[:3], in_round, *RUN[3:]])
    assert "stage" not in rounds


@pytest.mark.parametrize(
    ("known", "done"), [([], "0/2"), (["item-counts"], "1/2"), (["item-counts"] * 2, "1/2")]
)
def test_a_sum_that_is_asked_again_counts_once(tmp_path: Path, known: list[str], done: str) -> None:
    # A crash after the entry and before the file: the resumed run asks for it again.
    events: list[tuple[str, dict[str, Any]]] = []
    for quantity in known:
        events.append(("sum-started", {"quantity": quantity, "platforms": ["north"]}))
        events.append(("sum-closed", {"quantity": quantity}))
    quantity = "item-pairs" if known else "item-counts"
    events.append(("sum-started", {"quantity": quantity, "platforms": ["north"]}))
    (sums,) = shown(tmp_path, events)
    assert done in sums


def test_it_shows_the_adaptation_of_each_platform(tmp_path: Path) -> None:
    _, adapting = shown(tmp_path, [*RUN, *HAND_OVER])
    assert "1/2" in adapting
    assert "north ✓" in adapting
    assert "south …" in adapting


def test_names_and_reasons_of_platforms_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    # Rich would take brackets for a style, and a closing one for an error.
    names = ["[bold]north", "[/red]", "[link=http://x]y"]
    events = [
        ("round-started", {"round": 1, "platforms": names}),
        ("reply", {"round": 1, "platform": names[0], "outcome": "[/blink]declined"}),
    ]
    (rounds,) = shown(tmp_path, events)
    for text in (*names, "[/blink]declined"):
        assert text in rounds


def test_many_platforms_are_counted(tmp_path: Path) -> None:
    names = [f"p{k}" for k in range(30)]
    (rounds,) = shown(tmp_path, [("round-started", {"round": 1, "platforms": names})])
    assert "p7 …" in rounds
    assert "p8" not in rounds
    assert "(+22 more)" in rounds


def test_a_narrow_terminal_cuts_neither_numbers_nor_times(tmp_path: Path) -> None:
    names = [f"platform-{k}" for k in range(8)]
    (first, *more) = shown(tmp_path, [("handing-over", {"platforms": names})], width=80)
    assert "Private adaptation" in first
    assert "0/8 0:00:0" in first
    assert "platform-7 …" in more[-1]


def test_a_resumed_run_starts_from_where_it_is(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for kind, facts in RUN:
        journal.write(kind, **facts)
    journal.close()
    size = max(offset for offset, _ in read_journal(tmp_path))
    resumed = [("run-started", {"rounds": 3, "rounds_done": 2})]
    (rounds,) = shown(tmp_path, resumed, start=size)
    assert "2/3" in rounds
    assert "south" not in rounds


def test_it_follows_the_journal_while_it_is_written(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=140, force_terminal=True)
    with JournalProgress(tmp_path, console):
        journal = Journal(tmp_path)
        for kind, facts in RUN:
            journal.write(kind, **facts)
        journal.close()
        deadline = time.monotonic() + 20.0
        while "south declined" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "south declined" in screen.getvalue()


def test_an_interruption_passes_through(tmp_path: Path) -> None:
    progress = JournalProgress(tmp_path, Console(file=io.StringIO()))
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
