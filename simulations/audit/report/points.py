"""What was spent, and on what: the points of a report that platforms' ledgers answer. Pure.

Sentences about the code say what the code does, and name the file that shows it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.privacy.accounting import _ORDERS
from common.privacy.mechanisms import NEIGHBOURING
from simulations.audit.report.conclusion import named
from simulations.audit.report.platforms import run_parts, uses_of
from simulations.audit.report.statement import (
    NOT_KNOWN,
    AccountingPoint,
    CompositionPoint,
    ContributionPoint,
    GuaranteePoint,
    MechanismsPoint,
    MicrobatchingPoint,
    NeighbouringPoint,
    PrivacyUnitPoint,
    ReleasedPoint,
    SamplingPoint,
)
from simulations.audit.report.strength import delta_text, odds_text, shown_epsilon, strength

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from simulations.audit.evidence import LedgerEvidence, ServerEvidence
    from simulations.audit.findings import Verification
    from simulations.audit.report.parts import PlatformPart, Use
    from simulations.audit.report.platforms import Believed

SUMS = ("item-counts", "item-pairs")
NO_REQUEST = (
    f"{NOT_KNOWN}clipping norm and denominator of some charges. Their ledger was written by a "
    "version that kept the hash of a request only; the coordinator's configuration of that time "
    "would tell."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audited:
    """One platform: what was found, what of it is believed, and what the report says of it."""

    name: str
    """Its name."""
    found: LedgerEvidence
    """As found."""
    believed: Believed
    """As far as it can be believed."""
    part: PlatformPart
    """As reported."""


def unit_point(platforms: Sequence[Audited]) -> PrivacyUnitPoint:
    """Who is protected."""
    units = tuple(sorted({p.part.unit for p in platforms if p.part.unit}))
    text = [
        f"The unit is the {unit}: each {unit} of a platform, with everything she did there. A "
        "person with several accounts at one platform counts as several."
        for unit in units
    ]
    missing = [p.name for p in platforms if p.part.unit is None]
    if missing:
        text.append(f"{NOT_KNOWN}the unit of {', '.join(missing)}. A grant in the ledger names it.")
    return PrivacyUnitPoint(text=tuple(text), units=units)


def neighbouring_point() -> NeighbouringPoint:
    """What changes between two data sets that nobody may tell apart."""
    text = (
        f"Two data sets are neighbours if one comes from the other by this change: {NEIGHBOURING}.",
        (
            "Nothing is promised about a change of two users at once beyond what composes from "
            "single ones: for a group of k users epsilon is k times as large, and delta grows as "
            "well."
        ),
    )
    return NeighbouringPoint(text=text, relation=NEIGHBOURING)


def guarantee_point(platforms: Sequence[Audited]) -> GuaranteePoint:
    """How much can be told."""
    parts = [p.part for p in platforms]
    groups: dict[str, list[Audited]] = {}
    for platform in platforms:
        groups.setdefault(_promise(platform.part), []).append(platform)
    text = [
        f"{named([p.name for p in group])}: {promise}{_populations([p.part for p in group])}"
        for promise, group in groups.items()
    ]
    text.append(
        "The full curve says how epsilon falls as delta grows; each of its points holds, so no "
        "single pair is the whole truth. The report has a figure and report.json all points. "
        "Population is the number that a platform declares in public, never a count of its users."
    )
    epsilons = [part.epsilon_for_life for part in parts if part.guarantee == "bounded"]
    known = [epsilon for epsilon in epsilons if epsilon is not None]
    return GuaranteePoint(
        text=tuple(text),
        largest_epsilon=max(known) if known and len(known) == len(parts) else None,
        largest_delta=max((part.delta for part in parts if part.delta is not None), default=None),
    )


def _promise(part: PlatformPart) -> str:
    """One platform's promise, in words that are the same where the promise is."""
    if part.guarantee == "none":
        return "no guarantee. Releases without noise that counts are not private at all."
    if part.delta is None:
        return f"{NOT_KNOWN}epsilon and delta. Nothing was granted; platform.toml has them."
    if part.guarantee == "unknown":
        return (
            f"{NOT_KNOWN}what was spent. The ledger is not whole; its first "
            f"{part.num_believed} entries cost epsilon {shown_epsilon(part.epsilon_for_life)} at "
            f"delta {delta_text(part.delta)}, and that is the least. An untouched copy would tell."
        )
    epsilon = part.epsilon_for_life or 0.0
    return (
        f"epsilon {shown_epsilon(epsilon)} at delta {delta_text(part.delta)} for everything that "
        f"was ever charged, {part.num_reserved} charges. That is {strength(epsilon)}: odds may "
        f"change {odds_text(epsilon)}."
    )


