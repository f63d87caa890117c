"""What a platform's ledger and the coordinator's journal say of each other. Pure.

A ledger that was rebuilt from its first entry is whole in itself: it shows by the digests of the
releases that the coordinator took.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from simulations.audit.books import read_mechanism
from simulations.audit.findings import Finding, finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from server.config import FederationConfig
    from simulations.audit.books import Book
    from simulations.audit.evidence import LedgerEvidence, ServerEvidence

_CLOCKS_DIFFER = 86_400.0
"""Seconds; by more than that times were made up."""


def check_against_server(
    ledger: LedgerEvidence, book: Book, server: ServerEvidence
) -> list[Finding]:
    """One platform's ledger against one run's journal."""
    name, run = ledger.platform, server.run_id
    mine = [event for event in server.events if _is_about(event, name)]
    if not mine and not book.spends_of(run):
        return []
    return [
        _server_releases(name, book, run, mine),
        _server_confirmations(name, book, run, server.events),
        _server_mechanisms(name, book, run, mine),
        _server_spends(name, book, run, mine),
        _server_times(ledger, run, mine),
        _server_configuration(name, book, run, server.config),
    ]


def platforms_in(events: Sequence[Mapping[str, Any]]) -> set[str]:
    """Whose releases a journal says were taken or summed."""
    taken = [e.get("platform") for e in events if e["event"] == "release-taken"]
    summed = [e.get("survivors") for e in events if e["event"] == "survivors-confirmed"]
    return {*_names(taken), *(name for names in summed for name in _names(names))}


def _is_about(event: Mapping[str, Any], name: str) -> bool:
    if event.get("platform") == name:
        return True
    return name in [*_names(event.get("platforms")), *_names(event.get("survivors"))]


def _names(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _request(run: str, event: Mapping[str, Any], name: str) -> str:
    return f"{run}/{event.get('quantity', event.get('round'))}/{name}"


def _server_releases(
    name: str, book: Book, run: str, events: Sequence[Mapping[str, Any]]
) -> Finding:
    recorded, wrong, taken = book.releases, list[str](), 0
    answered = {
        _request(run, event, name)
        for event in events
        if event["event"] in ("sum-reply", "reply") and event.get("outcome") == "released"
    }
    for event in events:
        if event["event"] != "release-taken":
            continue
        taken += 1
        request, sha256 = str(event.get("request_id")), event.get("sha256")
        answered.discard(request)
        if not (request.startswith(f"{run}/") and request.endswith(f"/{name}")):
            wrong.append(f"the coordinator took a release named {request} from this platform")
        elif request not in recorded:
            wrong.append(f"the coordinator took a release of {request} that the ledger lacks")
        elif recorded[request] != sha256:
            wrong.append(
                f"the coordinator took another release of {request} than the ledger recorded: "
                "forked, or swapped"
            )
    wrong += [
        f"the coordinator was answered {request}, and the ledger has no release of it"
        for request in sorted(answered - recorded.keys())
    ]
    summed = {request for _, request, *_ in book.confirmed}
    unseen = len(answered & recorded.keys() - summed)
    added_up = len(answered & summed)
    return finding(
        "server-releases",
        name,
        wrong,
        ok=f"{taken} releases that run {run} took are those that the ledger recorded"
        + (f"; {added_up} more it saw added up only." if added_up else "."),
        unknown=f"run {run} does not say which {unseen} releases it took: it saw them added up, or "
        "its version did not write it down."
        if unseen
        else "",
    )


def _server_confirmations(
    name: str, book: Book, run: str, events: Sequence[Mapping[str, Any]]
) -> Finding:
    held = {request: (sha256, names) for _, request, sha256, names in book.confirmed}
    wrong, seen, missing = list[str](), set[str](), dict[str, Any]()
    for event in events:
        if event["event"] == "secagg-stage" and event.get("stage") == "confirm":
            found = event.get("missing")
            missing = found if isinstance(found, dict) else {}
        survivors = _names(event.get("survivors"))
        if event["event"] != "survivors-confirmed" or name not in survivors:
            continue
        request = next((r for r in _names(event.get("request_ids")) if r.endswith(f"/{name}")), "")
        seen.add(request)
        if request not in held:
            if name not in missing:
                wrong.append(f"the coordinator was confirmed a sum with {request}; not here")
        elif held[request] != (event.get("sha256"), tuple(survivors)):
            wrong.append(
                f"the coordinator was confirmed another sum with {request} than the ledger holds"
            )
    alone = [request for request in held if request.startswith(f"{run}/") and request not in seen]
    return finding(
        "server-confirmations",
        name,
        wrong,
        ok=f"{len(seen)} secure sums of run {run} are those that the ledger confirmed."
        if seen
        else f"run {run} opened no secure sum with this platform in it.",
        unknown=f"{len(alone)} confirmed sums, {alone[0]} for one, were not opened by run {run}, "
        "or it did not write that down."
        if alone
        else "",
    )


def _server_mechanisms(
    name: str, book: Book, run: str, events: Sequence[Mapping[str, Any]]
) -> Finding:
    spends = {one.request_id: one for one in book.reserved}
    wrong, agreed, silent = list[str](), 0, 0
    for event in events:
        if event["event"] not in ("sum-started", "round-started"):
            continue
        one = spends.get(_request(run, event, name))
        if one is None:
            continue
        if "mechanism" not in event:
            silent += 1
            continue
        try:
            asked = [read_mechanism(event.get(k)) for k in ("mechanism", "mechanism_if_broken")]
        except (ValueError, TypeError, ConfigError) as error:
            wrong.append(f"the journal names no mechanism for {one.request_id} ({error})")
            continue
        agreed += 1
        if asked != [one.mechanism, one.mechanism_if_broken]:
            wrong.append(
                f"the coordinator says that {one.request_id} has noise "
                f"{asked[0].noise_multiplier:.6g}, the ledger was charged for "
                f"{one.mechanism.noise_multiplier:.6g}"
            )
    return finding(
        "server-mechanisms",
        name,
        wrong,
        ok=f"{agreed} mechanisms that run {run} asked for are those that were charged.",
        unknown=f"run {run} did not write down the mechanisms of {silent} requests."
        if silent
        else "",
    )


def _server_spends(name: str, book: Book, run: str, events: Sequence[Mapping[str, Any]]) -> Finding:
    asked = {
        _request(run, event, name)
        for event in events
        if event["event"] in ("sum-started", "round-started")
    }
    done = {
        _request(run, event, name)
        for event in events
        if event["event"] in ("sum-reply", "reply") and event.get("outcome") == "released"
    }
    spends = [one.request_id for one in book.spends_of(run)]
    wrong = [
        f"{request} was charged, and the journal does not hold the question: it is incomplete, or "
        "it was never asked"
        for request in spends
        if request not in asked
    ]
    unused = [request for request in spends if request in asked and request not in done]
    lost = (
        f"; {len(unused)} more, {unused[0]} for one, were charged without a release that the "
        "coordinator used (it was killed, late or refused), and count all the same"
        if unused
        else ""
    )
    ok = f"{len(spends) - len(unused)} spends are releases that run {run} used{lost}."
    return finding("server-spends", name, wrong, ok=ok)


def _server_times(ledger: LedgerEvidence, run: str, events: Sequence[Mapping[str, Any]]) -> Finding:
    """Nothing is charged before it is asked, or recorded after it arrived: periods go by time."""
    asked: dict[str, float] = {}
    taken: dict[str, float] = {}
    for event in events:
        time = event.get("time")
        if isinstance(time, int | float):
            if event["event"] in ("sum-started", "round-started"):
                asked.setdefault(_request(run, event, ledger.platform), time)
            elif event["event"] == "release-taken":
                taken.setdefault(str(event.get("request_id")), time)
    wrong, compared = [], 0
    for entry in ledger.entries:
        request = entry.request_id
        earliest = asked.get(request) if entry.kind == "reserve" else None
        latest = taken.get(request) if entry.kind == "commit" else None
        if earliest is None and latest is None:
            continue
        compared += 1
        written = _seconds(entry.time)
        if written is None:  # which is the business of `entries`
            continue
        if earliest is not None and written < earliest - _CLOCKS_DIFFER:
            wrong.append(f"entry {entry.sequence}: {request} was charged before it was asked for")
        if latest is not None and written > latest + _CLOCKS_DIFFER:
            wrong.append(f"entry {entry.sequence}: {request} was recorded after it had arrived")
    ok = f"{compared} times in the ledger go with those of run {run}, to a day."
    return finding("server-times", ledger.platform, wrong, ok=ok)


def _seconds(time: str) -> float | None:
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        return None


def _server_configuration(
    name: str, book: Book, run: str, config: FederationConfig | None
) -> Finding:
    """Noise in ``federation.toml`` against what was charged."""
    wrong: list[str] = []
    spends = book.spends_of(run) if config else []
    for one in spends:
        expected = _configured(one.request_id.split("/")[1], config)
        found = one.mechanism
        if expected != (found.noise_multiplier, found.sampling_rate, found.steps):
            wrong.append(
                f"federation.toml says {expected} (noise, rate, steps) for {one.request_id}, the "
                f"ledger {(found.noise_multiplier, found.sampling_rate, found.steps)}"
            )
    return finding(
        "federation-toml",
        name,
        wrong,
        ok=f"{len(spends)} spends have the noise that federation.toml asks for.",
        unknown="" if config else f"the federation.toml of run {run} is not there.",
    )


def _configured(what: str, config: FederationConfig | None) -> tuple[float | None, float, int]:
    if config is None:
        return None, 1.0, 1
    if config.sums and what == "item-counts":
        return config.sums.counts_noise_multiplier, 1.0, 1
    if config.sums and what == "item-pairs":
        return config.sums.pairs_noise_multiplier, 1.0, 1
    mechanism = config.mechanism
    return mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.local_steps
