"""A whole attack: every unit and adversary, the same for the same seed, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from common.errors import ConfigError
from simulations.attacks.membership.audits import audit, audit_users
from simulations.attacks.membership.canaries import choose_canaries, with_test_set_aside
from simulations.attacks.membership.claims import Claim
from simulations.attacks.membership.effort import (
    QUICK,
    Effort,
    attack_command,
    attacked_marketplace,
)
from simulations.attacks.membership.recommendations import with_probes
from simulations.attacks.membership.result import SCHEMA_VERSION, AttackResult
from simulations.attacks.membership.shadows import draw_records, without_users
from simulations.attacks.membership.study import Study
from simulations.documents import read_document, write_document
from simulations.options import SimulationOptions
from tests.shops import tune_little

if TYPE_CHECKING:
    from pathlib import Path

    from common.data.marketplace import Marketplace

LITTLE = Effort(
    mode="quick",
    users=200,
    interactions=100,
    platforms=8,
    runs=4,
    runs_with_rounds=0,
    records=40,
    probes=0,
)
OPTIONS = SimulationOptions(epochs=2)


def attack(
    marketplace: Marketplace,
    folder: Path,
    effort: Effort = LITTLE,
    options: SimulationOptions = OPTIONS,
) -> tuple[AttackResult, list[str]]:
    steps: list[str] = []
    study = Study(marketplace, options, folder, effort=effort, seed=3, step=steps.append)
    assert study.num_steps == sum((1, effort.platforms > 0, effort.probes > 0, effort.runs))
    result = study.result("crossrec audit attack")
    assert len(steps) == study.num_steps + 1
    return result, steps


def test_every_unit_is_attacked_and_the_folder_is_left_empty(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    result, steps = attack(marketplace, tmp_path)
    assert [(a.unit, a.adversary) for a in result.audits] == [
        ("user", "releases"),
        ("user", "model"),
        ("interaction", "releases"),
        ("interaction", "model"),
        ("platform", "model"),
    ]
    user, *_, platform = result.audits
    assert result.epsilon == user.epsilon_accounted == pytest.approx(8, abs=0.02)
    assert user.num_canaries == 200
    assert user.epsilon_lower > 0.5
    assert user.epsilon_lower_gaussian is not None
    assert user.epsilon_lower < user.epsilon_lower_gaussian < 8
    assert platform.epsilon_accounted is not None
    assert platform.epsilon_accounted > 100
    assert [(m.target, m.adversary) for m in result.memberships] == [
        ("canary users", "releases"),
        ("canary users", "model"),
        ("users", "releases"),
    ]
    assert result.memberships[0].roc.auc > 0.7
    assert result.memberships[2].roc.auc > 0.6
    assert steps[-1] == "done"
    assert not list(tmp_path.iterdir())
    write_document(tmp_path / "attack.json", result)
    assert read_document(tmp_path / "attack.json", AttackResult, SCHEMA_VERSION) == result


@pytest.mark.slow
def test_one_seed_gives_one_result(marketplace: Marketplace, tmp_path: Path) -> None:
    less = replace(LITTLE, runs=0, platforms=8, users=60)
    first, second = (attack(marketplace, tmp_path / name, less)[0] for name in "ab")
    assert first.audits == second.audits


def test_probes_learn_from_what_another_platform_recommends(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    effort = replace(LITTLE, runs=0, users=60, interactions=60, probes=60)
    with pytest.MonkeyPatch.context() as patch:
        tune_little(patch)
        result, _ = attack(marketplace, tmp_path, effort, replace(OPTIONS, epsilon=100.0, epochs=1))
    last = result.audits[-1]
    assert (last.unit, last.adversary, last.num_canaries) == ("user", "recommendations", 60)
    assert "shop-5" in last.detail
    if "serves what it has alone" not in last.detail:
        assert last.roc.auc > 0.6


def test_a_plan_of_rounds_is_attacked_through_its_rounds(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    options = replace(OPTIONS, plan="ncf", rounds=2, epsilon=100.0)
    study = Study(marketplace, options, tmp_path, effort=LITTLE, seed=0)
    assert study.num_steps == 1
    result = study.result("crossrec audit attack")
    assert {a.unit for a in result.audits} == {"user", "interaction"}
    assert result.memberships == ()


def test_the_repeated_command_names_what_was_attacked(tmp_path: Path) -> None:
    options = SimulationOptions(epsilon=2.0, plan="ncf")
    shared = {"seed": 4, "confidence": 0.9}
    words = attack_command(options, QUICK, runs=None, **shared)  # type: ignore[arg-type]
    assert words == (
        "crossrec audit attack --quick --seed 4 --confidence 0.9 --epsilon 2.0 --plan ncf"
    )
    words = attack_command(options, QUICK, runs=tmp_path, **shared)  # type: ignore[arg-type]
    assert words.endswith(f"--runs {tmp_path}")


def test_a_newcomer_is_attacked_as_small_as_it_was(marketplace: Marketplace) -> None:
    found = attacked_marketplace(SimulationOptions(newcomer="shop-2:0.1"))
    assert found.platform("shop-2").num_users == 60
    assert found.platform("shop-1").num_users == marketplace.platform("shop-1").num_users


def test_records_that_are_out_leave_nothing_and_others_everything(
    marketplace: Marketplace,
) -> None:
    data = with_test_set_aside(marketplace, 0)
    records = draw_records(data, "shop-3", 1000, np.random.default_rng(0))
    assert len(records) == len(set(records)) == data.platform("shop-3").num_users // 2
    gone = set(records[::2])
    left = without_users(data, "shop-3", gone).platform("shop-3")
    before = data.platform("shop-3")
    assert set(before.interactions["user_id"]) - set(left.interactions["user_id"]) == gone
    assert left.held_out is not None
    assert not left.held_out["user_id"].isin(gone).any()


def test_there_is_a_probe_for_every_canary_in_or_out(marketplace: Marketplace) -> None:
    data = with_test_set_aside(marketplace, 0)
    canaries = choose_canaries(
        data,
        "user",
        "shop-1",
        30,
        max_items=4000,
        rng=np.random.default_rng(0),
        listed_by="shop-5",
    )
    planted = [with_probes(data, "shop-5", who) for who in (canaries, canaries.all_out())]
    tables = [one.platform("shop-5").interactions for one in planted]
    assert tables[0].equals(tables[1])
    assert len(tables[0]) == len(data.platform("shop-5").interactions) + 30


def test_impossible_attacks_are_refused_before_anything_runs(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="at least 8"):
        audit_users(marketplace, OPTIONS, tmp_path / "run", seed=0, num_canaries=3)
    assert not (tmp_path / "run").exists()
    rng = np.random.default_rng(0)
    data = with_test_set_aside(marketplace, 0)
    canaries = choose_canaries(data, "user", "shop-1", 8, max_items=4000, rng=rng).all_out()
    claim = Claim(epsilon=1.0, delta=1e-5, words="", is_gaussian=True)
    with pytest.raises(ConfigError, match="fell on one side"):
        audit(canaries, np.zeros(8), claim, adversary="releases", num_guesses=2, detail="")