def _populations(parts: Sequence[PlatformPart]) -> str:
    """A sentence on platforms that promise the same; none where there is no bound."""
    if parts[0].guarantee != "bounded":
        return ""
    known = [part.population for part in parts if part.population is not None]
    if len(known) < len(parts):
        return f" {NOT_KNOWN}the population of some, which platform.toml declares."
    given_up = f"{max(known) * (parts[0].delta or 0.0):.2g} in expectation at most"
    if len(parts) == 1:
        return f" It declares about {known[0]:,} users, of whom delta gives up {given_up}."
    return (
        f" Each declares {min(known):,} to {max(known):,} users, of whom delta gives up {given_up}."
    )


def mechanisms_point(platforms: Sequence[Audited]) -> MechanismsPoint:
    """What made releases private."""
    uses = [use for p in platforms for use in uses_of(p.name, p.believed)]
    text = ["Every release is a sum over users plus Gaussian noise on each of its numbers."]
    if any(use.what in SUMS for use in uses):
        text.append(
            "Sums of items and of pairs: a user's part is divided by its own length, so its L2 "
            "norm is at most 1 by construction and nobody is clipped. They are not divided by "
            "anything: there is no denominator (client/sums.py)."
        )
    if any(use.what == "rounds" for use in uses):
        text.append(
            "Rounds: each user's gradient of all shared parameters together is clipped in L2 to "
            "the clipping norm, the sum is noised, and divided by a public constant: the sampling "
            "rate times the mean of the populations that platforms declared. No count of users "
            "enters it (common/privacy/clipping.py, client/trainer.py, server/rounds.py)."
        )
    if any(use.clipping_norm is None for use in uses):
        text.append(NO_REQUEST)
    if any(use.noise_multiplier_if_broken < use.noise_multiplier for use in uses):
        text.append(
            "With secure aggregation a platform adds a share of the noise itself: the table has "
            "what faces an observer of the sum, and of one platform's release alone."
        )
    if not uses:
        text.append("Nothing was charged: there was no release.")
    return MechanismsPoint(text=tuple(text), uses=tuple(uses))


def sampling_point(uses: Sequence[Use]) -> SamplingPoint:
    """Who takes part in a step."""
    assumed = tuple(sorted({use.sampling_rate for use in uses}))
    asked = tuple(
        sorted({use.asked_sampling_rate for use in uses if use.asked_sampling_rate is not None})
    )
    text = []
    if any(rate < 1 for rate in assumed):
        text.append(
            "Assumed by the accountant: Poisson sampling, each user in each step with the same "
            "probability, independently of all others. Run by the code: one coin for each user and "
            "step from the source of the noise (poisson_sample in common/privacy/randomness.py); "
            "no shuffling, no batches of fixed size, no user taken in turn."
        )
    if any(rate >= 1 for rate in assumed):
        text.append(
            "Where the rate is 1 every user is in every step, and nothing is gained from sampling."
        )
    if any(use.asked_sampling_rate is None for use in uses):
        text.append(
            f"{NOT_KNOWN}by which rate some users were drawn; older ledgers hold what was priced."
        )
    differing = [
        use
        for use in uses
        if use.asked_sampling_rate is not None
        and (use.asked_sampling_rate, use.asked_steps) != (use.sampling_rate, use.steps)
    ]
    if differing:
        names = ", ".join(sorted({use.platform for use in differing}))
        text.append(f"Priced and asked for differ at {names}: the epsilon there is not to be used.")
    elif asked:
        text.append(
            "Priced and asked for agree in every charge. Whether the installed code drew that way "
            "is not in the records; the statistical tests of the code are about it."
        )
    if not uses:
        text.append("Nothing was charged, so nobody was sampled.")
    return SamplingPoint(text=tuple(text), assumed=assumed, asked=asked or None)


def microbatching_point() -> MicrobatchingPoint:
    """How many users are clipped together."""
    text = (
        (
            "None: the unit that is clipped is one user with everything she did. Users are worked "
            "on in blocks to save memory, and each of them is bounded by herself before anything "
            "is added (common/privacy/clipping.py). There are no batch statistics."
        ),
    )
    return MicrobatchingPoint(text=text, users_clipped_together=1)


def accounting_point(verification: Verification, versions: Mapping[str, str]) -> AccountingPoint:
    """Whose numbers epsilon is."""
    orders = tuple(sorted(float(order) for order in _ORDERS))
    text = (
        (
            "Gaussians without sampling are priced exactly (Balle and Wang 2018): together they "
            "are one Gaussian. With sampling it is the upper end of the error interval of Opacus' "
            "PRV accountant (Gopi et al. 2021), never above its Renyi bound, and the Renyi bound "
            "where the numbers of PRV cannot be trusted (common/privacy/accounting.py)."
        ),
        (
            f"The Renyi bound is the least over {len(orders)} orders from {orders[0]:g} to "
            f"{orders[-1]:g}. Any set of orders gives a valid bound."
        ),
        (
            "The table has what was written down when it was charged, the same recomputed by the "
            "product's code, and by libraries that the checks call directly: Opacus and Google's "
            "dp-accounting. No accountant may say less than the column 'no less than'."
        ),
        (
            "Opacus' two numbers are looser upper bounds of the same spend and may lie above a "
            "budget that was kept. Without sampling the price is exact (Balle and Wang 2018), and "
            "it is this software's number that the budget is kept by."
        ),
    )
    return AccountingPoint(
        text=text,
        orders=orders,
        versions={**versions, **verification.versions},
        prices=verification.prices,
    )


