"""Figures of a run: quality, privacy spend, gain by size, and catalogue overlap."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from simulations.drawing import (
    FAINT,
    INK,
    LINE_COLOURS,
    MARKERS,
    MODEL_COLOURS,
    in_order,
    metric_label,
    model_colour,
    name_ticks,
    outside_legend,
    save_as_png,
    shortened,
    style_axes,
)
from simulations.result import PRIMARY_METRIC
from simulations.verdict import gain_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from simulations.result import PlatformResult, PrivacyStatement, RunResult


UNDRAWN_MODELS = frozenset({"item_knn", "ease", "als"})
"""Models that have no bars: parts of ``local``."""
MAX_PLATFORMS = 16
"""More platforms than this do not fit a figure; the largest are shown and the title says so."""


def quality(result: RunResult, metrics: Sequence[str] = (PRIMARY_METRIC, "hr@10")) -> Figure:
    """Bars of each metric by platform and model, with standard errors over test users."""
    names, cut = _largest(result)
    every = model_names(result.platforms)
    models = [model for model in every if model not in UNDRAWN_MODELS]
    figure = _figure(
        result,
        "Ranking quality on held-out items, with one standard error",
        cut,
        size=(min(14.0, max(7.0, 1 + 0.25 * len(names) * (len(models) + 1))), 2.7 * len(metrics)),
    )
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    width = 0.8 / max(1, len(models))
    for axes, metric in zip(panels, metrics, strict=True):
        style_axes(axes, grid="y")
        for index, model in enumerate(models):
            places, heights, whiskers = [], [], []
            for place, name in enumerate(names):
                measured = result.platforms[name].models.get(model)
                height = None if measured is None else measured.metrics.get(metric)
                if measured is None or height is None:
                    continue
                places.append(place + (index - (len(models) - 1) / 2) * width)
                heights.append(height)
                whiskers.append(measured.stderr.get(metric) or 0.0)
            axes.bar(
                places,
                heights,
                width * 0.92,
                yerr=whiskers,
                color=model_colour(model, every),
                label=shortened(model, 24),
                error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
            )
        axes.set_ylabel(metric_label(metric))
        axes.margins(y=0.08)
        axes.set_ylim(bottom=0)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.tick_params(axis="x", length=0)
    name_ticks(panels[-1], names)
    outside_legend(figure, panels[0])
    return figure


def epsilon_over_releases(result: RunResult) -> Figure | None:
    """Lines of epsilon spent after each release, with budgets dashed.

    None without a guarantee, and without rounds: two sums make no line.
    """
    if result.rounds_planned == 0:
        return None
    names, cut = _largest(result)
    histories = {
        name: np.array([np.nan if e is None else e for e in result.platforms[name].epsilon_history])
        for name in names
    }
    histories = {name: h for name, h in histories.items() if np.isfinite(h).any()}
    if not histories:
        return None
    figure = _figure(
        result, "Privacy spent by each user at most", cut, size=(7.0, 4.0 + 0.07 * len(histories))
    )
    axes = figure.subplots()
    style_axes(axes, grid="both")
    longest = max(len(history) for history in histories.values())
    for index, (name, history) in enumerate(histories.items()):
        axes.plot(
            np.arange(1, len(history) + 1),
            history,
            color=LINE_COLOURS[index % len(LINE_COLOURS)],
            marker=MARKERS[(index + index // len(LINE_COLOURS)) % len(MARKERS)],
            # Curves often coincide: markers at different releases keep each one visible.
            markevery=(index % max(1, longest // 8), max(1, longest // 8)),
            markersize=5,
            linewidth=1.6,
            alpha=0.9,
            label=shortened(name, 24),
        )
    budgets = {result.platforms[name].epsilon_budget for name in histories} - {None}
    for budget in sorted(b for b in budgets if b is not None):
        axes.axhline(budget, color=INK, linewidth=1, linestyle=(0, (5, 3)))
        axes.annotate(
            f"budget {budget:g}",
            (1, budget),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            color=INK,
        )
    sums = "item counts, item pairs, then rounds"
    axes.set_xlabel(f"release ({sums})" if result.sums_planned else "round")
    axes.set_ylabel(f"epsilon at delta {result.privacy.delta:g}")
    axes.set_xlim(0.5, max(result.sums_planned + result.rounds_planned, longest) + 0.5)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    outside_legend(figure, axes)
    return figure


def gain_by_size(result: RunResult, metric: str = PRIMARY_METRIC) -> Figure | None:
    """Points of federated minus local against platform size, hollow where the gate added nothing.

    None where it was not measured.
    """
    points = [
        (platform.num_users, gain.mean, gain.stderr or 0.0, name)
        for name, platform in result.platforms.items()
        if (gain := gain_of(platform, metric)) is not None
    ]
    if not points:
        return None
    figure = _figure(
        result, "What joining adds by platform size, with one standard error", "", size=(7.0, 4.2)
    )
    axes = figure.subplots()
    style_axes(axes, grid="both")
    axes.axhline(0, color=INK, linewidth=1)
    sizes, gains, whiskers, names = zip(*points, strict=True)
    axes.errorbar(
        sizes,
        gains,
        yerr=whiskers,
        fmt="o",
        color=MODEL_COLOURS["federated"],
        ecolor=INK,
        elinewidth=1,
        capsize=3,
        markersize=7,
    )
    refused = [p for p in points if result.platforms[p[3]].gate == "alone"]
    if refused:
        places = zip(*(p[:2] for p in refused), strict=True)
        axes.plot(*places, "o", markersize=4, color="white", zorder=3)  # above the error bars
        axes.text(
            0.98,
            0.02,
            "hollow: the platform keeps its own model",
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            fontsize="small",
        )
    if len(names) <= MAX_PLATFORMS:
        for size, gain, name in zip(sizes, gains, names, strict=True):
            axes.annotate(
                shortened(name), (size, gain), (7, 5), textcoords="offset points", parse_math=False
            )
    if max(sizes) > 5 * max(1, min(sizes)):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.margins(x=0.15, y=0.15)
    axes.set_xlabel("users in training")
    axes.set_ylabel(f"{metric_label(metric)}, served minus local")
    return figure


def catalogue_overlap(result: RunResult) -> Figure | None:
    """Heat map of the share of each platform's items that another lists; None if unknown."""
    common = result.data.items_in_common
    largest, cut = _largest(result)
    names = [name for name in largest if name in common]
    if len(names) < 2:
        return None
    shares = np.array([[common[a].get(b, 0) / max(1, common[a][a]) for b in names] for a in names])
    side = max(4.2, 2.6 + 0.5 * len(names))
    figure = _figure(
        result, "Catalogue overlap; diagonal: items listed", cut, size=(side + 1.6, side)
    )
    axes = figure.subplots()
    own = np.eye(len(names), dtype=bool)
    axes.set_facecolor(FAINT)
    image = axes.imshow(np.ma.masked_array(shares, own), cmap="cividis", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)))
    name_ticks(axes, names)
    axes.set_yticks(range(len(names)), [shortened(name) for name in names], parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("is also listed by")
    axes.set_ylabel("share of the items of")
    for (row, column), share in np.ndenumerate(shares):
        axes.text(
            column,
            row,
            f"{common[names[row]][names[row]]:,}" if row == column else f"{share:.0%}",
            ha="center",
            va="center",
            fontsize=9 if len(names) <= 8 else 7,
            color="white" if share < 0.5 and row != column else INK,
        )
    bar = figure.colorbar(image, ax=axes, shrink=0.85)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    return figure


def figures(result: RunResult) -> dict[str, Figure]:
    """Return the figures that ``result`` has numbers for, by file stem."""
    drawn = {
        "quality": quality(result) if result.platforms else None,
        "epsilon": epsilon_over_releases(result),
        "gain": gain_by_size(result),
        "overlap": catalogue_overlap(result),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save_figures(result: RunResult, folder: Path) -> dict[str, Path]:
    """Write each figure as ``folder/NAME.png`` and return the paths by name."""
    return save_as_png(figures(result), folder)


def model_names(platforms: Mapping[str, PlatformResult]) -> list[str]:
    """Every model that some platform has, in the order of columns."""
    return in_order(model for platform in platforms.values() for model in platform.models)


def epsilon_text(epsilon: float) -> str:
    """Two decimals (below 0.1 two digits), rounded up: an upper bound must not shrink in print."""
    places = 2 if epsilon >= 0.1 or epsilon == 0.0 else 1 - math.floor(math.log10(epsilon))
    scale = 10**places
    return f"{math.ceil(epsilon * scale - 1e-6) / scale:g}"  # 1.1 * 100 is a little above 110


def privacy_line(privacy: PrivacyStatement) -> str:
    """The guarantee in one line, as it stands above every figure."""
    if privacy.planned_epsilon is None:
        return f"simulation · no privacy guarantee · trust: {privacy.trust}"
    epsilon = epsilon_text(privacy.planned_epsilon)
    return (
        f"simulation · epsilon ≤ {epsilon}, delta {privacy.delta:g} · "
        f"unit: {privacy.unit} · trust: {privacy.trust}"
    )


def _largest(result: RunResult) -> tuple[list[str], str]:
    """Names of the platforms to show, most users first, and a remark if that is not all."""
    order = sorted(result.platforms, key=lambda name: (-result.platforms[name].num_users, name))
    cut = f" ({MAX_PLATFORMS} largest of {len(order)} platforms)"
    return order[:MAX_PLATFORMS], cut if len(order) > MAX_PLATFORMS else ""


def _figure(result: RunResult, title: str, cut: str, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, dpi=144, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    partial = "" if result.status == "complete" else f" · PARTIAL: {result.progress}"
    figure.suptitle(
        f"{title}{cut}\n{privacy_line(result.privacy)}{partial}",
        fontsize=10,
        color=INK,
        parse_math=False,
    )
    return figure
