"""Every planted bug is caught by each check that the table names, and right code by none.

Draws of the operating system are not seeded in some checks: right code is rejected once in a
million runs by each statistic (``FALSE_ALARM``); all else is seeded.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from tests.statistical.planted_bugs.audited import three_runs
from tests.statistical.planted_bugs.bugs import BUGS, Bug
from tests.statistical.planted_bugs.checks import CHECKS
from tests.statistical.planted_bugs.table import README, readme

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.mark import ParameterSet


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut off here, and most of the time would go there."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def slow_if(name: str, *values: object) -> ParameterSet:
    marks = [pytest.mark.slow] if CHECKS[name].is_slow else []
    return pytest.param(*values, marks=marks, id=" - ".join(map(_id, values)))


def _id(value: object) -> str:
    return value.name if isinstance(value, Bug) else str(value)


@pytest.mark.parametrize("name", [slow_if(name, name) for name in CHECKS])
def test_right_code_passes(name: str, tmp_path: Path) -> None:
    CHECKS[name].run(tmp_path)


@pytest.mark.parametrize(
    ("bug", "name"), [slow_if(name, bug, name) for bug in BUGS for name in bug.caught]
)
def test_a_planted_bug_is_caught(
    bug: Bug, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug.plant(monkeypatch)
    with pytest.raises(AssertionError, match=bug.caught[name]):
        CHECKS[name].run(tmp_path)


def test_right_platforms_go_through_the_runs_that_are_audited(tmp_path: Path) -> None:
    assert three_runs(tmp_path) == [True, True, False]


def test_every_bug_is_caught_and_every_check_catches_one() -> None:
    assert [bug.name for bug in BUGS if not bug.caught] == []
    assert {name for bug in BUGS for name in bug.caught} == set(CHECKS)
    assert len({bug.name for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=_id)
def test_a_bug_is_where_the_table_says(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    right = _at(bug.place)
    bug.plant(monkeypatch)
    assert _at(bug.place) is not right


def _at(place: str) -> object:
    module, _, name = place.rpartition(".")
    try:
        return vars(import_module(module))[name]
    except ModuleNotFoundError:  # a class
        return vars(_at(module))[name]


def test_the_readme_is_current() -> None:
    """Write it anew: python -m tests.statistical.planted_bugs.table."""
    assert README.read_text(encoding="utf-8") == readme()
