"""What an audit report states: ``report.json``, strict and versioned.

Pure. Every point that an auditor of differentially private training has to be told is a field here.
A point has ``text``, sentences for people, and the numbers behind them. Where the records do not
tell, the text begins with :data:`NOT_KNOWN` and says what would; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  (pydantic reads field types at run time)
from dataclasses import dataclass
from typing import Literal

from simulations.attacks.membership.result import AttackResult  # noqa: TC001  (as above)
from simulations.audit.findings import Composition, Prices, Verification  # noqa: TC001
from simulations.audit.report.parts import GroupUtility, PlatformPart, RunPart, Use  # noqa: TC001
from simulations.result import Checked

SCHEMA_VERSION = 1
REPORT_FILE = "report.json"
NOT_KNOWN = "Not known from these records: "

Light = Literal["green", "amber", "red"]
"""``red``: something failed, or nothing is promised; ``amber``: weak, unknown or not tried."""

POINTS: Mapping[str, str] = {
    "privacy_unit": "Privacy unit",
    "neighbouring": "Neighbouring data sets",
    "guarantee": "Epsilon, delta, population and the full curve",
    "mechanisms": "Mechanism, clipping, noise and denominator",
    "sampling": "Sampling, as assumed and as run",
    "microbatching": "Microbatching",
    "accounting": "Accountant, version and orders",
    "composition": "Composition over rounds, restarts and retraining",
    "contribution": "Largest contribution of a user",
    "released": "What is released",
    "trust": "Trust model",
    "randomness": "Randomness and floating point",
    "tuning": "Tuning of hyper-parameters, and public data",
    "post_processing": "Post-processing: user vectors and serving",
    "lower_bound": "What an attacker got: the empirical lower bound",
    "utility": "Utility by group",
    "retention": "Retention and deletion",
    "cannot_know": "What an audit of these records cannot know",
}
"""Field of :class:`AuditStatement` -> title: all points that a report has to state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conclusion(Checked):
    """The verdict; never greener than the findings."""

    light: Light
    """The colour."""
    line: str
    """One sentence that begins with the colour."""
    reasons: tuple[str, ...]
    """What keeps it from being greener, gravest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer(Checked):
    """A question of the first page, in plain language."""

    question: str
    """What anybody would ask."""
    text: tuple[str, ...]
    """Paragraphs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyUnitPoint(Checked):
    """Who is protected."""

    text: tuple[str, ...]
    """In words."""
    units: tuple[str, ...]
    """Every unit that a ledger grants for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbouringPoint(Checked):
    """What changes between two data sets that nobody may tell apart."""

    text: tuple[str, ...]
    """In words."""
    relation: str
    """The relation that the accountant prices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuaranteePoint(Checked):
    """How much can be told; the numbers are in ``platforms``."""

    text: tuple[str, ...]
    """In words."""
    largest_epsilon: float | None
    """Largest for life over the platforms; None: no guarantee somewhere, or not known."""
    largest_delta: float | None
    """Largest delta over the platforms; None if nothing was granted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MechanismsPoint(Checked):
    """What made releases private."""

    text: tuple[str, ...]
    """In words."""
    uses: tuple[Use, ...]
    """Every kind of charge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingPoint(Checked):
    """Who takes part in a step."""

    text: tuple[str, ...]
    """In words."""
    assumed: tuple[float, ...]
    """Every rate that was priced."""
    asked: tuple[float, ...] | None
    """Every rate that was asked for and drawn by; None if no ledger has requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MicrobatchingPoint(Checked):
    """How many users are clipped together."""

    text: tuple[str, ...]
    """In words."""
    users_clipped_together: int
    """1: each by herself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountingPoint(Checked):
    """Whose numbers epsilon is."""

    text: tuple[str, ...]
    """In words."""
    orders: tuple[float, ...]
    """Orders of the Renyi bound."""
    versions: Mapping[str, str]
    """Of the libraries that priced."""
    prices: Mapping[str, Prices]
    """By platform, by each accountant, from the independent checks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompositionPoint(Checked):
    """What adds up."""

    text: tuple[str, ...]
    """In words."""
    runs: tuple[RunPart, ...]
    """What each run cost by itself."""
    across_platforms: tuple[Composition, ...]
    """For a person with accounts at m platforms, from the independent checks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContributionPoint(Checked):
    """How far one user can move a release."""

    text: tuple[str, ...]
    """In words."""
    largest_norm: Mapping[str, float]
    """L2 norm by kind of release."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleasedPoint(Checked):
    """All that leaves a platform."""

    text: tuple[str, ...]
    """In words."""
    kinds: tuple[str, ...]
    """Kinds of noised releases in the ledgers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustPoint(Checked):
    """Who has to be honest."""

    text: tuple[str, ...]
    """In words."""
    modes: tuple[str, ...]
    """Every trust mode that was run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomnessPoint(Checked):
    """Where noise comes from, and what computers make of it."""

    text: tuple[str, ...]
    """In words."""
    sources: Mapping[str, Literal["operating system", "seed", "not known"]]
    """Origin of the noise by platform."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningPoint(Checked):
    """What was chosen, and by looking at what."""

    text: tuple[str, ...]
    """In words."""
    catalogue_derived: bool | None
    """Whether some listing was read off interactions; None if nothing says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PostProcessingPoint(Checked):
    """What is made of releases, and of raw data beside them."""

    text: tuple[str, ...]
    """In words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LowerBoundPoint(Checked):
    """What was tried, and the least epsilon that it proves."""

    text: tuple[str, ...]
    """In words."""
    attack: AttackResult | None
    """Everything that was tried; None: nothing was."""
    is_of_these_runs: bool | None
    """Whether the attacked settings are those of the platforms and runs in this report; None if
    there is no attack, or the records do not tell."""
    differences: tuple[str, ...]
    """What differs, or is not known: attacked, and not audited. Empty if they are the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UtilityPoint(Checked):
    """Who is served how well."""

    text: tuple[str, ...]
    """In words."""
    groups: tuple[GroupUtility, ...]
    """Empty without a simulated run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionPoint(Checked):
    """What is kept, and what becomes of a user who leaves."""

    text: tuple[str, ...]
    """In words."""
    releases_kept: Mapping[str, int]
    """Releases found beside the ledger, by platform."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CannotKnowPoint(Checked):
    """The limits of this report."""

    text: tuple[str, ...]
    """One limit each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditStatement(Checked):
    """A whole audit report.

    Numbers that are null have no bound, or are not known: the text of the point says which.
    """

    made_at: str
    """When: UTC, ISO 8601."""
    versions: Mapping[str, str]
    """Of crossrec and the libraries that numbers depend on."""
    inputs: tuple[str, ...]
    """Files that were read."""
    commands: tuple[str, ...]
    """Repeat it."""
    conclusion: Conclusion
    """The verdict."""
    summary: tuple[Answer, ...]
    """The first page."""
    platforms: Mapping[str, PlatformPart]
    """By name; of several copies the longest that is whole."""
    privacy_unit: PrivacyUnitPoint
    """The privacy unit."""
    neighbouring: NeighbouringPoint
    """What changes between neighbouring data sets."""
    guarantee: GuaranteePoint
    """Epsilon, delta, population and the full curve."""
    mechanisms: MechanismsPoint
    """Mechanism, clipping, noise and denominator."""
    sampling: SamplingPoint
    """Sampling, as assumed and as run."""
    microbatching: MicrobatchingPoint
    """Microbatching."""
    accounting: AccountingPoint
    """Accountant, version and orders."""
    composition: CompositionPoint
    """Composition over rounds, restarts, retraining and platforms."""
    contribution: ContributionPoint
    """Largest contribution of a user."""
    released: ReleasedPoint
    """What is released, metrics included."""
    trust: TrustPoint
    """Trust model."""
    randomness: RandomnessPoint
    """Random numbers and floating point."""
    tuning: TuningPoint
    """Tuning of hyper-parameters, and public data."""
    post_processing: PostProcessingPoint
    """User vectors and serving."""
    lower_bound: LowerBoundPoint
    """What an attacker got."""
    utility: UtilityPoint
    """Utility by group."""
    retention: RetentionPoint
    """Retention and deletion."""
    cannot_know: CannotKnowPoint
    """What an audit of these records cannot know."""
    verification: Verification
    """Every independent check, also those that passed."""
    schema_version: int = SCHEMA_VERSION
    """Changes with the meaning of a field."""
