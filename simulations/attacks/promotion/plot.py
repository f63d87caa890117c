"""The figure of the promotion study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simulations.drawing import LINE_COLOURS, outside_legend, save_as_png, style_axes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from simulations.attacks.promotion.study import Outcome


def save_plot(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Bars of exposure by strength and defence, before and after each platform's gate."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    strengths = sorted({outcome.case.strength for outcome in outcomes})
    defences = list(dict.fromkeys(outcome.case.defence for outcome in outcomes))
    width = 0.8 / len(defences)
    for axes, (model, title) in zip(
        panels, (("ungated", "without the platforms' gates"), ("served", "served")), strict=True
    ):
        style_axes(axes, grid="y")
        for index, defence in enumerate(defences):
            shown = [o for o in outcomes if o.case.defence == defence]
            axes.bar(
                [
                    strengths.index(o.case.strength) + (index - (len(defences) - 1) / 2) * width
                    for o in shown
                ],
                [100 * o.exposure[model] for o in shown],
                0.92 * width,
                color=LINE_COLOURS[index],
                label=defence,
            )
        axes.set_xticks(range(len(strengths)), [f"{strength:g}" for strength in strengths])
        axes.set_xlabel("strength of the attack")
        axes.set_title(title, fontsize=10)
    panels[0].set_ylabel("users who see the item, %")
    outside_legend(figure, panels[0])
    save_as_png({"promotion": figure}, folder)
