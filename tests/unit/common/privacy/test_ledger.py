"""The ledger: charged before data is touched, once, durably, never over budget, never forgotten."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from common.errors import BudgetExhausted, ConfigError, RequestRefused, StateError
from common.privacy import ledger as ledger_module
from common.privacy.accounting import epsilon_spent
from common.privacy.account import Budget, Spend
from common.privacy.ledger import Ledger
from common.privacy.mechanisms import SampledGaussian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STEP = SampledGaussian(noise_multiplier=4.0, sampling_rate=1.0, steps=1)
BUDGET = Budget(epsilon=3.0, delta=1e-5)
FITS = 8
"""Steps that fit into the budget: eight cost 2.953, nine 3.157."""


def spend(number: int, *, run: str = "spring", mechanism: SampledGaussian = STEP) -> Spend:
    return Spend(
        request_id=f"{run}/{number}/north",
        request_digest=f"digest of {run} {number}",
        description=f"run {run}, round {number}",
        mechanism=mechanism,
        mechanism_if_broken=replace(mechanism, noise_multiplier=mechanism.noise_multiplier / 3),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with closing(Ledger(path)) as opened:
        yield opened


def read(path: Path) -> list[Spend]:
    with closing(Ledger(path)) as opened:
        return opened.account().spends


def exhaust(ledger: Ledger) -> None:
    for number in range(1, FITS + 1):
        ledger.reserve(spend(number), BUDGET)


def test_the_example_budget_is_what_the_tests_think() -> None:
    assert epsilon_spent([STEP] * FITS, BUDGET.delta) <= BUDGET.epsilon
    assert epsilon_spent([STEP] * (FITS + 1), BUDGET.delta) > BUDGET.epsilon


def test_spends_come_back_as_they_went_in_oldest_first(ledger: Ledger, path: Path) -> None:
    spends = [spend(3), spend(1), spend(2, run="autumn")]
    assert [ledger.reserve(s, BUDGET) for s in spends] == [True, True, True]
    assert ledger.account().spends == spends
    ledger.close()
    assert read(path) == spends


def test_everything_ever_spent_counts_whatever_run_it_was(ledger: Ledger) -> None:
    for number in range(1, FITS):
        ledger.reserve(spend(number, run=f"run-{number}"), BUDGET)
    ledger.reserve(spend(1, run="this one"), BUDGET)
    with pytest.raises(BudgetExhausted):
        ledger.reserve(spend(2, run="this one"), BUDGET)


def test_over_budget_is_refused_with_numbers_and_leaves_no_trace(ledger: Ledger) -> None:
    exhaust(ledger)
    with pytest.raises(BudgetExhausted, match=r"epsilon 3\.157 of 3\.000") as caught:
        ledger.reserve(spend(FITS + 1), BUDGET)
    assert caught.value.would_spend == epsilon_spent([STEP] * (FITS + 1), 1e-5)
    assert (caught.value.budget, caught.value.delta, caught.value.unit) == (3.0, 1e-5, "user")
    assert len(ledger.account().spends) == FITS
    # What still fits is still granted.
    cheap = replace(STEP, noise_multiplier=1000.0)
    assert ledger.reserve(spend(99, mechanism=cheap), BUDGET)


def test_the_tight_accountant_decides_where_the_quick_one_refuses(ledger: Ledger) -> None:
    tight = epsilon_spent([STEP], 1e-5)
    assert epsilon_spent([STEP], 1e-5, "rdp") > tight
    assert ledger.reserve(spend(1), Budget(epsilon=tight, delta=1e-5))


def test_epsilon_is_computed_when_it_is_asked_for(ledger: Ledger) -> None:
    """A row holds mechanisms, so another delta or a better accountant applies to the past."""
    exhaust(ledger)
    assert ledger.reserve(spend(9), Budget(epsilon=3.0, delta=1e-4))
    with pytest.raises(BudgetExhausted):
        ledger.reserve(spend(10), Budget(epsilon=3.0, delta=1e-6))
    columns = ledger._query("SELECT name FROM pragma_table_info('spend')")
    assert "epsilon" not in {name for (name,) in columns}


@pytest.mark.parametrize("price", [math.nan, math.inf])
def test_a_price_that_is_no_number_is_refused(
    ledger: Ledger, price: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "epsilon_spent", lambda *_: price)
    with pytest.raises(BudgetExhausted):
        ledger.reserve(spend(1), BUDGET)
    assert ledger.account().spends == []


def test_no_noise_never_fits_a_finite_budget(ledger: Ledger) -> None:
    silent = replace(STEP, noise_multiplier=0.0)
    with pytest.raises(BudgetExhausted):
        ledger.reserve(spend(1, mechanism=silent), Budget(epsilon=1e300, delta=1e-5))
    assert ledger.reserve(spend(1, mechanism=silent), Budget(epsilon=math.inf, delta=1e-5))
    with pytest.raises(BudgetExhausted):
        ledger.reserve(spend(2), BUDGET)


def test_the_same_request_is_charged_once(ledger: Ledger) -> None:
    assert ledger.reserve(spend(1), BUDGET)
    assert not ledger.reserve(spend(1), BUDGET)
    ledger.commit(spend(1).request_id, "aa")
    assert not ledger.reserve(spend(1), BUDGET)
    assert ledger.account().spends == [spend(1)]


def test_a_repeated_request_needs_no_budget(ledger: Ledger) -> None:
    exhaust(ledger)
    assert not ledger.reserve(spend(FITS), BUDGET)


def test_a_changed_request_under_a_used_name_is_refused(ledger: Ledger) -> None:
    ledger.reserve(spend(1), BUDGET)
    with pytest.raises(RequestRefused, match="used before"):
        ledger.reserve(replace(spend(1), request_digest="another"), BUDGET)
    assert ledger.account().spends == [spend(1)]


def test_another_unit_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampledGaussian, "__post_init__", lambda _: None)
    other = replace(STEP, unit="interaction")  # type: ignore[arg-type]
    with pytest.raises(RequestRefused, match="unit"):
        ledger.reserve(spend(1, mechanism=other), BUDGET)


def test_one_release_belongs_to_one_reservation(ledger: Ledger) -> None:
    ledger.reserve(spend(1), BUDGET)
    assert ledger.release_digest(spend(1).request_id) is None
    ledger.commit(spend(1).request_id, "aa")
    ledger.commit(spend(1).request_id, "aa")
    assert ledger.release_digest(spend(1).request_id) == "aa"
    with pytest.raises(StateError, match="different release"):
        ledger.commit(spend(1).request_id, "bb")
    with pytest.raises(StateError):
        ledger.commit("never reserved", "aa")
    assert ledger.release_digest(spend(1).request_id) == "aa"


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE spend SET mechanism = '{}'",
        "UPDATE spend SET request_digest = 'x' WHERE sequence = 1",
        "DELETE FROM spend",
        "INSERT OR REPLACE INTO spend VALUES (1, 'new', 'd', 'd', '{}', '{}')",
        "REPLACE INTO spend VALUES (7, 'spring/1/north', 'd', 'd', '{}', '{}')",
        "UPDATE OR REPLACE spend SET sequence = 2",
        "UPDATE release SET sha256 = 'x'",
        "DELETE FROM release",
        "REPLACE INTO release VALUES ('spring/1/north', 'x')",
    ],
)
def test_nothing_in_it_can_be_changed_by_anyone_with_sqlite(
    ledger: Ledger, path: Path, sql: str
) -> None:
    ledger.reserve(spend(1), BUDGET)
    ledger.commit(spend(1).request_id, "aa")
    with (
        closing(sqlite3.connect(path)) as other,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        other.execute(sql)
    assert ledger.account().spends == [spend(1)]
    assert ledger.release_digest(spend(1).request_id) == "aa"


def test_every_commit_reaches_the_disk(ledger: Ledger) -> None:
    settings = {
        name: ledger._db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("synchronous", "foreign_keys", "journal_mode")
    }
    assert settings == {"synchronous": 2, "foreign_keys": 1, "journal_mode": "wal"}


def in_processes(number: int, act: Callable[[int], int]) -> list[int | None]:
    """Exit codes of ``number`` forked processes that start ``act`` at the same moment."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(number)

    def run(place: int) -> None:
        barrier.wait()
        os._exit(act(place))

    processes = [context.Process(target=run, args=(place,)) for place in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_a_reservation_survives_a_kill_right_after_it(path: Path) -> None:
    def reserve_and_die(_: int) -> int:
        Ledger(path).reserve(spend(1), BUDGET)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert in_processes(1, reserve_and_die) == [-signal.SIGKILL]
    assert read(path) == [spend(1)]


def test_a_kill_before_the_commit_leaves_nothing(path: Path) -> None:
    def die_inside(_: int) -> int:
        def price(*_: object) -> float:
            os.kill(os.getpid(), signal.SIGKILL)
            return 0.0

        setattr(ledger_module, "epsilon_spent", price)  # noqa: B010 - mypy knows its type
        Ledger(path).reserve(spend(1), BUDGET)
        return 0

    assert in_processes(1, die_inside) == [-signal.SIGKILL]
    assert read(path) == []
    with closing(Ledger(path)) as ledger:
        assert ledger.reserve(spend(1), BUDGET), "the dead process holds no lock"


def test_another_connection_sees_a_reservation_at_once(ledger: Ledger, path: Path) -> None:
    ledger.reserve(spend(1), BUDGET)
    assert read(path) == [spend(1)]


def test_exactly_one_process_gets_the_last_of_the_budget(path: Path) -> None:
    with closing(Ledger(path)) as ledger:
        for number in range(1, FITS):
            ledger.reserve(spend(number), BUDGET)

    def race(place: int) -> int:
        try:
            Ledger(path).reserve(spend(100 + place), BUDGET)
        except BudgetExhausted:
            return 4
        return 0

    assert sorted(in_processes(4, race), key=str) == [0, 4, 4, 4]
    assert len(read(path)) == FITS


def test_processes_that_create_it_at_once_share_one_ledger(path: Path) -> None:
    def create(place: int) -> int:
        Ledger(path).reserve(spend(place), BUDGET)
        return 0

    assert in_processes(5, create) == [0] * 5
    assert {s.request_id for s in read(path)} == {spend(place).request_id for place in range(5)}
    assert {file.name.partition("-")[0] for file in path.parent.iterdir()} == {path.name}


def test_a_process_that_comes_late_does_not_replace_the_ledger(ledger: Ledger, path: Path) -> None:
    """It found no file, and another process was quicker to create one and to spend."""
    ledger.reserve(spend(1), BUDGET)
    ledger.close()
    ledger_module._create(path)
    assert read(path) == [spend(1)]


def foreign_database(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE orders (id INTEGER)")
        db.execute(f"PRAGMA user_version={version}")
        db.commit()


def newer_ledger(path: Path) -> None:
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=2")


UNUSABLE: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "an emptied file": lambda path: path.write_bytes(b""),
    "no database": lambda path: path.write_bytes(b"privacy is spent here" * 1000),
    "another program's database": lambda path: foreign_database(path, 0),
    "another program's database of version 1": lambda path: foreign_database(path, 1),
    "a newer ledger": newer_ledger,
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_that_is_no_ledger_is_never_taken_for_an_empty_one(path: Path, name: str) -> None:
    UNUSABLE[name](path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StateError, match="ledger"):
        Ledger(path)
    assert before == (path.read_bytes() if path.is_file() else None)


def test_a_damaged_ledger_grants_nothing(path: Path) -> None:
    with closing(Ledger(path)) as ledger:
        exhaust(ledger)
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StateError), closing(Ledger(path)) as ledger:
        ledger.reserve(spend(1, run="next"), BUDGET)


@pytest.mark.parametrize("mechanism", ["", "{", "[]", "null", '{"type": "laplace"}'])
def test_a_row_that_cannot_be_priced_grants_nothing(
    ledger: Ledger, path: Path, mechanism: str
) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO spend VALUES (1, 'a', 'b', 'c', ?, '{}')", (mechanism,))
        db.commit()
    with pytest.raises(StateError):
        ledger.reserve(spend(1), BUDGET)


def test_a_ledger_that_cannot_be_written_grants_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(path).close()
    connect = sqlite3.connect

    def read_only(address: str, **options: object) -> sqlite3.Connection:
        # Permissions do not stop the superuser, as whom tests often run.
        connection: sqlite3.Connection = connect(address.replace("mode=rw", "mode=ro"), **options)  # type: ignore[call-overload]
        return connection

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with closing(Ledger(path)) as ledger, pytest.raises(StateError, match="permissions"):
        ledger.reserve(spend(1), BUDGET)


def test_a_ledger_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        Ledger(tmp_path / "no such folder" / "ledger.sqlite")


def test_a_ledger_held_by_another_process_grants_nothing(ledger: Ledger, path: Path) -> None:
    ledger._db.execute("PRAGMA busy_timeout=50")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError, match="locked"):
            ledger.reserve(spend(1), BUDGET)
        other.execute("ROLLBACK")
    assert ledger.reserve(spend(1), BUDGET)


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0.0, 1e-5), (-1.0, 1e-5), (math.nan, 1e-5), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)],
)
def test_a_budget_that_cannot_be_kept_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ConfigError):
        Budget(epsilon=epsilon, delta=delta)
