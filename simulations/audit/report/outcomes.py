"""What attackers got, and who is served how well: points of a report. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulations.audit.report.statement import NOT_KNOWN, LowerBoundPoint, UtilityPoint
from simulations.audit.report.strength import shown_epsilon

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from simulations.attacks.membership.result import AttackResult, Audit, Unit
    from simulations.audit.report.likeness import Likeness
    from simulations.audit.report.parts import GroupUtility

ADVERSARIES: Mapping[str, str] = {
    "releases": "somebody who sees every release (white box)",
    "model": "somebody who has the finished model (black box)",
    "recommendations": "somebody who sees what other users are recommended (black box)",
}


MADE_UP: Mapping[Unit, str] = {
    "user": "made-up users",
    "interaction": "made-up interactions",
    "platform": "made-up platforms",
}
"""What canaries of a unit are."""


def proved(audit: Audit) -> float:
    """The larger of an attack's lower bounds: the one for Gaussian noise alone is tighter."""
    return max(audit.epsilon_lower, audit.epsilon_lower_gaussian or 0.0)


def lower_bound_point(attack: AttackResult | None, likeness: Likeness) -> LowerBoundPoint:
    """What was tried, the least epsilon that it proves, and whether it is about these settings."""
    if attack is None:
        text: tuple[str, ...] = (
            (
                f"{NOT_KNOWN}what an attacker gets in practice. Nothing was tried. crossrec audit "
                "attack attacks a simulation with the same settings; run it with the same --out "
                "and make this report again."
            ),
        )
        return LowerBoundPoint(text=text, attack=None, is_of_these_runs=None, differences=())
    because = "; ".join(likeness.reasons)
    whose = {
        True: "What was attacked has the settings of these platforms: the same epsilon, delta and "
        "trust mode, and the same releases as far as the records tell.",
        False: f"The attack was on OTHER settings than these: {because}. What follows is about "
        "those, and says nothing about these platforms.",
        None: f"{NOT_KNOWN}whether the attack was on the settings of these platforms: {because}. "
        "What follows need not be about them.",
    }[likeness.is_same]
    tried = [line for audit in attack.audits for line in _audit_lines(audit)]
    text = (whose, *tried, *_memberships(attack))
    return LowerBoundPoint(
        text=(
            *text,
            (
                "A lower bound is what these attacks proved and no more: a better attack may prove "
                "more. It can show that the accounting is wrong, never that it is right."
            ),
        ),
        attack=attack,
        is_of_these_runs=likeness.is_same,
        differences=likeness.reasons,
    )


def _audit_lines(audit: Audit) -> tuple[str, str, str]:
    accounted = shown_epsilon(audit.epsilon_accounted)
    gaussian = ""
    if audit.epsilon_lower_gaussian is not None:
        gaussian = f", and >= {audit.epsilon_lower_gaussian:.2f} of any Gaussian noise"
    return (
        (
            f"{ADVERSARIES[audit.adversary].capitalize()}, and whether each of "
            f"{audit.num_canaries:,} {MADE_UP[audit.unit]} was in the data: sure enough to guess "
            f"about {audit.num_guesses:,}, and right about {audit.num_correct:,} of these, which "
            f"proves epsilon >= {audit.epsilon_lower:.2f} at {audit.confidence:.0%} "
            f"confidence{gaussian}. Accounted: {accounted} at delta {audit.delta:g}."
        ),
        (
            f"How: {audit.detail.rstrip('.')}. Area under the ROC curve: {audit.roc.auc:.3f}; .5 "
            "is guessing."
        ),
        f"Accounted as: {audit.accounted_as.rstrip('.')}.",
    )


def _memberships(attack: AttackResult) -> list[str]:
    return [
        f"Likelihood-ratio membership inference (LiRA) on {found.num_records} {found.target} over "
        f"{found.num_runs} runs, by {ADVERSARIES[found.adversary]}: area {found.roc.auc:.3f}"
        + (
            f", {found.roc.tpr_at_fpr['0.001']:.2%} found at a false-alarm rate of 0.1 %."
            if "0.001" in found.roc.tpr_at_fpr
            else "."
        )
        for found in attack.memberships
    ]


def utility_point(groups: Sequence[GroupUtility], *, has_runs: bool) -> UtilityPoint:
    """Who is served how well."""
    if not has_runs:
        text = (
            (
                f"{NOT_KNOWN}how well anybody is served. Ledgers hold no quality, and platforms "
                "release none; a simulated run (--runs) has it."
            ),
        )
        return UtilityPoint(text=text, groups=())
    sentences = [
        (
            "NDCG@10 on held-out items: 1 if the item that a user took next stands first among "
            "ten, 0 if it is not there. Local: what platforms can do alone; served: what they show "
            "after joining. These numbers are computed without noise: they are for those who may "
            "see the data."
        )
    ]
    if any(group.by == "user activity" for group in groups):
        sentences.append(
            "Noise hides what few people did first: compare rare items with popular ones, users "
            "with few purchases with active ones, and small platforms with large ones."
        )
    else:
        sentences.append(
            f"{NOT_KNOWN}groups of items and users. The run kept no values by user "
            "(per_user.parquet); make it again with this version."
        )
    return UtilityPoint(text=tuple(sentences), groups=tuple(groups))
