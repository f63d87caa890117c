"""The ledger decides, durably, before data is touched; and it never forgets."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from typing import TYPE_CHECKING

import pytest

from common.errors import BudgetExhausted, RequestRefused, StateError
from common.privacy.accounting import epsilon_spent
from common.privacy.ledger import Budget, Ledger, Spend
from common.privacy.mechanisms import SampledGaussian

if TYPE_CHECKING:
    from pathlib import Path

ONE_ROUND = SampledGaussian(noise_multiplier=4.0, sampling_rate=1.0, steps=1)
COST = epsilon_spent([ONE_ROUND], 1e-5)
BUDGET = Budget(epsilon=8.0, delta=1e-5)


def spend(request_id: str, digest: str = "d") -> Spend:
    return Spend(
        request_id=request_id,
        request_digest=digest,
        description=request_id,
        mechanism=ONE_ROUND,
        mechanism_if_broken=ONE_ROUND,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_everything_ever_spent_counts_whatever_run_it_was(path: Path) -> None:
    for run in ("spring", "summer", "autumn"):
        ledger = Ledger(path)  # opened anew, as after a restart
        ledger.reserve(spend(f"{run}/1/north"), BUDGET)
        ledger.close()
    ledger = Ledger(path)
    total = epsilon_spent([s.mechanism for s in ledger.spends()], 1e-5)
    assert total == epsilon_spent([ONE_ROUND] * 3, 1e-5) > COST


def test_over_budget_is_refused_with_numbers_and_leaves_no_trace(path: Path) -> None:
    ledger = Ledger(path)
    budget = Budget(epsilon=1.5 * COST, delta=1e-5)
    ledger.reserve(spend("r/1/north"), budget)
    ledger.reserve(spend("r/2/north"), budget)
    with pytest.raises(BudgetExhausted, match="r/3/north") as caught:
        ledger.reserve(spend("r/3/north"), budget)
    assert caught.value.would_spend == epsilon_spent([ONE_ROUND] * 3, 1e-5)
    assert len(ledger.spends()) == 2


def test_a_repeated_request_is_charged_once_and_a_changed_one_is_refused(path: Path) -> None:
    ledger = Ledger(path)
    assert ledger.reserve(spend("r/1/north"), BUDGET)
    assert not ledger.reserve(spend("r/1/north"), BUDGET)
    with pytest.raises(RequestRefused, match="used before"):
        ledger.reserve(spend("r/1/north", digest="other"), BUDGET)
    assert len(ledger.spends()) == 1


def test_a_request_has_one_release_for_ever(path: Path) -> None:
    ledger = Ledger(path)
    with pytest.raises(StateError):
        ledger.commit("r/1/north", "a" * 64)  # nothing was reserved
    ledger.reserve(spend("r/1/north"), BUDGET)
    ledger.commit("r/1/north", "a" * 64)
    ledger.commit("r/1/north", "a" * 64)
    with pytest.raises(StateError, match="different release"):
        ledger.commit("r/1/north", "b" * 64)
    assert ledger.release_digest("r/1/north") == "a" * 64


@pytest.mark.parametrize("table", ["spend", "release"])
@pytest.mark.parametrize("change", ["DELETE FROM {}", "UPDATE {} SET request_id = 'x'"])
def test_rows_can_be_neither_changed_nor_deleted(path: Path, table: str, change: str) -> None:
    ledger = Ledger(path)
    ledger.reserve(spend("r/1/north"), BUDGET)
    ledger.commit("r/1/north", "a" * 64)
    ledger.close()
    with sqlite3.connect(path) as db, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute(change.format(table))


def _reserve_and_die(path: Path) -> None:
    Ledger(path).reserve(spend("r/1/north"), BUDGET)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_spend_survives_a_kill_right_after_it(path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_reserve_and_die, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    ledger = Ledger(path)
    assert [s.request_id for s in ledger.spends()] == ["r/1/north"]
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)


def _try_last(path: Path, name: str, results: multiprocessing.Queue[bool]) -> None:
    try:
        results.put(Ledger(path).reserve(spend(name), Budget(epsilon=1.1 * COST, delta=1e-5)))
    except BudgetExhausted:
        results.put(False)


def test_two_processes_race_for_the_last_of_the_budget_and_one_wins(path: Path) -> None:
    Ledger(path).close()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    racers = [
        context.Process(target=_try_last, args=(path, f"r/{i}/north", results)) for i in (1, 2)
    ]
    for racer in racers:
        racer.start()
    outcomes = sorted(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join(60)
    assert outcomes == [False, True]
    assert len(Ledger(path).spends()) == 1


def test_what_is_no_ledger_is_an_error_and_never_a_fresh_start(path: Path) -> None:
    path.write_bytes(b"not a database, and quite a bit longer than one header" * 100)
    with pytest.raises(StateError):
        Ledger(path)
    path.write_bytes(b"")
    with pytest.raises(StateError):
        Ledger(path)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE something (x)")
    with pytest.raises(StateError, match="expected a CrossRec ledger"):
        Ledger(path)


def test_a_newer_ledger_is_refused(path: Path) -> None:
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StateError, match="99"):
        Ledger(path)
