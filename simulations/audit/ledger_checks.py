"""What can be checked of one ledger by itself, and of the releases beside it.

Pure, and written from the documented definitions: the chain is hashed, mechanisms are derived and
periods are counted here, and not by the code that wrote the ledger.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from common.privacy.mechanisms import SampledGaussian
from simulations.audit.accountants import by_dp_accounting, exactly
from simulations.audit.findings import Finding, finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from common.privacy.account import Entry
    from common.privacy.accounting import AccountantName
    from simulations.audit.books import Book, Reserved
    from simulations.audit.evidence import LedgerEvidence

    Product = Callable[[Sequence[SampledGaussian], float, AccountantName], float]
    """The product's own accountant: :func:`common.privacy.accounting.epsilon_spent`."""

TOLERANCE = 1e-6
"""Relative; accountants round."""

_GENESIS = "0" * 64
_SUMS = ("item-counts", "item-pairs")
_MOST_RECOMPUTED = 200
_MOST_RECOMPUTED_SAMPLED = 5
"""With sampling each takes a second."""


def digest_after(previous: str, entry: Entry) -> str:
    """SHA-256 of the digest before, the number, and each text after its length."""
    parts = [previous, str(entry.sequence)]
    parts += [f"{len(t)}:{t}" for t in (entry.time, entry.kind, entry.request_id, entry.body)]
    return hashlib.sha256(" ".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def check_ledger(ledger: LedgerEvidence, book: Book, product: Product) -> list[Finding]:
    """All of them."""
    name = ledger.platform
    return [
        finding("readable", name, ledger.problems, ok="its files were read."),
        _chain(ledger),
        _head(ledger),
        finding("entries", name, book.problems, ok="each entry holds what its kind holds."),
        _once(name, book),
        _requests(name, book),
        _mechanisms(name, book),
        _epsilons(name, book, product),
        _budget(name, book, product),
        _sampler(name, book),
        _releases(ledger, book),
    ]


def _chain(ledger: LedgerEvidence) -> Finding:
    wrong, previous, time = [], _GENESIS, ""
    for number, entry in enumerate(ledger.entries, start=1):
        if entry.sequence != number:
            wrong = [f"entry {entry.sequence} stands in the place of entry {number}"]
            break
        if _is_before(entry.time, time):
            wrong.append(f"entry {number} is dated {entry.time}, before the entry before it")
        if digest_after(previous, entry) != entry.digest:
            wrong.append(f"entry {number} ({entry.kind}) was changed after it was written")
            break
        previous, time = entry.digest, entry.time
    ok = f"{len(ledger.entries)} entries follow one from the other."
    return finding("chain", ledger.platform, wrong, ok=ok)


def _is_before(time: str, former: str) -> bool:
    try:
        return bool(former) and datetime.fromisoformat(time) < datetime.fromisoformat(former)
    except (ValueError, TypeError):  # what is no time is the business of `entries`
        return False


def _head(ledger: LedgerEvidence) -> Finding:
    wrong = []
    if ledger.head is None:
        wrong = ["the head file is missing: entries may have been cut off at the end"]
    else:
        number, digest = ledger.head
        held = {entry.sequence: entry.digest for entry in ledger.entries} | {0: _GENESIS}
        if number not in held:
            wrong = [f"it ends before entry {number}, which its head file holds the digest of"]
        elif held[number] != digest:
            wrong = [f"its head file holds another entry {number}"]
    ok = "it does not end before the entry that its head file holds."
    return finding("head", ledger.platform, wrong, ok=ok)


def _once(name: str, book: Book) -> Finding:
    """A request is charged once, released once, and in one sum; in this order."""
    wrong = [
        f"{request} was charged {times} times"
        for request, times in Counter(one.request_id for one in book.reserved).items()
        if times > 1
    ]
    charged = {one.request_id: one.sequence for one in reversed(book.reserved)}
    released: dict[str, int] = {}
    for sequence, request, _ in book.commits:
        if charged.get(request, math.inf) > sequence:
            wrong.append(f"entry {sequence}: a release of {request} that was not charged before")
        if request in released:
            wrong.append(f"entry {sequence}: a second release of {request}")
        released.setdefault(request, sequence)
    lists: dict[str, str] = {}
    for sequence, request, sha256, survivors in book.confirmed:
        if released.get(request, math.inf) > sequence:
            wrong.append(f"entry {sequence}: confirms a sum with no release of {request} before")
        if lists.setdefault(request, sha256) != sha256:
            wrong.append(f"entry {sequence}: a second list of who is in a sum with {request}")
        if request.rpartition("/")[2] not in survivors:
            wrong.append(f"entry {sequence}: confirms a sum that {request} is not in")
    ok = f"{len(charged)} requests charged once, {len(released)} released once, each after that."
    return finding("once", name, wrong, ok=ok)


def _requests(name: str, book: Book) -> Finding:
    wrong, unknown = [], 0
    for one in book.reserved:
        if not one.request:
            unknown += 1
            continue
        text = json.dumps([one.request, one.arrays_digest], sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest() != one.request_digest:
            wrong.append(f"entry {one.sequence}: the request is not the one that was digested")
        elif one.request_id != _id_of(one.request):
            wrong.append(f"entry {one.sequence}: the request is not that of {one.request_id}")
        elif one.request.get("platform") != name:
            wrong.append(f"entry {one.sequence}: the request is for another platform")
    return finding(
        "requests",
        name,
        wrong,
        ok=f"{len(book.reserved)} requests are those that were digested.",
        unknown=f"{unknown} spends of an older version do not say what was asked for."
        if unknown
        else "",
    )


def _id_of(request: Any) -> str:  # noqa: ANN401 - any JSON object
    what = request.get("quantity", request.get("round_number"))
    return f"{request.get('run_id')}/{what}/{request.get('platform')}"


def _mechanisms(name: str, book: Book) -> Finding:
    wrong, unknown = [], 0
    for one in book.reserved:
        if one.grant and one.mechanism.unit != one.grant.unit:
            wrong.append(
                f"entry {one.sequence}: charged per {one.mechanism.unit}, granted per "
                f"{one.grant.unit}"
            )
        if not one.request:
            unknown += 1
            continue
        try:
            asked, alone = _derived(one.request)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            wrong.append(f"entry {one.sequence}: no mechanism follows from the request ({error})")
            continue
        for what, derived, recorded in (
            ("an observer", asked, one.mechanism),
            ("who sees the release alone", alone, one.mechanism_if_broken),
        ):
            if not _alike(derived, recorded):
                wrong.append(
                    f"entry {one.sequence}: by the request {what} faces {_told(derived)}, the "
                    f"ledger charged {_told(recorded)}"
                )
    return finding(
        "mechanisms",
        name,
        wrong,
        ok=f"{len(book.reserved)} mechanisms follow from what was asked for.",
        unknown=f"{unknown} spends of an older version do not say what was asked for."
        if unknown
        else "",
    )


def _derived(request: Any) -> tuple[SampledGaussian, SampledGaussian]:  # noqa: ANN401 - JSON
    """What a request costs: seen as its trust mode says, and by itself.

    A sum takes every user once. A round samples in each of its steps. In a secure sum of K
    platforms, of which d may drop out and c collude, each adds 1/sqrt(K - d - c) of the noise.
    """
    noise, terms = float(request["noise_multiplier"]), request["secagg"]
    rate, steps = 1.0, 1
    if "quantity" not in request:
        rate, steps = float(request["sampling_rate"]), int(request["local_steps"])
    elif request["quantity"] not in _SUMS:
        raise ValueError("an unknown sum")
    share = 1.0
    if (terms is not None) != (request["trust"] in ("secagg", "secagg-simulated")):
        raise ValueError("its terms do not go with its trust mode")
    if terms is not None:
        number = len(set(terms["participants"]))
        if number != request["num_platforms"] or steps > 1 or terms["max_colluding"] < 1:
            raise ValueError("its terms are not those of a secure sum")
        if request["platform"] not in terms["participants"]:
            raise ValueError("it is not in the sum itself")
        share = (number - terms["max_dropped"] - terms["max_colluding"]) ** -0.5
    return (
        SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps),
        SampledGaussian(noise_multiplier=noise * share, sampling_rate=rate, steps=steps),
    )


def _alike(one: SampledGaussian, other: SampledGaussian) -> bool:
    return (one.sampling_rate, one.steps, one.unit) == (
        other.sampling_rate,
        other.steps,
        other.unit,
    ) and math.isclose(one.noise_multiplier, other.noise_multiplier, rel_tol=1e-12)


def _told(one: SampledGaussian) -> str:
    sampled = f" at rate {one.sampling_rate:g}" if one.sampling_rate < 1 else ""
    steps = f" in {one.steps} steps" if one.steps > 1 else ""
    return f"noise {one.noise_multiplier:.6g}{sampled}{steps}"


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
        SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=count, unit=unit)
        for (noise, rate, unit), count in steps.items()
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
                    f"entry {one.sequence}: {_told(one.mechanism)} after {_told(former)} in a "
                    "period with sampling, where both have to stay"
                )
    ok = "noise and rate stay the same in each period." if sampling else "nothing was sampled."
    return finding("sampler", name, wrong, ok=ok)


