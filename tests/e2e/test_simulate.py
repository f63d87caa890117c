"""The whole of ``crossrec simulate`` on small federations, from the command line to the report."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from common.cli import main
from simulations import simulate
from simulations.simulate import SimulationRun
from tests.shops import (
    SIZES,
    execute,
    options,
    purchases,
    read_document,
    run_all,
    tune_little,
    write_shops,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

QUICK = ["--plan", "both", "--rounds", "2", "--epochs", "2", "--dim", "4"]
MODELS = {"popularity", "shared", "local", "federated"}


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shops(tmp_path: Path) -> Path:
    return write_shops(tmp_path / "shops")


@pytest.fixture
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("save_figures", "write_report"):
        monkeypatch.setattr(simulate, name, lambda *_: None)
    tune_little(monkeypatch)


def crossrec(*words: object) -> dict[str, Any]:
    """Run ``crossrec simulate`` in this process; what it wrote, without timing."""
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", *map(str, words), "--out", "run"])
    assert not stopped.value.code
    document = read_document(Path("run"))
    assert document["status"] == "complete"
    return document


def assert_all_took_part(document: dict[str, Any], names: Sequence[str]) -> None:
    assert list(document["platforms"]) == sorted(names)
    for record in (*document["sums"], *document["rounds"]):
        assert record["platforms"] == dict.fromkeys(names, "released")
    for platform in document["platforms"].values():
        assert set(platform["models"]) >= MODELS
        for model in platform["models"].values():
            assert model["num_test_users"] == platform["num_test_users"] > 0
            assert 0.0 <= model["ndcg@10"] <= model["hr@10"] <= 1.0


# --- Data as people have them -------------------------------------------------------------------


@pytest.mark.usefixtures("_no_figures")
def test_space_separated_files_one_per_platform_without_a_held_out_file(tmp_path: Path) -> None:
    (tmp_path / "shops").mkdir()
    for name, num_users in SIZES.items():
        table = purchases(name, num_users)
        dates = pd.to_datetime(table["timestamp"], unit="s").dt.strftime("%Y-%m-%d")
        lines = ["userId itemId rate date"]
        lines += [
            f"{user} {item} {1 + k % 5}.0 {date}"
            for k, (user, item, date) in enumerate(
                zip(table["user_id"], table["item_id"], dates, strict=True)
            )
        ]
        (tmp_path / "shops" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    document = crossrec("--data", "shops", *QUICK)
    assert_all_took_part(document, list(SIZES))
    assert document["data"]["notes"][0] == "Test pairs: leave-one-out."
    for name, num_users in SIZES.items():
        assert document["platforms"][name]["num_users"] == num_users
        assert document["platforms"][name]["num_test_users"] == num_users


@pytest.mark.usefixtures("_no_figures")
def test_parquet_with_columns_named_by_flags_and_a_catalogue_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "shops").mkdir()
    items: set[str] = set()
    for name, num_users in SIZES.items():
        table = purchases(name, num_users)
        items |= set(table["item_id"])
        table["timestamp"] = pd.to_datetime(table["timestamp"], unit="s")
        # A second column that could be the item, so that the flags are needed.
        renamed = table.set_axis(["customer_id", "sku", "bought_at"], axis=1)
        renamed.assign(item_id="same").to_parquet(tmp_path / "shops" / f"{name}.parquet")
    listing = "".join(f"{item}\n" for item in [*sorted(items), "never-bought"])
    (tmp_path / "feed.csv").write_text("item_id\n" + listing)
    columns = ["--user-column", "customer_id", "--item-column", "sku"]
    times = ["--time-column", "bought_at"]
    document = crossrec("--data", "shops", *columns, *times, "--catalogue", "feed.csv", *QUICK)
    assert_all_took_part(document, list(SIZES))
    assert document["data"]["catalogue_derived"] is False
    assert document["data"]["num_items"] == len(items) + 1
    assert {p["num_items"] for p in document["platforms"].values()} == {len(items) + 1}


@pytest.mark.usefixtures("_no_figures")
def test_the_built_in_marketplace_needs_no_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    from common.data.synthetic import MarketplaceConfig

    small = MarketplaceConfig(num_users=(30, 20), num_items=60)
    monkeypatch.setattr(simulate, "MarketplaceConfig", lambda: small)
    document = crossrec(*QUICK)
    assert_all_took_part(document, ["shop-1", "shop-2"])
    assert document["data"]["is_synthetic"] is True


# --- Models -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_figures")
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ("gmf", "bce"),
        ("gmf", "sampled-softmax"),
        ("mlp", "bce"),
        ("mlp", "sampled-softmax"),
        ("neumf", "bce"),
        ("neumf", "sampled-softmax"),
    ],
)
def test_each_model_trains_with_each_sampled_loss(shops: Path, model: str, loss: str) -> None:
    words = ["--model", model, "--loss", loss, "--hidden", "6,3", "--negatives", "5"]
    document = crossrec("--data", shops, *QUICK, *words)
    assert_all_took_part(document, list(SIZES))
    released = {text.split()[0] for text in document["privacy"]["released"]}
    assert ("tower.0.weight" in released) == (model != "gmf")
    assert ("items.weight" in released) == (model != "mlp")


@pytest.mark.usefixtures("_no_figures")
def test_sampling_local_steps_and_candidates(shops: Path) -> None:
    words = ["--plan", "ncf", "--sampling-rate", "0.5", "--local-steps", "2", "--candidates", "100"]
    document = crossrec("--data", shops, *QUICK, *words)
    assert_all_took_part(document, list(SIZES))
    assert "Poisson" in document["privacy"]["sampling"]
    for platform in document["platforms"].values():
        assert 0.9 * 8.0 < platform["epsilon"] <= 8.0


# --- A real process -----------------------------------------------------------------------------


def interrupt_real_process(folder: Path, *words: object) -> dict[str, Any]:
    """Start ``crossrec simulate`` and press Ctrl-C after the first round; the partial result."""
    program = [sys.executable, "-c", "from common.cli import main; main()"]
    process = subprocess.Popen(
        [*program, "simulate", *map(str, words), "--out", str(folder)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240.0
        while not any(
            '"round-closed"' in journal.read_text(encoding="utf-8")
            for journal in folder.glob("federation-state/*/journal.jsonl")
        ):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=240.0)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Interrupted after" in out
    assert (folder / "report.html").stat().st_size > 10_000
    partial = read_document(folder)
    assert partial["status"] == "partial"
    assert 0 < partial["rounds_completed"] < partial["rounds_planned"]
    return partial


def test_ctrl_c_in_a_real_process_leaves_a_partial_result_that_can_be_resumed(
    shops: Path, tmp_path: Path
) -> None:
    words = ["--data", shops, "--plan", "both", "--rounds", 100, "--epochs", 2, "--dim", 4]
    words += ["--trust", "none"]
    interrupt_real_process(tmp_path / "run", *words)
    resumed = execute(SimulationRun.reopen(tmp_path / "run"))
    asked = options(shops, rounds=100, trust="none")
    assert resumed == run_all(asked, tmp_path / "undisturbed")


# --- Ray ----------------------------------------------------------------------------------------


@pytest.mark.ray
def test_ray_agrees_with_the_in_process_engine(shops: Path, tmp_path: Path) -> None:
    here = run_all(options(shops), tmp_path / "here", tuned=True)  # Ray has its own processes
    on_ray = run_all(options(shops, engine="ray"), tmp_path / "ray", tuned=True)
    for name in SIZES:
        ours, theirs = (document["platforms"][name] for document in (here, on_ray))
        for key in ("epsilon", "epsilon_history", "noise_multiplier", "num_users"):
            assert ours[key] == theirs[key]
        for model, metrics in ours["models"].items():
            for metric, value in metrics.items():
                if isinstance(value, float):
                    assert theirs["models"][model][metric] == pytest.approx(value, abs=0.02)
    for ours, theirs in zip(here["rounds"], on_ray["rounds"], strict=True):
        assert ours["platforms"] == theirs["platforms"]
        assert theirs["update_norm"] == pytest.approx(ours["update_norm"], rel=1e-5)
    _assert_close(
        *(
            next(tmp_path.glob(f"{name}/federation-state/*/checkpoint.safetensors"))
            for name in ("here", "ray")
        )
    )


@pytest.mark.ray
def test_ctrl_c_ends_a_process_with_ray_too(shops: Path, tmp_path: Path) -> None:
    # Flower's server thread would otherwise wait for replies for as long as a round may take.
    words = ["--plan", "both", "--rounds", 300, "--epochs", 2, "--dim", 4]
    words += ["--trust", "none", "--engine", "ray"]
    interrupt_real_process(tmp_path / "run", "--data", shops, *words)


def _assert_close(one: Path, other: Path) -> None:
    from common.storage import read_arrays

    expected, _ = read_arrays(one)
    found, _ = read_arrays(other)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6)


# --- The real markets ---------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.usefixtures("_no_figures")
def test_two_rounds_on_the_five_markets(
    xmrec_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Most of the time, none of the point.
    monkeypatch.setattr("client.adaptation._ALS_DIM", 8)
    monkeypatch.setattr("client.adaptation.MAX_ITEMS", 1300)
    words = ["--plan", "both", "--rounds", 2, "--epochs", 1, "--dim", 8]
    document = crossrec("--data", xmrec_folder, *words)
    markets = {
        # Users, items bought or held out there, distinct pairs (the file of s1 has 77,173 rows).
        "s1": (6466, 9931, 76_965),
        "s2": (7109, 2218, 48_165),
        "s3": (3328, 1260, 23_236),
        "t1": (2697, 1376, 19_483),
        "t2": (5482, 2945, 41_061),
    }
    assert_all_took_part(document, list(markets))
    assert document["data"]["notes"][0] == "Test pairs: held-out file."
    for name, sizes in markets.items():
        platform = document["platforms"][name]
        found = (platform["num_users"], platform["num_items"], platform["num_interactions"])
        assert found == sizes
        assert platform["num_test_users"] == platform["num_users"]
        assert 7.8 < platform["epsilon"] <= 8.0
