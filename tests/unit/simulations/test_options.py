from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from common.config import dump_config, load_config
from common.errors import ConfigError
from common.models.ncf import NcfConfig
from simulations.options import SimulationOptions

if TYPE_CHECKING:
    from common.privacy.plan import PlanName

ELSEWHERE: dict[str, Any] = {
    "data": Path("/markets"),
    "catalogue": Path("/catalogue.csv"),
    "candidates": 100,
    "adapting": ("shop-1",),
    "engine": "ray",
}
"""Where data lie, what runs the apps, how models are measured: nothing of what platforms do."""

OTHER_VALUES: dict[str, Any] = {
    "plan": "ncf",
    "user_column": "customer",
    "item_column": "sku",
    "rating_column": "stars",
    "time_column": "when",
    "epsilon": 3.0,
    "delta": 1e-6,
    "trust": "none",
    "max_dropped": 1,
    "max_colluding": 2,
    "rounds": 3,
    "sampling_rate": 0.5,
    "local_steps": 2,
    "clipping_norm": 0.5,
    "strategy": "fedavg",
    "server_learning_rate": 0.5,
    "epochs": 3,
    "newcomer": "shop-1:0.5",
    "seed": 5,
    "model": NcfConfig(dim=7),
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": math.inf}, "trust 'none'"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"sampling_rate": 1.1}, "sampling_rate"),
        ({"sampling_rate": math.nan}, "sampling_rate"),
        ({"sampling_rate": 0.5}, "sampling_rate: .*plan 'ncf'"),
        ({"sampling_rate": 0.5, "plan": "both"}, "sampling_rate: .*plan 'ncf'"),
        ({"plan": "sums"}, "plan: found 'sums', expected one of pairs, ncf, both"),
        ({"trust": "secret"}, "trust: .*secagg-simulated"),
        ({"trust": "secagg", "local_steps": 2}, "local_steps: found 2; with trust 'secagg'"),
        ({"max_dropped": -1}, "max_dropped: found -1"),
        ({"max_colluding": 0}, "max_colluding: found 0"),
        ({"rounds": 0}, "rounds"),
        ({"local_steps": 0}, "local steps"),
        ({"epochs": 0}, "epochs"),
        ({"candidates": 1}, "candidates"),
        ({"newcomer": "shop-1"}, "newcomer: found 'shop-1'"),
        ({"newcomer": "shop-1:0"}, "newcomer: found 'shop-1:0'"),
        ({"newcomer": "shop-1:1.5"}, "newcomer"),
        ({"newcomer": ":0.5"}, "newcomer"),
        ({"newcomer": "shop-1:nan"}, "newcomer"),
        ({"adapting": ()}, "adapting"),
        ({"candidates": 0}, "candidates"),
        ({"clipping_norm": 0.0}, "clipping_norm"),
        ({"clipping_norm": math.nan}, "clipping_norm"),
        ({"server_learning_rate": math.inf}, "server_learning_rate"),
    ],
)
def test_contradictions_are_refused_before_anything_is_read(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        SimulationOptions(**changes)


def test_the_runs_name_follows_from_every_option_that_platforms_act_on() -> None:
    # Noise follows from the run: another run must have other noise ...
    names = {SimulationOptions().run_id}
    for name, value in OTHER_VALUES.items():
        changes = {"plan": "ncf", name: value}  # the only plan that all the others go with
        names.add(replace(SimulationOptions(), **changes).run_id)
    assert len(names) == 1 + len(OTHER_VALUES)
    only_choice = {"privacy_unit"}
    known = OTHER_VALUES.keys() | ELSEWHERE.keys() | only_choice
    assert known == {field.name for field in fields(SimulationOptions)}


@pytest.mark.parametrize(("plan", "num_rounds"), [("pairs", 0), ("ncf", 7), ("both", 7)])
def test_rounds_run_only_where_the_plan_pays_for_them(plan: PlanName, num_rounds: int) -> None:
    assert SimulationOptions(plan=plan, rounds=7).num_rounds == num_rounds


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_same_run_elsewhere_has_the_same_name(name: str) -> None:
    # ... and the same run the same noise, wherever its data lie and whatever engine runs it.
    moved = replace(SimulationOptions(), **{name: ELSEWHERE[name]})
    assert moved.run_id == SimulationOptions().run_id


def test_equal_options_name_the_same_run_without_a_slash() -> None:
    first, second = (replace(SimulationOptions(), **OTHER_VALUES) for _ in range(2))
    assert first.run_id == second.run_id
    assert first.run_id.isalnum()


def test_the_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    for options in (SimulationOptions(), replace(SimulationOptions(), **OTHER_VALUES, **ELSEWHERE)):
        path = tmp_path / "simulation.toml"
        path.write_text(dump_config(options), encoding="utf-8")
        assert load_config(path, SimulationOptions) == options


def test_a_sum_under_masks_has_the_noise_of_the_one_in_the_clear() -> None:
    names = {
        SimulationOptions(trust=trust).run_id for trust in ("secagg", "secagg-simulated", "local")
    }
    assert len(names) == 2
