"""Figures of what came out: quality by group, and what attacks found."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from simulations.audit.report.outcomes import proved
from simulations.audit.report.strength import true_positive_bound
from simulations.drawing import (
    INK,
    LINE_COLOURS,
    MODEL_COLOURS,
    name_ticks,
    outside_legend,
    style_axes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from simulations.audit.report.parts import GroupUtility
    from simulations.audit.report.statement import AuditStatement

MOST_LINES = 12
"""More platforms or attacks than this do not fit a figure."""

_GROUPS = ("platform size", "item popularity", "user activity", "platform")
_FLOOR = 1e-3
_FEWEST_OUT = 5  # false alarms; where fewer are counted a line is luck


def new_figure(title: str, width: float = 7.0, height: float = 4.2) -> tuple[Figure, Axes]:
    """An empty figure with a title, and its axes."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, color=INK, parse_math=False)
    return figure, figure.subplots()


def utility(groups: Sequence[GroupUtility]) -> Figure | None:
    """Bars alone and served for each kind of group, of the first run that has them."""
    run = groups[0].run if groups else ""
    kinds = {
        by: [g for g in groups if g.by == by and g.run == run and g.served is not None]
        for by in _GROUPS
    }
    kinds = {by: rows[:MOST_LINES] for by, rows in kinds.items() if rows}
    if not kinds:
        return None
    figure = Figure(
        figsize=(7.0, 2.6 * len(kinds)), dpi=110, layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    figure.suptitle("Ranking quality by group", fontsize=10, color=INK)
    panels = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    for axes, (by, rows) in zip(panels, kinds.items(), strict=True):
        style_axes(axes, grid="y")
        for shift, model, values in (
            (-0.2, "local", [row.local for row in rows]),
            (0.2, "federated", [row.served for row in rows]),
        ):
            axes.bar(
                [place + shift for place in range(len(rows))],
                [value or 0.0 for value in values],
                0.37,
                color=MODEL_COLOURS[model],
                label="alone" if model == "local" else "served",
                yerr=[row.stderr or 0.0 for row in rows] if model == "federated" else None,
                error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
            )
        names = [row.group.partition(" ")[0] for row in rows]
        name_ticks(axes, names if by != "platform" else [row.group for row in rows])
        axes.set_title(_KIND_TITLES[by], fontsize=9, loc="left", color=INK)
        axes.set_ylabel("NDCG@10")
        axes.tick_params(axis="x", length=0)
    outside_legend(figure, panels[0])
    return figure


_KIND_TITLES = {
    "platform size": "by size of the platform",
    "item popularity": "by how many others bought the held-out item (tail to head)",
    "user activity": "by own purchases (inactive to active)",
    "platform": "by platform",
}


def roc_curves(statement: AuditStatement) -> Figure | None:
    """True against false positives of every attack, and the most that the curve allows."""
    attack = statement.lower_bound.attack
    if attack is None or not (attack.audits or attack.memberships):
        return None
    figure, axes = new_figure("What attacks found, by their false alarms", height=5.0)
    style_axes(axes, grid="both")
    lines = [
        (f"{a.unit}, {a.adversary}", a.roc, "solid", a.num_canaries - a.num_in)
        for a in attack.audits
        if a.unit == "user"
    ]
    lines += [
        (f"LiRA: {m.target}, {m.adversary}", m.roc, "dashed", m.num_runs * m.num_records // 2)
        for m in attack.memberships
    ]
    for index, (label, roc, style, num_out) in enumerate(lines[:MOST_LINES]):
        points = np.array(roc.curve).reshape(-1, 2)
        points = points[points[:, 0] >= _FEWEST_OUT / max(1, num_out)]
        axes.plot(
            points[:, 0],
            np.maximum(points[:, 1], _FLOOR),
            color=LINE_COLOURS[index % len(LINE_COLOURS)],
            linestyle=style,
            linewidth=1.6,
            label=f"{label} ({roc.auc:.2f})",
        )
    rates = np.logspace(math.log10(_FLOOR), 0, 200)
    axes.plot(rates, rates, color=INK, linewidth=0.8, linestyle=(0, (2, 4)), label="guessing")
    curves = [part.curve for part in statement.platforms.values() if part.curve]
    if curves and statement.lower_bound.is_of_these_runs:
        allowed = [max(true_positive_bound(float(r), curve) for curve in curves) for r in rates]
        axes.plot(rates, allowed, color=INK, linewidth=2, label="most that is allowed for a user")
    for set_scale, set_limits in (
        (axes.set_xscale, axes.set_xlim),
        (axes.set_yscale, axes.set_ylim),
    ):
        set_scale("log")
        set_limits(_FLOOR, 1.1)
    percent = FuncFormatter(lambda x, _: f"{x:.1%}" if x < 0.01 else f"{x:.0%}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(percent)
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("of those who were out, taken to be in")
    axes.set_ylabel("of those who were in, found")
    outside_legend(figure, axes)
    return figure


def bounds(statement: AuditStatement) -> Figure | None:
    """Bars of the epsilon that attacks proved, with marks at what was accounted for."""
    attack = statement.lower_bound.attack
    if attack is None or not attack.audits:
        return None
    audits = attack.audits[:MOST_LINES]
    figure, axes = new_figure(
        "Least epsilon that attacks proved, and what was accounted for",
        height=1.6 + 0.45 * len(audits),
    )
    style_axes(axes, grid="x")
    places = range(len(audits))
    axes.barh(places, [proved(a) for a in audits], 0.6, color=LINE_COLOURS[0], label="proved")
    largest = 1.15 * max(
        *(proved(a) for a in audits),
        *(a.epsilon_accounted or 0.0 for a in audits if a.unit == "user"),
        1.0,
    )
    for place, audit in enumerate(audits):
        if audit.epsilon_accounted is not None and audit.epsilon_accounted > largest:
            axes.annotate(
                f"accounted: {audit.epsilon_accounted:.0f} \N{RIGHTWARDS ARROW}",
                (largest, place),
                ha="right",
                va="center",
                color=LINE_COLOURS[1],
            )
        elif audit.epsilon_accounted is not None:
            axes.plot(
                [audit.epsilon_accounted] * 2,
                [place - 0.4, place + 0.4],
                color=LINE_COLOURS[1],
                linewidth=3,
                label="accounted" if place == 0 else None,
            )
        axes.annotate(
            f"{proved(audit):.2f}",
            (proved(audit), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(list(places), [f"{a.unit}, {a.adversary}" for a in audits])
    axes.invert_yaxis()
    axes.set_xlim(0, largest)
    axes.set_xlabel(f"epsilon at delta {audits[0].delta:g}")
    outside_legend(figure, axes)
    return figure
