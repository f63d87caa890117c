"""The command says what is wrong, writes what it found, and fails where a guarantee is broken."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

import client.platform
from client.sums import noisy
from common.config import dump_config
from simulations.attacks.membership import effort
from simulations.attacks.membership.result import (
    ATTACK_FILE,
    SCHEMA_VERSION,
    AttackResult,
    Audit,
    Roc,
)
from simulations.attacks.membership.verdict import doubts, proofs, sentences, table_of
from simulations.audit.commands import app
from simulations.documents import read_document
from simulations.options import SimulationOptions

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from click.testing import Result

    from common.privacy.randomness import RandomSource

LITTLE = replace(effort.QUICK, users=400, interactions=100, platforms=8, runs=0)
ROC = Roc(auc=0.8, tpr_at_fpr={"0.001": 0.1, "0.01": 0.2, "0.1": 0.5}, curve=((0, 0), (1, 1)))


def audit_of(**changes: Any) -> Audit:  # noqa: ANN401 - any field
    plain = Audit(
        unit="user",
        adversary="releases",
        num_canaries=1000,
        num_in=500,
        num_guesses=100,
        num_correct=90,
        epsilon_lower=2.0,
        epsilon_lower_gaussian=3.0,
        confidence=0.95,
        epsilon_estimate=7.0,
        epsilon_accounted=8.0,
        delta=1e-5,
        accounted_as="",
        roc=ROC,
        detail="",
    )
    return replace(plain, **changes)


def result_of(*audits: Audit, epsilon: float | None = 8.0) -> AttackResult:
    return AttackResult(
        command="",
        configuration={},
        mode="quick",
        seed=0,
        epsilon=epsilon,
        delta=1e-5,
        audits=audits,
        memberships=(),
        versions={},
        wall_seconds=1.0,
    )


@pytest.mark.parametrize("name", ["epsilon_lower", "epsilon_lower_gaussian"])
def test_a_bound_beyond_what_is_accounted_is_a_proof(name: str) -> None:
    broken = audit_of(unit="interaction", **{name: 8.5})
    result = result_of(audit_of(), broken)
    assert proofs(result) == (broken,)
    first, last = sentences(result)
    assert "at least epsilon 8.5" in first
    assert "per interaction" in first
    assert "broken" in last


def test_an_honest_run_says_how_near_the_attack_came_and_what_that_does_not_mean() -> None:
    words = sentences(result_of(audit_of(), audit_of(adversary="model", epsilon_lower=0.1)))
    assert "epsilon 2.00 (25% of the 8 accounted)" in words[0]
    assert "epsilon 3.00 (38%) if the noise is Gaussian" in words[0]
    assert "no proof" in words[1]
    assert len(words) == 2


def test_an_estimate_far_beyond_is_a_doubt_and_no_proof() -> None:
    far = audit_of(epsilon_estimate=12.0)
    result = result_of(far)
    assert not proofs(result)
    assert doubts(result) == (far,)
    assert "--thorough" in sentences(result)[-1]
    assert not doubts(result_of(replace(far, num_canaries=60))), "too few to be sure of anything"


def test_without_noise_there_is_no_guarantee_to_test() -> None:
    silent = audit_of(epsilon_accounted=None, epsilon_lower_gaussian=None, epsilon_lower=9.0)
    result = result_of(silent, epsilon=None)
    assert not proofs(result)
    assert "no promise" in sentences(result)[0]
    assert table_of(result).row_count == 1


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "QUICK", LITTLE)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, ["attack", *words])


@pytest.mark.usefixtures("little")
def test_the_attack_on_a_run_is_on_its_options(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    asked = SimulationOptions(epsilon=4.0)
    (run / "simulation.toml").write_text(dump_config(asked), encoding="utf-8")
    found = invoke("--runs", str(run), "--out", str(tmp_path / "audit"))
    assert found.exit_code == 0, found.output
    assert "No lower bound exceeds" in found.output
    result = read_document(tmp_path / "audit" / ATTACK_FILE, AttackResult, SCHEMA_VERSION)
    assert result.epsilon == pytest.approx(4, abs=0.02)
    assert str(run) in result.command


@pytest.mark.usefixtures("little")
def test_noise_that_is_missing_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_noise(total: np.ndarray, std: float, source: RandomSource) -> np.ndarray:
        del std
        return noisy(total, 0.0, source)

    monkeypatch.setattr(client.platform, "noisy", without_noise)
    found = invoke("--epsilon", "1", "--out", str(tmp_path))
    assert found.exit_code == 1, found.output
    assert "The guarantee is broken" in found.output
    assert (tmp_path / ATTACK_FILE).exists()


def test_what_cannot_be_attacked_is_named(tmp_path: Path) -> None:
    (tmp_path / "simulation.toml").write_text("", encoding="utf-8")
    for words, message in (
        (["--runs", str(tmp_path / "nothing")], "is no simulated run"),
        (["--runs", str(tmp_path), "--epsilon", "3"], "leave out epsilon"),
        (["--epsilon", "-1"], "expected a positive number"),
    ):
        found = invoke(*words)
        assert found.exit_code != 0
        assert message in str(found.exception)
