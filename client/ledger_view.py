"""What a person is shown of a ledger: status, history, export and checks. Nothing is written."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from common.errors import StateError
from common.messages import is_round
from common.privacy.account import Account, Entry, account_of, rounds_left
from common.privacy.accounting import epsilon_spent
from common.privacy.mechanisms import NEIGHBOURING
from common.storage import sha256

if TYPE_CHECKING:
    from pathlib import Path

    from common.privacy.account import Budget

_BARS = " ▁▂▃▄▅▆▇█"
_TOLERANCE = 1e-9
MOST_RECOMPUTED = 200
_WIDTH = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerStatus:
    """Where a platform's budget stands."""

    granted: float
    """Epsilon of the grant."""
    spent: float
    """Epsilon of the running period, tight."""
    spent_rdp: float
    """The same by the looser accountant."""
    spent_if_broken: float
    """The same if secure aggregation were broken; equal to ``spent`` without it."""
    spent_for_life: float
    """Epsilon of everything ever reserved."""
    delta: float
    """All of them are stated at this delta."""
    period_days: int | None
    """Length of the period; None: for life."""
    unit: str
    """Privacy unit."""
    neighbouring: str
    """What neighbouring data sets are."""
    period_start: str
    """When the period began."""
    period_end: str | None
    """When it ends; None: for life."""
    num_reserved: int
    """Reservations in the period."""
    num_released: int
    """Of them, those with a release."""
    num_declined: int
    """Declined requests written down, over life."""
    rounds_left: int | None
    """Rounds like the last one that the budget still pays for; None before the first round."""
    curve: tuple[float, ...]
    """Epsilon of the period after each of its reservations (at most 40 of them, evenly)."""


def status_of(account: Account, budget: Budget | None = None) -> LedgerStatus:
    """Price an account.

    Args:
        account: from the ledger.
        budget: what platform.toml says, if it is known; a lower epsilon than granted binds.

    Raises:
        StateError: if nothing was granted yet.
    """
    grant = account.grant
    if grant is None:
        msg = "nothing was granted yet: the first round grants what platform.toml says."
        raise StateError(msg)
    spends = account.spends[account.spends_before_period :]
    mechanisms = account.mechanisms()
    places = _evenly(list(range(1, len(spends) + 1)), _WIDTH)
    return LedgerStatus(
        granted=grant.epsilon,
        spent=account.epsilon(grant.delta),
        spent_rdp=account.epsilon(grant.delta, "rdp"),
        spent_if_broken=epsilon_spent([s.mechanism_if_broken for s in spends], grant.delta),
        spent_for_life=account.epsilon_for_life(grant.delta),
        delta=grant.delta,
        period_days=grant.period_days,
        unit=grant.unit,
        neighbouring=NEIGHBOURING,
        period_start=account.period_start,
        period_end=account.period_end(),
        num_reserved=len(spends),
        num_released=sum(s.request_id in account.releases for s in spends),
        num_declined=account.num_declined,
        rounds_left=rounds_like_the_last(account, budget or grant),
        curve=tuple(epsilon_spent(mechanisms[:n], grant.delta) for n in places),
    )


def rounds_like_the_last(account: Account, budget: Budget) -> int | None:
    """Rounds like the last one that the budget still pays for; None before the first round."""
    rounds = (s.mechanism for s in reversed(account.spends) if is_round(s.request_id))
    last = next(rounds, None)
    return None if last is None else rounds_left(account, budget, last)


def sparkline(values: tuple[float, ...], top: float) -> str:
    """One character for each value, full at ``top``: a plot for a terminal."""
    if not math.isfinite(top):
        return ""
    heights = [min(1.0, max(0.0, value / top)) for value in values]
    return "".join(_BARS[math.ceil(height * (len(_BARS) - 1))] for height in heights)


def export_csv(entries: list[Entry]) -> str:
    """All entries as CSV with a header."""
    text = io.StringIO()
    columns = [field.name for field in fields(Entry)]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(entry) for entry in entries)
    return text.getvalue()


def export_json(entries: list[Entry]) -> str:
    """All entries as JSON, their details decoded."""
    rows = [{**asdict(entry), "body": json.loads(entry.body)} for entry in entries]
    return json.dumps(rows, indent=1) + "\n"


def check_ledger(entries: list[Entry], releases: Path) -> list[str]:
    """What is wrong with a ledger whose chain is whole, as sentences; empty if nothing is.

    Recomputes what reservations wrote down for people (of more than 200 an even choice, the last
    included), holds it against the grant in force, and compares the releases that are still kept
    with what was recorded.

    Args:
        entries: from :meth:`common.privacy.ledger.Ledger.entries`.
        releases: folder of the platform's kept releases.
    """
    findings, account, done = [], Account(), 0
    reservations = [place for place, entry in enumerate(entries) if entry.kind == "reserve"]
    for place in _evenly(reservations, MOST_RECOMPUTED):
        account, done = account_of(entries[done : place + 1], account), place + 1
        entry, grant = entries[place], account.grant
        body = json.loads(entry.body)
        if "epsilon_after" not in body:
            continue  # carried over from version 1, which wrote no epsilon down
        if grant is None:
            findings.append(f"entry {entry.sequence}: a reservation without a grant")
            continue
        after = account.epsilon(grant.delta, body["accountant"])
        written = math.inf if body["epsilon_after"] is None else body["epsilon_after"]
        if not math.isclose(after, written, rel_tol=_TOLERANCE):
            findings.append(
                f"entry {entry.sequence}: wrote down epsilon {written:.6g}, "
                f"its mechanisms cost {after:.6g}"
            )
        if not after <= grant.epsilon:
            findings.append(
                f"entry {entry.sequence}: epsilon {after:.6g} is beyond the granted "
                f"{grant.epsilon:.6g}"
            )
    recorded = set(account_of(entries).releases.values())
    findings += [
        f"{path.name}: this release was never recorded, or was changed since"
        for path in sorted(releases.glob("*.safetensors"))
        if sha256(path.read_bytes()) not in recorded
    ]
    return findings


def _evenly(values: list[int], at_most: int) -> list[int]:
    """Up to ``at_most`` of ``values`` at even distances, the last one always."""
    step = max(1, math.ceil(len(values) / at_most))
    return values[::-1][::step][::-1]
