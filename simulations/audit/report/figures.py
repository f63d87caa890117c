"""Figures of an audit report, from its statement alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from simulations.audit.report.outcome_figures import (
    MOST_LINES,
    bounds,
    new_figure,
    roc_curves,
    utility,
)
from simulations.audit.report.outcomes import proved
from simulations.audit.report.strength import posterior, shown_epsilon
from simulations.drawing import (
    FAINT,
    INK,
    LINE_COLOURS,
    MARKERS,
    outside_legend,
    shortened,
    style_axes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import LineStyleType

    from simulations.audit.report.parts import PlatformPart
    from simulations.audit.report.statement import AuditStatement

CAPTIONS: Mapping[str, str] = {
    "spending": "Epsilon spent after each charge, and what was granted. A line that passes its "
    "budget would be a broken promise.",
    "curve": "All (epsilon, delta) pairs that hold for everything a platform ever released. Lower "
    "and further left is more private.",
    "odds": "From what somebody thought before to the most that she can think after seeing "
    "everything. On the thin dotted diagonal nothing is learned.",
    "accounts": "The promise to a person with accounts at several platforms: epsilon of all "
    "together.",
    "utility": "Who is served how well: NDCG@10 alone and as served, with one standard error of "
    "the gain.",
    "roc": "How well attacks told which users were in the data, beside the most that is allowed. "
    "Both axes are logarithmic: the lower left corner is where single people are found. Lines end "
    "where fewer than five false alarms were counted, and are uncertain near there.",
    "bounds": "The least epsilon that each attack proved, beside what was accounted for. A bar "
    "beyond its mark would prove the accounting wrong.",
}
"""What each figure shows."""

_REFERENCE_EPSILONS = (0.1, 1.0, 8.0)


def figures(statement: AuditStatement) -> dict[str, Figure]:
    """Return the figures that ``statement`` has numbers for, by file stem."""
    drawn = {
        "spending": _spending(statement.platforms),
        "curve": _curves(statement.platforms),
        "odds": _odds(statement),
        "accounts": _accounts(statement),
        "utility": utility(statement.utility.groups),
        "roc": roc_curves(statement),
        "bounds": bounds(statement),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def alternative(name: str, statement: AuditStatement) -> str:
    """Text for those who do not see the figure: what it shows and where its numbers stand."""
    where = {
        "utility": "The numbers are in the table of groups.",
        "accounts": "The numbers are in the section on composition.",
        "bounds": "The numbers are in the section on attacks.",
    }.get(name, "The numbers are in report.json.")
    count = len(statement.platforms)
    return f"{CAPTIONS[name]} {count} platform{'' if count == 1 else 's'}. {where}"


def _largest(platforms: Mapping[str, PlatformPart]) -> list[str]:
    order = sorted(platforms, key=lambda name: (-(platforms[name].epsilon_for_life or 0.0), name))
    return order[:MOST_LINES]


def _alike(
    platforms: Mapping[str, PlatformPart], line: Callable[[PlatformPart], tuple[object, ...]]
) -> dict[str, PlatformPart]:
    """One platform of each group whose lines are equal, by the names of the group."""
    groups: dict[object, list[str]] = {}
    for name, part in platforms.items():
        groups.setdefault(line(part), []).append(name)
    return {_group_label(names): platforms[names[0]] for names in groups.values()}


def _steps(part: PlatformPart) -> tuple[object, ...]:
    """All that is drawn of its spending."""
    return (
        *((step.number, step.period, step.epsilon, step.budget) for step in part.history),
        *((grant.epsilon, grant.begins_period, grant.charges_before) for grant in part.grants),
    )


def _group_label(names: Sequence[str]) -> str:
    label = ", ".join(shortened(name, 24 // min(2, len(names))) for name in names[:2])
    return f"{label} and {len(names) - 2} more" if len(names) > 2 else label


def _cut(platforms: Mapping[str, PlatformPart]) -> str:
    number = len(platforms)
    return f" ({MOST_LINES} largest of {number})" if number > MOST_LINES else ""


def _spending(platforms: Mapping[str, PlatformPart]) -> Figure | None:
    """Steps of epsilon by charge, one panel for each platform if periods end, else all in one."""
    shown = {
        name: platforms[name]
        for name in _largest(platforms)
        if any(step.epsilon is not None for step in platforms[name].history)
    }
    if not shown:
        return None
    figure, axes = new_figure(
        f"Privacy spent by each user at most{_cut(platforms)}", height=4.0 + 0.07 * len(shown)
    )
    style_axes(axes, grid="both")
    groups = _alike(shown, _steps)
    for index, (label, part) in enumerate(groups.items()):
        _spending_of(axes, index, label, part)
    last = max(step.number for part in shown.values() for step in part.history)
    deltas = sorted({part.delta for part in shown.values() if part.delta is not None})
    axes.set_xlabel("charge (one for each release, from the first on)")
    axes.set_ylabel(f"epsilon at delta {', '.join(f'{delta:g}' for delta in deltas)}")
    axes.set_xlim(-0.05 * last, last * 1.05 + 0.3)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    outside_legend(figure, axes)
    return figure


def _spending_of(axes: Axes, index: int, label: str, part: PlatformPart) -> None:
    colour = LINE_COLOURS[index % len(LINE_COLOURS)]
    places, heights, budgets = [0.0], [0.0], [part.grants[0].epsilon if part.grants else None]
    ends, period = [], part.history[0].period
    for step in part.history:
        if step.period != period:  # a new period begins at nothing
            ends.append(places[-1] + 0.5)
            places += [places[-1] + 0.5, places[-1] + 0.5]
            heights += [heights[-1], 0.0]
            budgets += [budgets[-1], step.budget]
            period = step.period
        places.append(float(step.number))
        heights.append(math.nan if step.epsilon is None else step.epsilon)
        budgets.append(step.budget)
    width = 2.4 - 1.6 * index / MOST_LINES  # lines often coincide: later ones are thinner
    axes.step(places, heights, where="post", color=colour, linewidth=width)
    axes.plot(
        [step.number for step in part.history],
        [math.nan if step.epsilon is None else step.epsilon for step in part.history],
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        markersize=8 - 5 * index / MOST_LINES,
        markevery=max(1, len(part.history) // 12),
        linestyle="none",
        label=label,
    )
    limits = [math.nan if budget is None else budget for budget in budgets]
    axes.step(places, limits, where="pre", color=INK, linewidth=1, linestyle=(0, (5, 3)))
    if index == 0 and not math.isnan(limits[-1]):
        axes.annotate(
            f"budget {limits[-1]:g}",
            (places[-1], limits[-1]),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            color=INK,
        )
    for end in ends:
        axes.axvline(end, color=colour, linewidth=1, linestyle=":")
        axes.annotate(
            "period ends",
            (end, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize="small",
            color=colour,
        )
    for grant in part.grants:
        if not grant.begins_period:
            axes.plot(
                [grant.charges_before + 0.5],
                [math.nan if grant.epsilon is None else grant.epsilon],
                color=INK,
                marker="^",
                markersize=7,
                linestyle="none",
            )


def _curves(platforms: Mapping[str, PlatformPart]) -> Figure | None:
    shown = {name: platforms[name] for name in _largest(platforms) if platforms[name].curve}
    if not shown:
        return None
    figure, axes = new_figure(f"Every (epsilon, delta) that holds{_cut(platforms)}")
    style_axes(axes, grid="both")
    groups = _alike(shown, lambda part: part.curve)
    for index, (label, part) in enumerate(groups.items()):
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        epsilons, deltas = zip(*part.curve, strict=True)
        axes.plot(
            epsilons,
            deltas,
            color=colour,
            marker=MARKERS[index % len(MARKERS)],
            markevery=(index % 4, 4),
            markersize=5,
            linewidth=2.4 - 1.6 * index / MOST_LINES,
            label=label,
        )
        if index == 0 and part.delta is not None and part.epsilon_for_life is not None:
            axes.axhline(part.delta, color=INK, linewidth=1, linestyle=(0, (5, 3)))
            axes.annotate(
                f"as stated: epsilon {shown_epsilon(part.epsilon_for_life)} at {part.delta:g}",
                (part.epsilon_for_life, part.delta),
                xytext=(-8, -14),
                textcoords="offset points",
                ha="right" if part.epsilon_for_life > max(epsilons) / 2 else "left",
                color=INK,
            )
    axes.set_yscale("log")
    axes.set_xlabel("epsilon")
    axes.set_ylabel("delta")
    axes.set_xlim(left=0)
    outside_legend(figure, axes)
    return figure


def _odds(statement: AuditStatement) -> Figure | None:
    spent = statement.guarantee.largest_epsilon
    if spent is None:
        return None
    figure, axes = new_figure("What somebody can come to believe, by what she believed before")
    style_axes(axes, grid="both")
    priors = np.linspace(0.001, 0.999, 500)
    lines: list[tuple[float, str, LineStyleType, float]] = [
        *((e, f"epsilon {e:g}", (0, (4, 2)), 1.2) for e in _REFERENCE_EPSILONS),
        (spent, f"accounted: epsilon {shown_epsilon(spent)}", "solid", 2.6),
    ]
    attack = statement.lower_bound.attack
    audits = attack.audits if attack and statement.lower_bound.is_of_these_runs else ()
    users = [audit for audit in audits if audit.unit == "user"]
    best = max(users, key=proved, default=None)
    if best is not None and proved(best) > 0:
        bound = "any noise" if proved(best) == best.epsilon_lower else "if the noise is Gaussian"
        label = f"an attack proved ({bound}): epsilon {proved(best):.2f}"
        lines.append((proved(best), label, (0, (6, 2, 1, 2)), 2.2))
    for (epsilon, label, style, width), colour in zip(
        lines, ("#56B4E9", "#009E73", "#E69F00", "#D55E00", "#000000"), strict=False
    ):
        axes.plot(
            priors,
            [posterior(float(prior), epsilon) for prior in priors],
            color=colour,
            linestyle=style,
            linewidth=width,
            label=label,
        )
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="dotted", label="nothing learned")
    axes.axvline(0.5, color=FAINT, linewidth=1)
    axes.plot([0.5], [posterior(0.5, spent)], "o", color="#D55E00", markersize=7)
    percent = FuncFormatter(lambda x, _: f"{x:.0%}")
    axes.xaxis.set_major_formatter(percent)
    axes.yaxis.set_major_formatter(percent)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("how likely she thought it before that you are in the data")
    axes.set_ylabel("the most she can think after")
    outside_legend(figure, axes)
    return figure


def _accounts(statement: AuditStatement) -> Figure | None:
    known = [c for c in statement.composition.across_platforms if c.epsilon is not None]
    if len(known) < 2:
        return None
    figure, axes = new_figure("Accounts of one person, and what they cost together", height=3.4)
    style_axes(axes, grid="both")
    places = [c.num_platforms for c in known]
    axes.plot(places, [c.epsilon or 0.0 for c in known], "o-", color=LINE_COLOURS[0])
    for composition in known[:: max(1, len(known) // 8)]:
        axes.annotate(
            shown_epsilon(composition.epsilon),
            (composition.num_platforms, composition.epsilon or 0.0),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
        )
    axes.set_xlabel("platforms where she has an account")
    axes.set_ylabel(f"epsilon at delta {known[-1].delta:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    return figure
