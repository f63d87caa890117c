"""Comparisons on small shops: what is kept, what is run again, and what comes out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd
import pytest

from client.trainer import train_round
from common.errors import ConfigError, DataError, RunFailed, StateError
from simulations.compare import comparison, worker
from simulations.compare.cells import enumerate_cells
from simulations.compare.comparison import Comparison, compare_command
from simulations.compare.result import read_compare_result, without_timing
from simulations.options import SimulationOptions
from simulations.per_user import read_per_user
from simulations.result import read_result
from simulations.result import without_timing as without_run_timing
from simulations.simulate import SimulationRun
from tests.shops import SIZES, options, run_all, tune_little, write_shops
from tests.unit.simulations.compare.comparisons import small

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from common.privacy.mechanisms import TrustMode
    from simulations.compare.options import CompareOptions
    from simulations.result import RunResult

NUM_CELLS = 4


@pytest.fixture(autouse=True)
def _no_figures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("save_figures", "write_report"):
            patch.setattr(comparison, name, lambda *_: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def little_tuning() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        tune_little(patch)
        yield patch


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shops(tmp_path_factory.mktemp("data") / "shops")


@pytest.fixture(scope="module")
def undisturbed(shops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a comparison that ran to its end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("save_figures", "write_report"):
            patch.setattr(comparison, name, lambda *_: None)
        compare(small(shops), folder)
    return folder


def compare(options: CompareOptions, folder: Path, **settings: Any) -> dict[str, Any]:  # noqa: ANN401
    Comparison.open(options, folder).execute(**settings)
    return document(folder)


def document(folder: Path) -> dict[str, Any]:
    """What a comparison wrote, without what differs between two of the same options."""
    read_compare_result(folder / "compare.json")
    return without_timing(json.loads((folder / "compare.json").read_text(encoding="utf-8")))


def homes(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("simulation.toml"))


def stop_at(patch: pytest.MonkeyPatch, number: int, error: type[BaseException]) -> list[str]:
    """Raise ``error`` when cell ``number`` (from 0) would run; the names of the cells that ran."""
    ran: list[str] = []
    real = SimulationRun.execute

    def execute(self: SimulationRun, *arguments: Any, **named: Any) -> RunResult:  # noqa: ANN401
        if len(ran) == number:
            ran.append("stopped")
            raise error("disk full")
        ran.append(f"{self.options.seed} {self.options.trust}")
        return real(self, *arguments, **named)

    patch.setattr(SimulationRun, "execute", execute)
    return ran


# --- What comes out -----------------------------------------------------------------------------


def test_a_finished_cell_keeps_its_result_and_no_users_data(undisturbed: Path) -> None:
    found = homes(undisturbed)
    assert len(found) == NUM_CELLS
    for home in found:
        names = {path.name for path in home.iterdir()}
        assert names == {"simulation.toml", "result.json", "per_user.parquet"}
    for path in undisturbed.rglob("*"):
        assert path.is_dir() or b"north-u" not in path.read_bytes(), path


def test_statistics_are_those_of_the_cells(undisturbed: Path) -> None:
    result = read_compare_result(undisturbed / "compare.json")
    assert result.status == "complete"
    (scenario,) = result.scenarios
    assert (scenario.name, scenario.newcomer, scenario.fraction) == ("north:0.5", "north", 0.5)
    assert list(scenario.platforms) == ["north"]
    platform = scenario.platforms["north"]
    assert (platform.num_users, platform.num_test_users) == (9, 9)
    assert [(s.trust, s.epsilon) for s in platform.settings] == [("none", None), ("local", 8.0)]
    noisy = platform.settings[1]
    folders = [undisturbed / f"cells/north-0.5/seed-{seed}/local-8" for seed in (0, 1)]
    runs = [read_result(folder / "result.json").platforms["north"] for folder in folders]
    assert noisy.num_seeds == 2
    assert noisy.times_joined == sum(run.gate == "joined" for run in runs)
    assert noisy.epsilon_spent == max(run.epsilon or 0 for run in runs) <= 8.0
    for name, model in noisy.models.items():
        values = [run.models[name].metrics["ndcg@10"] or 0.0 for run in runs]
        assert model.metrics["ndcg@10"].mean == pytest.approx(sum(values) / 2)
    means = [run.gain["ndcg@10"].mean or 0.0 for run in runs]
    gain = noisy.models["federated"].gain["ndcg@10"]
    assert gain.mean == pytest.approx(sum(means) / 2)
    assert gain.num_seeds == 2
    assert 9 <= gain.num_users <= 18
    assert noisy.models["local"].gain == {}
    assert "pooled" in platform.settings[0].models
    assert "pooled" not in noisy.models


def test_groups_divide_the_test_users(undisturbed: Path) -> None:
    result = read_compare_result(undisturbed / "compare.json")
    noisy = result.scenarios[0].platforms["north"].settings[1]
    tables = [
        read_per_user(undisturbed / f"cells/north-0.5/seed-{seed}/local-8/per_user.parquet")
        for seed in (0, 1)
    ]
    local = pd.concat([table[table["model"] == "local"] for table in tables])
    assert (local["interactions"] == 5).all()
    assert [group.label for group in noisy.by_activity] == ["5-9"]
    assert noisy.by_activity[0].gain.mean == noisy.models["federated"].gain["ndcg@10"].mean
    labels = {"0": local["item_purchases"] == 0, "1-4": local["item_purchases"].between(1, 4)}
    for group in noisy.by_popularity:
        users = local.loc[labels[group.label], "user"]
        assert group.gain.num_users == users.nunique()
    assert {g.label for g in noisy.by_popularity} == {k for k, v in labels.items() if v.any()}


def test_every_platform_is_measured_in_the_full_federation(shops: Path, tmp_path: Path) -> None:
    options = small(shops, full=True, newcomers=(), seeds=(0,))
    found = compare(options, tmp_path / "run")
    assert [s["name"] for s in found["scenarios"]] == ["full"]
    assert sorted(found["scenarios"][0]["platforms"]) == sorted(SIZES)
    assert found["data"]["items_in_common"]["north"]["south"] > 0
    (gain,) = (
        p["settings"][1]["models"]["federated"]["gain"]["ndcg@10"]
        for name, p in found["scenarios"][0]["platforms"].items()
        if name == "north"
    )
    assert gain["num_seeds"] == 1
    assert gain["stderr_seeds"] is None


@pytest.mark.slow
def test_two_processes_find_the_same(
    shops: Path, tmp_path: Path, little_tuning: pytest.MonkeyPatch
) -> None:
    little_tuning.undo()  # it does not reach other processes
    try:
        here = compare(small(shops), tmp_path / "here")
        assert compare(small(shops), tmp_path / "run", workers=2) == here
    finally:
        tune_little(little_tuning)


@pytest.mark.parametrize("trust", ["none", "local"])
def test_a_cell_has_the_numbers_of_the_same_simulation(
    shops: Path, tmp_path: Path, undisturbed: Path, trust: TrustMode
) -> None:
    (cell,) = (
        cell
        for cell in enumerate_cells(small(shops), sorted(SIZES))
        if (cell.seed, cell.trust) == (1, trust)
    )
    # As on the command line of `crossrec simulate`: a run of its own, nothing is handed to it.
    asked = options(shops, seed=1, trust=trust, newcomer="north:0.5", adapting=("north",))
    alone = run_all(asked, tmp_path / "run")
    path = undisturbed / cell.folder / "result.json"
    inside: dict[str, Any] = without_run_timing(json.loads(path.read_bytes()))
    if trust == "none":  # the comparison alone measures what all raw data in one place would give
        assert inside["platforms"]["north"]["models"].pop("pooled")
    assert inside == alone


def test_the_first_cell_of_a_group_warms_the_others(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm: list[tuple[str, Path | None]] = []
    real = SimulationRun.execute

    def execute(self: SimulationRun, *, warm_from: Path | None, **named: Any) -> RunResult:  # noqa: ANN401
        warm.append((f"{self.options.seed} {self.options.trust}", warm_from))
        assert warm_from is None or (warm_from / "platforms/north/state").is_dir()
        return real(self, warm_from=warm_from, **named)

    monkeypatch.setattr(SimulationRun, "execute", execute)
    compare(small(shops), tmp_path / "run")
    group = tmp_path / "run/cells/north-0.5"
    assert warm == [
        *(("0 none", None), ("0 local", group / "seed-0/none")),
        *(("1 none", None), ("1 local", group / "seed-1/none")),
    ]


# --- Interruptions ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(NUM_CELLS))
def test_an_interrupted_comparison_keeps_its_cells_and_ends_like_an_undisturbed_one(
    shops: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Path,
    number: int,
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, number, KeyboardInterrupt)
        partial = compare(small(shops), folder)
    assert partial["status"] == "partial"
    statuses = [cell["status"] for cell in partial["cells"]]
    assert statuses == ["finished"] * number + ["missing"] * (NUM_CELLS - number)
    assert read_compare_result(folder / "compare.json").resume_command is not None
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    assert len(kept) == number
    with monkeypatch.context() as patch:
        ran = stop_at(patch, NUM_CELLS, KeyboardInterrupt)
        again = Comparison.reopen(folder) if number % 2 else Comparison.open(small(shops), folder)
        again.execute()
    assert len(ran) == NUM_CELLS - number
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert document(folder) == document(undisturbed)
    assert again.finished() is not None
    for home in homes(folder):
        assert not (home / "platforms").exists()


def test_ctrl_c_inside_a_cell_goes_on_inside_it(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
) -> None:
    calls = 0

    def train(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return train_round(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("client.platform.train_round", train)
        partial = compare(small(shops), tmp_path / "run")
    assert [cell["status"] for cell in partial["cells"]] == ["finished"] + 3 * ["missing"]
    assert compare(small(shops), tmp_path / "run") == document(undisturbed)


def test_a_finished_comparison_is_not_run_again(undisturbed: Path, shops: Path) -> None:
    assert Comparison.open(small(shops), undisturbed).finished() is not None
    assert Comparison.open(small(shops), undisturbed, overwrite=True).finished() is None


# --- Failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
def test_a_cell_that_fails_is_written_down_stops_no_other_and_is_tried_again(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path, number: int
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, number, StateError)
        partial = compare(small(shops), folder)
    assert partial["status"] == "partial"
    expected: list[tuple[str, str | None]] = [("finished", None)] * NUM_CELLS
    expected[number] = ("failed", "disk full")
    assert [(c["status"], c["reason"]) for c in partial["cells"]] == expected
    settings = partial["scenarios"][0]["platforms"]["north"]["settings"]
    assert {s["trust"]: s["num_seeds"] for s in settings} == {
        "none": 1 + number,
        "local": 2 - number,
    }
    assert [s["trust"] for s in settings] == ["none", "local"]
    with monkeypatch.context() as patch:
        ran = stop_at(patch, NUM_CELLS, KeyboardInterrupt)
        Comparison.reopen(folder).execute()
    assert ran == [["0 none"], ["0 local"]][number]
    assert document(folder) == document(undisturbed)


def test_a_cell_that_failed_leaves_no_data_and_an_unforeseen_error_not_its_text(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise KeyError("north-u03")

    monkeypatch.setattr("simulations.simulate.measure_platform", fail)
    found = compare(small(shops, seeds=(0,)), tmp_path / "run")
    assert {cell["reason"] for cell in found["cells"]} == {"KeyError: see the log"}
    left = {path.name for path in (tmp_path / "run/cells").rglob("*") if path.is_file()}
    assert left == {"failed.json"}


def test_a_process_that_is_killed_leaves_a_partial_comparison(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> NoReturn:
        raise RunFailed("killed")

    monkeypatch.setattr(comparison, "run_groups", killed)
    with pytest.raises(RunFailed, match="killed"):
        compare(small(shops), tmp_path / "run")
    assert document(tmp_path / "run")["status"] == "partial"


# --- Folders ------------------------------------------------------------------------------------


def test_a_cell_of_other_options_does_not_count(shops: Path, tmp_path: Path) -> None:
    options = small(shops, seeds=(0,))
    cell = enumerate_cells(options, sorted(SIZES))[0]
    compare(options, tmp_path / "run")
    assert worker.finished_cell(tmp_path / "run", cell, options.base) is not None
    other = SimulationOptions(data=shops)
    assert worker.finished_cell(tmp_path / "run", cell, other) is None


def test_another_comparison_in_the_folder_is_refused(undisturbed: Path, shops: Path) -> None:
    with pytest.raises(ConfigError, match=r"other options.*--overwrite"):
        Comparison.open(small(shops, seeds=(5,)), undisturbed)
    with pytest.raises(ConfigError, match="is no comparison; it is not deleted"):
        Comparison.open(small(shops), shops, overwrite=True)
    with pytest.raises(ConfigError, match="holds no comparison to resume"):
        Comparison.reopen(shops)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_mistake_is_found_before_anything_is_written(
    shops: Path, tmp_path: Path, overwrite: bool
) -> None:
    folder = tmp_path / "run"
    unknown = Comparison.open(small(shops, newcomers=("x:0.5",)), folder, overwrite=overwrite)
    with pytest.raises(ConfigError, match="there is no platform 'x'"):
        unknown.execute()
    with pytest.raises(DataError):
        Comparison.open(small(tmp_path / "typo"), folder, overwrite=overwrite).execute()
    assert not folder.exists()


def test_the_command_names_what_was_compared(shops: Path) -> None:
    command = compare_command(small(shops, seeds=(3, 4, 5), trusts=("local", "secagg-simulated")))
    for words in (
        "crossrec compare --newcomer north:0.5 --only-newcomers --epsilon 8",
        "--trust local,secagg-simulated --seeds 3-5",
        f"--data {shops}",
        "--rounds 2",
    ):
        assert words in command
