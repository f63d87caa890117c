"""One platform's part of the report, from its own ledger. Pure: entries in, numbers out."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from common.errors import StateError
from common.messages import is_round
from common.privacy.account import Account, account_of, check_chain
from common.privacy.accounting import epsilon_spent
from simulations.audit.report.parts import GrantLine, PlatformPart, RunPart, Step, Use
from simulations.audit.report.strength import advantage, posterior
from simulations.result import finite_or_none

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.privacy.account import Budget, Entry, Spend
    from common.privacy.mechanisms import SampledGaussian
    from simulations.audit.evidence import LedgerEvidence

MOST_STEPS = 400
MOST_SAMPLED_STEPS = 24
"""Charges whose epsilon is computed; with sampling each takes a second."""

DELTAS = (
    *(10.0**-n for n in range(12, 1, -1)),
    *(0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75),
    *(0.8, 0.85, 0.9, 0.95, 0.99),
)
SAMPLED_DELTAS = (1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.4, 0.7)
"""Where the curve is computed."""

_SLACK = 1e-9  # of a budget that is spent to its last digit


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """One reservation, with what was in force when it was made."""

    time: str
    """When."""
    spend: Spend
    """What the ledger says."""
    request: dict[str, Any]
    """What was asked for; empty in older ledgers."""
    period: int
    """Its period of the budget, from 1."""
    budget: Budget | None
    """What was granted then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Believed:
    """What a ledger says up to the first entry that does not follow from those before."""

    entries: tuple[Entry, ...]
    """These entries."""
    problems: tuple[str, ...]
    """Why it ends there, and why the whole is not whole; empty if it is."""
    account: Account
    """What they add up to."""
    charges: tuple[Charge, ...]
    """Every reservation."""
    grants: tuple[GrantLine, ...]
    """Every grant."""


def believe(found: LedgerEvidence) -> Believed:
    """Fold a ledger's entries, as far as they can be believed."""
    good, problems = _whole_part(found.entries)
    try:
        account_of(good)
    except StateError as error:
        problems.append(f"{error}.")
        good = good[: _understood(good)]
    if found.head is not None and not problems:
        sequence, digest = found.head
        if sequence > len(good):
            problems.append(f"it ends at entry {len(good)}; its head file knows entry {sequence}.")
        elif sequence > 0 and good[sequence - 1].digest != digest:
            problems.append(f"its head file knows another entry {sequence}.")
    account, charges, grants = _folded(good)
    return Believed(
        entries=tuple(good),
        problems=tuple(problems),
        account=account,
        charges=tuple(charges),
        grants=tuple(grants),
    )


