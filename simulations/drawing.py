"""What all figures have in common: colours, axes, names and legends.

Built on matplotlib's object interface, so that no global state is read or changed. Colours are
those of Okabe and Ito (2008), which colour-blind readers can tell apart; a model or platform has
the same colour in every figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL_COLOURS = {"popularity": "#999999", "local": "#0072B2", "federated": "#D55E00"}
MODEL_ORDER = (
    *("popularity", "item_knn", "ease", "als", "ncf", "local"),
    *("shared", "federated", "pooled"),
)
"""From simple to what the platform serves: the order of bars and columns."""
OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#222222"
FAINT = "#d9d9d9"


def style_axes(axes: Axes, grid: str) -> None:
    """A quiet frame with a grid along ``grid`` (x, y or both)."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis=grid, color=FAINT, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Names below the places 0, 1, ... of the x axis."""
    long = len(names) > 6 or max(len(name) for name in names) > 10
    axes.set_xticks(
        range(len(names)),
        [shortened(name) for name in names],
        rotation=30 if long else 0,
        ha="right" if long else "center",
        parse_math=False,
    )


def outside_legend(figure: Figure, axes: Axes) -> None:
    """The legend of ``axes`` below the figure, if anything in them has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    inches = 0.7 + 0.09 * max(len(label) for label in labels)
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(6, len(labels), int(figure.get_figwidth() / inches))),
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def shortened(name: str, length: int = 16) -> str:
    """Shorten in the middle: names often differ in their ends."""
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[-(length - length // 2 - 1) :]}"


def model_colour(model: str, models: Sequence[str]) -> str:
    """Colour of ``model`` among ``models`` (as `model_names` orders them)."""
    if model in MODEL_COLOURS:
        return MODEL_COLOURS[model]
    others = [other for other in models if other not in MODEL_COLOURS]
    return OTHER_COLOURS[others.index(model) % len(OTHER_COLOURS)]


def in_order(models: Iterable[str]) -> list[str]:
    """Models as `MODEL_ORDER` has them, then others by name."""
    present = set(models)
    known = [model for model in MODEL_ORDER if model in present]
    return known + sorted(present - set(known))


def metric_label(metric: str) -> str:
    """``ndcg@10`` as ``NDCG@10``; ``coverage@10`` as ``Coverage@10``."""
    name, _, cutoff = metric.partition("@")
    return f"{name.upper() if name in {'ndcg', 'hr', 'mrr'} else name.capitalize()}@{cutoff}"


def save_as_png(figures: Mapping[str, Figure], folder: Path) -> dict[str, Path]:
    """Write each figure as ``folder/NAME.png`` and return the paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, figure in figures.items():
        paths[name] = folder / f"{name}.png"
        figure.savefig(paths[name])
    return paths
