"""Whether what was spent is what was written down, and within what was granted. Pure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from common.privacy.mechanisms import MAX_STEPS, SampledGaussian
from simulations.audit.accountants import by_dp_accounting, exactly
from simulations.audit.checks.requests import told
from simulations.audit.findings import Finding, finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from client.config import PlatformConfig
    from common.privacy.accounting import AccountantName
    from simulations.audit.books import Book, Reserved

    Product = Callable[[Sequence[SampledGaussian], float, AccountantName], float]
    """The product's own accountant: :func:`common.privacy.accounting.epsilon_spent`."""

TOLERANCE = 1e-6
"""Relative; accountants round."""

_MOST_RECOMPUTED = 200
_MOST_RECOMPUTED_SAMPLED = 5
"""With sampling each takes a second."""


def check_spending(name: str, book: Book, product: Product) -> list[Finding]:
    """All of it."""
    return [_epsilons(name, book, product), _budget(name, book, product), _sampler(name, book)]


def _epsilons(name: str, book: Book, product: Product) -> Finding:
    """Epsilons as written down, against the product's accountant and against the truth."""
    spends = book.reserved
    places = evenly(len(spends), most_recomputed(spends))
    wrong, unknown = [], 0
    for place, after in zip(places, prefixes(spends, places), strict=True):
        one = spends[place]
        if one.epsilon_after is None or one.grant is None or one.accountant not in ("prv", "rdp"):
            unknown += 1
            continue
        accountant: AccountantName = "rdp" if one.accountant == "rdp" else "prv"
        delta = one.grant.delta
        for when, written, mechanisms in (
            ("before", one.epsilon_before, _less(after, one.mechanism)),
            ("after", one.epsilon_after, after),
        ):
            expected, found = product(mechanisms, delta, accountant), written or 0.0
            if not math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=1e-9):
                wrong.append(
                    f"entry {one.sequence}: wrote down epsilon {found:.6g} {when} it, the "
                    f"mechanisms cost {expected:.6g}"
                )
            elif is_less(found, exactly(mechanisms, delta).epsilon):
                wrong.append(
                    f"entry {one.sequence}: wrote down epsilon {found:.6g} {when} it, less than "
                    "the truth"
                )
    return finding(
        "epsilon",
        name,
        wrong,
        ok=f"{len(places)} of {len(spends)} epsilons are what the mechanisms up to them cost.",
        unknown=f"{unknown} spends have no epsilon or no grant written down." if unknown else "",
    )


def _budget(name: str, book: Book, product: Product) -> Finding:
    """The last spend under each grant is the dearest under it: these are priced."""
    spends = book.reserved
    last = {(one.grant and one.grant.sequence, one.period): n for n, one in enumerate(spends)}
    places = sorted(last.values())
    wrong = [
        f"entry {one.sequence}: reserved after the granted period was over"
        for one in spends
        if one.is_late
    ]
    without = [one for one in spends if one.grant is None]
    wrong += [
        f"entry {one.sequence}: a reservation without a grant"
        for one in without
        if one.epsilon_after is not None
    ]
    for place, mechanisms in zip(places, prefixes(spends, places), strict=True):
        one, grant = spends[place], spends[place].grant
        if grant is None:
            continue
        limit = grant.epsilon * (1 + TOLERANCE)
        spent = product(mechanisms, grant.delta, "prv")
        if not spent > limit:  # the product may be mistaken
            spent = least_possible(mechanisms, grant.delta) or spent
        if spent > limit:
            wrong.append(
                f"entry {one.sequence}: epsilon {spent:.6g} is beyond the granted {grant.epsilon:g}"
            )
    return finding(
        "budget",
        name,
        wrong,
        ok=f"every spend lies within its grant ({len(book.grants)} granted).",
        unknown="spends of the oldest version came before any grant." if without else "",
    )


def check_configuration(
    name: str, book: Book, config: PlatformConfig | None, product: Product
) -> Finding:
    """What ``platform.toml`` says now against the grant in force; epsilon may be lower there."""
    wrong, unknown, ok = list[str](), "", "nothing was granted yet."
    if config is None:
        unknown = "its platform.toml is not there."
    elif book.grants:
        grant, now = book.grants[-1], config.privacy
        wrong = [
            f"platform.toml says {key} {_or_life(found)} now, granted was {_or_life(granted)}"
            for key, found, granted in (
                ("delta", now.delta, grant.delta),
                ("unit", now.unit, grant.unit),
                ("period_days", now.period_days, grant.period_days),
            )
            if found != granted
        ]
        spends = together(one for one in book.reserved if one.period == book.period)
        spent = product(spends, grant.delta, "prv") if spends else 0.0
        if now.epsilon < grant.epsilon and spent > now.epsilon * (1 + TOLERANCE):
            unknown = (
                f"platform.toml allows epsilon {now.epsilon:g} now, and {spent:.3f} is spent of "
                f"the granted {grant.epsilon:g}: nothing more is released; when it was lowered "
                "the ledger does not say."
            )
        ok = f"platform.toml allows epsilon {now.epsilon:g}; the rest is as granted."
    return finding("configuration", name, wrong, ok=ok, unknown=unknown)