def composition_point(
    platforms: Sequence[Audited],
    servers: Sequence[ServerEvidence],
    verification: Verification,
) -> CompositionPoint:
    """What adds up."""
    runs = [part for p in platforms for part in run_parts(p.name, p.believed, p.part.delta)]
    text = [
        (
            "Everything is one account for each platform: all sums and rounds, of all runs, are "
            "priced together from the list of what was charged; no epsilon is ever carried forward "
            "or begun anew. Retraining is a run like any other and is charged in full."
        ),
        (
            "A charge counts from the moment it is written, before data is touched, whether or not "
            "a release followed. Who asks again after a crash or restart gets the same bytes, and "
            "pays once (client/platform.py)."
        ),
        *_restarts(servers),
    ]
    several = {run.platform for run in runs if run.run != runs[0].run}
    if several:
        text.append(
            "There were several runs. What each cost alone does not add up: the sum is not "
            "linear, and is in the section on epsilon."
        )
    periods = {p.name: max((c.period for c in p.believed.charges), default=1) for p in platforms}
    lasting = [name for name, number in periods.items() if number > 1]
    if lasting:
        text.append(
            f"{', '.join(lasting)} granted a new period after an old one had ended. A user who was "
            "there in several is charged for each: the number for life has all of them."
        )
    if len(platforms) > 1:
        text.append(
            "Of a person with accounts at several platforms something leaves at each. The table "
            "has the epsilon that is promised to her with m accounts."
        )
    return CompositionPoint(
        text=tuple(text), runs=tuple(runs), across_platforms=verification.compositions
    )


def _restarts(servers: Sequence[ServerEvidence]) -> Iterable[str]:
    if not servers:
        yield (
            f"{NOT_KNOWN}how often a run was started again. The coordinator's journal has it; it "
            "changes no epsilon, since a repeated request is charged once."
        )
    for server in servers:
        kinds = Counter(str(event.get("event")) for event in server.events)
        starts = kinds["run-started"]
        again = "once, never again" if starts == 1 else f"{starts} times"
        yield (
            f"Run {server.run_id}: started {again}; {kinds['sum-closed']} sums and "
            f"{kinds['round-closed']} rounds were closed."
        )


def contribution_point(uses: Sequence[Use]) -> ContributionPoint:
    """How far one user can move a release."""
    largest: dict[str, float] = {}
    for use in uses:
        if use.clipping_norm is not None:
            largest[use.what] = max(use.clipping_norm, largest.get(use.what, 0.0))
    text = [
        f"{what}: one user moves the sum by at most {norm:g} in L2, however much she did, and "
        f"whatever others did{'; in each of its noisy steps' if what == 'rounds' else ''}."
        for what, norm in largest.items()
    ]
    text.append(
        "There is no limit on how many interactions a user may have: the bound is on what all of "
        "them do together. She is in every sum, and in every step that she is drawn for."
    )
    if any(use.clipping_norm is None for use in uses):
        text.append(NO_REQUEST)
    return ContributionPoint(text=tuple(text), largest_norm=largest)


def released_point(platforms: Sequence[Audited], uses: Sequence[Use]) -> ReleasedPoint:
    """All that leaves a platform."""
    kinds = tuple(sorted({use.what for use in uses}))
    agreed = any(
        p.found.config is not None and p.found.config.catalogue.assortment is not None
        for p in platforms
    )
    text = [
        "Noised releases: " + (", ".join(kinds) if kinds else "none") + ". Item counts and item "
        "pairs are one sum each; a round is an update of every shared parameter. Their names and "
        "shapes are an allow-list (common/models/partition.py).",
        (
            "Metrics: none. No reply holds a loss, a metric, a count of users or examples, or what "
            "the platform's own gate decided (common/messages.py)."
        ),
        "Public facts beside them, which epsilon does not cover: the platform's name, the "
        "population it declares, the hash of the catalogue, trust mode, unit and delta"
        + ("; the items that it lists, or keyed hashes of them." if agreed else "."),
        (
            "Whether a request was answered, and if not why, as far as that follows from public "
            "facts; a failure inside training is the one word 'failed', and the platform then "
            "stops."
        ),
        "How long a platform takes to answer can be seen and is not noised.",
    ]
    return ReleasedPoint(text=tuple(text), kinds=kinds)
