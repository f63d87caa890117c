"""Whether the coordinator's journal is whole in itself: lines that were cut out leave others. Pure.

A run asks for one sum or round after the other, and starts the next when the last one is closed;
one that was interrupted starts it again. What it has closed it hands over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulations.audit.findings import Finding, finding

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from simulations.audit.evidence import ServerEvidence

_STARTED, _CLOSED = ("sum-started", "round-started"), ("sum-closed", "round-closed")
_REPLY, _TAKEN = ("sum-reply", "reply"), "release-taken"
_MOST_GAPS = 4
_SUMS = ("item-counts", "item-pairs")


def check_journal(server: ServerEvidence) -> list[Finding]:
    """Whether it can be read, nothing is missing, and what it closed is what it was answered."""
    wrong = [*server.problems, *_missing(server), *_miscounted(server)]
    ok = f"{len(server.events)} events; sums and rounds follow, and closed with what came."
    return [finding("journal", f"run {server.run_id}", wrong, ok=ok)]


def _missing(server: ServerEvidence) -> list[str]:
    """Lines that others show to have been there, each once."""
    wrong = dict[str, None]()
    if server.events and server.events[0]["event"] != "run-started":
        wrong["its first line is not the start of the run"] = None
    known, asking = set[str](), ""
    for event in server.events:
        kind, what = event["event"], _what(event)
        if kind in _STARTED:
            if asking not in ("", what):
                wrong[f"{asking} was started, and never closed"] = None
            asking = what
        elif kind in (*_CLOSED, *_REPLY, _TAKEN) and what not in known:
            done = "closed" if kind in _CLOSED else "answered"
            wrong[f"{what} was {done}, and never started"] = None
        elif kind == "handing-over" and asking:
            wrong[f"{asking} was never closed, and then handed over"] = None
        if kind in (*_CLOSED, "handing-over"):
            asking = ""
        if kind in (*_STARTED, *_CLOSED, *_REPLY, _TAKEN):
            known.add(what)
    return [*wrong, *_gaps(server, known)]


def _gaps(server: ServerEvidence, known: set[str]) -> list[str]:
    """Rounds before others, and what a run that is finished was to collect and to hand over."""
    numbers = {int(one.split()[1]) for one in known if one.startswith("round ")}
    last = max(numbers, default=0)
    most = min(last, len(numbers) + _MOST_GAPS)
    missing = [f"round {number}" for number in range(1, most) if number not in numbers]
    kinds = {event["event"] for event in server.events}
    if "handing-over" not in kinds and kinds & {"handed-over", "run-finished"}:
        missing.append("the start of the hand-over")
    finished = [event for event in server.events if event["event"] == "run-finished"]
    planned = [event.get("rounds_done") for event in finished]
    missing += [f"round {done}" for done in planned if type(done) is int and done > last]
    if finished and server.config and server.config.sums:
        missing += [name for name in _SUMS if name not in known]
    return [f"{one} is missing" for one in dict.fromkeys(missing)]


def _what(event: Mapping[str, Any]) -> str:
    """The sum or round that an event is about: ``item-pairs`` or ``round 3``."""
    found = event.get("quantity", event.get("round"))
    if event["event"] == _TAKEN:
        parts = str(event.get("request_id")).split("/")
        found = parts[1] if len(parts) > 1 else None
        found = int(found) if found and found.isascii() and found.isdigit() else found
    return f"round {found}" if type(found) is int else str(found)


def _miscounted(server: ServerEvidence) -> list[str]:
    wrong, released = [], set[str]()
    for event in server.events:
        kind = event["event"]
        if kind in _STARTED:
            released = set()
        elif kind in _REPLY and event.get("outcome") == "released":
            released.add(str(event.get("platform")))
        elif kind in _CLOSED and event.get("releases") != len(released):
            wrong.append(
                f"{_what(event)}: closed with {event.get('releases')} releases, and "
                f"{len(released)} platforms had answered with one"
            )
    return wrong
