from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from common.errors import StateError
from server.journal import FILE_NAME, Journal, read_journal

if TYPE_CHECKING:
    from pathlib import Path


def kinds(folder: Path, start: int = 0) -> list[Any]:
    return [event["event"] for _, event in read_journal(folder, start=start)]


def test_events_come_back_in_order_as_soon_as_they_are_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    assert kinds(tmp_path / "state") == []
    for number in (1, 2, 3):
        journal.write("round-started", round=number, platforms=["nörth", "a\nb"])
        events = [event for _, event in read_journal(tmp_path / "state")]
        assert [event["round"] for event in events] == list(range(1, number + 1))
    assert events[0]["platforms"] == ["nörth", "a\nb"]
    assert events[0]["time"] <= events[-1]["time"]
    journal.close()


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write("one")
    ((offset, _),) = read_journal(tmp_path)
    journal.write("two")
    journal.close()
    assert kinds(tmp_path, start=offset) == ["two"]


def test_a_second_opening_appends(tmp_path: Path) -> None:
    for event in ("one", "two"):
        journal = Journal(tmp_path)
        journal.write(event)
        journal.close()
    assert kinds(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_half_a_line_from_a_crash_is_passed_over_and_then_forgotten(
    tmp_path: Path, cut: int
) -> None:
    journal = Journal(tmp_path)
    for event in ("one", "two"):
        journal.write(event)
    journal.close()
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-cut])
    assert kinds(tmp_path) == ["one"]
    journal = Journal(tmp_path)
    journal.write("three")
    journal.close()
    assert kinds(tmp_path) == ["one", "three"]
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line)


def test_no_journal_has_no_events(tmp_path: Path) -> None:
    assert kinds(tmp_path / "nowhere") == []


def test_a_place_that_cannot_hold_a_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StateError, match="file"):
        Journal(tmp_path / "file")
