"""The command line of comparisons: options in, tables and exit codes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from common.cli import main
from common.models.ncf import NcfConfig
from simulations.compare import comparison
from simulations.compare.comparison import Comparison, compare_command
from simulations.compare.options import CompareOptions
from simulations.options import SimulationOptions
from simulations.simulate import SimulationRun
from tests.shops import write_shops

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = ["--rounds", "2", "--epochs", "2", "--dim", "4", "--workers", "1"]
ONE = ["--newcomer", "north:0.5", "--only-newcomers", "--epsilon", "8", "--trust", "local"]


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("CROSSREC_DEBUG", raising=False)


@pytest.fixture
def shops(tmp_path: Path) -> Path:
    return write_shops(tmp_path / "shops")


@pytest.fixture
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("save_figures", "write_report"):
        monkeypatch.setattr(comparison, name, lambda *_: None)


def crossrec(*words: object) -> int:
    """Run ``crossrec compare`` in this process; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, words)])
    return int(stopped.value.code or 0)


def asked_for(monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[CompareOptions, Path]:
    """The options and the folder that the command line would run with."""
    seen: list[tuple[CompareOptions, Path]] = []

    def open_comparison(options: CompareOptions, folder: Path, **_: object) -> NoReturn:
        seen.append((options, folder))
        raise KeyboardInterrupt

    monkeypatch.setattr(Comparison, "open", open_comparison)
    assert crossrec(*words) == 130
    return seen[0]


def test_without_flags_the_options_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    options, folder = asked_for(monkeypatch)
    assert options == CompareOptions(seeds=(0, 1, 2, 3, 4))
    assert folder == Path("runs/compare-marketplace")


def test_each_flag_sets_its_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shops: Path
) -> None:
    words = (
        "--data shops --user-column who --item-column what --rating-column stars --time-column "
        "when --catalogue c.csv --candidates 100 --delta 1e-6 --clipping-norm 0.5 --sampling-rate "
        "0.5 --model neumf --loss bce --dim 8 --hidden 8,4 --negatives 30 --plan ncf --rounds 7 "
        "--local-steps 2 --strategy fedavg --server-learning-rate 0.5 --epochs 9 --newcomer "
        "north:0.1,south:0.2 --newcomer all:0.5 --only-newcomers --epsilon 4,2 --trust local "
        "--seeds 3,9 --out x"
    )
    options, folder = asked_for(monkeypatch, *words.split())
    base = SimulationOptions(
        data=shops, user_column="who", item_column="what", rating_column="stars",
        time_column="when", catalogue=tmp_path / "c.csv", candidates=100, delta=1e-6,
        clipping_norm=0.5, sampling_rate=0.5, plan="ncf", rounds=7, local_steps=2,
        strategy="fedavg", server_learning_rate=0.5, epochs=9,
        model=NcfConfig(kind="neumf", loss="bce", dim=8, hidden=(8, 4), num_negatives=30),
    )  # fmt: skip
    assert options == CompareOptions(
        base=base,
        newcomers=("north:0.1", "south:0.2", "all:0.5"),
        full=False,
        epsilons=(2.0, 4.0),
        trusts=("local",),
        seeds=(3, 9),
    )
    assert folder == Path("x")
    again, _ = asked_for(monkeypatch, *compare_command(options).split()[2:])
    assert again == options


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trust", "nobody"], "--trust: found 'nobody'"),
        (["--trust", "none"], "there is always a run without noise"),
        (["--seeds", "x"], "--seeds: found 'x'"),
        (["--epsilon", "x"], "--epsilon: found 'x'"),
        (["--newcomer", "x"], "newcomer: found 'x'"),
        (["--newcomer", "x:0.5"], "there is no platform 'x'"),
        (["--only-newcomers"], "nothing to compare"),
        (["--candidates", "some"], "found 'some'"),
        (["--resume", "runs/a"], "holds no comparison to resume"),
        (["--resume", "runs/a", "--seeds", "3"], "leave out seeds"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_no_folder(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert crossrec(*words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not Path("runs").exists()


def test_help_shows_examples_and_panels(capsys: pytest.CaptureFixture[str]) -> None:
    assert crossrec("--help") == 0
    out = capsys.readouterr().out
    for text in ("Data", "Privacy", "Training", "Run", "crossrec compare --resume", "--newcomer"):
        assert text in out


def test_a_comparison_is_shown_and_the_same_command_shows_it_again(
    capsys: pytest.CaptureFixture[str], shops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data", shops, *QUICK, *ONE, "--seeds", "1"]
    assert crossrec(*words) == 0
    out = capsys.readouterr().out
    assert "1 of 2 after" in out  # no terminal: a line per cell
    for text in ("north:0.5", "NDCG@10 at epsilon 8", "the most popular items", "One seed only"):
        assert text in out
    assert "Result: runs/compare-shops/compare.json" in out
    folder = Path("runs/compare-shops")
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(list((folder / "figures").glob("*.png"))) == 4
    monkeypatch.setattr(SimulationRun, "execute", _computed)
    for again in (words, ["--resume", folder]):
        assert crossrec(*again) == 0
        assert "holds this comparison already" in capsys.readouterr().out
    # Other options get a folder of their own.
    other = ["--data", shops, *QUICK, *ONE, "--seeds", "7-7"]
    assert asked_for(monkeypatch, *other)[1] == Path("runs/compare-shops-2")


def _computed(*_: object, **__: object) -> NoReturn:
    pytest.fail("computed again")


@pytest.mark.usefixtures("_no_figures")
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (lambda: OSError("disk"), 1, "Failed: north:0.5, seed 0, without noise: OSError"),
        (KeyboardInterrupt, 130, "Go on with: crossrec compare --resume runs/a"),
    ],
    ids=["failed", "interrupted"],
)
def test_what_is_missing_is_said_and_shows_in_the_exit_code(
    capsys: pytest.CaptureFixture[str],
    shops: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], BaseException],
    code: int,
    said: str,
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error()

    with monkeypatch.context() as patch:
        patch.setattr(SimulationRun, "execute", fail)
        words = ["--data", shops, *QUICK, *ONE, "--seeds", "1", "--out", "runs/a"]
        assert crossrec(*words) == code
    assert said in capsys.readouterr().out
    assert crossrec("--resume", "runs/a", "--workers", "1") == 0
