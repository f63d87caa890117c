"""Sections and tables of a report, the same for HTML and Markdown. Pure: words and rows only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.audit.report.point_tables import DASH, TABLES, Table
from simulations.audit.report.statement import POINTS
from simulations.audit.report.strength import odds_text, percent_text, shown_epsilon, strength

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simulations.audit.report.statement import AuditStatement

GLOSSARY: Mapping[str, str] = {
    "Epsilon": "How far anybody's odds that one user is in the data can change, whatever is seen: "
    "by at most e to the power of epsilon. 0 is perfect privacy, below 1 a strong promise, "
    "near 10 a weak one.",
    "Delta": "The probability with which that bound may fail. It has to be far below one over the "
    "number of users.",
    "Noise multiplier": "Standard deviation of the noise over the most that one user can add.",
    "Clipping norm": "The most that one user can add, as a length (L2 norm).",
    "Release": "Anything that leaves a platform and depends on its users.",
    "Ledger": "The platform's own list of what it granted, charged and released. Each entry has a "
    "fingerprint of all before it, so none can be changed or taken out unseen.",
    "Accounting": "The most that could be learned, by mathematics: an upper bound.",
    "Attack": "The least that can be learned, by trying: a lower bound. The truth lies between.",
    "Canary": "A made-up user, put in or left out by a coin, whom the attack has to find.",
    "False-alarm rate": "Of those who are not in the data, the part that an attack takes to be in.",
    "Secure "
    "aggregation": "Platforms' releases are masked so that the coordinator sees their sum only.",
    "NDCG@10": "How high the item that a user took next stands among the first ten; 1 is first.",
}
"""Words that the report uses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One point of the report."""

    anchor: str
    """Name of its field."""
    title: str
    """Title."""
    text: tuple[str, ...]
    """Paragraphs."""
    tables: tuple[Table, ...]
    """Its tables that have rows."""
    figures: tuple[str, ...]
    """Names of its figures, as far as they were drawn."""


_FIGURES: Mapping[str, tuple[str, ...]] = {
    "guarantee": ("spending", "curve", "odds"),
    "composition": ("accounts",),
    "lower_bound": ("roc", "bounds"),
    "utility": ("utility",),
}


def sections(statement: AuditStatement) -> list[Section]:
    """Every point, in order."""
    return [
        Section(
            anchor=name,
            title=title,
            text=getattr(statement, name).text,
            tables=tuple(t for t in TABLES[name](statement) if t.rows) if name in TABLES else (),
            figures=_FIGURES.get(name, ()),
        )
        for name, title in POINTS.items()
    ]


def overview(statement: AuditStatement) -> Table:
    """Each platform in a line, for the first page."""
    return Table(
        caption="Each platform, for everything that ever left it.",
        header=(
            *("platform", "epsilon", "in words", "odds may change"),
            *("50 % becomes at most", "budget", "records"),
        ),
        rows=tuple(
            (
                name,
                shown_epsilon(part.epsilon_for_life)
                if part.guarantee == "bounded"
                else {"none": "no guarantee", "unknown": "not known"}[part.guarantee],
                strength(part.epsilon_for_life)
                if part.guarantee == "bounded" and part.epsilon_for_life is not None
                else DASH,
                odds_text(part.epsilon_for_life)
                if part.guarantee == "bounded" and part.epsilon_for_life is not None
                else DASH,
                DASH
                if part.posterior_from_half is None
                else percent_text(part.posterior_from_half),
                {True: "kept", False: "BROKEN", None: "not known"}[part.is_within_budget],
                "whole" if part.is_whole else "NOT WHOLE",
            )
            for name, part in statement.platforms.items()
        ),
    )


def findings(statement: AuditStatement) -> Table:
    """Every check, failures first."""
    order = {"failed": 0, "unknown": 1, "ok": 2}
    rows = sorted(statement.verification.findings, key=lambda finding: order[finding.verdict])
    return Table(
        caption="Every independent check, failures first.",
        header=("check", "of", "verdict", "what was compared and found"),
        rows=tuple((f.check, f.subject, f.verdict.upper(), f.detail) for f in rows),
    )


def ledgers(statement: AuditStatement) -> tuple[Table, ...]:
    """What the ledgers are, and every grant."""
    return (
        Table(
            caption="Ledgers.",
            header=(
                *("platform", "file", "entries", "believed", "charges", "releases", "declined"),
                *("trust", "noise from", "problems"),
            ),
            rows=tuple(
                (
                    name,
                    part.ledger,
                    f"{part.num_entries:,}",
                    f"{part.num_believed:,}",
                    f"{part.num_reserved:,}",
                    f"{part.num_released:,}",
                    f"{part.num_declined:,}",
                    part.trust or "not known",
                    statement.randomness.sources.get(name, "not known"),
                    "; ".join(part.problems) or "none",
                )
                for name, part in statement.platforms.items()
            ),
        ),
        Table(
            caption="Grants: what was allowed, when and by whom.",
            header=("platform", "time", "epsilon", "delta", "for", "what", "by"),
            rows=tuple(
                (
                    name,
                    grant.time,
                    "no limit" if grant.epsilon is None else f"{grant.epsilon:g}",
                    f"{grant.delta:g}",
                    "life" if grant.period_days is None else f"{grant.period_days} days",
                    "new period" if grant.begins_period else "changed within a period",
                    grant.by,
                )
                for name, part in statement.platforms.items()
                for grant in part.grants
            ),
        ),
    )