def _or_life(value: object) -> str:
    return "none (for life)" if value is None else f"{value}"


def _sampler(name: str, book: Book) -> Finding:
    """Prices with sampling hold for noise and rate that are fixed beforehand."""
    wrong: list[str] = []
    first: dict[int, Reserved] = {}
    sampling = {one.period for one in book.reserved if one.mechanism.sampling_rate < 1}
    for one in book.reserved:
        if one.period in sampling:
            former = first.setdefault(one.period, one).mechanism
            kept = (former.noise_multiplier, former.sampling_rate)
            if (one.mechanism.noise_multiplier, one.mechanism.sampling_rate) != kept:
                wrong.append(
                    f"entry {one.sequence}: {told(one.mechanism)} after {told(former)} in a "
                    "period with sampling, where both have to stay"
                )
    ok = "noise and rate stay the same in each period." if sampling else "nothing was sampled."
    return finding("sampler", name, wrong, ok=ok)


def together(spends: Iterable[Reserved]) -> list[SampledGaussian]:
    """Their mechanisms, equal ones as one of more steps."""
    return _of(Counter(_steps(spends)))


def _steps(spends: Iterable[Reserved]) -> Counter[tuple[float, float, Any]]:
    steps: Counter[tuple[float, float, Any]] = Counter()
    for one in spends:
        found = one.mechanism
        steps[found.noise_multiplier, found.sampling_rate, found.unit] += found.steps
    return steps


def _of(steps: Counter[tuple[float, float, Any]]) -> list[SampledGaussian]:
    return [
        SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=part, unit=unit)
        for (noise, rate, unit), count in steps.items()
        for part in (*[MAX_STEPS] * ((count - 1) // MAX_STEPS), (count - 1) % MAX_STEPS + 1)
    ]


def _less(mechanisms: Sequence[SampledGaussian], last: SampledGaussian) -> list[SampledGaussian]:
    """``mechanisms`` without the steps of ``last``, which is one of them."""
    key = (last.noise_multiplier, last.sampling_rate)
    return [
        one
        if (one.noise_multiplier, one.sampling_rate) != key
        else replace(one, steps=one.steps - last.steps)
        for one in mechanisms
        if (one.noise_multiplier, one.sampling_rate) != key or one.steps > last.steps
    ]


def prefixes(spends: Sequence[Reserved], places: Iterable[int]) -> list[list[SampledGaussian]]:
    """Mechanisms of the period of each of ``places`` up to it, increasing; itself included."""
    found, done, steps, period = [], 0, Counter[tuple[float, float, Any]](), 0
    for place in places:
        for one in spends[done : place + 1]:
            if one.period != period:
                steps, period = Counter(), one.period
            steps.update(_steps([one]))
        done = place + 1
        found.append(_of(steps))
    return found


def evenly(number: int, at_most: int) -> list[int]:
    """Up to ``at_most`` of 0 .. number - 1 at even distances, the last one always."""
    step = max(1, math.ceil(number / at_most))
    return list(range(number))[::-1][::step][::-1]


def most_recomputed(spends: Sequence[Reserved]) -> int:
    """How many epsilons are recomputed: each costs a second where users were sampled."""
    is_quick = all(one.mechanism.sampling_rate == 1 for one in spends)
    return _MOST_RECOMPUTED if is_quick else _MOST_RECOMPUTED_SAMPLED


def least_possible(mechanisms: Sequence[SampledGaussian], delta: float) -> float | None:
    """What no accountant may say less than: the truth, or dp-accounting rounded down."""
    truth = exactly(mechanisms, delta).epsilon
    return by_dp_accounting(mechanisms, delta).least if truth is None else truth


def is_less(found: float, least: float | None) -> bool:
    """Whether ``found`` is below a lower bound, by more than rounding."""
    return least is not None and found < least * (1 - TOLERANCE) - 1e-9
