"""The command line: options in, one table out, and one line for each mistake."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

import client.app
from common.cli import main
from common.models.ncf import NcfConfig
from simulations import simulate
from simulations.options import SimulationOptions
from simulations.simulate import SimulationRun
from tests.shops import SIZES, tune_little, write_shops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flwr.app import Context, Message

QUICK = ["--plan", "both", "--rounds", "2", "--epochs", "2", "--dim", "4"]


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("CROSSREC_DEBUG", raising=False)
    tune_little(monkeypatch)


@pytest.fixture
def shops(tmp_path: Path) -> Path:
    return write_shops(tmp_path / "shops")


@pytest.fixture
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("save_figures", "write_report"):
        monkeypatch.setattr(simulate, name, lambda *_: None)


def crossrec(*words: object) -> int:
    """Run ``crossrec simulate`` in this process; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", *map(str, words)])
    return int(stopped.value.code or 0)


def asked_for(monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[SimulationOptions, Path]:
    """The options and the folder that the command line would run with."""
    seen: list[tuple[SimulationOptions, Path]] = []

    def open_run(options: SimulationOptions, folder: Path, **_: object) -> NoReturn:
        seen.append((options, folder))
        raise KeyboardInterrupt

    monkeypatch.setattr(SimulationRun, "open", open_run)
    assert crossrec(*words) == 130
    return seen[0]


# --- Options ------------------------------------------------------------------------------------


def test_without_flags_the_options_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    options, folder = asked_for(monkeypatch)
    assert options == SimulationOptions()
    assert folder == Path("runs/marketplace")


def test_each_flag_sets_its_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shops: Path
) -> None:
    flags: dict[str, tuple[str, dict[str, Any]]] = {
        "--data": ("shops", {"data": shops}),
        "--user-column": ("who", {"user_column": "who"}),
        "--item-column": ("what", {"item_column": "what"}),
        "--rating-column": ("stars", {"rating_column": "stars"}),
        "--time-column": ("when", {"time_column": "when"}),
        "--catalogue": ("c.csv", {"catalogue": tmp_path / "c.csv"}),
        "--candidates": ("100", {"candidates": 100}),
        "--epsilon": ("2.5", {"epsilon": 2.5}),
        "--delta": ("1e-6", {"delta": 1e-6}),
        "--privacy-unit": ("user", {"privacy_unit": "user"}),
        "--trust": ("none", {"trust": "none"}),
        "--max-dropped": ("1", {"max_dropped": 1}),
        "--max-colluding": ("2", {"max_colluding": 2}),
        "--clipping-norm": ("0.5", {"clipping_norm": 0.5}),
        "--sampling-rate": ("0.5", {"sampling_rate": 0.5}),
        "--plan": ("ncf", {"plan": "ncf"}),
        "--rounds": ("7", {"rounds": 7}),
        "--local-steps": ("2", {"local_steps": 2}),
        "--strategy": ("fedavg", {"strategy": "fedavg"}),
        "--server-learning-rate": ("0.5", {"server_learning_rate": 0.5}),
        "--epochs": ("9", {"epochs": 9}),
        "--engine": ("ray", {"engine": "ray"}),
        "--seed": ("11", {"seed": 11}),
        "--newcomer": ("north:0.5", {"newcomer": "north:0.5"}),
        "--adapting": ("north", {"adapting": ("north",)}),
    }
    words = [word for flag, (value, _) in flags.items() for word in (flag, value)]
    model = ["--model", "neumf", "--loss", "bce", "--dim", "8", "--hidden", "8, 4"]
    options, _ = asked_for(monkeypatch, *words, *model, "--negatives", "30", "--split",
                           "leave-one-out")  # fmt: skip
    expected = SimulationOptions(
        plan="ncf",  # the only one that sampling goes with
        model=NcfConfig(kind="neumf", loss="bce", dim=8, hidden=(8, 4), num_negatives=30),
    )
    for _, change in flags.values():
        expected = replace(expected, **change)
    assert options == expected


