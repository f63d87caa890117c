from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from matplotlib.colors import to_hex

from simulations import drawing, plots
from tests.unit.simulations.run_results import model, platform, run_result

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from simulations.result import RunResult


def no_guarantee() -> RunResult:
    result = run_result()
    endless = replace(platform(), epsilon=None, epsilon_history=(None, None))
    return replace(
        result,
        platforms={"north": endless},
        privacy=replace(result.privacy, planned_epsilon=None, trust="none"),
    )


def title(figure: Figure) -> str:
    assert figure._suptitle is not None  # type: ignore[attr-defined]
    return str(figure._suptitle.get_text())  # type: ignore[attr-defined]


def test_every_figure_states_the_guarantee_and_that_it_is_a_simulation() -> None:
    drawn = plots.figures(run_result())
    assert set(drawn) == {"quality", "epsilon", "gain", "overlap"}
    for figure in drawn.values():
        for fact in ("simulation", "epsilon ≤ 7.9", "delta 1e-05", "unit: user", "trust: secagg"):
            assert fact in title(figure)


def test_without_a_guarantee_no_epsilon_is_drawn_or_claimed() -> None:
    drawn = plots.figures(no_guarantee())
    assert "epsilon" not in drawn
    assert "no privacy guarantee" in title(drawn["quality"])


def test_a_partial_run_says_so_in_its_figures() -> None:
    partial = run_result(status="partial", rounds_completed=1)
    assert "PARTIAL: 1 of 2 rounds" in title(plots.quality(partial))


def test_bars_are_the_results_numbers_in_the_models_colours() -> None:
    axes = plots.quality(run_result()).axes[0]
    drawn = {
        str(bars.get_label()): [(bar.get_height(), to_hex(bar.get_facecolor())) for bar in bars]
        for bars in axes.containers
        if hasattr(bars, "patches")
    }
    for name, value in {"popularity": 0.2, "local": 0.25, "federated": 0.28}.items():
        assert drawn[name] == [(value, drawing.MODEL_COLOURS[name].lower())] * 2


def test_an_unmeasured_model_has_no_bar_rather_than_a_zero() -> None:
    some = replace(platform(), models={"local": model(None), "federated": model(0.3, None)})
    axes = plots.quality(run_result(platforms={"a": some, "b": platform()})).axes[0]
    heights = [len(bars.patches) for bars in axes.containers if hasattr(bars, "patches")]
    assert heights == [1, 1, 2]


def test_models_that_are_parts_of_others_have_no_bars() -> None:
    names = ("popularity", "item_knn", "ease", "als", "ncf", "local", "shared")
    models = {name: model(0.2) for name in ("federated", *reversed(names))}
    result = run_result(platforms={"a": replace(platform(), models=models)})
    axes = plots.quality(result).axes[0]
    drawn = [str(bars.get_label()) for bars in axes.containers if hasattr(bars, "patches")]
    assert drawn == ["popularity", "ncf", "local", "shared", "federated"]
    # A bar has the colour that the report's table gives its model.
    every = plots.model_names(result.platforms)
    assert every == [*names, "federated"]
    colours = [to_hex(bars[0].get_facecolor()) for bars in axes.containers if len(bars) == 1]
    assert colours == [drawing.model_colour(name, every).lower() for name in drawn]


def test_a_refused_gain_is_hollow() -> None:
    refused = replace(platform(), gate="alone", num_users=50)
    figure = plots.gain_by_size(run_result(platforms={"a": platform(), "b": refused}))
    assert figure is not None
    (hollow,) = (line for line in figure.axes[0].lines if line.get_color() == "white")
    assert list(hollow.get_xdata()) == [50]  # type: ignore[arg-type]
    others = [line.get_zorder() for line in figure.axes[0].lines if line is not hollow]
    assert hollow.get_zorder() > max(others)


def test_sums_alone_make_no_line_of_epsilon() -> None:
    sums = run_result(rounds_planned=0, rounds_completed=0, rounds=(), sums_planned=2)
    assert set(plots.figures(sums)) == {"quality", "gain", "overlap"}
    partial = replace(sums, status="partial")
    assert "PARTIAL: 0 of 2 sums" in title(plots.quality(partial))


def test_sums_and_rounds_are_releases_alike() -> None:
    longer = replace(platform(), epsilon_history=(1.0, 4.0, 5.0, 7.9))
    both = run_result(sums_planned=2, platforms={"north": longer})
    figure = plots.epsilon_over_releases(both)
    assert figure is not None
    axes = figure.axes[0]
    assert axes.get_xlabel().startswith("release (item counts, item pairs")
    assert axes.get_xlim() == (0.5, 4.5)
    assert [len(line.get_xdata()) for line in axes.lines] == [4, 2]  # type: ignore[arg-type]


def test_epsilon_lines_are_the_histories_beside_the_budget() -> None:
    figure = plots.epsilon_over_releases(run_result())
    assert figure is not None
    assert figure.axes[0].get_xlabel() == "round"
    lines = [list(map(float, line.get_ydata())) for line in figure.axes[0].lines]  # type: ignore[arg-type]
    assert lines == [[5.0, 7.9], [5.0, 7.9], [8.0, 8.0]]


def test_names_are_never_read_as_mathematics(tmp_path: Path) -> None:
    """Matplotlib would parse a name between dollar signs, and stop at an error in it."""
    names = [r"$\frac$", "$a_b$ & <c>"]
    result = run_result(platforms=dict.fromkeys(names, platform()))
    common = {a: dict.fromkeys(names, 3) for a in names}
    result = replace(result, data=replace(result.data, items_in_common=common))
    assert set(plots.save_figures(result, tmp_path)) == {"quality", "epsilon", "gain", "overlap"}


def test_many_platforms_are_cut_to_the_largest_and_the_title_says_so() -> None:
    crowd = {f"shop-{i:03}": replace(platform(), num_users=i) for i in range(1, 41)}
    figure = plots.quality(run_result(platforms=crowd))
    labels = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert labels == [f"shop-{i:03}" for i in range(40, 24, -1)]
    assert "16 largest of 40" in title(figure)


def test_saved_figures_are_the_same_bytes_for_the_same_result(tmp_path: Path) -> None:
    first = plots.save_figures(run_result(), tmp_path / "a")
    second = plots.save_figures(run_result(), tmp_path / "b")
    for name, path in first.items():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.read_bytes() == second[name].read_bytes()


@pytest.mark.parametrize(
    ("epsilon", "text"), [(8, "8"), (7.981, "7.99"), (1.1, "1.1"), (0.3, "0.3")]
)
def test_epsilon_is_rounded_up(epsilon: float, text: str) -> None:
    assert plots.epsilon_text(epsilon) == text


def test_other_models_get_colours_of_their_own() -> None:
    models = ["popularity", "local", "federated", "ease", "pooled"]
    colours = [drawing.model_colour(name, models) for name in models]
    assert len(set(colours)) == len(models)


def test_pyplot_is_never_loaded() -> None:
    check = "import sys, simulations.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