def _whole_part(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    last: Entry | None = None
    for place, entry in enumerate(entries):
        try:
            check_chain([entry], last)
        except StateError as error:
            return list(entries[:place]), [f"{error}."]
        last = entry
    return list(entries), []


def _understood(entries: Sequence[Entry]) -> int:
    """How many of ``entries`` make sense; the next one does not."""
    account = Account()
    for place, entry in enumerate(entries):
        try:
            account = account_of([entry], account)
        except StateError:
            return place
    return len(entries)


def _folded(entries: Sequence[Entry]) -> tuple[Account, list[Charge], list[GrantLine]]:
    account, period = Account(), 1
    charges: list[Charge] = []
    grants: list[GrantLine] = []
    waiting: list[Entry] = []
    seen: list[tuple[Entry, int, Budget | None]] = []
    for entry in entries:
        waiting.append(entry)
        if entry.kind == "reserve":
            seen.append((entry, period, account.grant))
        if entry.kind != "grant":
            continue
        before = account.grant is None or account.has_ended(entry.time)
        account, waiting = account_of(waiting, account), []
        if before and grants:
            period += 1
        grants.append(_grant_line(entry, begins=before, charges_before=len(seen)))
    account = account_of(waiting, account)
    for (entry, number, budget), spend in zip(seen, account.spends, strict=True):
        request = json.loads(entry.body).get("request")
        request = request if isinstance(request, dict) else {}
        charges.append(
            Charge(time=entry.time, spend=spend, request=request, period=number, budget=budget)
        )
    return account, charges, grants


def _grant_line(entry: Entry, *, begins: bool, charges_before: int) -> GrantLine:
    body = json.loads(entry.body)
    return GrantLine(
        time=entry.time,
        epsilon=None if body["epsilon"] is None else float(body["epsilon"]),
        delta=float(body["delta"]),
        period_days=body["period_days"],
        by=str(body.get("by", "")),
        begins_period=begins,
        charges_before=charges_before,
    )


def platform_part(found: LedgerEvidence, believed: Believed, shown_path: str) -> PlatformPart:
    """Everything that one ledger tells about its platform."""
    account, config, charges = believed.account, found.config, believed.charges
    grant = account.grant
    problems = (*believed.problems, *found.problems)
    # Problems of other files (platform.toml, a release) do not make the ledger less whole.
    is_whole = not believed.problems and not any(str(found.path) in p for p in found.problems)
    delta = grant.delta if grant else config.privacy.delta if config else None
    mechanisms = [charge.spend.mechanism for charge in charges]
    broken = [charge.spend.mechanism_if_broken for charge in charges]
    for_life = None if delta is None else epsilon_spent(mechanisms, delta)
    curve = curve_of(mechanisms, delta) if is_whole else ()
    history = _history(charges, delta)
    modes = [str(charge.request["trust"]) for charge in charges if "trust" in charge.request]
    return PlatformPart(
        ledger=shown_path,
        is_whole=is_whole,
        num_entries=len(found.entries),
        num_believed=len(believed.entries),
        problems=problems,
        guarantee=_guarantee(for_life, is_whole=is_whole),
        unit=grant.unit if grant else config.privacy.unit if config else None,
        trust=modes[-1] if modes else config.privacy.trust if config else None,
        is_simulation=None if config is None else config.simulation is not None,
        population=None if config is None else config.platform.population,
        delta=delta,
        epsilon=None if delta is None else finite_or_none(account.epsilon(delta)),
        budget=finite_or_none(grant.epsilon) if grant else None,
        epsilon_for_life=finite_or_none(for_life),
        epsilon_if_secagg_broken=(
            None if delta is None else finite_or_none(epsilon_spent(broken, delta))
        ),
        is_within_budget=_is_within(history) if is_whole else None,
        num_reserved=len(charges),
        num_released=len(account.releases),
        num_declined=account.num_declined,
        grants=believed.grants,
        history=history,
        curve=curve,
        posterior_from_half=(
            posterior(0.5, for_life) if is_whole and curve and for_life is not None else None
        ),
        best_guess=(1.0 + advantage(curve)) / 2.0 if curve else None,
    )


def _guarantee(for_life: float | None, *, is_whole: bool) -> Any:  # noqa: ANN401 - a literal
    if for_life is not None and not math.isfinite(for_life):
        return "none"
    return "bounded" if is_whole and for_life is not None else "unknown"


def _is_within(history: Sequence[Step]) -> bool:
    return all(
        step.budget is None or (step.epsilon is not None and step.epsilon <= step.budget + _SLACK)
        for step in history
    )


def _history(charges: Sequence[Charge], delta: float | None) -> tuple[Step, ...]:
    if delta is None:
        return ()
    is_sampled = any(charge.spend.mechanism.sampling_rate < 1 for charge in charges)
    steps = []
    for place in _chosen(charges, MOST_SAMPLED_STEPS if is_sampled else MOST_STEPS):
        charge = charges[place]
        so_far = [c.spend.mechanism for c in charges[: place + 1] if c.period == charge.period]
        steps.append(
            Step(
                time=charge.time,
                what=charge.spend.description,
                number=place + 1,
                period=charge.period,
                epsilon=finite_or_none(epsilon_spent(so_far, delta)),
                budget=finite_or_none(charge.budget.epsilon) if charge.budget else None,
            )
        )
    return tuple(steps)


def _chosen(charges: Sequence[Charge], at_most: int) -> list[int]:
    """An even choice, the last charge of each period always."""
    step = max(1, math.ceil(len(charges) / at_most))
    even = set(range(len(charges) - 1, -1, -step))
    ends = {
        place
        for place, charge in enumerate(charges)
        if place + 1 == len(charges) or charges[place + 1].period != charge.period
    }
    return sorted(even | ends)


def curve_of(
    mechanisms: Sequence[SampledGaussian], delta: float | None
) -> tuple[tuple[float, float], ...]:
    """(epsilon, delta) of everything, for many deltas and ``delta``; empty without a guarantee."""
    if not mechanisms or delta is None:
        return ()
    return _curve(tuple(sorted(mechanisms, key=repr)), delta)


@lru_cache(maxsize=256)
def _curve(
    mechanisms: tuple[SampledGaussian, ...], delta: float
) -> tuple[tuple[float, float], ...]:
    is_sampled = any(mechanism.sampling_rate < 1 for mechanism in mechanisms)
    points = []
    for one in sorted({delta, *(SAMPLED_DELTAS if is_sampled else DELTAS)}):
        epsilon = epsilon_spent(mechanisms, one)
        if math.isfinite(epsilon):
            points.append((epsilon, one))
    return tuple(points)


def uses_of(platform: str, believed: Believed) -> list[Use]:
    """Charges with the same numbers, counted."""
    counted: dict[tuple[Any, ...], int] = {}
    for charge in believed.charges:
        key = (*_run_and_kind(charge), *_numbers(charge))
        counted[key] = counted.get(key, 0) + 1
    names = (
        *(
            "run",
            "what",
            "noise_multiplier",
            "noise_multiplier_if_broken",
            "sampling_rate",
            "steps",
        ),
        *("clipping_norm", "own_noise_std", "denominator", "asked_sampling_rate", "asked_steps"),
    )
    return [
        Use(platform=platform, times=times, **dict(zip(names, key, strict=True)))
        for key, times in counted.items()
    ]


def _run_and_kind(charge: Charge) -> tuple[str, str]:
    run, _, rest = charge.spend.request_id.partition("/")
    return run, "rounds" if is_round(charge.spend.request_id) else rest.partition("/")[0]


def _numbers(charge: Charge) -> tuple[float | None, ...]:
    mechanism, broken = charge.spend.mechanism, charge.spend.mechanism_if_broken
    priced = (
        mechanism.noise_multiplier,
        broken.noise_multiplier,
        mechanism.sampling_rate,
        mechanism.steps,
    )
    request = charge.request
    if "quantity" in request:
        return (*priced, 1.0, broken.noise_multiplier, None, 1.0, 1)
    try:
        asked = [float(request[name]) for name in ("clipping_norm", "denominator", "sampling_rate")]
        steps = int(request["local_steps"])
    except (KeyError, TypeError, ValueError):  # an older ledger, or not written by a platform
        return (*priced, None, None, None, None, None)
    clip, denominator, rate = asked
    return (*priced, clip, broken.noise_multiplier * clip, denominator, rate, steps)


def run_parts(platform: str, believed: Believed, delta: float | None) -> list[RunPart]:
    """What each run cost by itself, in the order of their first charges."""
    runs: dict[str, list[SampledGaussian]] = {}
    for charge in believed.charges:
        runs.setdefault(_run_and_kind(charge)[0], []).append(charge.spend.mechanism)
    return [
        RunPart(
            run=run,
            platform=platform,
            num_charges=len(mechanisms),
            epsilon=None if delta is None else finite_or_none(epsilon_spent(mechanisms, delta)),
        )
        for run, mechanisms in runs.items()
    ]
