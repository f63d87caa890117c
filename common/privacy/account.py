"""What a ledger's entries mean: grants, spends and what is left. Pure: entries in, numbers out.

A **grant** says what one privacy unit may be charged in a period, or for life. A **reserve** entry
is a spend from the moment it is written, whether or not a release followed. Epsilon of a period is
that of the composition of every mechanism reserved in it, and is computed here from the entries.

A user who came late, or left, is covered by the same number: her data met only some of the
releases that it counts. A user who stays for several periods is charged for each: what all of them
cost together is :meth:`Account.epsilon_for_life`.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from common.errors import BudgetExhausted, ConfigError, RequestRefused, StateError
from common.privacy.accounting import AccountantName, epsilon_spent
from common.privacy.mechanisms import MAX_STEPS, PrivacyUnit, SampledGaussian, mechanism_from_dict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EntryKind = Literal["grant", "reserve", "commit", "confirm", "decline", "note"]

_DECODER = json.JSONDecoder()

_LONGEST_PERIOD = 36_500

GENESIS = "0" * 64
"""Digest before the first entry."""

MAX_DECLINES = 10_000
"""Declined requests that are written down; a flood of them must not fill the disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the ledger; its digest covers the line and everything before it."""

    sequence: int
    """From 1, without gaps."""
    time: str
    """When it was written: UTC, ISO 8601, never earlier than the entry before."""
    kind: EntryKind
    """What it says."""
    request_id: str
    """The request it is about; empty for grants and notes."""
    body: str
    """What it says in detail, as JSON."""
    digest: str
    """Hex SHA-256, see :func:`entry_digest`."""


def entry_digest(previous: str, entry: Entry) -> str:
    """Digest of ``entry`` after ``previous``: SHA-256 of all fields, each after its length."""
    time, kind, request_id = entry.time, entry.kind, entry.request_id
    text = (
        f"{previous} {entry.sequence} {len(time)}:{time} {len(kind)}:{kind} "
        f"{len(request_id)}:{request_id} {len(entry.body)}:{entry.body}"
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_chain(entries: Iterable[Entry], after: Entry | None = None) -> None:
    """Check that nothing was changed, left out, or put in.

    Entries cut off at the end leave a shorter chain that is whole: the ledger's head file shows it.

    Args:
        entries: what follows.
        after: the last entry that was checked before, or None to begin at the first.

    Raises:
        StateError: naming the first entry that does not follow from those before.
    """
    sequence, digest, time = (
        (after.sequence, after.digest, after.time) if after else (0, GENESIS, "")
    )
    for entry in entries:
        sequence += 1
        if entry.sequence != sequence or entry.time < time:
            msg = f"entry {entry.sequence} stands in the place of entry {sequence}, or out of time"
            raise StateError(msg)
        if entry.digest != entry_digest(digest, entry):
            msg = f"entry {entry.sequence} ({entry.kind}) was changed after it was written"
            raise StateError(msg)
        digest, time = entry.digest, entry.time


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What one privacy unit may be charged for everything that leaves the platform."""

    epsilon: float
    """Ceiling, > 0; infinity only where a simulation runs without privacy."""
    delta: float
    """In (0, 1)."""
    unit: PrivacyUnit = "user"
    """Privacy unit that both are stated for."""
    period_days: int | None = None
    """Days after which it ends and must be granted anew; None is for life."""

    def __post_init__(self) -> None:
        """Refuse a budget that could never bind or never be kept."""
        if not self.epsilon > 0:
            msg = f"epsilon: found {self.epsilon}, expected a positive number."
            raise ConfigError(msg)
        if not 0 < self.delta < 1:
            msg = f"delta: found {self.delta}, expected a number in (0, 1)."
            raise ConfigError(msg)
        if self.unit not in get_args(PrivacyUnit):
            msg = f"unit: found {self.unit!r}, expected one of {', '.join(get_args(PrivacyUnit))}."
            raise ConfigError(msg)
        if self.period_days is not None and not 1 <= self.period_days <= _LONGEST_PERIOD:
            msg = f"period_days: found {self.period_days}, expected 1 to {_LONGEST_PERIOD}."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spend:
    """One reservation: a request, and the mechanism it is charged for."""

    request_id: str
    """Names the request for ever; at most one spend and one release belong to it."""
    request_digest: str
    """Hash of everything the request asked for."""
    description: str
    """For people, e.g. ``run a1b2, round 3``."""
    mechanism: SampledGaussian
    """What an observer of the release (or of the sum, under secure aggregation) faces."""
    mechanism_if_broken: SampledGaussian
    """What an observer of this platform's own release faces; equal to ``mechanism`` without
    secure aggregation."""
    request: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What was asked for, as JSON values; for auditors, and not read back."""
    arrays_digest: str = field(default="", compare=False, repr=False)
    """SHA-256 of the arrays beside it; with ``request`` it gives ``request_digest``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Where a ledger stands after its entries."""

    grant: Budget | None = None
    """What is in force, or was until its period ended; None before the first grant."""
    period_start: str = ""
    """When the period of ``grant`` began; empty before the first grant."""
    spends: tuple[Spend, ...] = ()
    """Every spend, oldest first."""
    spends_before_period: int = 0
    """How many of them belong to earlier periods."""
    releases: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each release that was made, by request id."""
    confirmations: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the one list that says who is in a secure sum with a release, by request id."""
    num_declined: int = 0
    """Requests that were declined and written down."""

    def period_end(self) -> str | None:
        """When the grant ends; None if it does not."""
        if self.grant is None or self.grant.period_days is None:
            return None
        start = datetime.fromisoformat(self.period_start)
        return (start + timedelta(days=self.grant.period_days)).isoformat()

    def has_ended(self, now: str) -> bool:
        """Whether the period of the grant is over."""
        end = self.period_end()
        return end is not None and now >= end

    def mechanisms(self) -> list[SampledGaussian]:
        """What is charged in the current period."""
        return [spend.mechanism for spend in self.spends[self.spends_before_period :]]

    def epsilon(self, delta: float, accountant: AccountantName = "prv") -> float:
        """Epsilon spent in the current period."""
        return epsilon_spent(self.mechanisms(), delta, accountant)

    def epsilon_for_life(self, delta: float) -> float:
        """Epsilon of everything ever reserved: of a user who was there all the time."""
        return epsilon_spent([spend.mechanism for spend in self.spends], delta)

    def find(self, request_id: str) -> Spend | None:
        """The spend of a request, if there is one."""
        return next((s for s in reversed(self.spends) if s.request_id == request_id), None)

    def _check_sampler(self, mechanism: SampledGaussian) -> None:
        """Hold a server that samples to one noise and one rate in a period.

        Prices hold for mechanisms that are fixed beforehand. A server that chose noise and rate by
        the releases it has seen could get more than delta out of them: the curves of different
        mechanisms cross. Without sampling they do not (Gaussians compose adaptively), and how many
        rounds there are may always depend on what was seen.

        Raises:
            RequestRefused: if noise or rate change in a period with sampling.
        """
        kinds = {(m.noise_multiplier, m.sampling_rate) for m in (*self.mechanisms(), mechanism)}
        if len(kinds) > 1 and any(rate < 1.0 for _, rate in kinds):
            msg = (
                "mechanism: with sampling, noise multiplier and rate stay the same throughout a "
                "period of the budget; this request changes them."
            )
            raise RequestRefused(msg)

    def price(self, spend: Spend, budget: Budget, now: str) -> Price:
        """What ``spend`` would bring the period to, if ledger and platform both allow it.

        ``budget`` is what the platform's configuration says now. It may be lower than what was
        granted, and then it binds; more than what was granted must be granted first.

        Raises:
            BudgetExhausted: if the composition of the period would exceed the budget.
            RequestRefused: if the request's privacy unit is not the budget's, or it changes
                noise or rate in a period with sampling.
            StateError: if nothing is granted for today, or something else than ``budget`` says.
        """
        grant = self.grant
        if grant is None:
            msg = "nothing is granted yet."
            raise StateError(msg)
        if self.has_ended(now):
            msg = (
                f"the granted period ended on {self.period_end()}. A new one is an explicit "
                "decision: crossrec client grant."
            )
            raise StateError(msg)
        if (grant.delta, grant.unit, grant.period_days) != (
            budget.delta,
            budget.unit,
            budget.period_days,
        ):
            msg = (
                f"platform.toml asks for {_terms(budget)}, and the ledger grants {_terms(grant)}. "
                "Only epsilon may change within a period: go back to what was granted."
            )
            raise StateError(msg)
        if spend.mechanism.unit != grant.unit:
            msg = f"privacy unit: request says {spend.mechanism.unit!r}, budget {grant.unit!r}."
            raise RequestRefused(msg)
        self._check_sampler(spend.mechanism)
        limit = min(grant.epsilon, budget.epsilon)
        everything = [*self.mechanisms(), spend.mechanism]
        # Without sampling the tight price is exact and quick. With it RDP, which is looser, is
        # asked first, and the tight accountant decides.
        is_sampled = any(one.sampling_rate < 1 for one in everything)
        accountant: AccountantName = "rdp" if is_sampled else "prv"
        total = epsilon_spent(everything, grant.delta, accountant)
        if not total <= limit and accountant == "rdp":
            accountant = "prv"
            total = epsilon_spent(everything, grant.delta, accountant)
        if not total <= limit:  # NaN would be refused as well
            raise BudgetExhausted(
                would_spend=total,
                budget=limit,
                delta=grant.delta,
                unit=grant.unit,
                request=spend.description,
            )
        return Price(
            before=epsilon_spent(everything[:-1], grant.delta, accountant),
            after=total,
            accountant=accountant,
        )


def rounds_left(
    account: Account, budget: Budget, mechanism: SampledGaussian, *, at_most: int = 100_000
) -> int | None:
    """How many more rounds of ``mechanism`` the budget pays for; None before the first grant."""
    if account.grant is None:
        return None
    limit, delta = min(account.grant.epsilon, budget.epsilon), account.grant.delta
    mechanisms = account.mechanisms()
    at_most = min(at_most, MAX_STEPS // mechanism.steps)

    def fits(rounds: int) -> bool:
        several = replace(mechanism, steps=mechanism.steps * rounds)
        return epsilon_spent([*mechanisms, several], delta) <= limit

    low, high = 0, 1
    while high <= at_most and fits(high):
        low, high = high, 2 * high
    high = min(high, at_most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """Epsilon of a period before and after a spend; written down for people, never read back."""

    before: float
    """Before."""
    after: float
    """After."""
    accountant: AccountantName
    """Whose numbers they are."""


def account_of(entries: Iterable[Entry], start: Account | None = None) -> Account:
    """Fold the entries of a checked chain into the account that ``start`` was before them.

    Raises:
        StateError: for an entry that makes no sense.
    """
    account = start or Account()
    spends, releases = list(account.spends), dict(account.releases)
    confirmations = dict(account.confirmations)
    for entry in entries:
        try:
            if entry.kind == "reserve":
                spends.append(_spend_of(entry))
            elif entry.kind == "commit":
                releases[entry.request_id] = _decode(entry.body)["sha256"]
            elif entry.kind == "confirm":
                found = _decode(entry.body)["sha256"]
                if confirmations.setdefault(entry.request_id, found) != found:
                    raise ValueError("it names a second list")  # noqa: TRY301
            elif entry.kind == "decline":
                account = replace(account, num_declined=account.num_declined + 1)
            elif entry.kind == "grant":
                account = _granted(account, entry, len(spends))
            elif entry.kind != "note":
                raise ValueError(f"unknown kind {entry.kind!r}")  # noqa: TRY301
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            msg = f"entry {entry.sequence} ({entry.kind}) cannot be understood: {error}"
            raise StateError(msg) from error
    return replace(account, spends=tuple(spends), releases=releases, confirmations=confirmations)


def _terms(budget: Budget) -> str:
    period = "life" if budget.period_days is None else f"{budget.period_days} days"
    return f"delta {budget.delta:g} for a {budget.unit} over {period}"


def _granted(account: Account, entry: Entry, num_spends: int) -> Account:
    """A grant within a running period changes its limit; after its end it begins a new one."""
    body = _decode(entry.body)
    epsilon = math.inf if body["epsilon"] is None else body["epsilon"]
    grant = Budget(
        epsilon=epsilon, delta=body["delta"], unit=body["unit"], period_days=body["period_days"]
    )
    if account.grant is None:  # spends before the first grant (of an older ledger) count as well
        return replace(account, grant=grant, period_start=entry.time)
    if not account.has_ended(entry.time):
        return replace(account, grant=grant)
    return replace(account, grant=grant, period_start=entry.time, spends_before_period=num_spends)


def grant_body(budget: Budget, by: str) -> dict[str, Any]:
    """What a grant entry says."""
    epsilon = budget.epsilon if math.isfinite(budget.epsilon) else None
    return {
        "epsilon": epsilon,
        "delta": budget.delta,
        "unit": budget.unit,
        "period_days": budget.period_days,
        "by": by,
    }


def reserve_body(spend: Spend, price: Price) -> dict[str, Any]:
    """What a reserve entry says."""
    before, after = (v if math.isfinite(v) else None for v in (price.before, price.after))
    return {
        "request_digest": spend.request_digest,
        "request": dict(spend.request),
        "arrays_digest": spend.arrays_digest,
        "description": spend.description,
        "mechanism": spend.mechanism.to_dict(),
        "mechanism_if_broken": spend.mechanism_if_broken.to_dict(),
        "epsilon_before": before,
        "epsilon_after": after,
        "accountant": price.accountant,
    }


def _decode(body: str) -> dict[str, Any]:
    # Half the time of json.loads, which looks for spaces around it.
    found: dict[str, Any] = _DECODER.raw_decode(body)[0]
    return found


def _spend_of(entry: Entry) -> Spend:
    body = _decode(entry.body)
    return Spend(
        request_id=entry.request_id,
        request_digest=body["request_digest"],
        description=body["description"],
        mechanism=_mechanism(tuple(body["mechanism"].items())),
        mechanism_if_broken=_mechanism(tuple(body["mechanism_if_broken"].items())),
    )


@lru_cache(maxsize=1024)
def _mechanism(fields: tuple[tuple[str, Any], ...]) -> SampledGaussian:
    return mechanism_from_dict(dict(fields))
