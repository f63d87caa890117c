"""Does joining pay? A sentence per platform of interest and trust, computed from the numbers.

The rule is that of `simulations.verdict`: a claim needs more than two standard errors, which here
are over users and seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.result import PRIMARY_METRIC
from simulations.verdict import Difference, Outcome, outcome_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulations.compare.result import (
        ComparedPlatform,
        CompareResult,
        ScenarioResult,
        Setting,
    )
    from simulations.compare.statistics import SeededGain

SERVED, ALONE, POPULARITY = "federated", "local", "popularity"

TRUST_WORDS = {
    "secagg": "with secure aggregation",
    "secagg-simulated": "with secure aggregation",
    "local": "with each platform adding all its noise",
    "none": "without noise",
}
SIMULATED_SECAGG = (
    "Figures with secure aggregation are of sums that were added up in the clear; under masks "
    "(--trust secagg) they are the same to the bit, and take longer."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A platform of interest in a scenario."""

    scenario: ScenarioResult
    """Where."""
    name: str
    """The platform."""
    platform: ComparedPlatform
    """What came out."""

    @property
    def label(self) -> str:
        """Short: ``t1`` or ``t1:0.1``."""
        return self.name if self.scenario.newcomer is None else self.scenario.name

    @property
    def words(self) -> str:
        """In a sentence: ``t1 with 10 % of its users``."""
        share = self.scenario.fraction
        return self.name if share is None else f"{self.name} with {100 * share:.3g} % of its users"


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseVerdict:
    """What joining does in one case at one trust and the main epsilon."""

    case: Case
    """Which."""
    trust: str
    """At which trust."""
    outcome: Outcome
    """By the rule."""
    text: str
    """The sentence with its numbers."""


def cases(result: CompareResult) -> Iterator[Case]:
    """Every platform of interest: those of the full federation, then the newcomers."""
    for scenario in result.scenarios:
        for name, platform in scenario.platforms.items():
            yield Case(scenario=scenario, name=name, platform=platform)


def setting_outcome(setting: Setting) -> Outcome:
    """Judge what is served against going alone."""
    gain = gain_over_local(setting, SERVED)
    if gain is not None and setting.num_seeds and not setting.times_joined:
        return Outcome.STAYED_ALONE
    return outcome_of(_difference(gain), unfinished=setting.unfinished)


def gain_over_local(setting: Setting, model: str) -> SeededGain | None:
    """What ``model`` adds to NDCG@10; None where it was not measured."""
    found = setting.models.get(model)
    gain = None if found is None else found.gain.get(PRIMARY_METRIC)
    return None if gain is None or gain.mean is None else gain


def value_of(setting: Setting, model: str, metric: str = PRIMARY_METRIC) -> float | None:
    """A model's metric, mean over seeds; None where it was not measured."""
    found = setting.models.get(model)
    return None if found is None else found.metrics[metric].mean


def verdicts(result: CompareResult) -> list[CaseVerdict]:
    """One per case and trust that has runs at the main epsilon."""
    found = []
    for case in cases(result):
        for trust in result.trusts:
            setting = case.platform.setting(trust, result.main_epsilon)
            if setting is not None:
                found.append(
                    CaseVerdict(
                        case=case,
                        trust=trust,
                        outcome=setting_outcome(setting),
                        text=_sentences(case, setting, result),
                    )
                )
    return found


def headline(result: CompareResult) -> str:
    """Sum the verdicts up, with names."""
    found = verdicts(result)
    if not found:
        return "Nothing was compared yet."
    parts = []
    for trust in dict.fromkeys(verdict.trust for verdict in found):
        names = {
            outcome: [v.case.label for v in found if (v.trust, v.outcome) == (trust, outcome)]
            for outcome in _PHRASES
        }
        said = [f"{_PHRASES[outcome]} {', '.join(n)}" for outcome, n in names.items() if n]
        parts.append(f"At epsilon {result.main_epsilon:g} {TRUST_WORDS[trust]}: {'; '.join(said)}.")
    return " ".join(parts)


_PHRASES = {
    Outcome.BETTER: "joining pays for",
    Outcome.WORSE: "it harms",
    Outcome.UNCLEAR: "no clear difference for",
    Outcome.STAYED_ALONE: "keeping their own model",
    Outcome.UNFINISHED: "not trained long enough to tell for",
    Outcome.UNKNOWN: "not measured for",
}

_LEADS = {
    Outcome.BETTER: "Joining pays for {}",
    Outcome.WORSE: "Joining harms {}",
    Outcome.UNCLEAR: "Joining does not pay for {}, no clear difference",
    Outcome.STAYED_ALONE: "Joining does not pay for {}, which keeps the model of its own",
    Outcome.UNFINISHED: (
        "Cannot tell for {}, whose local model was still improving (raise --epochs)"
    ),
    Outcome.UNKNOWN: "Joining was not measured for {}",
}


def _sentences(case: Case, setting: Setting, result: CompareResult) -> str:
    outcome = setting_outcome(setting)
    where = f"at epsilon {result.main_epsilon:g} {TRUST_WORDS.get(setting.trust, setting.trust)}"
    alone, served = value_of(setting, ALONE), value_of(setting, SERVED)
    gain = gain_over_local(setting, SERVED)
    text = _LEADS[outcome].format(case.words)
    if outcome is Outcome.STAYED_ALONE and alone is not None:
        text += f", NDCG@10 {alone:.4f}, {where}"
    elif gain is not None and alone is not None and served is not None:
        text += f": NDCG@10 {alone:.4f} -> {served:.4f} ({_numbers(gain)}) {where}"
    sentences = [f"{text}."]
    popularity = value_of(setting, POPULARITY)
    if popularity is not None:
        best = max((value for value in (alone, served) if value is not None), default=None)
        wins = best is not None and popularity >= best
        sentences.append(
            f"Simply the most popular items: {popularity:.4f}{', which nothing beats' * wins}."
        )
    paying = [
        f"{other.epsilon:g}"
        for other in case.platform.settings
        if (other.trust == setting.trust and setting_outcome(other) is Outcome.BETTER)
    ]
    if paying and len(result.epsilons) > 1:
        sentences.append(f"It pays at epsilon {', '.join(paying)} of those tried.")
    if gain is not None and gain.num_seeds == 1:
        sentences.append("One seed only: another draw of the noise may give another result.")
    return " ".join(sentences)


def _numbers(gain: SeededGain) -> str:
    if gain.stderr is None:
        return f"{gain.mean:+.4f}, no standard error"
    return f"{gain.mean:+.4f}, standard error {gain.stderr:.4f}"


def _difference(gain: SeededGain | None) -> Difference | None:
    if gain is None or gain.mean is None:
        return None
    return Difference(mean=gain.mean, stderr=gain.stderr)
