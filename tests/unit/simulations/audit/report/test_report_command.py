from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import ConfigError, StateError
from simulations.audit.commands import app
from simulations.audit.evidence import gather
from simulations.audit.report.making import is_about, make_report
from simulations.audit.report.statement import SCHEMA_VERSION, AuditStatement
from simulations.audit.verify import verify
from simulations.documents import read_document, write_document
from tests.unit.simulations.audit.audited import NOW, attack_result, verification, write_platform


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_platform(tmp_path / "north").relative_to(tmp_path)


def report_of(out: Path) -> AuditStatement:
    return read_document(out / "report.json", AuditStatement, SCHEMA_VERSION)


def test_the_command_verifies_writes_the_report_and_says_the_verdict(ledger: Path) -> None:
    before = {path: path.read_bytes() for path in Path("north").rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, ["report", "--ledger", str(ledger), "--out", "audit"])
    assert done.exit_code == 0, done.output
    statement = report_of(Path("audit"))
    assert statement.conclusion.line in done.output
    assert f"Report: {Path('audit/report.html').absolute()}" in done.output
    assert statement.verification.findings
    assert statement.verification.prices["north"].dp_accounting is not None
    assert statement.inputs == ("north/state/ledger.sqlite",)
    assert str(Path.cwd()) not in Path("audit/report.json").read_text()
    assert statement.commands[-1] == (
        "crossrec audit report --ledger north/platform.toml --out audit"
    )
    # Read-only: nothing beside the ledger was made or changed.
    after = {path: path.read_bytes() for path in Path("north").rglob("*") if path.is_file()}
    assert before == after


def test_the_exit_code_is_0_although_findings_failed_and_the_report_says_it(ledger: Path) -> None:
    Path("north/state/ledger.sqlite.head").write_text("9 " + "0" * 64 + "\n")
    done = CliRunner().invoke(app, ["report", "--ledger", str(ledger), "--out", "audit"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("Red: ")
    assert report_of(Path("audit")).verification.failed


def test_findings_and_attacks_in_the_folder_are_used(ledger: Path) -> None:
    found = verify(gather([ledger], []))
    marked = replace(found.findings[0], detail="Seen by an earlier command.")
    write_document(Path("audit/verify.json"), replace(found, findings=(marked,)))
    write_document(Path("audit/attack.json"), attack_result())
    statement = make_report([ledger], [], Path("audit"), clock=lambda: NOW)
    assert [f.detail for f in statement.verification.findings] == ["Seen by an earlier command."]
    assert statement.lower_bound.attack == attack_result()
    assert statement.made_at == NOW


def test_findings_on_other_records_are_not_used(ledger: Path, tmp_path: Path) -> None:
    other = write_platform(tmp_path / "south", "south")
    found = verify(gather([other], []))
    assert is_about(found, gather([other], []))
    assert not is_about(found, gather([ledger], []))
    assert not is_about(verification(), gather([ledger], []))
    write_document(Path("audit/verify.json"), found)
    said: list[str] = []
    statement = make_report([ledger], [], Path("audit"), progress=said.append)
    assert statement.verification.prices.keys() == {"north"}
    assert any("about other records" in line for line in said)
    # Nor on an earlier state of the same ledger.
    shutil.rmtree("audit")
    write_document(Path("audit/verify.json"), verify(gather([ledger], [])))
    shutil.rmtree("north")
    write_platform(tmp_path / "north", requests=[])
    assert make_report([ledger], [], Path("audit")).platforms["north"].num_reserved == 0


def test_what_cannot_be_audited_or_written_is_named(ledger: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to audit"):
        make_report([], [], Path("audit"))
    assert not Path("audit").exists()
    Path("file").write_text("")
    with pytest.raises(StateError, match=r"file: cannot be made a folder"):
        make_report([ledger], [], Path("file"))
    Path("audit").mkdir()
    Path("audit/attack.json").write_text("{}")
    with pytest.raises(StateError, match=r"attack\.json: schema version None"):
        make_report([ledger], [], Path("audit"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(ledger: Path) -> None:
    Path("audit").mkdir(mode=0o500)
    with pytest.raises(StateError, match="cannot be written to"):
        make_report([ledger], [], Path("audit"))


def test_the_document_is_strict_json(ledger: Path) -> None:
    make_report([ledger], [], Path("audit"))
    text = Path("audit/report.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    assert json.loads(text)["schema_version"] == SCHEMA_VERSION
