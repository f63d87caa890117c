"""The table bug x check, as Markdown: README.md beside it, and what the auditor's pages include."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from tests.statistical.planted_bugs.bugs import BUGS, Bug
from tests.statistical.planted_bugs.checks import CHECKS, Level

README = Path(__file__).with_name("README.md")

_INTRODUCTION = """\
# Planted bugs

Each bug is put into the real code, and each check that the table names has to say no to it; without
the bug each check has to pass. **unit**: a law of `tests/laws`, on the real component or on
whole platforms. **ledger**: the platform's own ledger refuses, or `crossrec audit verify` fails.
**attack**: the lower bound of `crossrec audit attack` exceeds what is accounted. A dash: not
claimed.

This file is written by `python -m tests.statistical.planted_bugs.table`.
"""


def bug_table() -> str:
    """Bugs and, for each level, the checks that catch them."""
    levels = get_args(Level)
    rows = [["bug", "planted in", *levels]]
    rows += [
        [bug.name, f"`{bug.place}`", *(_caught(bug, level) for level in levels)] for bug in BUGS
    ]
    return _markdown(rows)


def check_table() -> str:
    """What each check holds."""
    rows = [["check", "level", "what must hold"]]
    rows += [[name, check.level, check.law] for name, check in CHECKS.items()]
    return _markdown(rows)


def readme() -> str:
    """The whole of README.md."""
    return f"{_INTRODUCTION}\n{bug_table()}\n{check_table()}"


def _caught(bug: Bug, level: Level) -> str:
    return ", ".join(name for name in bug.caught if CHECKS[name].level == level) or "-"


def _markdown(rows: list[list[str]]) -> str:
    head, *rest = (f"| {' | '.join(row)} |\n" for row in rows)
    return f"{head}|{'---|' * len(rows[0])}\n{''.join(rest)}"


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")
