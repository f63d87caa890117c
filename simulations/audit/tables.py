"""What ``crossrec audit verify`` shows on a terminal: what failed first, what passed in a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from simulations.audit.findings import Finding, Verdict, Verification

_COLOURS: dict[Verdict, str] = {"failed": "bold red", "unknown": "yellow", "ok": "green"}
_MOST_SUBJECTS = 3


def findings_table(findings: Iterable[Finding]) -> Table:
    """One row for each failure; for all others one for each check and verdict."""
    rows: dict[tuple[Verdict, str, str], list[Finding]] = {}
    for one in findings:
        alone = one.subject + one.detail if one.verdict == "failed" else ""
        rows.setdefault((one.verdict, one.check, alone), []).append(one)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "check", "of", "found"):
        table.add_column(column, overflow="fold")
    for verdict, colour in _COLOURS.items():
        for (found, check, _), them in rows.items():
            if found == verdict:
                table.add_row(
                    Text(verdict, style=colour),
                    Text(check),
                    Text(_subjects([one.subject for one in them])),
                    Text(_common_detail(them)),
                )
    return table


def _subjects(names: list[str]) -> str:
    distinct = list(dict.fromkeys(names))
    if len(distinct) <= _MOST_SUBJECTS:
        return ", ".join(distinct)
    return f"{', '.join(distinct[: _MOST_SUBJECTS - 1])} and {len(distinct) - 2} more"


def _common_detail(them: list[Finding]) -> str:
    details = list(dict.fromkeys(one.detail for one in them))
    return details[0] if len(details) == 1 else f"{them[0].subject}: {details[0]}"


def prices_table(verification: Verification) -> Table:
    """Epsilon of everything ever reserved; what the ledger wrote down is of the last period."""
    table = Table(
        title="Epsilon of everything ever reserved",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("\nplatform", overflow="fold")
    table.add_column("\ndelta", justify="right")
    for column in (
        "by the\nledger",
        "\nproduct",
        "dp-ac-\ncounting",
        "Opacus\nPRV",
        "Opacus\nRDP",
        "sum\nbroken",
    ):
        table.add_column(column, justify="right")
    for name, price in verification.prices.items():
        table.add_row(
            Text(name),
            f"{price.delta:g}",
            _epsilon(price.recorded),
            _epsilon(price.product),
            _epsilon(price.dp_accounting),
            _epsilon(price.opacus_prv),
            _epsilon(price.opacus_rdp),
            _epsilon(price.if_secagg_broken),
        )
    return table


def compositions_table(verification: Verification) -> Table:
    """What a person with accounts at several platforms is charged."""
    table = Table(
        title="With accounts at several platforms",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for column in ("accounts", "epsilon"):
        table.add_column(column, justify="right")
    table.add_column("at", overflow="fold")
    for one in verification.compositions:
        table.add_row(
            str(one.num_platforms), _epsilon(one.epsilon), Text(_subjects(list(one.platforms)))
        )
    return table


def _epsilon(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def summary(verification: Verification) -> str:
    """How it came out, in one line."""
    verdicts = [one.verdict for one in verification.findings]
    return (
        f"{verdicts.count('ok')} checks passed, {len(verification.failed)} failed, "
        f"{verdicts.count('unknown')} could not be told."
    )
