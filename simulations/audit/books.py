"""What a ledger's entries say, read strictly and by this module's own rules.

Pure: entries in, values out. Nothing of :mod:`common.privacy.account` folds them: a rule that is
wrong there must show here.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.privacy.mechanisms import SampledGaussian

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from common.privacy.account import Entry

_DIGEST = re.compile(r"[0-9a-f]{64}")
_OLDEST = {"request_digest", "description", "mechanism", "mechanism_if_broken"}
_OLDER = {*_OLDEST, "epsilon_before", "epsilon_after", "accountant"}
_RESERVE = {*_OLDER, "request", "arrays_digest"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Granted:
    """What one privacy unit may be charged, from an entry on."""

    sequence: int
    """Number of the entry."""
    epsilon: float
    """Ceiling; infinity in simulations without privacy."""
    delta: float
    """At which it is stated."""
    unit: str
    """Privacy unit."""
    period_days: int | None
    """Length of the period; None is for life."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reserved:
    """One spend."""

    sequence: int
    """Number of the entry."""
    request_id: str
    """The request."""
    request_digest: str
    """Of everything that was asked for, as recorded."""
    request: Mapping[str, Any]
    """What was asked for; empty in older ledgers."""
    arrays_digest: str
    """Of the arrays beside it; empty in older ledgers."""
    mechanism: SampledGaussian
    """What an observer faces, as recorded."""
    mechanism_if_broken: SampledGaussian
    """What an observer of this release alone faces, as recorded."""
    epsilon_before: float | None
    """Epsilon of the period before it, as recorded; None where the oldest ledgers recorded none."""
    epsilon_after: float | None
    """The same with it."""
    accountant: str
    """Whose number that is; empty where there is none."""
    grant: Granted | None
    """In force when it was written."""
    period: int
    """Periods before it."""
    is_late: bool
    """Whether the period was over by then."""

    @property
    def what(self) -> str:
        """Run and sum or round, the same for all platforms: ``run/3``."""
        return self.request_id.rpartition("/")[0]

    @property
    def is_summed(self) -> bool:
        """Whether this release is only seen added up, or would be."""
        if self.request:
            return self.request.get("secagg") is not None
        return self.mechanism != self.mechanism_if_broken


@dataclass(frozen=True, kw_only=True, slots=True)
class Book:
    """One ledger, understood."""

    grants: tuple[Granted, ...]
    """Oldest first; so are all others."""
    reserved: tuple[Reserved, ...]
    """Spends."""
    commits: tuple[tuple[int, str, str], ...]
    """Entry, request and SHA-256 of each release."""
    confirmed: tuple[tuple[int, str, str, tuple[str, ...]], ...]
    """Entry, request, SHA-256 and survivors of each confirmed list."""
    problems: tuple[str, ...]
    """Entries that cannot be understood; they are in none of the above."""
    period: int
    """Periods before that of the last grant."""

    @property
    def releases(self) -> dict[str, str]:
        """SHA-256 by request; of two, the first."""
        return {request: sha256 for _, request, sha256 in reversed(self.commits)}

    def spends_of(self, run_id: str) -> list[Reserved]:
        """Those of one run."""
        return [one for one in self.reserved if one.request_id.startswith(f"{run_id}/")]

    def running_period(self) -> list[Reserved]:
        """Spends of the last period that has any."""
        last = self.reserved[-1].period if self.reserved else 0
        return [one for one in self.reserved if one.period == last]


def read_book(entries: Iterable[Entry]) -> Book:
    """Understand ``entries``; what makes no sense becomes a problem, and the rest is read on."""
    reader, problems = _Reader(), list[str]()
    for entry in entries:
        try:
            reader.read(entry)
        except (ValueError, TypeError, OverflowError, ConfigError, RecursionError) as error:
            problems.append(f"entry {entry.sequence} ({entry.kind}): {error}")
    return Book(
        grants=tuple(reader.grants),
        reserved=tuple(reader.reserved),
        commits=tuple(reader.commits),
        confirmed=tuple(reader.confirmed),
        problems=tuple(problems),
        period=reader.period,
    )


