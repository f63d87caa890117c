"""The first page of a report, in plain language. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from simulations.audit.report.conclusion import (
    FIRST_AUDIT,
    NAMES_SHOWN,
    contradicting,
    is_first,
    named,
)
from simulations.audit.report.outcomes import ADVERSARIES, MADE_UP, proved
from simulations.audit.report.statement import Answer
from simulations.audit.report.strength import (
    WEAK,
    delta_text,
    odds_text,
    percent_text,
    shown_epsilon,
    strength,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from simulations.attacks.membership.result import Audit
    from simulations.audit.findings import Composition, Verification
    from simulations.audit.report.parts import PlatformPart
    from simulations.audit.report.statement import LowerBoundPoint


def first_page(
    platforms: Mapping[str, PlatformPart],
    verification: Verification,
    lower_bound: LowerBoundPoint,
    cannot_know: Sequence[str],
) -> tuple[Answer, ...]:
    """Six questions that anybody would ask."""
    return (
        Answer(question="Who was protected, and from whom?", text=_protected(platforms)),
        Answer(
            question="How strong is the protection?",
            text=_strong(platforms, verification.compositions),
        ),
        Answer(question="Was the budget kept?", text=tuple(_budget(platforms))),
        Answer(question="Do the records hold together?", text=_records(verification)),
        Answer(question="What did an attacker get in practice?", text=_attacked(lower_bound)),
        Answer(question="What does this not cover?", text=_uncovered(platforms, cannot_know)),
    )


_FROM_WHOM = (
    "with everything she did there. From everyone outside her platform: the coordinator, the other "
    "platforms, and whoever they share with. Not from her own platform, which has her data anyway."
)


def _protected(platforms: Mapping[str, PlatformPart]) -> tuple[str, ...]:
    none = [name for name, part in platforms.items() if part.guarantee == "none"]
    others = [name for name in platforms if name not in none]
    text = []
    simulated = [name for name in others if platforms[name].is_simulation]
    real = [name for name in others if name not in simulated]
    if simulated:
        text.append(
            f"Nobody{_at(simulated, platforms)}: this was a simulation, whose noise can be "
            "computed by whoever knows its seed. What follows is what a real federation with the "
            "same settings would promise."
        )
        text.append(f"It would protect each single user of {named(simulated)}, {_FROM_WHOM}")
    if real:
        text.append(f"Each single user of {named(real)}, {_FROM_WHOM}")
    if none:
        text.append(f"Nobody at {named(none)}: no noise was added there, or none that counts.")
    return tuple(text)


def _at(names: Sequence[str], platforms: Mapping[str, PlatformPart]) -> str:
    return "" if len(names) == len(platforms) else f" at {named(names)}"


def _strong(
    platforms: Mapping[str, PlatformPart], compositions: Sequence[Composition]
) -> tuple[str, ...]:
    bounded = {
        name: part
        for name, part in platforms.items()
        if part.guarantee == "bounded" and part.epsilon_for_life is not None
    }
    unclear = [name for name in platforms if name not in bounded]
    text = []
    if bounded:
        name = max(bounded, key=lambda name: bounded[name].epsilon_for_life or 0.0)
        part = bounded[name]
        epsilon, delta = part.epsilon_for_life or 0.0, part.delta or 0.0
        text.append(
            f"At worst {strength(epsilon)} ({name}: epsilon {shown_epsilon(epsilon)}). If somebody "
            "thought it 50 % likely that you were in the data, then after seeing everything that "
            f"left the platform she can think it at most {percent_text(_posterior(part))} likely: "
            f"your odds change {odds_text(epsilon)} at most. An exception has a chance of at most "
            f"delta = {delta_text(delta)}."
        )
        if part.best_guess is not None:
            text.append(
                "That is the worst case, which may be rare. Averaged over all that can happen, "
                "somebody who sees everything, guesses as well as anybody can, and has to guess "
                f"about everybody is right in at most {percent_text(part.best_guess)} of cases, "
                "where a coin is right in 50 %. Who guesses only when she is sure is right more "
                "often, and about few."
            )
        if epsilon > WEAK:
            text.append(
                "An epsilon of that size is a weak promise by itself. It is a bound that no "
                "attacker can pass, and not what attackers reach; but the bound is all that is "
                "promised. Below 1 is strong."
            )
    if unclear:
        text.append(f"Of {named(unclear)} no bound can be given.")
    most = compositions[-1] if len(compositions) > 1 else None
    if most is not None:
        together = (
            "no bound can be given"
            if most.epsilon is None
            else f"the promise to her is only epsilon {shown_epsilon(most.epsilon)}: "
            f"{strength(most.epsilon)}"
        )
        text.append(
            f"Of somebody with an account at each of {most.num_platforms} platforms something "
            f"leaves at each: {together}."
        )
    return tuple(text)


def _posterior(part: PlatformPart) -> float:
    return 1.0 if part.posterior_from_half is None else part.posterior_from_half


def _budget(platforms: Mapping[str, PlatformPart]) -> Iterable[str]:
    kept = [name for name, part in platforms.items() if part.is_within_budget]
    limited = [n for n in kept if platforms[n].budget is not None]
    unlimited = [n for n in kept if platforms[n].budget is None]
    over = [name for name, part in platforms.items() if part.is_within_budget is False]
    unknown = [name for name, part in platforms.items() if part.is_within_budget is None]
    if limited:
        most = max((platforms[n].epsilon or 0.0) / (platforms[n].budget or 1.0) for n in limited)
        yield (
            f"Yes at {named(limited)}: no charge went beyond what was granted when it was made. "
            f"At most {percent_text(min(most, 1.0))} of a running budget is spent."
        )
    if unlimited:
        yield f"At {named(unlimited)} there was no limit to keep."
    if over:
        yield f"No at {named(over)}: more was spent than had been granted."
    if unknown:
        yield f"That cannot be told of {named(unknown)}: the ledger is not whole."
    renewed = [n for n, part in platforms.items() if sum(g.begins_period for g in part.grants) > 1]
    if renewed:
        yield (
            f"{named(renewed)} granted a new budget after an old one had ended; a user who stayed "
            "is charged for all of them."
        )


def _records(verification: Verification) -> tuple[str, ...]:
    count = Counter(finding.verdict for finding in verification.findings)
    total = len(verification.findings)
    if not total:
        return ("Nothing was checked.",)
    text = [
        (
            f"{count['ok']} of {total} checks passed, {count['failed']} failed, and "
            f"{count['unknown']} could not be made"
            + (f": {FIRST_AUDIT}. " if is_first(verification) else " for lack of records. ")
            + "They were made by code "
            "that does not share its way with the product's, and prices were computed by three "
            "libraries."
        )
    ]
    text += [
        f"Failed: {finding.check}, {finding.subject}: {finding.detail}"
        for finding in verification.failed[:NAMES_SHOWN]
    ]
    more = len(verification.failed) - NAMES_SHOWN
    if more > 0:
        text.append(f"{more} more failed: see all findings.")
    return tuple(text)


def _attacked(lower_bound: LowerBoundPoint) -> tuple[str, ...]:
    attack = lower_bound.attack
    if attack is None or not attack.audits:
        return lower_bound.text[:1] if attack is None else ("No attack was completed.",)
    text = []
    if not lower_bound.is_of_these_runs:
        text.append(lower_bound.text[0])
    # Of those on what is promised, if there is one: other units are promised something else.
    best = max(attack.audits, key=lambda audit: (audit.unit == "user", proved(audit)))
    text.append(
        f"{len(attack.audits)} kinds of attacks were tried. The best was by "
        f"{ADVERSARIES[best.adversary]}, who had to find out of each of {best.num_canaries:,} "
        f"{MADE_UP[best.unit]} whether it was in the data: it was sure enough to guess about "
        f"{best.num_guesses:,} of {best.num_canaries:,}, and right about {best.num_correct:,} of "
        f"these. That proves that epsilon is at least {best.epsilon_lower:.2f}{_gaussian(best)} "
        f"({best.confidence:.0%} confidence), where {shown_epsilon(best.epsilon_accounted)} was "
        "accounted for."
    )
    above = contradicting(lower_bound)
    text.append(
        "THE ATTACK GOT MORE THAN WAS ACCOUNTED FOR: the accounting, or the code, is wrong."
        if above
        else "No attack got more than was accounted for. A better attack might get more."
    )
    return tuple(text)


def _gaussian(audit: Audit) -> str:
    lower = audit.epsilon_lower_gaussian
    return "" if lower is None else f", or {lower:.2f} if the noise is Gaussian"


def _uncovered(
    platforms: Mapping[str, PlatformPart], cannot_know: Sequence[str]
) -> tuple[str, ...]:
    text = [
        (
            "What a platform shows to its own users follows from all of its users' raw data: one "
            "user's recommendations can tell of another of the same platform."
        ),
        "Facts about people in general, which can be learned whether or not you took part.",
        (
            f"And what no records can tell, of which there are {len(cannot_know)} points at the "
            "end: above all whether a platform ran the software that wrote them."
        ),
    ]
    if any((part.num_declined or 0) > 0 for part in platforms.values()):
        declined = sum(part.num_declined for part in platforms.values())
        text.append(f"Platforms declined {declined} requests; nothing left with those.")
    return tuple(text)