def _releases(ledger: LedgerEvidence, book: Book) -> Finding:
    """Files against what was recorded of them; not all are kept."""
    recorded, wrong = book.releases, []
    committed = {sha256: request for request, sha256 in recorded.items()}
    for file, sha256 in ledger.releases.items():
        request = committed.get(sha256)
        if request is None:
            wrong.append(f"{file} was never recorded, or was changed since")
        elif recorded_file(request) != file:
            wrong.append(f"{file} holds the release of {request}, and bears another one's name")
    missing = [
        request
        for request in _kept_until_now(ledger, book)
        if request in recorded and recorded_file(request) not in ledger.releases
    ]
    return finding(
        "releases",
        ledger.platform,
        wrong,
        ok=f"{len(ledger.releases)} kept releases of {len(recorded)} are as they were recorded.",
        unknown=f"{len(missing)} of the latest releases are not there, {missing[0]} for one: "
        "deleted, or not handed to the auditor."
        if missing
        else "",
    )


def _kept_until_now(ledger: LedgerEvidence, book: Book) -> list[str]:
    """The latest rounds, and the sums of the latest run: the others are deleted."""
    if not book.reserved:
        return []
    keep = ledger.config.state.keep_releases if ledger.config else 1
    names = [one.request_id for one in book.reserved]
    sums = [name for name in names if name.split("/")[1:2] and name.split("/")[1] in _SUMS]
    rounds = [name for name in names if name not in set(sums)]
    run = names[-1].partition("/")[0]
    return [*rounds[-keep:], *(name for name in sums if name.startswith(f"{run}/"))]


def recorded_file(request_id: str) -> str:
    """The file that a release is kept in."""
    return f"{hashlib.sha256(request_id.encode()).hexdigest()[:32]}.safetensors"