class _Reader:
    """Reads one entry after the other, and counts periods."""

    def __init__(self) -> None:
        self.grants: list[Granted] = []
        self.reserved: list[Reserved] = []
        self.commits: list[tuple[int, str, str]] = []
        self.confirmed: list[tuple[int, str, str, tuple[str, ...]]] = []
        self.period, self._ends = 0, math.inf

    def read(self, entry: Entry) -> None:
        """Take ``entry``.

        Raises:
            ValueError, TypeError, OverflowError, ConfigError, RecursionError: if it makes no sense.
        """
        now, body = _seconds(entry.time), _object(entry.body)
        if (entry.request_id == "") != (entry.kind in ("grant", "note")):
            raise ValueError("a request belongs to spends, releases and refusals only")
        if entry.kind == "grant":
            self._grant(_grant(entry, body), now)
        elif entry.kind == "reserve":
            grant = self.grants[-1] if self.grants else None
            is_late = now >= self._ends
            self.reserved.append(_reserve(entry, body, grant, self.period, is_late=is_late))
        elif entry.kind == "commit":
            _require(body, {"sha256"})
            self.commits.append((entry.sequence, entry.request_id, _digest(body["sha256"])))
        elif entry.kind == "confirm":
            _require(body, {"sha256", "survivors"})
            names = tuple(map(_text, _list(body["survivors"])))
            confirmed = (entry.sequence, entry.request_id, _digest(body["sha256"]), names)
            self.confirmed.append(confirmed)
        elif entry.kind in ("decline", "note"):
            key = "reason" if entry.kind == "decline" else "text"
            _require(body, {key})
            _text(body[key])
        else:
            raise ValueError("no such kind of entry")

    def _grant(self, grant: Granted, now: float) -> None:
        """Within a period a grant moves the ceiling; after its end it begins a new one."""
        is_new = not self.grants or now >= self._ends
        if is_new:
            self.period += bool(self.grants)
            days = grant.period_days
            self._ends = math.inf if days is None else now + timedelta(days).total_seconds()
        before = None if is_new else self.grants[-1]
        self.grants.append(grant)
        if before and _terms(before) != _terms(grant):
            raise ValueError("it changes more than epsilon within a period")


def _terms(grant: Granted) -> tuple[float, str, int | None]:
    return grant.delta, grant.unit, grant.period_days


def _grant(entry: Entry, body: Mapping[str, Any]) -> Granted:
    _require(body, {"epsilon", "delta", "unit", "period_days", "by"})
    epsilon = math.inf if body["epsilon"] is None else _number(body["epsilon"])
    delta, days = _number(body["delta"]), body["period_days"]
    if not (epsilon > 0 and 0 < delta < 1):
        raise ValueError(f"epsilon {epsilon:g}, delta {delta:g} is no budget")
    if days is not None and (type(days) is not int or days < 1):
        raise ValueError(f"period_days {days!r} is no number of days")
    _text(body["by"])
    return Granted(
        sequence=entry.sequence,
        epsilon=epsilon,
        delta=delta,
        unit=_text(body["unit"]),
        period_days=days,
    )


def _reserve(
    entry: Entry, body: Mapping[str, Any], grant: Granted | None, period: int, *, is_late: bool
) -> Reserved:
    _require(body, _RESERVE, _OLDER, _OLDEST)
    _text(body["description"])
    before, after = (
        (math.inf if body[name] is None else _number(body[name])) if name in body else None
        for name in ("epsilon_before", "epsilon_after")
    )
    request = body.get("request", {})
    if not isinstance(request, dict):
        raise TypeError("its request is no object")
    return Reserved(
        sequence=entry.sequence,
        request_id=entry.request_id,
        request_digest=_text(body["request_digest"]),
        request=request,
        arrays_digest=_text(body.get("arrays_digest", "")),
        mechanism=read_mechanism(body["mechanism"]),
        mechanism_if_broken=read_mechanism(body["mechanism_if_broken"]),
        epsilon_before=before,
        epsilon_after=after,
        accountant=_text(body.get("accountant", "")),
        grant=grant,
        period=period,
        is_late=is_late,
    )


def read_mechanism(value: object) -> SampledGaussian:
    """A mechanism from its JSON form.

    Raises:
        ValueError, TypeError, ConfigError: if it is none.
    """
    if not isinstance(value, dict):
        raise TypeError("a mechanism is no object")
    fields = dict(value)
    _require(fields, {"type", "noise_multiplier", "sampling_rate", "steps", "unit"})
    if fields.pop("type") != "sampled-gaussian":
        raise ValueError("a mechanism of unknown type")
    _number(fields["noise_multiplier"])
    _number(fields["sampling_rate"])
    return SampledGaussian(**fields)


def _seconds(time: str) -> float:
    found = datetime.fromisoformat(time)
    if found.utcoffset() != timedelta(0):
        raise ValueError(f"time {time!r} is not in UTC")
    return found.timestamp()


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    if not isinstance(found, dict):
        raise TypeError("its body is no object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its body names a key twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"its body holds {name}")


def _require(body: Mapping[str, Any], *known: set[str]) -> None:
    if body.keys() not in known:
        raise ValueError(f"found {', '.join(sorted(body))}, expected {', '.join(sorted(known[0]))}")


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"found {value!r}, expected a number")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"found {value!r}, expected a text")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"found {value!r}, expected a list")
    return value


def _digest(value: object) -> str:
    if not _DIGEST.fullmatch(_text(value)):
        raise ValueError(f"found {value!r}, expected 64 hexadecimal digits")
    return str(value)
