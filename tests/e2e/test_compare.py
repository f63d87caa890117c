"""The whole of ``crossrec compare``, from the command line to the report."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from common.cli import main
from simulations import simulate
from simulations.compare.comparison import Comparison
from simulations.compare.result import read_compare_result, without_timing
from tests.shops import tune_little, write_shops

if TYPE_CHECKING:
    from collections.abc import Sequence

QUICK = ["--plan", "both", "--rounds", "2", "--epochs", "2", "--dim", "4"]


def document(folder: Path) -> dict[str, Any]:
    """What a comparison wrote, without what differs between two of the same options."""
    return without_timing(json.loads((folder / "compare.json").read_text(encoding="utf-8")))


def test_the_built_in_marketplace_from_flags_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from common.data.synthetic import MarketplaceConfig

    monkeypatch.chdir(tmp_path)
    small = MarketplaceConfig(num_users=(30, 20), num_items=60)
    monkeypatch.setattr(simulate, "MarketplaceConfig", lambda: small)
    tune_little(monkeypatch)
    words = ["--newcomer", "shop-2:0.5", "--epsilon", "2,8", "--seeds", "100-101"]
    words += ["--trust", "secagg-simulated"]
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *QUICK, *words, "--workers", "1", "--out", "run"])
    assert not stopped.value.code
    result = read_compare_result(Path("run/compare.json"))
    assert result.status == "complete"
    assert len(result.cells) == 2 * 2 * (1 + 2)
    full, newcomer = result.scenarios
    assert list(full.platforms) == ["shop-1", "shop-2"]
    assert list(newcomer.platforms) == ["shop-2"]
    assert newcomer.platforms["shop-2"].num_users == 10
    for scenario in result.scenarios:
        for platform in scenario.platforms.values():
            noises = [(setting.trust, setting.epsilon) for setting in platform.settings]
            assert noises == [
                ("none", None),
                *(("secagg-simulated", epsilon) for epsilon in (2.0, 8.0)),
            ]
            assert {"popularity", "local", "federated", "pooled"} <= set(
                platform.settings[0].models
            )
            for setting in platform.settings:
                assert setting.num_seeds == 2
                assert (setting.epsilon_spent or 0) <= (setting.epsilon or 0)
                assert bool(setting.by_activity) == (setting.epsilon != 2.0)
    assert result.data is not None
    assert result.data.is_synthetic
    out = capsys.readouterr().out
    assert "shop-2 with 50 % of its users" in out
    assert "added up in the clear" in out
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert "shop-2 with 50 % of its users" in report
    assert report.count("data:image/png") == 4


def _start(words: Sequence[object]) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", "from common.cli import main; main()"]
    return subprocess.Popen(
        [*program, "compare", *map(str, words)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_and_the_same_command_goes_on(tmp_path: Path) -> None:
    data, folder = write_shops(tmp_path / "shops"), tmp_path / "run"
    words = [
        *("--data", data, "--epochs", 2, "--dim", 4, "--newcomer", "all:0.5"),
        *("--only-newcomers", "--epsilon", 8, "--trust", "local", "--seeds", 2, "--workers", 2),
        *("--out", folder),
    ]
    process = _start(words)
    try:
        deadline = time.monotonic() + 240.0
        while not list(folder.glob("cells/*/*/*/result.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # to the parent alone: it has to stop the others
        out, _ = process.communicate(timeout=240.0)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Partial" in out
    partial = document(folder)
    done = sum(cell["status"] == "finished" for cell in partial["cells"])
    assert 0 < done < len(partial["cells"])
    kept = {
        path: path.stat().st_mtime_ns
        for path in folder.glob("cells/*/*/*/result.json")
        if json.loads(path.read_bytes())["status"] == "complete"
    }
    assert len(kept) == done
    resumed = Comparison.reopen(folder)
    resumed.execute()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    Comparison.open(resumed.options, tmp_path / "undisturbed").execute()
    assert document(folder) == document(tmp_path / "undisturbed")
