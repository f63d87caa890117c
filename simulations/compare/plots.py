"""Figures of a comparison: gain by epsilon, models side by side, and gain by kind of user."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from simulations.compare.tables import POOLED
from simulations.compare.verdict import (
    ALONE,
    POPULARITY,
    SERVED,
    TRUST_WORDS,
    cases,
    gain_over_local,
    value_of,
)
from simulations.drawing import (
    INK,
    LINE_COLOURS,
    MARKERS,
    metric_label,
    model_colour,
    name_ticks,
    outside_legend,
    save_as_png,
    shortened,
    style_axes,
)
from simulations.result import PRIMARY_METRIC

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from simulations.compare.result import CompareResult, Setting, UserGroup
    from simulations.compare.verdict import Case

MAX_CASES = 16
"""More cases than this do not fit a figure."""
BARS = (POPULARITY, ALONE, SERVED, POOLED)
_ACROSS = 4


def gain_by_epsilon(result: CompareResult) -> Figure | None:
    """A panel per case: a line per trust with one standard error, dashed without noise."""
    shown = [case for case in cases(result) if _points(case, result.trusts)][:MAX_CASES]
    if not shown:
        return None
    figure, panels = _panels(result, "What joining adds by epsilon, with one standard error", shown)
    for axes, case in zip(panels, shown, strict=True):
        axes.axhline(0, color=INK, linewidth=1)
        for index, trust in enumerate(result.trusts):
            points = _points(case, [trust])
            if points:
                epsilons, gains, whiskers = zip(*points, strict=True)
                axes.errorbar(
                    epsilons,
                    gains,
                    yerr=whiskers,
                    color=LINE_COLOURS[index],
                    marker=MARKERS[index],
                    markersize=4,
                    linewidth=1.4,
                    capsize=2,
                    label=_trust_words(trust),
                )
        ceiling = case.platform.setting("none", None)
        gain = None if ceiling is None else gain_over_local(ceiling, SERVED)
        if gain is not None and gain.mean is not None:
            axes.axhline(
                gain.mean, color=INK, linewidth=1, linestyle=(0, (5, 3)), label=TRUST_WORDS["none"]
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(result.epsilons))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_xlabel("epsilon")
        axes.margins(x=0.1, y=0.12)
    panels[0].set_ylabel(f"{metric_label(PRIMARY_METRIC)}, served minus local")
    outside_legend(figure, panels[0])
    return figure


def models_side_by_side(result: CompareResult) -> Figure | None:
    """Bars of popularity, alone, served and pooled, at the main epsilon."""
    trust = result.trusts[0]
    shown = [case for case in cases(result) if case.platform.setting(trust, result.main_epsilon)]
    shown = shown[:MAX_CASES]
    if not shown:
        return None
    figure = _figure(
        result,
        f"Ranking quality at epsilon {result.main_epsilon:g} {_trust_words(trust)}, "
        "whiskers: deviation over seeds",
        size=(min(14.0, max(7.0, 1 + 0.9 * len(shown))), 4.2),
    )
    axes = figure.subplots()
    style_axes(axes, grid="y")
    width = 0.8 / len(BARS)
    for index, model in enumerate(BARS):
        places, heights, whiskers = [], [], []
        for place, case in enumerate(shown):
            noise = ("none", None) if model == POOLED else (trust, result.main_epsilon)
            setting = case.platform.setting(*noise)
            height = None if setting is None else value_of(setting, model)
            if setting is not None and height is not None:
                places.append(place + (index - (len(BARS) - 1) / 2) * width)
                heights.append(height)
                whiskers.append(setting.models[model].metrics[PRIMARY_METRIC].sd or 0.0)
        if places:
            axes.bar(
                places,
                heights,
                width * 0.92,
                yerr=whiskers,
                color=model_colour(model, BARS),
                label=model,
                error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
            )
    axes.set_ylabel(metric_label(PRIMARY_METRIC))
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.6, len(shown) - 0.4)
    name_ticks(axes, [case.label for case in shown])
    outside_legend(figure, axes)
    return figure


def gain_by_popularity(result: CompareResult) -> Figure | None:
    """Gain by how often the platform sold the held-out item."""
    return _by_group(
        result,
        "What joining adds, by purchases of the held-out item on the platform itself",
        "purchases by others",
        lambda setting: setting.by_popularity,
    )


def gain_by_activity(result: CompareResult) -> Figure | None:
    """Gain by how much the user herself bought."""
    return _by_group(
        result,
        "What joining adds, by purchases of the user herself",
        "own purchases",
        lambda setting: setting.by_activity,
    )


def figures(result: CompareResult) -> dict[str, Figure]:
    """Return the figures that ``result`` has numbers for, by file stem."""
    drawn = {
        "gain-by-epsilon": gain_by_epsilon(result),
        "models": models_side_by_side(result),
        "gain-by-popularity": gain_by_popularity(result),
        "gain-by-activity": gain_by_activity(result),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save_figures(result: CompareResult, folder: Path) -> dict[str, Path]:
    """Write each figure as ``folder/NAME.png`` and return the paths by name."""
    return save_as_png(figures(result), folder)


def _trust_words(trust: str) -> str:
    """A figure stands without the text that says so."""
    simulated = " (simulated)" if trust == "secagg-simulated" else ""
    return TRUST_WORDS.get(trust, trust) + simulated


def _points(case: Case, trusts: Sequence[str]) -> list[tuple[float, float, float]]:
    """Epsilon, gain and standard error."""
    found = []
    for setting in case.platform.settings:
        gain = gain_over_local(setting, SERVED) if setting.trust in trusts else None
        if gain is not None and gain.mean is not None and setting.epsilon is not None:
            found.append((setting.epsilon, gain.mean, gain.stderr or 0.0))
    return found


def _by_group(
    result: CompareResult, title: str, axis: str, groups: Callable[[Setting], tuple[UserGroup, ...]]
) -> Figure | None:
    trust = result.trusts[0]
    found = [
        (case, groups(setting))
        for case in cases(result)
        if (setting := case.platform.setting(trust, result.main_epsilon)) and groups(setting)
    ][:MAX_CASES]
    if not found:
        return None
    where = f"epsilon {result.main_epsilon:g} {_trust_words(trust)}"
    figure, panels = _panels(result, f"{title}; {where}", [case for case, _ in found])
    for axes, (_, here) in zip(panels, found, strict=True):
        axes.axhline(0, color=INK, linewidth=1)
        axes.bar(
            range(len(here)),
            [group.gain.mean or 0.0 for group in here],
            0.7,
            yerr=[group.gain.stderr or 0.0 for group in here],
            color=model_colour(SERVED, BARS),
            error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
        )
        axes.set_xticks(
            range(len(here)), [f"{group.label}\nn={group.gain.num_users:,}" for group in here]
        )
        axes.tick_params(axis="x", length=0, labelsize=7)
        axes.set_xlabel(axis)
    panels[0].set_ylabel(f"{metric_label(PRIMARY_METRIC)}, served minus local")
    return figure


def _panels(result: CompareResult, title: str, shown: Sequence[Case]) -> tuple[Figure, list[Axes]]:
    across = min(_ACROSS, len(shown))
    down = math.ceil(len(shown) / across)
    figure = _figure(result, title, size=(max(6.0, 2.9 * across), 0.8 + 2.8 * down))
    grid = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    panels = grid[: len(shown)]
    for axes, case in zip(panels, shown, strict=True):
        style_axes(axes, grid="y")
        axes.set_title(shortened(case.label, 24), fontsize=9, color=INK, parse_math=False)
    return figure, panels


def _figure(result: CompareResult, title: str, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, dpi=144, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    seeds = f"{len(result.seeds)} seed{'s' * (len(result.seeds) > 1)}"
    partial = "" if result.status == "complete" else " · PARTIAL"
    figure.suptitle(
        f"{title}\nsimulation · delta {result.delta:g} · {seeds}{partial}",
        fontsize=10,
        color=INK,
        parse_math=False,
    )
    return figure
