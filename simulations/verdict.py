"""Does joining pay? One plain sentence per platform, computed from the numbers and no more.

The rule: better or worse only if the difference exceeds `CONFIDENT_STDERRS` standard errors over
test users, "no clear difference" otherwise. Two standard errors mislead once in about twenty
platforms that gain nothing. They cover which users were tested, not another seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from simulations.result import PRIMARY_METRIC

if TYPE_CHECKING:
    from collections.abc import Collection

    from simulations.result import PlatformResult, RunResult

CONFIDENT_STDERRS = 2.0


class Outcome(StrEnum):
    """What joining did to a platform."""

    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "no clear difference"
    UNFINISHED = "cannot tell"
    STAYED_ALONE = "stayed alone"
    UNKNOWN = "not measured"


_LEADS = {
    Outcome.BETTER: "Joining is better than going alone",
    Outcome.WORSE: "Joining is worse than going alone",
    Outcome.UNCLEAR: "No clear difference between joining and going alone",
    Outcome.UNFINISHED: (
        "Cannot tell: local was still improving when its epochs ran out, raise --epochs"
    ),
}


_STAYED_ALONE = (
    "Keeps the model that it fitted alone: its validation users clearly preferred nothing of what "
    "the federation released."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Federated minus local, and its standard error (None if it cannot be told)."""

    mean: float
    stderr: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One platform's outcome and the sentence that gives the numbers behind it."""

    platform: str
    outcome: Outcome
    text: str


def gain_of(platform: PlatformResult, metric: str) -> Difference | None:
    """Return what joining adds to ``metric``; None where one side was not measured.

    Without a paired difference the standard error is that of two independent means, which is
    too large (never too small) where both models do well on the same users.
    """
    gain = platform.gain.get(metric)
    if gain is not None:
        return None if gain.mean is None else Difference(mean=gain.mean, stderr=gain.stderr)
    served, alone = platform.models.get("federated"), platform.models.get("local")
    if served is None or alone is None:
        return None
    mean, mean_alone = served.metrics.get(metric), alone.metrics.get(metric)
    if mean is None or mean_alone is None:
        return None
    stderr, stderr_alone = served.stderr.get(metric), alone.stderr.get(metric)
    if stderr is None or stderr_alone is None:
        return Difference(mean=mean - mean_alone, stderr=None)
    return Difference(mean=mean - mean_alone, stderr=math.hypot(stderr, stderr_alone))


def outcome_of(gain: Difference | None, *, unfinished: Collection[str] = ()) -> Outcome:
    """The rule: a claim needs more than `CONFIDENT_STDERRS` standard errors.

    A gain over a local model that was still improving is no claim either.
    """
    if gain is None:
        return Outcome.UNKNOWN
    if gain.stderr is None or abs(gain.mean) <= CONFIDENT_STDERRS * gain.stderr or gain.mean == 0:
        return Outcome.UNCLEAR
    if gain.mean < 0:
        return Outcome.WORSE
    return Outcome.UNFINISHED if "local" in unfinished else Outcome.BETTER


def platform_verdict(name: str, platform: PlatformResult) -> Verdict:
    """Judge one platform by its gain in NDCG@10."""
    gain = gain_of(platform, PRIMARY_METRIC)
    if platform.gate == "alone":
        return Verdict(platform=name, outcome=Outcome.STAYED_ALONE, text=_STAYED_ALONE)
    if gain is None:
        return Verdict(
            platform=name,
            outcome=Outcome.UNKNOWN,
            text="Joining was not measured against going alone.",
        )
    if gain.stderr is None:
        return Verdict(
            platform=name,
            outcome=Outcome.UNCLEAR,
            text=f"Too few test users to tell (NDCG@10 {gain.mean:+.4f}, no standard error).",
        )
    numbers = f"NDCG@10 {gain.mean:+.4f}, standard error {gain.stderr:.4f}"
    outcome = outcome_of(gain, unfinished=platform.unfinished)
    lead = _LEADS[outcome]
    text = f"{lead} ({numbers})."
    if _popularity_wins(platform):
        text += " Neither beats simply showing the most popular items."
    return Verdict(platform=name, outcome=outcome, text=text)


def headline(result: RunResult) -> str:
    """Sum the verdicts up in one sentence of counts."""
    outcomes = [platform_verdict(n, p).outcome for n, p in result.platforms.items()]
    if not outcomes:
        return "No platform was measured."
    parts = [
        f"{outcomes.count(outcome)} {phrase}"
        for outcome, phrase in (
            (Outcome.BETTER, "better than going alone"),
            (Outcome.WORSE, "worse than going alone"),
            (Outcome.UNCLEAR, "no clear difference"),
            (Outcome.UNFINISHED, "not trained long enough to tell (raise --epochs)"),
            (Outcome.STAYED_ALONE, "keeping their own model"),
            (Outcome.UNKNOWN, "not measured"),
        )
        if outcome in outcomes
    ]
    total = len(outcomes)
    return f"Joining, {total} platform{'s' if total > 1 else ''}: {', '.join(parts)}."


def _popularity_wins(platform: PlatformResult) -> bool:
    values = {
        name: platform.models[name].metrics.get(PRIMARY_METRIC)
        for name in ("popularity", "local", "federated")
        if name in platform.models
    }
    popularity = values.pop("popularity", None)
    others = [value for value in values.values() if value is not None]
    return popularity is not None and bool(others) and popularity >= max(others)