@pytest.mark.parametrize("plan", ["pairs", "ncf", "both"])
def test_each_plan_can_be_chosen(monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    assert asked_for(monkeypatch, "--plan", plan)[0].plan == plan


@pytest.mark.parametrize(
    ("model", "loss"),
    [("gmf", "softmax"), ("mlp", "sampled-softmax"), ("neumf", "sampled-softmax")],
)
def test_each_model_has_a_loss_that_it_can_train_with(
    monkeypatch: pytest.MonkeyPatch, model: str, loss: str
) -> None:
    options, _ = asked_for(monkeypatch, "--model", model)
    assert (options.model.kind, options.model.loss) == (model, loss)


def test_a_run_without_a_folder_gets_the_first_free_one(
    monkeypatch: pytest.MonkeyPatch, shops: Path
) -> None:
    for taken in ("shops", "shops-2", "marketplace"):
        Path("runs", taken).mkdir(parents=True)
    assert asked_for(monkeypatch, "--data", shops)[1] == Path("runs/shops-3")
    assert asked_for(monkeypatch)[1] == Path("runs/marketplace-2")


# --- Mistakes -----------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[list[str], str]] = {
    "epsilon": (["--epsilon", "0"], "epsilon: found 0.0, expected a positive number"),
    "endless-epsilon": (["--epsilon", "inf"], "trust 'none'"),
    "delta": (["--delta", "2"], "delta: found 2.0"),
    "sampling": (["--plan", "ncf", "--sampling-rate", "0"], "sampling_rate: found 0.0"),
    "sampled-pairs": (["--sampling-rate", "0.5"], "in rounds only; choose plan 'ncf'"),
    "nothing-in-common": (["--data", "apart"], "plan: found 'pairs', but 0 items"),
    "secagg": (
        ["--trust", "secagg", "--plan", "ncf", "--local-steps", "2"],
        "with trust 'secagg' a round has one noisy step",
    ),
    "candidates": (["--candidates", "some"], "found 'some', expected 'all' or a number"),
    "few-candidates": (["--candidates", "1"], "candidates: found 1"),
    "hidden": (["--model", "mlp", "--hidden", "8,x"], "found '8,x', expected widths"),
    "no-hidden": (["--model", "mlp", "--hidden", ""], "needs at least one hidden layer"),
    "dim": (["--dim", "0"], "dim"),
    "full-softmax-of-a-tower": (["--model", "mlp", "--loss", "softmax"], "use 'sampled-softmax'"),
    "rounds": (["--rounds", "0"], "must each be at least 1"),
    "resume-and-others": (
        ["--resume", "runs/a", "--out", "runs/b", "--epsilon", "3"],
        "--resume keeps the run's own options; leave out epsilon, out.",
    ),
    "resume-and-overwrite": (["--resume", "runs/a", "--overwrite"], "leave out overwrite"),
    "newcomer": (["--newcomer", "shop"], "found 'shop', expected NAME:FRACTION"),
    "unknown-newcomer": (["--newcomer", "shop:0.5"], "there is no platform 'shop'; the data have"),
    "unknown-adapting": (["--adapting", "shop"], "there is no platform 'shop'"),
    "resume-nothing": (["--resume", "runs/a"], "holds no run to resume"),
    "same-column": (["--data", "shops", "--user-column", "a", "--item-column", "a"], "one name"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_no_folder(
    capsys: pytest.CaptureFixture[str], shops: Path, case: str
) -> None:
    words, said = MISTAKES[case]
    assert shops.exists()
    Path("apart").mkdir()
    for name in "ab":
        lines = [f"u{user},{name}{item},{item}" for user in range(3) for item in range(4)]
        text = "\n".join(["user_id,item_id,timestamp", *lines])
        Path("apart", f"{name}.csv").write_text(text, encoding="utf-8")
    assert crossrec(*words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


@pytest.mark.parametrize(
    "words",
    [["--trust", "nobody"], ["--rounds", "two"], ["--frobnicate"], ["--engine", "dask"]],
    ids=lambda words: words[0],
)
def test_a_word_that_no_option_knows_is_usage_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: Sequence[str]
) -> None:
    assert crossrec(*words) == 2
    assert words[0] in capsys.readouterr().err


def test_data_that_cannot_be_used_are_exit_code_3_and_take_no_folder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert crossrec("--data", "typo", "--out", "runs/a") == 3
    assert re.match(r"error: .*typo.*folder cannot be read", capsys.readouterr().err)
    assert not Path("runs/a").exists()


# --- A run --------------------------------------------------------------------------------------


def test_a_run_shows_its_table_and_where_its_files_are(
    capsys: pytest.CaptureFixture[str], shops: Path
) -> None:
    assert crossrec("--data", shops, *QUICK, "--out", "runs/a") == 0
    out = capsys.readouterr().out
    for text in (
        *SIZES,
        "NDCG@10",
        "HR@10",
        "local",
        "federated",
        "epsilon 8, delta 1e-05 per user",
        "Plan both: item counts (noise",
        "together epsilon",
    ):
        assert text in out
    assert "Result: runs/a/result.json" in out
    report = Path("runs/a/report.html").absolute()
    assert f"Report: {report}" in out
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.usefixtures("_no_figures")
def test_a_run_of_sums_fits_an_old_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shops: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert crossrec("--data", shops, "--epochs", 2, "--dim", 4, "--out", "runs/a") == 0
    out = capsys.readouterr().out
    assert "Private sums" in out
    assert "Private adaptation" in out
    assert "ounds" not in out
    table = out[out.index("Held-out") : out.index("Joining")].splitlines()
    assert max(map(len, table)) <= 80
    assert "…" not in "".join(table)
    (row,) = (line.split() for line in table if line.startswith("north"))
    assert len(row) == 3 + 1 + 2 * 2 + 2


@pytest.mark.usefixtures("_no_figures")
def test_a_finished_run_is_shown_again_and_not_computed_again(
    capsys: pytest.CaptureFixture[str], shops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data", shops, *QUICK]
    assert crossrec(*words, "--out", "runs/a") == 0
    first = capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    monkeypatch.setattr(SimulationRun, "execute", lambda *_: pytest.fail("computed again"))
    for again in ([*words, "--out", "runs/a"], ["--resume", "runs/a"]):
        assert crossrec(*again) == 0
        out = capsys.readouterr().out
        assert "holds this run already" in out
        table = first[first.index("platform ") :]
        assert table in out
    assert before == {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}


@pytest.mark.usefixtures("_no_figures")
def test_another_run_in_its_folder_needs_overwrite(
    capsys: pytest.CaptureFixture[str], shops: Path
) -> None:
    words = ["--data", shops, *QUICK, "--out", "runs/a"]
    assert crossrec(*words) == 0
    assert crossrec(*words, "--seed", 1) == 2
    assert "holds a run with other options" in capsys.readouterr().err
    stale = Path("runs/a/platforms/north/state/model/local.safetensors").read_bytes()
    assert crossrec(*words, "--seed", 1, "--overwrite") == 0
    assert Path("runs/a/platforms/north/state/model/local.safetensors").read_bytes() != stale


def test_overwrite_never_deletes_what_is_no_run(
    capsys: pytest.CaptureFixture[str], shops: Path
) -> None:
    assert crossrec("--data", shops, *QUICK, "--out", shops, "--overwrite") == 2
    assert "is not deleted" in capsys.readouterr().err
    assert len(list(shops.iterdir())) == len(SIZES)


@pytest.mark.usefixtures("_no_figures")
def test_overwrite_with_a_mistake_in_the_data_keeps_the_finished_run(shops: Path) -> None:
    assert crossrec("--data", shops, *QUICK, "--out", "runs/a") == 0
    assert crossrec("--data", "typo", *QUICK, "--out", "runs/a", "--overwrite") == 3
    assert Path("runs/a/result.json").exists()


@pytest.mark.usefixtures("_no_figures")
def test_ctrl_c_shows_how_to_go_on_and_is_exit_code_130(
    capsys: pytest.CaptureFixture[str], shops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, answered = client.app.app, 0

    def app(message: Message, context: Context) -> Message:
        nonlocal answered
        answered += 1
        if answered == 10:  # two profiles, two sums and a round of two, and one more
            raise KeyboardInterrupt
        return real(message, context)

    words = ["--data", shops, *QUICK, "--out", "runs/a b"]
    with monkeypatch.context() as patch:
        patch.setattr(client.app, "app", app)
        assert crossrec(*words) == 130
    out = capsys.readouterr().out
    assert "Interrupted after 2 of 2 sums and 1 of 2 rounds" in out
    assert "crossrec simulate --resume 'runs/a b'" in out
    assert crossrec("--resume", "runs/a b") == 0
    assert "Interrupted" not in capsys.readouterr().out
