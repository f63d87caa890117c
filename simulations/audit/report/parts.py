"""Rows and tables of an audit report: platforms, charges, runs and groups of users. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulations.result import Checked


@dataclass(frozen=True, kw_only=True, slots=True)
class Step(Checked):
    """One charge, and where it brought the period."""

    time: str
    """UTC, ISO 8601, as in the ledger."""
    what: str
    """What was charged, as the ledger describes it."""
    number: int
    """Its place among all charges, from 1."""
    period: int
    """Its period of the budget, from 1."""
    epsilon: float | None
    """Of the period so far; None: no guarantee."""
    budget: float | None
    """What was granted then; None: nothing, or without a limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantLine(Checked):
    """One decision to allow a budget."""

    time: str
    """UTC, ISO 8601, as in the ledger."""
    epsilon: float | None
    """Allowed in the period; None: without a limit."""
    delta: float
    """At which it is stated."""
    period_days: int | None
    """Length of the period; None: for life."""
    by: str
    """Who decided it, as written down."""
    begins_period: bool
    """Whether it began a period rather than change one."""
    charges_before: int
    """Charges that were made before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlatformPart(Checked):
    """One platform, as its own ledger has it."""

    ledger: str
    """The file."""
    is_whole: bool
    """Whether its entries follow from each other and end where its head file says."""
    num_entries: int
    """Entries in the file."""
    num_believed: int
    """Entries up to the first that does not follow from those before: all numbers are theirs."""
    problems: tuple[str, ...]
    """Why it is not whole, and what could not be read."""
    guarantee: Literal["bounded", "none", "unknown"]
    """``none``: epsilon is infinite; ``unknown``: the ledger is not whole, and what it says is the
    least that was spent."""
    unit: str | None
    """Privacy unit of the grant; None if nothing says."""
    trust: str | None
    """Trust mode of its latest request, else of platform.toml; None if neither is there."""
    is_simulation: bool | None
    """Whether its noise came from a seed; None without platform.toml."""
    population: int | None
    """Number of users as the platform declares it in public; None without platform.toml."""
    delta: float | None
    """At which all epsilons are stated; None if nothing was granted."""
    epsilon: float | None
    """Spent in the running period; None if ``guarantee`` is ``none``."""
    budget: float | None
    """Granted for the running period; None: nothing, or without a limit."""
    epsilon_for_life: float | None
    """Of everything ever reserved: of a user who was there all the time."""
    epsilon_if_secagg_broken: float | None
    """The same if each release were seen by itself; equal without secure aggregation."""
    is_within_budget: bool | None
    """Whether no charge went beyond what was granted at its time; None if that cannot be told."""
    num_reserved: int
    """Charges, whether or not a release followed."""
    num_released: int
    """Releases recorded."""
    num_declined: int
    """Requests that the platform declined and wrote down."""
    grants: tuple[GrantLine, ...]
    """Every grant."""
    history: tuple[Step, ...]
    """Charges, oldest first; of very many an even choice with the last of each period."""
    curve: tuple[tuple[float, float], ...]
    """(epsilon, delta): everything for life is (epsilon, delta)-DP for each; epsilon falls."""
    posterior_from_half: float | None
    """Largest probability, but for an event of probability delta, that somebody who thought 1/2
    can come to give to "she is in the data"."""
    best_guess: float | None
    """Largest chance of a right guess by somebody who sees everything, of one who is in with
    probability 1/2: an average, from the whole curve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use(Checked):
    """Charges of one kind at one platform that have the same numbers."""

    platform: str
    """Whose."""
    run: str
    """Its run."""
    what: str
    """``item-counts``, ``item-pairs`` or ``rounds``."""
    times: int
    """How often it was charged."""
    noise_multiplier: float
    """Noise over clipping norm that an observer of what is released faces."""
    noise_multiplier_if_broken: float
    """The same, of the platform's own release alone."""
    sampling_rate: float
    """Of the users in each step, as it was priced."""
    steps: int
    """Noisy sums in each charge, as they were priced."""
    clipping_norm: float | None
    """Bound on a user's part in L2; None if the ledger has no request."""
    own_noise_std: float | None
    """Standard deviation of the noise that the platform itself added; None as above."""
    denominator: float | None
    """Public constant that the sum is divided by; None for sums, and if nothing says."""
    asked_sampling_rate: float | None
    """As the request has it, by which users were drawn; None if the ledger has no request."""
    asked_steps: int | None
    """As the request has them; None as above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPart(Checked):
    """What one run cost at one platform."""

    run: str
    """The run."""
    platform: str
    """The platform."""
    num_charges: int
    """Charges in it."""
    epsilon: float | None
    """Of this run alone; None: no guarantee, or no delta is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupUtility(Checked):
    """How well some test users are served, with and without the federation."""

    run: str
    """The run: its folder."""
    by: Literal["platform", "platform size", "item popularity", "user activity"]
    """What tells groups apart."""
    group: str
    """Which one."""
    num_users: int
    """Test users in it."""
    local: float | None
    """Mean NDCG@10 of what platforms can do alone."""
    served: float | None
    """Mean NDCG@10 of what they serve."""
    gain: float | None
    """Served minus local, user by user."""
    stderr: float | None
    """Its standard error over users."""
