"""Every error that CrossRec raises on purpose: what is wrong, what was found, what to do next.

An error message never holds a user id, an item of a user, or an update.
"""

from __future__ import annotations

from typing import ClassVar


class CrossRecError(Exception):
    """Root of all CrossRec errors.

    ``exit_code`` is what the command line returns for it.
    """

    exit_code: ClassVar[int] = 1


class DataError(CrossRecError):
    """Interactions, a held-out file or a catalogue cannot be used as they are.

    Args:
        problem: what is wrong, in one clause.
        source: file (or table) that holds it.
        found: what is there.
        expected: what should be there.
        line: 1-based line of the file, header included, where it is known.
        column: name of the column, where it is known.
    """

    exit_code = 3

    def __init__(
        self,
        problem: str,
        *,
        source: object,
        found: object,
        expected: str,
        line: int | None = None,
        column: str | None = None,
    ) -> None:
        self.problem = problem
        self.source = str(source)
        self.found = found
        self.expected = expected
        self.line = line
        self.column = column
        place = self.source
        if line is not None:
            place += f", line {line}"
        if column is not None:
            place += f", column {column!r}"
        super().__init__(f"{place}: {problem}: found {found}, expected {expected}.")


class ConfigError(CrossRecError):
    """A configuration file or option is wrong; names the key and the nearest known one."""

    exit_code = 2


class BudgetExhausted(CrossRecError):
    """A release would cost more than the platform's budget has left; nothing was touched.

    Args:
        would_spend: total epsilon after the release.
        budget: the platform's whole epsilon.
        delta: the delta both are stated at.
        unit: privacy unit.
        request: what asked for it, e.g. ``round 41``.
    """

    exit_code = 4

    def __init__(
        self, *, would_spend: float, budget: float, delta: float, unit: str, request: str
    ) -> None:
        self.would_spend = would_spend
        self.budget = budget
        self.delta = delta
        self.unit = unit
        super().__init__(
            f"{request} would bring the spend to epsilon {would_spend:.3f} of {budget:.3f} "
            f"(delta {delta:g}, unit: {unit}). "
            "Raise the budget in platform.toml and grant it (crossrec client grant --by NAME), "
            "or leave the federation."
        )


class RequestRefused(CrossRecError):
    """A request from the server is malformed, or the platform's own policy does not allow it."""


class InvalidRelease(CrossRecError):
    """What a platform sent back cannot be aggregated: keys, shapes, types, values or round."""


class NonFiniteUpdate(CrossRecError):
    """Training produced NaN or infinity; nothing was released."""


class StateError(CrossRecError):
    """State on disk is missing, damaged, or belongs to something else."""


class RunFailed(CrossRecError):
    """A federation run could not go on."""
