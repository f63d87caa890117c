"""The study runs the deployed apps, says what the attacker got, and leaves nobody's data behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from simulations.attacks.commands import app
from tests.shops import tune_little, write_shops

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"east": 16, "north": 20, "south": 14, "west": 12}


@pytest.mark.parametrize(("plan", "models"), [("pairs", 3), ("ncf", 4)])
def test_a_study_from_the_command_line(
    tmp_path: Path, plan: str, models: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune_little(monkeypatch)
    out = tmp_path / "out"
    words = ["promotion", "--plan", plan, "--data", str(write_shops(tmp_path / "data", SIZES))]
    words += ["--strength", "0", "--strength", "1000000", "--rounds", "2", "--epochs", "2"]
    if plan == "ncf":  # Krum needs five platforms
        monkeypatch.setattr(
            "simulations.attacks.promotion.study.defences_of", lambda _: ("none", "bound")
        )
    done = CliRunner().invoke(app, [*words, "--out", str(out)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["promotion.json", "promotion.png"]
    found = json.loads((out / "promotion.json").read_text())
    assert found["attacker"] == "east"
    cases = {(c["case"]["strength"], c["case"]["defence"]): c for c in found["cases"]}
    assert set(cases) == {(s, d) for s in (0.0, 1e6) for d in ("none", "bound")}
    for case in cases.values():
        assert len(case["exposure"]) == len(case["ndcg"]) == models
        assert all(0 <= share <= 1 for share in case["exposure"].values())
        assert case["exposure"]["alone"] == cases[0.0, "none"]["exposure"]["alone"]
    # Without a bound the item is pushed on those who believe; with it the attacker is left out.
    assert cases[1e6, "none"]["left_out"] == 0
    assert cases[1e6, "bound"]["left_out"] == (1 if plan == "pairs" else 2)
    if plan == "pairs":
        exposed = {key: case["exposure"]["ungated"] for key, case in cases.items()}
        assert exposed[1e6, "none"] > exposed[1e6, "bound"]


def test_a_folder_that_is_not_empty_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    done = CliRunner().invoke(app, ["promotion", "--out", str(tmp_path)])
    assert "is not empty" in str(done.exception)
