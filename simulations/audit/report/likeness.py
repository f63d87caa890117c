"""Whether an attack was on the settings that platforms ran. Pure.

An attack on something else says nothing about them. What decides is in their ledgers: epsilon,
delta, trust mode and unit, and the kinds, noise, rates and steps of what was charged; of simulated
runs also their options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.privacy.plan import PLANS, plan_noise
from simulations.audit.report.strength import shown_epsilon

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from simulations.attacks.membership.result import AttackResult
    from simulations.audit.report.parts import PlatformPart, Use
    from simulations.result import RunResult

TOLERANCE = 0.01
"""Relative, of epsilon and noise."""

_OPTIONS = (
    *("epsilon", "delta", "trust", "plan", "privacy_unit", "max_dropped", "max_colluding"),
    *("rounds", "sampling_rate", "local_steps", "clipping_norm"),
)
"""Options that an attacked run must share with the audited one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """Whether attacked and audited settings are the same."""

    is_same: bool | None
    """None: it cannot be told."""
    reasons: tuple[str, ...]
    """What differs, or what is not known; empty if they are the same."""


def likeness(
    attack: AttackResult | None,
    parts: Mapping[str, PlatformPart],
    uses: Sequence[Use],
    results: Sequence[RunResult],
) -> Likeness:
    """Compare what was attacked with what was run.

    Args:
        attack: what was tried; None: nothing.
        parts: every platform; those that charged nothing have no settings to compare.
        uses: what they charged.
        results: of simulated runs.
    """
    if attack is None:
        return Likeness(is_same=None, reasons=())
    different = list(_of_runs(attack.configuration, results))
    unknown: list[str] = []
    charged = {name: part for name, part in parts.items() if part.num_reserved > 0}
    groups: dict[str, list[str]] = {}
    for name, part in charged.items():
        own = [use for use in uses if use.platform == name]
        for reason in (*_of_numbers(attack, part), *_of_charges(attack.configuration, own)):
            groups.setdefault(reason, []).append(name)
        for what, value in (("epsilon", part.epsilon_for_life), ("trust mode", part.trust)):
            if value is None and part.guarantee != "none":
                unknown.append(f"the {what} of {name} is not known")
        if part.guarantee == "unknown":
            unknown.append(f"what {name} spent is not known")
    different += [f"{reason} ({_first(names)})" for reason, names in groups.items()]
    if different:
        return Likeness(is_same=False, reasons=tuple(different))
    if "trust" not in attack.configuration:
        unknown.append("attack.json does not tell its trust mode")
    if not charged:
        unknown.append("no platform charged anything")
    return Likeness(is_same=None if unknown else True, reasons=tuple(dict.fromkeys(unknown)))


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _of_runs(attacked: Mapping[str, object], results: Sequence[RunResult]) -> Iterator[str]:
    if not results:
        return
    options = [_options(attacked, result.configuration) for result in results]
    if all(options):
        yield from min(options, key=len)


def _options(attacked: Mapping[str, object], audited: Mapping[str, object]) -> list[str]:
    return [
        f"option {name} {attacked.get(name, 'not told')}, and not {audited[name]}"
        for name in _OPTIONS
        if name in audited and attacked.get(name) != audited[name]
    ]


def _of_numbers(attack: AttackResult, part: PlatformPart) -> Iterator[str]:
    if not _near(attack.epsilon, part.epsilon_for_life) and part.guarantee != "unknown":
        yield (
            f"epsilon {shown_epsilon(attack.epsilon)}, and not "
            f"{shown_epsilon(part.epsilon_for_life)}"
        )
    if part.delta is not None and not _near(attack.delta, part.delta):
        yield f"delta {attack.delta:g}, and not {part.delta:g}"
    for name, found in (("trust", part.trust), ("privacy_unit", part.unit)):
        attacked = attack.configuration.get(name, found)
        if found is not None and attacked != found:
            yield f"{name.replace('_', ' ')} {attacked}, and not {found}"


def _near(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=TOLERANCE)


def _of_charges(attacked: Mapping[str, Any], uses: Sequence[Use]) -> Iterator[str]:
    """What was charged beside what the attacked options make of the same budget."""
    try:
        plan = PLANS[attacked["plan"]]
        rate, local_steps = float(attacked["sampling_rate"]), int(attacked["local_steps"])
        steps = int(attacked["rounds"]) * local_steps
        epsilon, delta = float(attacked["epsilon"]), float(attacked["delta"])
    except (KeyError, TypeError, ValueError):
        return
    kinds = {"item-counts": plan.counts, "item-pairs": plan.pairs, "rounds": plan.rounds}
    expected = {kind for kind, share in kinds.items() if share > 0}
    charged = {use.what for use in uses}
    if expected != charged:
        yield f"releases {_listed(expected)}, and not {_listed(charged)}"
        return
    rounds = [use for use in uses if use.what == "rounds"]
    total = sum(use.steps * use.times for use in rounds)
    if rounds and (total != steps or any(use.steps != local_steps for use in rounds)):
        yield f"{steps} noisy steps of {local_steps} a round, and not {total}"
    for name, found in (
        ("sampling rate", {use.sampling_rate for use in rounds} - {rate}),
        (
            "clipping norm",
            {use.clipping_norm for use in rounds} - {attacked.get("clipping_norm"), None},
        ),
    ):
        if found:
            told = attacked.get(name.replace(" ", "_"))
            yield f"{name} {told}, and not {_listed(f'{value:g}' for value in found if value)}"
    if rate == 1 and attacked.get("trust") != "none":  # else epsilon and the rest fix the noise
        planned = plan_noise(epsilon, delta, shares=plan, steps=steps)
        noises = {"item-counts": planned.counts, "item-pairs": planned.pairs}
        noises["rounds"] = planned.rounds
        for use in uses:
            mechanism = noises[use.what]
            if mechanism and not _near(mechanism.noise_multiplier, use.noise_multiplier):
                yield (
                    f"noise {mechanism.noise_multiplier:.4g} on {use.what}, and not "
                    f"{use.noise_multiplier:.4g}"
                )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
