"""What the attacks mean, in words and as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from simulations.attacks.membership.result import AttackResult, Audit

_ENOUGH = 500
"""Canaries from which on an estimate is off by a tenth at most."""
_FAR = 1.25
_NO_NOISE = (
    "This configuration adds no noise: it makes no promise that an attack could break. The figures "
    "show what attackers get without one."
)
_BROKEN = (
    "The guarantee is broken. Stop releasing, keep ledgers and releases as they are, look for "
    "missing noise or clipping in the platform's code, and run crossrec audit verify."
)
_NO_PROOF = "That is no proof that the guarantee holds: another attack could do better."


def proofs(result: AttackResult) -> tuple[Audit, ...]:
    """Audits whose lower bound exceeds what is accounted: the guarantee does not hold."""
    return tuple(
        audit
        for audit in result.audits
        if audit.epsilon_accounted is not None
        and max(audit.epsilon_lower, audit.epsilon_lower_gaussian or 0.0) > audit.epsilon_accounted
    )


def doubts(result: AttackResult) -> tuple[Audit, ...]:
    """Audits whose estimate is far beyond what is accounted, which proves nothing by itself."""
    return tuple(
        audit
        for audit in result.audits
        if audit.epsilon_accounted is not None
        and audit.epsilon_estimate is not None
        and audit.num_canaries >= _ENOUGH
        and audit.epsilon_estimate > _FAR * audit.epsilon_accounted
    )


def sentences(result: AttackResult) -> list[str]:
    """The result in plain language, the most important first."""
    if result.epsilon is None:
        return [_NO_NOISE]
    found = proofs(result)
    if found:
        return [*(_proof(audit) for audit in found), _BROKEN]
    best = max(
        (audit for audit in result.audits if audit.unit == "user"),
        key=lambda audit: audit.epsilon_lower_gaussian or audit.epsilon_lower,
    )
    words = [_best_attack(best, result.epsilon), _NO_PROOF]
    words += [
        f"Look closer: {audit.unit} canaries against the {audit.adversary} are estimated at "
        f"epsilon {audit.epsilon_estimate:.3g}, far beyond the {audit.epsilon_accounted:.3g} "
        "accounted. An estimate is no proof; run this again with --thorough."
        for audit in doubts(result)
    ]
    return words


def _best_attack(audit: Audit, accounted: float) -> str:
    tighter = audit.epsilon_lower_gaussian
    also = (
        ""
        if tighter is None
        else f", and epsilon {tighter:.2f} ({tighter / accounted:.0%}) if the noise is Gaussian"
    )
    return (
        f"No lower bound exceeds what is accounted. An attacker that sees {_what(audit)} was right "
        f"in {audit.num_correct} of {audit.num_guesses} guesses about users. That takes at least "
        f"epsilon {audit.epsilon_lower:.2f} ({audit.epsilon_lower / accounted:.0%} of the "
        f"{accounted:.3g} accounted){also}; {audit.confidence:.0%} confidence."
    )


def _what(audit: Audit) -> str:
    return {
        "releases": "every release",
        "model": "what the run makes",
        "recommendations": "another platform's recommendations",
    }[audit.adversary]


def _proof(audit: Audit) -> str:
    lower = max(audit.epsilon_lower, audit.epsilon_lower_gaussian or 0.0)
    return (
        f"Proof ({audit.confidence:.0%} confidence): whoever sees {_what(audit)} gets at least "
        f"epsilon {lower:.3g} out of it per {audit.unit}, where {audit.epsilon_accounted:.3g} is "
        "accounted."
    )


def table_of(result: AttackResult) -> Table:
    """One line for each unit and adversary, then LiRA."""
    table = Table(title="What attackers can tell", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("\nunit", no_wrap=True)
    table.add_column("\nadversary")
    for name in (
        *("\ncanaries", "right\nguesses", "lower\nbound", "if\nGaussian", "esti-\nmate"),
        *("ac-\ncounted", "\nAUC", "TPR at\n.1% FPR"),
    ):
        table.add_column(name, justify="right")
    for audit in result.audits:
        table.add_row(
            audit.unit,
            audit.adversary,
            f"{audit.num_canaries:,}",
            f"{audit.num_correct}/{audit.num_guesses}",
            f"{audit.epsilon_lower:.2f}",
            _number(audit.epsilon_lower_gaussian),
            _number(audit.epsilon_estimate),
            _number(audit.epsilon_accounted),
            f"{audit.roc.auc:.3f}",
            f"{audit.roc.tpr_at_fpr['0.001']:.1%}",
        )
    for one in result.memberships:
        table.add_row(
            f"LiRA: {one.target.removesuffix(' users')}",
            one.adversary,
            f"{one.num_runs} x {one.num_records:,}",
            *("",) * 5,
            f"{one.roc.auc:.3f}",
            f"{one.roc.tpr_at_fpr['0.001']:.1%}",
        )
    return table


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
