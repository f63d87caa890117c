from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from common.errors import StateError
from common.evaluation.metrics import evaluate
from simulations.result import (
    Gain,
    ModelResult,
    RunResult,
    SumRecord,
    finite_or_none,
    read_result,
    to_dict,
    without_timing,
    write_result,
)
from tests.unit.simulations.run_results import model, platform, run_result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    endless = replace(
        platform(),
        epsilon=None,
        epsilon_history=(None, 3.0),
        gain={"ndcg@10": Gain(mean=0.1, stderr=None)},
    )
    for result in (
        run_result(),
        run_result(platforms={"ünï <b>": endless}),
        run_result(status="partial", rounds_completed=1, resume_command="again", platforms={}),
    ):
        write_result(tmp_path / "runs" / "result.json", result)
        assert read_result(tmp_path / "runs" / "result.json") == result


def test_the_documented_keys_stand_where_the_design_puts_them() -> None:
    document: Any = to_dict(run_result())
    assert document["schema_version"] == 2
    assert document["simulation"] is True
    north = document["platforms"]["north"]
    assert {
        "num_users", "num_items", "num_interactions", "epsilon", "delta", "privacy_unit", "trust",
    } <= set(north)  # fmt: skip
    assert set(north["models"]) == {"popularity", "local", "federated"}
    assert north["models"]["federated"] == {
        "ndcg@10": 0.28,
        "hr@10": 0.28,
        "coverage@10": 0.3,
        "num_test_users": 90,
        "stderr": 0.004,
        "stderr_by_metric": {"ndcg@10": 0.004, "hr@10": 0.004},
    }
    privacy = document["privacy"]
    assert privacy["neighbouring"] == "add or remove one user with all her interactions"


def test_equal_results_give_equal_bytes_whatever_the_order_of_keys(tmp_path: Path) -> None:
    result = run_result()
    backwards = replace(result, platforms=dict(reversed(list(result.platforms.items()))))
    write_result(tmp_path / "a", result)
    write_result(tmp_path / "b", backwards)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_timing_two_runs_of_a_seed_are_equal_and_nothing_else_is_dropped() -> None:
    result = run_result(platforms={"seconds": platform(), "wall_seconds": platform()})
    slower = replace(
        result,
        wall_seconds=99.0,
        peak_memory_mb=None,
        rounds=tuple(replace(record, seconds=9.0) for record in result.rounds),
    )
    assert to_dict(result) != to_dict(slower)
    assert without_timing(to_dict(result)) == without_timing(to_dict(slower))
    kept: Any = without_timing(to_dict(result))
    assert set(kept["platforms"]) == {"seconds", "wall_seconds"}
    changed = replace(result, rounds=(replace(result.rounds[0], update_norm=0.5),))
    assert without_timing(to_dict(changed)) != kept
    total = SumRecord(quantity="item-pairs", seconds=1.0, platforms={"north": "released"})
    quick, slow, other = (
        without_timing(to_dict(replace(result, sums_planned=2, sums=(record,))))
        for record in (
            total,
            replace(total, seconds=2.0),
            replace(total, platforms={"north": "declined: budget"}),
        )
    )
    assert quick == slow != other


def test_how_far_a_run_came_names_only_what_it_planned() -> None:
    assert run_result().progress == "2 of 2 rounds"
    assert run_result(sums_planned=2).progress == "0 of 2 sums and 2 of 2 rounds"
    sums = run_result(sums_planned=2, rounds_planned=0, rounds_completed=0, rounds=())
    assert sums.progress == "0 of 2 sums"
    total = SumRecord(quantity="item-counts", seconds=1.0, platforms={})
    with pytest.raises(ValueError, match="1 sums closed of 0 planned"):
        run_result(sums=(total,))


@pytest.mark.parametrize(
    "planted",
    [
        run_result(wall_seconds=math.inf),
        run_result(configuration={"epsilon": math.nan}),
        run_result(platforms={"north": replace(platform(), epsilon=math.inf)}),
        run_result(platforms={"north": replace(platform(), models={"local": model(math.nan)})}),
    ],
)
def test_nan_and_infinity_are_refused_and_the_old_file_stays(
    tmp_path: Path, planted: RunResult
) -> None:
    path = tmp_path / "result.json"
    write_result(path, run_result())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_result(path, planted)
    assert path.read_bytes() == before


def test_a_crash_at_any_system_call_leaves_the_old_file_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_result(path, run_result())
    before = path.read_bytes()
    for name in ("os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(name, fail)
            with pytest.raises(StateError, match="No space left"):
                write_result(path, run_result(seed=8))
        assert path.read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["platforms"]["north"].pop(key)


def put(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["platforms"]["north"].update({key: value})


def change(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.update({key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(drop("num_users"), "num_users", id="missing field"),
        pytest.param(put("num_users", "many"), "num_users", id="wrong type"),
        pytest.param(put("surprise", 1), "surprise", id="unknown field"),
        pytest.param(put("models", {"local": {}}), "not a valid result", id="empty model"),
        pytest.param(put("models", {"local": 3}), "not a valid result", id="model is a number"),
        pytest.param(change("status", "maybe"), "status", id="unknown status"),
        pytest.param(change("rounds_completed", 3), "3 rounds completed", id="too many rounds"),
        pytest.param(change("platforms", []), "not a valid result", id="platforms is a list"),
        pytest.param(change("schema_version", 1), "version 1, expected 2", id="other schema"),
        pytest.param(change("wall_seconds", math.inf), "Infinity is not JSON", id="not JSON"),
    ],
)
def test_a_damaged_file_is_named_with_the_field(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    document = to_dict(run_result())
    damage(document)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document))
    with pytest.raises(StateError, match=message):
        read_result(path)


def test_a_missing_file_and_a_list_are_state_errors(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(StateError, match="cannot be read"):
        read_result(path)
    path.write_text("[]")
    with pytest.raises(StateError, match="schema version None"):
        read_result(path)


def test_an_evaluation_becomes_a_model_result_with_undefined_as_none() -> None:
    one_user = csr_matrix(np.array([[1, 0, 0]]))
    measured = ModelResult.measured(
        evaluate(
            lambda rows: np.array([[3, 2, 1]], dtype=np.float32)[rows],
            csr_matrix((1, 3)),
            one_user,
            rng=np.random.default_rng(0),
        )
    )
    assert measured.metrics["ndcg@10"] == 1
    assert measured.stderr["ndcg@10"] is None
    assert measured.num_test_users == 1


def test_only_finite_numbers_pass() -> None:
    assert [finite_or_none(x) for x in (1.5, math.inf, math.nan, None)] == [1.5, None, None, None]


def test_a_metric_may_not_hide_a_field() -> None:
    with pytest.raises(ValueError, match="collides"):
        ModelResult(metrics={"stderr": 1.0}, stderr={}, num_test_users=1)
