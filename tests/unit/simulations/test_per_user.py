from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from common.data.interactions import UserItems
from common.errors import StateError
from common.evaluation.metrics import evaluate
from simulations.federation import SimulatedPlatform
from simulations.per_user import COLUMNS, per_user_table, read_per_user, write_per_user
from simulations.simulate import PER_USER_FILE, SimulationRun
from tests.shops import options, write_shops

if TYPE_CHECKING:
    from pathlib import Path

EVERYONE = ["a", "b", "c", "d"]


@pytest.fixture
def platform(tmp_path: Path) -> SimulatedPlatform:
    """Of four users three are there, and two of them are tested; item 3 was never bought."""
    train = csr_matrix(np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]], dtype=np.float32))
    test = csr_matrix(np.array([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=np.float32))
    return SimulatedPlatform(
        name="north",
        config_file=tmp_path / "platform.toml",
        train=UserItems(user_ids=("a", "c", "d"), listing=np.arange(4), matrix=train),
        test=test,
        num_interactions=5,
        test_origin="leave-one-out",
    )


def test_a_row_says_who_what_and_how_well(platform: SimulatedPlatform) -> None:
    def scores(users: np.ndarray) -> np.ndarray:
        return np.tile(np.array([0, 3, 2, 1], dtype=np.float32), (len(users), 1))

    ranking = evaluate(
        scores, platform.train.matrix, platform.test, cutoffs=(10,), rng=np.random.default_rng(0)
    )
    table = per_user_table(platform, {"x": ranking, "y": ranking}, EVERYONE)
    assert tuple(table.columns) == COLUMNS
    assert table["model"].tolist() == ["x", "x", "y", "y"]
    first = table[table["model"] == "x"]
    assert first["user"].tolist() == [0, 3]  # places among everyone
    assert first["interactions"].tolist() == [2, 2]
    assert first["item_purchases"].tolist() == [0, 1]  # of items 2 and 3 the less bought
    assert first["ndcg@10"].tolist() == [1.0, 1.0]
    assert first["hr@10"].tolist() == [1.0, 1.0]


def test_written_and_read_back(platform: SimulatedPlatform, tmp_path: Path) -> None:
    table = per_user_table(platform, {}, EVERYONE)
    write_per_user(tmp_path / "t.parquet", table)
    assert read_per_user(tmp_path / "t.parquet").columns.tolist() == list(COLUMNS)


def test_what_is_no_such_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    pd.DataFrame({"user": [1]}).to_parquet(tmp_path / "other")
    for name, said in (("junk", "cannot be read"), ("other", "no column 'platform'")):
        with pytest.raises(StateError, match=said):
            read_per_user(tmp_path / name)


def test_a_finished_run_writes_it_and_its_means_are_those_of_the_result(
    tmp_path: Path,
) -> None:
    data = write_shops(tmp_path / "shops")
    run = SimulationRun.open(options(data, newcomer="north:0.5", seed=2), tmp_path / "run")
    result = run.execute(in_comparison=True, pooled=True)
    assert not (run.folder / "report.html").exists()
    table = read_per_user(run.folder / PER_USER_FILE)
    assert "north-u" not in table.to_csv()
    for name, platform in result.platforms.items():
        assert "pooled" in platform.models
        for model, measured in platform.models.items():
            rows = table[(table["platform"] == name) & (table["model"] == model)]
            assert len(rows) == measured.num_test_users
            assert rows["ndcg@10"].mean() == pytest.approx(measured.metrics["ndcg@10"])
    # A number names the same person in a run in which everybody is there.
    ids = [f"north-u{row:02d}" for row in range(18)]
    train = pd.read_parquet(run.folder / "platforms/north/train.parquet")
    numbers = table.loc[table["platform"] == "north", "user"].unique()
    assert {ids[number] for number in numbers} == set(train["user_id"])
    plain = SimulationRun.open(options(data, seed=2), tmp_path / "plain")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("save_figures", "write_report"):
            patch.setattr(f"simulations.simulate.{name}", lambda *_: None)
        assert "pooled" not in plain.execute().platforms["north"].models
    everybody = read_per_user(plain.folder / PER_USER_FILE)
    assert set(everybody.loc[everybody["platform"] == "north", "user"]) >= set(numbers)
