"""Options, what they stand for, and where each run lives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config import dump_config, load_config
from common.errors import ConfigError
from common.models.ncf import NcfConfig
from simulations.compare.cells import enumerate_cells, enumerate_scenarios, group_cells
from simulations.compare.options import CompareOptions, parse_epsilons, parse_seeds
from simulations.options import SimulationOptions

PLATFORMS = ["s1", "t1"]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("1", (0,)),
        ("3", (0, 1, 2)),
        ("100-102", (100, 101, 102)),
        ("7-7", (7,)),
        ("3, 9", (3, 9)),
    ],
)
def test_seeds_are_a_number_a_range_or_a_list(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "a", "5-", "5-3", "-3", "1,,2", "1.5"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds: found"):
        parse_seeds(text)


def test_epsilons_are_sorted_numbers() -> None:
    assert parse_epsilons("8, 1,2.5") == (1.0, 2.5, 8.0)
    with pytest.raises(ConfigError, match="--epsilon: found '8,x'"):
        parse_epsilons("8,x")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"newcomers": ("t1",)}, "newcomer: found 't1'"),
        ({"newcomers": ("t1:0.1", "t1:0.1")}, "newcomers: found a value twice"),
        ({"epsilons": ()}, "epsilons: found none"),
        ({"epsilons": (8.0, 8.0)}, "epsilons: found a value twice"),
        ({"epsilons": (0.0,)}, "expected positive ones"),
        ({"epsilons": (float("inf"),)}, "expected positive ones"),
        ({"trusts": ("none",)}, "there is always a run without noise"),
        ({"seeds": ()}, "seeds: found none"),
        ({"full": False}, "nothing to compare"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CompareOptions(**changes)


@pytest.mark.parametrize(
    ("epsilons", "main"), [((1.0, 8.0, 16.0), 8.0), ((1.0, 4.0), 4.0), ((10.0, 2.0), 10.0)]
)
def test_the_main_epsilon_is_8_or_the_largest(epsilons: tuple[float, ...], main: float) -> None:
    assert CompareOptions(epsilons=epsilons).main_epsilon == main


def test_scenarios_are_the_full_federation_and_each_newcomer_once() -> None:
    def names(**changes: Any) -> list[str]:  # noqa: ANN401
        return [s.name for s in enumerate_scenarios(CompareOptions(**changes), PLATFORMS)]

    assert names() == ["full"]
    assert names(newcomers=("t1:0.1", "t1:0.2")) == ["full", "t1:0.1", "t1:0.2"]
    assert names(newcomers=("t1:0.1", "all:0.1")) == ["full", "t1:0.1", "s1:0.1"]
    assert names(newcomers=("t1:0.1",), full=False) == ["t1:0.1"]
    own = enumerate_scenarios(CompareOptions(newcomers=("all:0.5",)), [*PLATFORMS, "all"])
    assert [scenario.name for scenario in own] == ["full", "all:0.5"]


def test_cells_are_all_combinations_and_one_without_noise_first_in_each_group() -> None:
    options = CompareOptions(
        newcomers=("t1:0.1",), epsilons=(2.0, 8.0), trusts=("local",), seeds=(5, 6)
    )
    cells = enumerate_cells(options, PLATFORMS)
    assert len(cells) == len(set(cells)) == 2 * 2 * (1 + 2)
    groups = group_cells(cells)
    assert [(g[0].seed, g[0].scenario.name) for g in groups] == [
        *((5, "full"), (5, "t1:0.1"), (6, "full"), (6, "t1:0.1")),
    ]
    for group in groups:
        assert len({(cell.seed, cell.scenario) for cell in group}) == 1
        noises = [(cell.trust, cell.epsilon) for cell in group]
        assert noises == [("none", None), ("local", 2.0), ("local", 8.0)]
    assert len({cell.folder for cell in cells}) == len(cells)
    assert cells[4].folder == Path("cells/t1-0.1/seed-5/local-2")


def test_a_cell_is_a_run_that_measures_who_is_of_interest() -> None:
    base = SimulationOptions(rounds=7, model=NcfConfig(dim=5))
    options = CompareOptions(base=base, newcomers=("t1:0.1",), trusts=("local",), seeds=(5,))
    full, newcomer = (
        next(c for c in enumerate_cells(options, PLATFORMS) if c.epsilon == 4 and c.scenario == s)
        for s in enumerate_scenarios(options, PLATFORMS)
    )
    one, other = full.options(base), newcomer.options(base)
    assert (one.newcomer, one.adapting) == (None, None)
    assert (other.newcomer, other.adapting) == ("t1:0.1", ("t1",))
    for run in (one, other):
        assert (run.epsilon, run.trust, run.seed, run.rounds) == (4.0, "local", 5, 7)
        assert run.model == base.model
    noiseless = enumerate_cells(options, PLATFORMS)[0].options(base)
    assert noiseless.trust == "none"
    assert len({run.run_id for run in (one, other, noiseless)}) == 3


def test_options_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    base = SimulationOptions(data=tmp_path, candidates=50, model=NcfConfig(kind="mlp", loss="bce"))
    options = CompareOptions(base=base, newcomers=("t1:0.1",), full=False, seeds=(3, 9))
    path = tmp_path / "comparison.toml"
    path.write_text(dump_config(options))
    assert load_config(path, CompareOptions) == options
