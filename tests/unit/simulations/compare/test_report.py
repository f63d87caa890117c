from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from common.errors import StateError
from simulations.compare import plots
from simulations.compare.report import render_report
from simulations.compare.result import (
    CellRecord,
    read_compare_result,
    to_dict,
    without_timing,
    write_compare_result,
)
from tests.unit.simulations.compare.comparisons import compare_result, model, seeded, setting

if TYPE_CHECKING:
    from pathlib import Path

LOST = CellRecord(
    scenario="full", seed=1, trust="local", epsilon=8.0, status="failed",
    reason="<b>disk</b> full", wall_seconds=None,
)  # fmt: skip


def test_the_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    result = compare_result()
    write_compare_result(tmp_path / "compare.json", result)
    assert read_compare_result(tmp_path / "compare.json") == result


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema_version": 99}', '{"schema_version": 1}', '{"delta": NaN}']
)
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "compare.json").write_text(text)
    with pytest.raises(StateError, match=r"compare\.json"):
        read_compare_result(tmp_path / "compare.json")


def test_only_times_are_left_out_of_a_comparison_of_files() -> None:
    result = compare_result()
    later = replace(
        result,
        cells=tuple(replace(cell, wall_seconds=9.0) for cell in result.cells),
        resume_command="x",
    )
    assert without_timing(to_dict(later)) == without_timing(to_dict(result))
    other = replace(result, cells=(LOST,))
    assert without_timing(to_dict(other)) != without_timing(to_dict(result))


def test_the_report_stands_alone_and_says_what_matters() -> None:
    pooled = setting(trust="none", epsilon=None, models={"pooled": model(0.5)})
    html = render_report(compare_result(pooled, setting()))
    assert not re.search(r"(?:src|href)=.(?!data:)", html)
    for text in (
        "Joining pays for t1 with 10 % of its users",
        "added up in the clear",
        "+0.0290 ± 0.0040 (users 0.0040, seeds 0.0040)",
        "popularity",
        "Catalogue overlap".lower(),
        "sign-flip",
    ):
        assert text in html, text
    assert html.count("data:image/png") == len(plots.figures(compare_result()))
    assert "One seed only" not in html
    assert "Partial comparison" not in html


def test_one_seed_and_what_failed_are_said_and_escaped() -> None:
    html = render_report(
        compare_result(
            setting(seeded(0.1, num_seeds=1)), seeds=(0,), status="partial", cells=(LOST,),
            resume_command="crossrec compare --resume x",
        )
    )  # fmt: skip
    assert "One seed only" in html
    assert "1 of 1 runs failed or are missing" in html
    assert "&lt;b&gt;disk" in html
    assert "<b>disk" not in html


def test_before_the_first_run_has_ended_there_is_a_report_too() -> None:
    html = render_report(compare_result(scenarios=(), data=None, versions={}, status="partial"))
    assert "Nothing was compared yet." in html
    assert plots.figures(compare_result(scenarios=())) == {}


def test_all_figures_are_drawn_where_there_are_numbers(tmp_path: Path) -> None:
    settings = [
        setting(trust="none", epsilon=None),
        *(setting(epsilon=epsilon) for epsilon in (2.0, 8.0)),
    ]
    names = {"gain-by-epsilon", "models", "gain-by-popularity", "gain-by-activity"}
    paths = plots.save_figures(compare_result(*settings), tmp_path)
    assert set(paths) == names
    assert all(path.stat().st_size > 5_000 for path in paths.values())
    assert plots.figures(compare_result(setting(models={}, by_popularity=(), by_activity=())))


def test_the_curve_shows_gain_error_and_the_line_without_noise() -> None:
    settings = [
        setting(seeded(0.05), trust="none", epsilon=None),
        setting(seeded(0.01, 0.002), epsilon=2.0),
        setting(seeded(0.03, 0.003), epsilon=8.0),
    ]
    figure = plots.gain_by_epsilon(compare_result(*settings))
    assert figure is not None
    axes = figure.axes[0]
    lines = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
    assert [[2.0, 0.01], [8.0, 0.03]] in lines
    assert [[0.0, 0.05], [1.0, 0.05]] in lines  # across the panel
