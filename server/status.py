"""Where a run stands, as its journal tells it. Pure: events in, a summary out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DONE = frozenset({"released", "adopted"})
"""Outcomes of a platform that did what it was asked."""

_NEXT_STAGE = {"share": "mask", "mask": "confirm", "confirm": "unmask"}


def stage_of(event: Mapping[str, Any]) -> str:
    """What a secure sum does after ``event``, which says that a stage is over: for people."""
    stage = _NEXT_STAGE.get(event["stage"])
    return f"stage {stage} ({event['platforms']} platforms)" if stage else "opened"


@dataclass(kw_only=True, slots=True)
class PlatformStatus:
    """One platform, as the server knows it."""

    joined: bool = False
    """In the latest start of the run."""
    num_releases: int = 0
    """Releases that were added up."""
    num_refusals: int = 0
    """Replies that were not, of whatever cause."""
    last_outcome: str = ""
    """What it last did, or why its last reply was left out."""
    has_result: bool = False
    """Whether it was handed what the run made."""
    set_aside: str = ""
    """Why it is not asked any more; empty while it is."""


@dataclass(kw_only=True, slots=True)
class RunSummary:
    """One run."""

    state: Literal["not started", "running or interrupted", "finished", "failed"] = "not started"
    """What the journal's last word means; only a process list tells running from interrupted."""
    reason: str = ""
    """Why it failed."""
    rounds: int = 0
    """Planned."""
    rounds_done: int = 0
    """Closed."""
    sums_done: tuple[str, ...] = ()
    """Quantities whose sum is there."""
    num_starts: int = 0
    """How often it was started or resumed."""
    step: str = ""
    """What it was last doing."""
    updated: float | None = None
    """Time of the last event, seconds since 1970."""
    platforms: dict[str, PlatformStatus] = field(default_factory=dict)
    """By name."""
    refused: tuple[str, ...] = ()
    """Nodes that were not let in, with the cause."""


def summarise(  # noqa: C901, PLR0912 - one case for each event
    events: Iterable[Mapping[str, Any]],
) -> RunSummary:
    """Read the journal of a run from its beginning."""
    run = RunSummary()
    for event in events:
        run.updated = event.get("time", run.updated)
        match event["event"]:
            case "run-started":
                run.state, run.reason, run.step = "running or interrupted", "", "waiting"
                run.rounds, run.rounds_done = event["rounds"], event["rounds_done"]
                run.num_starts += 1
                for platform in run.platforms.values():
                    platform.joined = False
            case "platform-joined":
                _of(run, event).joined = True
            case "platform-refused":
                cause = f"node {event['node']}: {event['reason']}"
                run.refused = (*[known for known in run.refused if known != cause], cause)
            case "sum-started":
                run.step = f"sum of {event['quantity']}"
            case "round-started":
                run.step = f"round {event['round']}"
            case "secagg-stage":
                run.step = f"{event['what']}, {stage_of(event)}"
                for name, outcome in event.get("missing", {}).items():
                    # Its release may be in the sum all the same: then a reply follows.
                    platform = run.platforms.setdefault(name, PlatformStatus())
                    platform.last_outcome = f"{outcome} (stage {event['stage']!r})"
            case "sum-reply" | "reply":
                _answered(_of(run, event), event["outcome"])
            case "sum-closed":
                run.sums_done = tuple(dict.fromkeys((*run.sums_done, event["quantity"])))
            case "round-closed":
                run.rounds_done = event["round"]
            case "platform-set-aside":
                _of(run, event).set_aside = event["cause"]
            case "platform-readmitted":
                _of(run, event).set_aside = ""
            case "handing-over":
                run.step = "handing over"
            case "handed-over":
                platform = _of(run, event)
                platform.last_outcome = event["outcome"]
                platform.has_result = event["outcome"] in DONE
            case "run-finished":
                run.state, run.step = "finished", ""
            case "run-failed":
                run.state, run.reason, run.step = "failed", event["reason"], ""
    return run


def _of(run: RunSummary, event: Mapping[str, Any]) -> PlatformStatus:
    return run.platforms.setdefault(event["platform"], PlatformStatus())


def _answered(platform: PlatformStatus, outcome: str) -> None:
    platform.last_outcome = outcome
    if outcome in DONE:
        platform.num_releases += 1
    else:
        platform.num_refusals += 1
