"""The command line of verify: what it shows, what it writes, and the code that it leaves with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from common.cli import main
from simulations.audit.findings import SCHEMA_VERSION, Finding, Verification, finding
from simulations.audit.tables import findings_table
from simulations.documents import read_document
from tests.unit.simulations.audit.records import (
    change_result,
    copy_of,
    finished_run,
    ledger_of,
    rebuild,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run("secagg", tmp_path_factory.mktemp("finished"))


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("CROSSREC_DEBUG", raising=False)


def crossrec(*words: object) -> int:
    """Run ``crossrec audit verify`` in this process; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["audit", "verify", *map(str, words)])
    return int(stopped.value.code or 0)


def test_an_honest_run_leaves_with_0_and_shows_prices_and_compositions(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crossrec("--runs", finished, "--out", tmp_path / "audit") == 0
    shown = capsys.readouterr().out
    assert "0 failed" in shown
    assert "failed:" not in shown
    assert "Epsilon of everything ever reserved" in shown
    assert "With accounts at several platforms" in shown
    found = read_document(tmp_path / "audit" / "verify.json", Verification, SCHEMA_VERSION)
    assert found.failed == ()
    assert found.versions["dp-accounting"] != "not installed"
    assert "Traceback" not in shown


def test_a_failure_leaves_with_1_and_a_line_for_each(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(finished, tmp_path)
    change_result(run, epsilon=2.0)
    change_result(run, platform="south", delta=1e-3)
    assert crossrec("--runs", run, "--out", tmp_path / "audit") == 1
    lines = capsys.readouterr().out.splitlines()
    reasons = [line for line in lines if line.startswith("failed: ")]
    assert [line.split(":")[1].strip() for line in reasons] == ["result (north)", "result (south)"]
    assert "epsilon 2 in all" in reasons[0]
    document = json.loads((tmp_path / "audit" / "verify.json").read_text())
    assert [one["subject"] for one in document["findings"] if one["verdict"] == "failed"] == [
        "north",
        "south",
    ]


def test_a_later_audit_is_held_against_an_earlier_one(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(finished, tmp_path)
    assert crossrec("--ledger", ledger_of(run), "--out", tmp_path) == 0
    again = ["--ledger", run / "platforms/north/platform.toml", "--since", tmp_path / "verify.json"]
    assert crossrec(*again) == 0
    rebuild(ledger_of(run), lambda entries: entries[:-1])
    capsys.readouterr()
    assert crossrec("--ledger", ledger_of(run), "--since", tmp_path / "verify.json") == 1
    assert "failed: since (north): rolled back" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is nothing to audit"),
        (["--runs", "nowhere"], "nowhere: is no run"),
        (["--ledger", "nowhere"], "nowhere: there is no ledger"),
        (["--runs", "nowhere", "--since", "verify.json"], "--since: not a verify.json"),
        (["--nonsense"], "No such option"),
    ],
)
def test_what_is_asked_in_a_wrong_way_leaves_with_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crossrec(*words) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_earlier_audit_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "verify.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "a": 1}))
    assert crossrec("--runs", "nowhere", "--since", tmp_path / "verify.json") == 2
    told = capsys.readouterr().err.strip()
    assert "not a verify.json of this version" in told
    assert len(told.splitlines()) == 1
    assert "pydantic" not in told
    assert crossrec("--runs", "nowhere", "--since", tmp_path / "gone.json") == 2
    assert "there is no such file" in capsys.readouterr().err


def test_the_help_gives_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert crossrec("--help") == 0
    assert "crossrec audit verify --runs runs/demo" in capsys.readouterr().out


# --- The table ----------------------------------------------------------------------------------


def _cells(findings: list[Finding]) -> list[tuple[str, ...]]:
    table = findings_table(findings)
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return list(zip(*columns, strict=True))


def test_failures_stand_first_and_what_passed_takes_a_line_for_each_check() -> None:
    names = ["a", "b", "c", "d", "e"]
    findings = [
        *(finding("chain", name, (), ok="9 entries.") for name in names),
        *(finding("budget", name, ["too much"] if name < "c" else (), ok="fine") for name in names),
        finding("since", "a", (), ok="", unknown="no earlier audit."),
    ]
    assert _cells(findings) == [
        ("failed", "budget", "a", "too much."),
        ("failed", "budget", "b", "too much."),
        ("unknown", "since", "a", "no earlier audit."),
        ("ok", "chain", "a, b and 3 more", "9 entries."),
        ("ok", "budget", "c, d, e", "fine"),
    ]


def test_a_finding_names_three_things_and_counts_the_rest() -> None:
    found = finding("chain", "a", [f"entry {n}." for n in range(5)], ok="fine")
    assert found.detail == "entry 0; entry 1; entry 2; and 2 more."
    assert found.verdict == "failed"
    assert finding("chain", "a", (), ok="fine", unknown="why").verdict == "unknown"
    assert finding("chain", "a", (), ok="fine").detail == "fine"
