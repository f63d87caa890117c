"""Sections and tables of a report, the same for HTML and Markdown. Pure: words and rows only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.audit.statement import POINTS
from simulations.audit.strength import odds_text, percent_text, shown_epsilon, strength

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from simulations.audit.statement import AuditStatement

DASH = "\N{EN DASH}"

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
class Table:
    """One table."""

    caption: str
    """What it has."""
    header: tuple[str, ...]
    """Names of columns."""
    rows: tuple[tuple[str, ...], ...]
    """Cells as text."""


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
            tables=tuple(t for t in _TABLES.get(name, _no_tables)(statement) if t.rows),
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


def _no_tables(_: AuditStatement) -> Sequence[Table]:
    return ()


def _guarantee(statement: AuditStatement) -> Sequence[Table]:
    return (
        Table(
            caption="Epsilon and delta of each platform; the number for life is of everything.",
            header=(
                *("platform", "population declared", "epsilon, running period", "granted"),
                *("epsilon for life", "delta", "if secure aggregation broke"),
                *("50 % becomes at most", "best guess is right in"),
            ),
            rows=tuple(
                (
                    name,
                    "not known" if part.population is None else f"{part.population:,}",
                    shown_epsilon(part.epsilon) if part.delta is not None else "not known",
                    DASH if part.budget is None else f"{part.budget:g}",
                    shown_epsilon(part.epsilon_for_life) if part.delta is not None else "not known",
                    DASH if part.delta is None else f"{part.delta:g}",
                    shown_epsilon(part.epsilon_if_secagg_broken)
                    if part.delta is not None
                    else "not known",
                    *(
                        DASH if value is None else percent_text(value)
                        for value in (part.posterior_from_half, part.best_guess)
                    ),
                )
                for name, part in statement.platforms.items()
            ),
        ),
    )


def _mechanisms(statement: AuditStatement) -> Sequence[Table]:
    return (
        Table(
            caption="Kinds of charges. Noise: over the clipping norm, as an observer faces it; own "
            "noise: standard deviation of what the platform added itself.",
            header=(
                *("platform", "run", "what", "times", "noise", "noise of one release alone"),
                *("clipping norm", "own noise", "denominator", "sampling rate", "steps"),
            ),
            rows=tuple(
                (
                    use.platform,
                    use.run,
                    use.what,
                    f"{use.times:,}",
                    f"{use.noise_multiplier:.4g}",
                    f"{use.noise_multiplier_if_broken:.4g}",
                    _number(use.clipping_norm),
                    _number(use.own_noise_std),
                    "none" if use.what != "rounds" else _number(use.denominator),
                    f"{use.sampling_rate:g}",
                    str(use.steps),
                )
                for use in statement.mechanisms.uses
            ),
        ),
    )


def _accounting(statement: AuditStatement) -> Sequence[Table]:
    names = ("recorded", "product", "opacus_prv", "opacus_rdp", "dp_accounting")
    return (
        Table(
            caption="Epsilon of everything reserved, by each accountant.",
            header=(
                *("platform", "written down", "this software", "Opacus PRV", "Opacus RDP"),
                *("dp-accounting", "no less than", "if secure aggregation broke"),
            ),
            rows=tuple(
                (
                    name,
                    *(_number(getattr(prices, field)) for field in names),
                    _number(prices.dp_accounting_least),
                    _number(prices.if_secagg_broken),
                )
                for name, prices in statement.accounting.prices.items()
            ),
        ),
        Table(
            caption="Versions.",
            header=("library", "version"),
            rows=tuple(sorted(statement.accounting.versions.items())),
        ),
        Table(
            caption="Orders of the Renyi bound.",
            header=("orders",),
            rows=((", ".join(f"{order:g}" for order in statement.accounting.orders),),),
        ),
    )


def _composition(statement: AuditStatement) -> Sequence[Table]:
    return (
        Table(
            caption="What each run cost by itself.",
            header=("run", "platform", "charges", "epsilon of it alone"),
            rows=tuple(
                (run.run, run.platform, f"{run.num_charges:,}", shown_epsilon(run.epsilon))
                for run in statement.composition.runs
            ),
        ),
        Table(
            caption="A person with accounts at m platforms is charged at most this.",
            header=("m", "epsilon", "delta", "where it is most"),
            rows=tuple(
                (
                    str(c.num_platforms),
                    shown_epsilon(c.epsilon),
                    f"{c.delta:g}",
                    ", ".join(c.platforms),
                )
                for c in statement.composition.across_platforms
            ),
        ),
    )


def _lower_bound(statement: AuditStatement) -> Sequence[Table]:
    attack = statement.lower_bound.attack
    if attack is None:
        return ()
    return (
        Table(
            caption=f"Attacks ({attack.mode}; {attack.command}).",
            header=(
                *("in question", "attacker sees", "canaries", "guesses", "right"),
                *("epsilon proved", "confidence", "estimate", "accounted", "AUC"),
            ),
            rows=tuple(
                (
                    a.unit,
                    a.adversary,
                    f"{a.num_canaries:,}",
                    f"{a.num_guesses:,}",
                    f"{a.num_correct:,}",
                    f"{a.epsilon_lower:.2f}",
                    f"{a.confidence:.0%}",
                    _number(a.epsilon_estimate),
                    shown_epsilon(a.epsilon_accounted),
                    f"{a.roc.auc:.3f}",
                )
                for a in attack.audits
            ),
        ),
        Table(
            caption="Likelihood-ratio membership inference.",
            header=(
                "whose",
                "attacker sees",
                "runs",
                "records",
                "AUC",
                "found at 0.1 % false alarms",
            ),
            rows=tuple(
                (
                    m.target,
                    m.adversary,
                    f"{m.num_runs:,}",
                    f"{m.num_records:,}",
                    f"{m.roc.auc:.3f}",
                    f"{m.roc.tpr_at_fpr['0.001']:.2%}" if "0.001" in m.roc.tpr_at_fpr else DASH,
                )
                for m in attack.memberships
            ),
        ),
    )


def _utility(statement: AuditStatement) -> Sequence[Table]:
    return (
        Table(
            caption="NDCG@10 by group of test users.",
            header=("by", "group", "users", "alone", "served", "gain", "run"),
            rows=tuple(
                (
                    g.by,
                    g.group,
                    f"{g.num_users:,}",
                    DASH if g.local is None else f"{g.local:.4f}",
                    DASH if g.served is None else f"{g.served:.4f}",
                    DASH
                    if g.gain is None
                    else f"{g.gain:+.4f}" + ("" if g.stderr is None else f" ± {g.stderr:.4f}"),
                    g.run,
                )
                for g in statement.utility.groups
            ),
        ),
    )


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"


_TABLES: Mapping[str, Callable[[AuditStatement], Sequence[Table]]] = {
    "guarantee": _guarantee,
    "mechanisms": _mechanisms,
    "accounting": _accounting,
    "composition": _composition,
    "lower_bound": _lower_bound,
    "utility": _utility,
}
