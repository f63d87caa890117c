"""The verdict. Pure.

The light is never greener than the findings: whatever failed makes it red, whatever is weak,
unknown or was not tried makes it amber.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from simulations.audit.report.outcomes import proved
from simulations.audit.report.statement import Conclusion
from simulations.audit.report.strength import WEAK, odds_text, shown_epsilon, strength

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from simulations.attacks.membership.result import Audit
    from simulations.audit.findings import Finding, Verification
    from simulations.audit.report.parts import PlatformPart
    from simulations.audit.report.statement import Light, LowerBoundPoint

NAMES_SHOWN = 6
"""More names than this do not make a sentence."""


FIRST_AUDIT = "this is the first audit of these ledgers, and each was seen in one copy"
"""Instead of what could not be checked, where it is that alone."""


def conclude(
    platforms: Mapping[str, PlatformPart],
    verification: Verification,
    lower_bound: LowerBoundPoint,
    *,
    catalogue_derived: bool | None,
) -> Conclusion:
    """The verdict.

    Args:
        platforms: by name.
        verification: every independent check.
        lower_bound: what was tried.
        catalogue_derived: whether some listing was read off interactions.
    """
    red = list(_red(platforms, verification, lower_bound))
    amber = list(_amber(platforms, verification, lower_bound))
    if catalogue_derived:
        amber.append("which items a platform lists was read off its users' data")
    light: Light = "red" if red else "amber" if amber else "green"
    if red:
        line = f"Red: {red[0]}."
    elif amber:
        line = f"Amber: no check failed, but {amber[0]}."
    else:
        line = "Green: every check passed, the budget was kept, and the promise is not a weak one."
    return Conclusion(light=light, line=line, reasons=(*red, *amber))


def _red(
    platforms: Mapping[str, PlatformPart], verification: Verification, lower_bound: LowerBoundPoint
) -> Iterable[str]:
    broken = [name for name, part in platforms.items() if not part.is_whole]
    if broken:
        yield f"the ledger of {named(broken)} is not whole, so what it spent is not known"
    failed = verification.failed
    if failed:
        yield f"{_counted(failed)} of {len(verification.findings)} failed ({_subjects(failed)})"
    none = [name for name, part in platforms.items() if part.guarantee == "none"]
    if none:
        yield f"there is no privacy guarantee at {named(none)}"
    over = [name for name, part in platforms.items() if part.is_within_budget is False]
    if over:
        yield f"{named(over)} spent more than was granted"
    for audit in contradicting(lower_bound):
        yield (
            f"an attack proved epsilon >= {proved(audit):.2f} for one {audit.unit}, more "
            f"than the {shown_epsilon(audit.epsilon_accounted)} that was accounted for"
        )
    if not platforms:
        yield "there is no ledger, so nothing that was spent is known"


def is_first(verification: Verification) -> bool:
    """Whether all that could not be checked is what no first audit of single copies can check."""
    unknown = {f.check for f in verification.findings if f.verdict == "unknown"}
    tried = {f.check for f in verification.findings if f.verdict != "unknown"}
    return unknown == {"since", "copies"} and unknown.isdisjoint(tried)


def contradicting(lower_bound: LowerBoundPoint) -> list[Audit]:
    """Attacks that got more than was accounted for."""
    audits = lower_bound.attack.audits if lower_bound.attack else ()
    return [
        audit
        for audit in audits
        if audit.epsilon_accounted is not None and proved(audit) > audit.epsilon_accounted
    ]


def _amber(
    platforms: Mapping[str, PlatformPart], verification: Verification, lower_bound: LowerBoundPoint
) -> Iterable[str]:
    epsilons = [part.epsilon_for_life or 0.0 for part in platforms.values()]
    largest = max(epsilons, default=0.0)
    if largest > WEAK:
        yield (
            f"the promise is {strength(largest)}: at epsilon {shown_epsilon(largest)} odds may "
            f"change {odds_text(largest)}"
        )
    simulated = [name for name, part in platforms.items() if part.is_simulation]
    if simulated:
        yield "this is a simulation, whose noise follows from a seed and protects nobody"
    unknown = [f for f in verification.findings if f.verdict == "unknown"]
    if unknown:
        kinds = Counter(finding.check for finding in unknown)
        which = named([f"{kind} {number}" for kind, number in kinds.items()])
        yield (
            FIRST_AUDIT
            if is_first(verification)
            else f"{_counted(unknown)} could not be made for lack of records ({which})"
        )
    if not verification.findings:
        yield "nothing was checked"
    unseen = [name for name, part in platforms.items() if part.is_simulation is None]
    if unseen:
        yield f"where the noise of {named(unseen)} came from is not known"
    clear = [name for name, part in platforms.items() if part.trust == "secagg-simulated"]
    if clear:
        yield f"the releases of {named(clear)} were added up in the clear"
    yield from _untried(lower_bound)


def _untried(lower_bound: LowerBoundPoint) -> Iterable[str]:
    because = "; ".join(lower_bound.differences)
    if lower_bound.attack is None:
        yield "nobody tried to attack it"
    elif lower_bound.is_of_these_runs is False:
        yield f"the attack was on other settings: {because}. Nobody tried to attack these"
    elif lower_bound.is_of_these_runs is None:
        yield f"whether the attack was on these settings is not known: {because}"


def _counted(findings: Sequence[Finding]) -> str:
    return f"{len(findings)} check{'' if len(findings) == 1 else 's'}"


def _subjects(findings: Sequence[Finding]) -> str:
    counted = Counter(f"{finding.check}: {finding.subject}" for finding in findings)
    return named(list(counted))


def named(names: Sequence[str]) -> str:
    """Names one after the other, of very many the first."""
    shown = ", ".join(names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
