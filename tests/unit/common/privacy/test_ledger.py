"""The ledger: charged before data is touched, once, durably, never over budget, never forgotten."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from common.errors import BudgetExhausted, RequestRefused, StateError
from common.privacy import account as account_module
from common.privacy import ledger as ledger_module
from common.privacy.account import GENESIS, Budget, Entry, Spend, check_chain, entry_digest
from common.privacy.accounting import epsilon_spent
from common.privacy.ledger import Ledger, utc_now
from common.privacy.mechanisms import SampledGaussian
from common.storage import write_durably
from tests.harm import (
    LOST,
    OLDER,
    TAMPERING,
    Clock,
    files_of,
    fill,
    head_of,
    in_processes,
    read_only,
    small_disk,
    unguarded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STEP = SampledGaussian(noise_multiplier=4.0, sampling_rate=1.0, steps=1)
BUDGET = Budget(epsilon=3.0, delta=1e-5)
MONTH = replace(BUDGET, period_days=30)
FITS = 8
"""Steps that fit into the budget; the ninth does not."""


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
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(path: Path, clock: Clock) -> Iterator[Ledger]:
    with closing(Ledger(path, clock=clock)) as opened:
        yield opened


def read(path: Path) -> tuple[Spend, ...]:
    with closing(Ledger(path)) as opened:
        return opened.account().spends


def entries(path: Path) -> list[Entry]:
    with closing(Ledger(path)) as opened:
        return opened.entries()


def kinds(ledger: Ledger) -> list[str]:
    return [entry.kind for entry in ledger.entries()]


def use(path: Path, rounds: int = 2) -> None:
    """A ledger with a grant, and a reservation and a release of each round; closed again."""
    with closing(Ledger(path)) as opened:
        for number in range(1, rounds + 1):
            opened.reserve(spend(number), BUDGET)
            opened.commit(spend(number).request_id, "aa")


def exhaust(ledger: Ledger, budget: Budget = BUDGET) -> None:
    for number in range(1, FITS + 1):
        ledger.reserve(spend(number), budget)


# --- Spending -----------------------------------------------------------------------------------


def test_the_example_budget_is_what_the_tests_think() -> None:
    assert epsilon_spent([STEP] * FITS, BUDGET.delta) <= BUDGET.epsilon
    assert epsilon_spent([STEP] * (FITS + 1), BUDGET.delta) > BUDGET.epsilon


def test_spends_come_back_as_they_went_in_oldest_first(ledger: Ledger, path: Path) -> None:
    spends = [spend(3), spend(1), spend(2, run="autumn")]
    assert [ledger.reserve(s, BUDGET) for s in spends] == [True, True, True]
    assert ledger.account().spends == tuple(spends)
    ledger.close()
    assert read(path) == tuple(spends)


def test_everything_ever_spent_counts_whatever_run_it_was(ledger: Ledger) -> None:
    for number in range(1, FITS):
        ledger.reserve(spend(number, run=f"run-{number}"), BUDGET)
    ledger.reserve(spend(1, run="this one"), BUDGET)
    with pytest.raises(BudgetExhausted):
        ledger.reserve(spend(2, run="this one"), BUDGET)


def test_over_budget_is_refused_with_numbers_and_leaves_no_trace(ledger: Ledger) -> None:
    exhaust(ledger)
    before = ledger.entries()
    with pytest.raises(BudgetExhausted, match=r"epsilon 3\.1\d\d of 3\.000") as caught:
        ledger.reserve(spend(FITS + 1), BUDGET)
    assert caught.value.would_spend == epsilon_spent([STEP] * (FITS + 1), 1e-5)
    assert (caught.value.budget, caught.value.delta, caught.value.unit) == (3.0, 1e-5, "user")
    assert len(ledger.account().spends) == FITS
    assert ledger.entries() == before
    # What still fits is still granted.
    cheap = replace(STEP, noise_multiplier=1000.0)
    assert ledger.reserve(spend(99, mechanism=cheap), BUDGET)


def test_the_tight_accountant_decides_where_the_quick_one_refuses(ledger: Ledger) -> None:
    tight = epsilon_spent([STEP], 1e-5)
    assert epsilon_spent([STEP], 1e-5, "rdp") > tight
    assert ledger.reserve(spend(1), Budget(epsilon=tight, delta=1e-5))


def test_a_refused_first_request_grants_nothing(ledger: Ledger) -> None:
    with pytest.raises(BudgetExhausted):
        ledger.reserve(spend(1), replace(BUDGET, epsilon=0.01))
    assert ledger.entries() == []
    assert ledger.account().grant is None
    assert ledger.reserve(spend(1), BUDGET)
    assert kinds(ledger) == ["grant", "reserve"]


def test_epsilon_is_computed_when_it_is_asked_for(ledger: Ledger) -> None:
    """What an entry says of epsilon is for people; a better accountant applies to the past."""
    exhaust(ledger)
    account = ledger.account()
    assert account.epsilon(1e-5) == epsilon_spent([STEP] * FITS, 1e-5)
    assert account.epsilon(1e-7) == epsilon_spent([STEP] * FITS, 1e-7)
    body = json.loads(ledger.entries()[-1].body)
    assert body["mechanism"] == STEP.to_dict()
    assert body["epsilon_after"] == account.epsilon(1e-5)
    assert body["epsilon_before"] == epsilon_spent([STEP] * (FITS - 1), 1e-5)
    assert body["accountant"] == "prv"


def test_a_price_that_is_no_number_is_refused(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_module, "epsilon_spent", lambda *_: math.nan)
    with pytest.raises(BudgetExhausted):
        ledger.reserve(spend(1), BUDGET)
    assert ledger.entries() == []


def test_a_ledger_without_limit_holds_what_json_can_say(ledger: Ledger, path: Path) -> None:
    silent, endless = replace(STEP, noise_multiplier=0.0), replace(BUDGET, epsilon=math.inf)
    assert ledger.reserve(spend(1, mechanism=silent), endless)
    ledger.close()
    grant, reserve = (json.loads(entry.body) for entry in entries(path))
    assert (grant["epsilon"], reserve["epsilon_after"]) == (None, None)
    with closing(Ledger(path)) as opened:
        account = opened.account()
        assert account.grant == endless
        assert account.epsilon(1e-5) == math.inf
        with pytest.raises(BudgetExhausted):
            opened.reserve(spend(2), BUDGET)


def test_the_same_request_is_charged_once(ledger: Ledger) -> None:
    assert ledger.reserve(spend(1), BUDGET)
    assert not ledger.reserve(spend(1), BUDGET)
    ledger.commit(spend(1).request_id, "aa")
    assert not ledger.reserve(spend(1), BUDGET)
    assert ledger.account().spends == (spend(1),)


def test_a_repeated_request_needs_no_budget(ledger: Ledger) -> None:
    exhaust(ledger)
    assert not ledger.reserve(spend(FITS), BUDGET)


def test_a_changed_request_under_a_used_name_is_refused(ledger: Ledger) -> None:
    ledger.reserve(spend(1), BUDGET)
    with pytest.raises(RequestRefused, match="used before"):
        ledger.reserve(replace(spend(1), request_digest="another"), BUDGET)
    assert ledger.account().spends == (spend(1),)


def test_another_unit_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampledGaussian, "__post_init__", lambda _: None)
    other = replace(STEP, unit="interaction")  # type: ignore[arg-type]
    with pytest.raises(RequestRefused, match="unit"):
        ledger.reserve(spend(1, mechanism=other), BUDGET)


def test_one_release_belongs_to_one_reservation(ledger: Ledger) -> None:
    name = spend(1).request_id
    ledger.reserve(spend(1), BUDGET)
    assert ledger.account().releases == {}
    ledger.commit(name, "aa")
    ledger.commit(name, "aa")
    assert ledger.account().releases == {name: "aa"}
    with pytest.raises(StateError, match="different release"):
        ledger.commit(name, "bb")
    with pytest.raises(StateError, match="nothing was reserved"):
        ledger.commit("never reserved", "aa")
    assert ledger.account().releases == {name: "aa"}
    assert kinds(ledger) == ["grant", "reserve", "commit"]


def test_one_list_of_survivors_belongs_to_one_release(ledger: Ledger) -> None:
    name = spend(1).request_id
    ledger.reserve(spend(1), BUDGET)
    ledger.commit(name, "aa")
    assert ledger.account().confirmations == {}
    ledger.confirm(name, "dd", ["north", "south"])
    before = ledger.account(), ledger.entries()
    ledger.confirm(name, "dd", ["north", "south"])
    with pytest.raises(RequestRefused, match="other survivors were confirmed for this release"):
        ledger.confirm(name, "ee", ["north", "west"])
    assert (ledger.account(), ledger.entries()) == before
    assert kinds(ledger) == ["grant", "reserve", "commit", "confirm"]
    last = ledger.entries()[-1]
    assert last.request_id == name
    assert json.loads(last.body) == {"sha256": "dd", "survivors": ["north", "south"]}


def test_a_confirmed_list_is_of_its_own_release_and_costs_nothing(ledger: Ledger) -> None:
    for number in (1, 2):
        ledger.reserve(spend(number), BUDGET)
        ledger.commit(spend(number).request_id, "aa")
    before = ledger.account()
    ledger.confirm(spend(1).request_id, "dd", ["north"])
    ledger.confirm(spend(2).request_id, "ee", ["north"])
    lists = {spend(1).request_id: "dd", spend(2).request_id: "ee"}
    assert ledger.account() == replace(before, confirmations=lists)


@pytest.mark.parametrize("reserved", [False, True])
def test_no_list_is_confirmed_for_what_was_never_released(ledger: Ledger, reserved: bool) -> None:
    if reserved:
        ledger.reserve(spend(1), BUDGET)
    before = ledger.entries()
    with pytest.raises(StateError, match="no release is recorded that could be in a sum"):
        ledger.confirm(spend(1).request_id, "dd", ["north"])
    assert ledger.entries() == before
    assert ledger.account().confirmations == {}


def test_a_confirmed_list_outlives_the_process_and_the_period(
    ledger: Ledger, path: Path, clock: Clock
) -> None:
    name = spend(1).request_id
    ledger.reserve(spend(1), MONTH)
    ledger.commit(name, "aa")
    ledger.confirm(name, "dd", ["north", "south"])
    clock.move(days=40)
    ledger.grant(MONTH, "somebody")
    ledger.close()
    with closing(Ledger(path, clock=clock)) as opened:
        assert opened.account().confirmations == {name: "dd"}
        before = opened.entries()
        opened.confirm(name, "dd", ["north", "south"])
        with pytest.raises(RequestRefused, match="there is one list"):
            opened.confirm(name, "ee", ["north", "west"])
        assert opened.entries() == before


def test_a_list_that_could_not_be_written_is_not_remembered(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = spend(1).request_id
    ledger.reserve(spend(1), BUDGET)
    ledger.commit(name, "aa")
    before = ledger.account(), ledger.entries()

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "_insert", full)
        with pytest.raises(StateError, match="disk is full"):
            ledger.confirm(name, "dd", ["north"])
    assert (ledger.account(), ledger.entries()) == before
    ledger.confirm(name, "ee", ["north"])
    assert ledger.account().confirmations == {name: "ee"}


def test_a_declined_request_is_written_down_and_costs_nothing(ledger: Ledger) -> None:
    ledger.reserve(spend(1), BUDGET)
    ledger.decline("spring/2/north", "refused: because")
    ledger.decline("spring/2/north", "refused: because")
    last = ledger.entries()[-1]
    assert (last.kind, last.request_id) == ("decline", "spring/2/north")
    assert json.loads(last.body) == {"reason": "refused: because"}
    assert ledger.account().num_declined == 2
    assert ledger.account().spends == (spend(1),)
    assert ledger.reserve(spend(2), BUDGET), "a later request of that name is a request"


def test_a_flood_of_declined_requests_is_cut_off_and_stops_nothing_else(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_DECLINES", 5)
    for number in range(1, 8):
        ledger.decline(f"spring/{number}/north", "refused: because")
    ledger.close()
    with closing(Ledger(path)) as opened:
        opened.decline("spring/9/north", "refused: because")
        assert kinds(opened) == ["decline"] * 5
        assert opened.reserve(spend(1), BUDGET)
        opened.commit(spend(1).request_id, "aa")
        opened.grant(replace(BUDGET, epsilon=4.0), "somebody")


@pytest.mark.parametrize("name", ["\ud800", "a\x00b", "x" * 10**6])
def test_whatever_name_a_stranger_chooses_is_declined_and_does_not_fill_the_disk(
    ledger: Ledger, path: Path, name: str
) -> None:
    ledger.decline(f"spring/1/{name}", f"refused: the request is for {name!r}")
    (entry,) = ledger.entries()
    assert entry.kind == "decline"
    assert len(entry.request_id) + len(entry.body) < 10_000
    ledger.close()
    assert len(entries(path)) == 1


def test_a_note_is_for_people_and_changes_nothing(ledger: Ledger) -> None:
    ledger.reserve(spend(1), BUDGET)
    before = ledger.account()
    ledger.note("looked at it: \u00fc \x00")
    assert ledger.account() == before
    assert json.loads(ledger.entries()[-1].body) == {"text": "looked at it: \u00fc \x00"}


# --- Append-only --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE entry SET body = '{}'",
        "UPDATE entry SET request_id = 'x' WHERE sequence = 1",
        "UPDATE OR REPLACE entry SET sequence = 2",
        "UPDATE entry SET sequence = sequence WHERE sequence = 3",
        "DELETE FROM entry",
        "DELETE FROM entry WHERE sequence = 3",
        "INSERT OR REPLACE INTO entry VALUES (1, 't', 'note', '', '{}', 'd')",
        "REPLACE INTO entry VALUES (3, 't', 'note', '', '{}', 'd')",
        "REPLACE INTO entry VALUES (4, 't', 'reserve', 'spring/1/north', '{}', 'd')",
        "REPLACE INTO entry VALUES (4, 't', 'commit', 'spring/1/north', '{}', 'd')",
        "INSERT INTO entry VALUES (5, 't', 'note', '', '{}', 'd')",
        "INSERT INTO entry VALUES (0, 't', 'note', '', '{}', 'd')",
        "INSERT INTO entry VALUES (NULL, 't', 'note', '', '{}', 'd')",
    ],
)
def test_nothing_in_it_can_be_changed_by_anyone_with_sqlite(
    ledger: Ledger, path: Path, sql: str
) -> None:
    ledger.reserve(spend(1), BUDGET)
    ledger.commit(spend(1).request_id, "aa")
    before = ledger.entries()
    with (
        closing(sqlite3.connect(path)) as other,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        other.execute(sql)
    assert ledger.entries() == before
    ledger.close()
    assert entries(path) == before


def test_a_row_that_a_stranger_appends_stops_the_open_ledger(ledger: Ledger, path: Path) -> None:
    ledger.reserve(spend(1), BUDGET)
    with closing(sqlite3.connect(path)) as other:
        other.execute("INSERT INTO entry VALUES (3, '9999', 'note', '', '{}', 'd')")
        other.commit()
    for act in (
        ledger.account,
        lambda: ledger.reserve(spend(2), BUDGET),
        lambda: ledger.commit(spend(1).request_id, "aa"),
        lambda: ledger.grant(BUDGET, "somebody"),
    ):
        with pytest.raises(StateError, match=r"entry 3 \(note\) was changed"):
            act()
    assert kinds(ledger) == ["grant", "reserve", "note"]


def test_every_commit_reaches_the_disk(ledger: Ledger) -> None:
    settings = {
        name: ledger._db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("synchronous", "journal_mode")
    }
    assert settings == {"synchronous": 2, "journal_mode": "wal"}


# --- Crashes and other processes ----------------------------------------------------------------


def test_a_reservation_survives_a_kill_right_after_it(path: Path) -> None:
    def reserve_and_die(_: int) -> int:
        Ledger(path).reserve(spend(1), BUDGET)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert in_processes(1, reserve_and_die) == [-signal.SIGKILL]
    assert read(path) == (spend(1),)


def test_a_kill_before_the_commit_leaves_nothing(path: Path) -> None:
    def die_inside(_: int) -> int:
        def price(*_: object) -> float:
            os.kill(os.getpid(), signal.SIGKILL)
            return 0.0

        setattr(account_module, "epsilon_spent", price)  # noqa: B010 - mypy knows its type
        Ledger(path).reserve(spend(1), BUDGET)
        return 0

    assert in_processes(1, die_inside) == [-signal.SIGKILL]
    assert read(path) == ()
    with closing(Ledger(path)) as ledger:
        assert ledger.reserve(spend(1), BUDGET), "the dead process holds no lock"


def test_a_confirmed_list_survives_a_kill_right_after_it(path: Path) -> None:
    def confirm_and_die(_: int) -> int:
        Ledger(path).confirm(spend(1).request_id, "dd", ["north"])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    use(path, 1)
    assert in_processes(1, confirm_and_die) == [-signal.SIGKILL]
    with closing(Ledger(path)) as opened:
        assert opened.account().confirmations == {spend(1).request_id: "dd"}


def test_exactly_one_process_gets_its_list_confirmed(path: Path) -> None:
    use(path, 1)

    def race(place: int) -> int:
        try:
            Ledger(path).confirm(spend(1).request_id, f"list {place}", ["north"])
        except RequestRefused:
            return 4
        return 0

    codes = in_processes(4, race)
    assert sorted(codes, key=str) == [0, 4, 4, 4]
    with closing(Ledger(path)) as opened:
        found = opened.account().confirmations
    assert found == {spend(1).request_id: f"list {codes.index(0)}"}
    assert [entry.kind for entry in entries(path)].count("confirm") == 1


def test_another_connection_sees_a_reservation_at_once(ledger: Ledger, path: Path) -> None:
    ledger.reserve(spend(1), BUDGET)
    assert read(path) == (spend(1),)


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
    assert {file.name.partition("-")[0] for file in path.parent.iterdir()} == {
        path.name,
        head_of(path).name,
    }


@pytest.mark.parametrize("found_out", ["before", "after"])
def test_a_process_that_comes_late_does_not_replace_the_ledger(
    path: Path, monkeypatch: pytest.MonkeyPatch, found_out: str
) -> None:
    """It found no file, and another process was quicker to create one and to spend."""
    create = Ledger._create

    def come_late(late: Ledger) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "_create", create)
            if found_out == "before":
                use(path)
                create(late)
            else:
                connect = sqlite3.connect

                def connect_late(*arguments: object, **options: object) -> sqlite3.Connection:
                    patch.setattr(sqlite3, "connect", connect)
                    use(path)
                    opened: sqlite3.Connection = connect(*arguments, **options)  # type: ignore[call-overload]
                    return opened

                patch.setattr(sqlite3, "connect", connect_late)
                create(late)

    monkeypatch.setattr(Ledger, "_create", come_late)
    with closing(Ledger(path)) as late:
        assert late.account().spends == (spend(1), spend(2))
    assert read(path) == (spend(1), spend(2))


# --- Files that are no ledger -------------------------------------------------------------------


def foreign_database(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE orders (id INTEGER)")
        db.execute(f"PRAGMA user_version={version}")
        db.commit()


def newer_ledger(path: Path) -> None:
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=3")


UNUSABLE: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "an emptied file": lambda path: path.write_bytes(b""),
    "no database": lambda path: path.write_bytes(b"privacy is spent here" * 1000),
    "another program's database": lambda path: foreign_database(path, 0),
    "another program's database of version 1": lambda path: foreign_database(path, 1),
    "another program's database of version 2": lambda path: foreign_database(path, 2),
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


# --- Tampering ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TAMPERING)
def test_whatever_was_done_to_it_is_named_and_grants_nothing(path: Path, name: str) -> None:
    act, cause = TAMPERING[name]
    use(path, rounds=3)
    act(path)
    damaged = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    for read_only_ in (False, True):
        if name == "ledger-deleted" and read_only_:
            continue
        with pytest.raises(StateError, match=cause):
            Ledger(path, read_only=read_only_)
    left = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    for suffix in ("-wal", "-shm"):  # SQLite's own
        left.pop(path.name + suffix, None)
    assert left == damaged, "what is damaged is evidence"


def test_a_kind_that_is_not_known_yet_stops_the_ledger_and_is_not_skipped(path: Path) -> None:
    """As ``confirm`` was before there were secure sums: it may forbid what one would do."""
    use(path)
    last = entries(path)[-1]
    newer = replace(last, sequence=last.sequence + 1, kind="revoke", body="{}")  # type: ignore[arg-type]
    newer = replace(newer, digest=entry_digest(last.digest, newer))
    with closing(sqlite3.connect(path)) as db:
        ledger_module._insert(db, [newer])
        db.commit()
    with pytest.raises(StateError, match=r"unknown kind 'revoke'.* not whole"):
        Ledger(path)


def test_the_untouched_ledger_of_these_tests_opens(path: Path) -> None:
    use(path, rounds=3)
    with unguarded(path):
        pass
    assert [entry.kind for entry in entries(path)] == ["grant", *["reserve", "commit"] * 3]
    check_chain(entries(path))


def copies(path: Path, place: Path) -> None:
    place.mkdir()
    for file in path.parent.iterdir():
        if file.is_file():
            shutil.copy(file, place)


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_an_older_copy_put_in_its_place_is_found(path: Path, tmp_path: Path, rounds: int) -> None:
    use(path, rounds)
    copies(path, tmp_path / "backup")
    use(path, 3)
    for file in files_of(path):
        file.unlink()
    shutil.copy(tmp_path / "backup" / path.name, path)
    with pytest.raises(StateError, match=OLDER):
        Ledger(path)


def test_an_older_head_is_one_that_a_crash_left_and_the_next_entry_mends_it(path: Path) -> None:
    use(path, 1)
    older = head_of(path).read_bytes()
    use(path, 2)
    head_of(path).write_bytes(older)
    assert read(path) == (spend(1), spend(2))
    use(path, 3)
    last = entries(path)[-1]
    assert head_of(path).read_text() == f"{last.sequence} {last.digest}\n"


def test_the_head_follows_every_entry(ledger: Ledger, path: Path) -> None:
    assert head_of(path).read_text() == f"0 {GENESIS}\n"
    for act in (
        lambda: ledger.grant(BUDGET, "somebody"),
        lambda: ledger.reserve(spend(1), BUDGET),
        lambda: ledger.commit(spend(1).request_id, "aa"),
        lambda: ledger.confirm(spend(1).request_id, "dd", ["north", "south"]),
        lambda: ledger.decline("x", "y"),
        lambda: ledger.note("z"),
    ):
        act()
        last = ledger.entries()[-1]
        assert head_of(path).read_text() == f"{last.sequence} {last.digest}\n"
    assert last.sequence == 6


def test_the_wal_taken_away_is_found(path: Path) -> None:
    def spend_and_die(_: int) -> int:
        Ledger(path).reserve(spend(3), BUDGET)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    use(path, 2)
    assert in_processes(1, spend_and_die) == [-signal.SIGKILL]
    path.with_name(f"{path.name}-wal").unlink()
    with pytest.raises(StateError, match=OLDER):
        Ledger(path)


def test_a_lost_ledger_is_not_replaced_by_an_empty_one(path: Path) -> None:
    use(path)
    for file in files_of(path):
        file.unlink()
    for _ in range(2):
        with pytest.raises(StateError, match=LOST):
            Ledger(path)
    assert not path.exists()


def test_reading_changes_and_creates_nothing(path: Path) -> None:
    with pytest.raises(StateError):
        Ledger(path, read_only=True)
    assert list(path.parent.iterdir()) == []
    use(path)
    before = path.read_bytes(), head_of(path).read_bytes()
    with closing(Ledger(path, read_only=True)) as opened:
        assert opened.account().spends == (spend(1), spend(2))
        for act in (
            lambda: opened.reserve(spend(3), BUDGET),
            lambda: opened.grant(BUDGET, "somebody"),
            lambda: opened.note("hello"),
        ):
            with pytest.raises(StateError, match="readonly"):
                act()
    assert (path.read_bytes(), head_of(path).read_bytes()) == before


# --- Disks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["folder", "file", "head"])
def test_what_cannot_be_written_grants_nothing_and_works_again_afterwards(
    path: Path, what: str
) -> None:
    use(path)
    place = {"folder": path.parent, "file": path, "head": head_of(path)}[what]
    with (
        read_only(place),
        pytest.raises(StateError, match=r"ledger\.sqlite"),
        closing(Ledger(path)) as ledger,
    ):
        ledger.reserve(spend(3), BUDGET)
    with closing(Ledger(path)) as ledger:
        ledger.reserve(spend(3), BUDGET)
        assert ledger.account().spends == (spend(1), spend(2), spend(3))


def test_a_folder_that_cannot_be_written_is_not_read_as_a_fresh_start(path: Path) -> None:
    with read_only(path.parent), pytest.raises(StateError):
        Ledger(path)
    use(path)


def one_round(path: Path, number: int) -> int:
    """0 if the round was reserved and recorded, 3 if the ledger said no."""
    try:
        with closing(Ledger(path)) as ledger:
            ledger.reserve(spend(number), BUDGET)
            ledger.commit(spend(number).request_id, "aa")
    except StateError as error:
        return 3 if "ledger.sqlite" in str(error) else 1
    return 0


def test_files_that_may_not_grow_stop_the_ledger_and_spend_nothing_twice(tmp_path: Path) -> None:
    """A process limit on the size of files stops at every write once."""
    (tmp_path / "whole").mkdir()
    use(tmp_path / "whole" / "ledger.sqlite")
    outcomes = []
    for limit in (*range(0, 20_000, 1000), *range(20_000, 80_000, 6000)):
        path = tmp_path / str(limit) / "ledger.sqlite"
        copies(tmp_path / "whole" / "ledger.sqlite", path.parent)

        def limited(_: int, path: Path = path, limit: int = limit) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return one_round(path, 3)

        (code,) = in_processes(1, limited)
        assert code in (0, 3)
        outcomes.append(code)
        after_a_full_disk(path, was_recorded=code == 0)
    assert set(outcomes) == {0, 3}


def after_a_full_disk(path: Path, *, was_recorded: bool) -> None:
    with closing(Ledger(path)) as ledger:
        found = ledger.account()
        assert found.spends[:2] == (spend(1), spend(2))
        assert len(found.spends) <= 3
        if was_recorded:
            assert spend(3).request_id in found.releases
        assert ledger.reserve(spend(3), BUDGET) == (len(found.spends) == 2)
        ledger.commit(spend(3).request_id, "aa")
        assert ledger.account().spends == (spend(1), spend(2), spend(3))
        check_chain(ledger.entries())


def test_a_full_disk_stops_the_ledger_and_spends_nothing_twice(tmp_path: Path) -> None:
    outcomes = []
    with small_disk(tmp_path / "disk", kilobytes=512):
        for kilobytes in (*range(0, 80, 4), 120, 200):
            path = tmp_path / "disk" / str(kilobytes) / "ledger.sqlite"
            path.parent.mkdir()
            use(path)
            ballast = fill(tmp_path / "disk", leave=kilobytes * 1024)
            (code,) = in_processes(1, lambda _, path=path: one_round(path, 3))  # type: ignore[misc]
            assert code in (0, 3)
            outcomes.append(code)
            ballast.unlink()
            after_a_full_disk(path, was_recorded=code == 0)
            shutil.rmtree(path.parent)
    assert outcomes[0] == 3
    assert outcomes[-1] == 0


def test_a_disk_that_fills_up_under_an_open_ledger_stops_it_until_there_is_space(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", kilobytes=512):
        path = tmp_path / "disk" / "ledger.sqlite"
        with closing(Ledger(path)) as ledger:
            ledger.reserve(spend(1), BUDGET)
            ballast = fill(path.parent)

            def reserve_on() -> None:
                for number in range(2, FITS + 1):  # there may be space in the log
                    ledger.reserve(spend(number), BUDGET)

            with pytest.raises(StateError, match="disk"):
                reserve_on()
            recorded = ledger.account().spends
            assert read(path) == recorded
            ballast.unlink()
            assert ledger.reserve(spend(FITS), BUDGET)
            assert ledger.account().spends == (*recorded, spend(FITS))
        check_chain(entries(path))


# --- Clocks -------------------------------------------------------------------------------------


def test_time_never_decreases_while_a_clock_is_set_right(ledger: Ledger, clock: Clock) -> None:
    ledger.reserve(spend(1), BUDGET)
    for seconds in (-5, -3000, 10, 3600, -3600):
        clock.move(seconds=seconds)
        ledger.note("tick")
    times = [entry.time for entry in ledger.entries()]
    assert times == sorted(times)
    assert len(set(times)) == 2
    assert ledger.reserve(spend(2), BUDGET)


def test_a_clock_that_went_back_by_more_than_an_hour_releases_nothing(
    ledger: Ledger, clock: Clock, path: Path
) -> None:
    ledger.reserve(spend(1), BUDGET)
    before = ledger.entries()
    clock.move(seconds=-3601)
    for act in (
        lambda: ledger.reserve(spend(2), BUDGET),
        lambda: ledger.commit(spend(1).request_id, "aa"),
        lambda: ledger.grant(BUDGET, "somebody"),
        lambda: ledger.decline("x", "y"),
    ):
        with pytest.raises(StateError, match="time runs backwards: set the clock"):
            act()
    assert ledger.entries() == before
    ledger.close()
    with closing(Ledger(path, clock=clock)) as opened:
        with pytest.raises(StateError, match="set the clock"):
            opened.reserve(spend(2), BUDGET)
        clock.move(seconds=3601)
        assert opened.reserve(spend(2), BUDGET)


def test_a_clock_may_go_forward(ledger: Ledger, clock: Clock) -> None:
    ledger.reserve(spend(1), BUDGET)
    clock.move(days=4000)
    assert ledger.reserve(spend(2), BUDGET)
    assert ledger.entries()[-1].time == clock()


def test_a_period_cannot_be_stretched_by_setting_the_clock_back(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.reserve(spend(1), MONTH)
    clock.move(days=30)
    ledger.note("the period is over")
    clock.move(seconds=-60)
    with pytest.raises(StateError, match="client grant"):
        ledger.reserve(spend(2), MONTH)


def test_the_own_clock_is_utc_to_the_second() -> None:
    now = datetime.fromisoformat(utc_now())
    assert now.utcoffset() == timedelta(0)
    assert now.microsecond == 0
    assert abs(datetime.now(UTC) - now) < timedelta(seconds=5)


# --- Grants and periods -------------------------------------------------------------------------


def test_the_first_use_grants_what_the_platform_says(ledger: Ledger, clock: Clock) -> None:
    ledger.reserve(spend(1), MONTH)
    account = ledger.account()
    assert account.grant == MONTH
    assert account.period_start == clock()
    assert kinds(ledger) == ["grant", "reserve"]
    assert json.loads(ledger.entries()[0].body)["by"] == "platform.toml, at first use"


def test_a_lower_budget_binds_at_once_and_a_higher_one_when_it_is_granted(ledger: Ledger) -> None:
    for number in range(1, FITS):
        ledger.reserve(spend(number), BUDGET)
    low, high = (replace(BUDGET, epsilon=epsilon) for epsilon in (2.0, 30.0))
    with pytest.raises(BudgetExhausted, match=r"of 2\.000"):
        ledger.reserve(spend(FITS), low)
    ledger.reserve(spend(FITS), high)
    with pytest.raises(BudgetExhausted, match=r"of 3\.000"):
        ledger.reserve(spend(FITS + 1), high)
    ledger.grant(high, "somebody")
    ledger.reserve(spend(FITS + 1), high)
    ledger.grant(low, "somebody")
    with pytest.raises(BudgetExhausted, match=r"of 2\.000"):
        ledger.reserve(spend(FITS + 2), high)


@pytest.mark.parametrize("change", [{"delta": 1e-4}, {"delta": 1e-6}, {"period_days": 31}])
def test_within_a_period_only_epsilon_may_change(
    ledger: Ledger, clock: Clock, change: dict[str, float]
) -> None:
    ledger.reserve(spend(1), MONTH)
    before = ledger.entries()
    other = replace(MONTH, **change)  # type: ignore[arg-type]
    with pytest.raises(StateError, match="Only epsilon may change"):
        ledger.reserve(spend(2), other)
    with pytest.raises(StateError, match="only epsilon may change"):
        ledger.grant(other, "somebody")
    with pytest.raises(StateError, match="only epsilon may change"):
        ledger.grant(replace(MONTH, period_days=None), "somebody")
    assert ledger.entries() == before
    clock.move(days=30)
    ledger.grant(other, "somebody")
    assert ledger.account().grant == other
    assert ledger.reserve(spend(2), other)


def test_a_budget_for_life_has_no_next_period(ledger: Ledger, clock: Clock) -> None:
    ledger.reserve(spend(1), BUDGET)
    clock.move(days=10_000)
    with pytest.raises(StateError, match="until the end of the federation"):
        ledger.grant(MONTH, "somebody")
    ledger.grant(replace(BUDGET, epsilon=9.0), "somebody")
    assert ledger.account().mechanisms() == [STEP]


def test_a_grant_within_a_period_never_resets_the_spend(
    ledger: Ledger, clock: Clock, path: Path
) -> None:
    exhaust(ledger, MONTH)
    for _ in range(3):
        clock.move(days=9)
        ledger.grant(MONTH, "somebody")
        with pytest.raises(BudgetExhausted):
            ledger.reserve(spend(99), MONTH)
    ledger.close()
    with closing(Ledger(path, clock=clock)) as opened:
        assert len(opened.account().mechanisms()) == FITS
        assert opened.account().period_end() == "2026-01-31T12:00:00+00:00"


def test_after_its_end_a_period_must_be_granted_anew_and_starts_at_zero(
    ledger: Ledger, clock: Clock, path: Path
) -> None:
    exhaust(ledger, MONTH)
    clock.move(days=30, seconds=-1)
    with pytest.raises(BudgetExhausted):
        ledger.reserve(spend(99), MONTH)
    clock.move(seconds=1)
    for _ in range(2):
        with pytest.raises(StateError, match="the granted period ended on 2026-01-31"):
            ledger.reserve(spend(99), MONTH)
    ledger.grant(MONTH, "somebody")
    assert ledger.account().epsilon(1e-5) == 0.0
    for number in range(FITS):
        ledger.reserve(spend(number, run="autumn"), MONTH)
    with pytest.raises(BudgetExhausted):
        ledger.reserve(spend(99), MONTH)
    ledger.close()
    with closing(Ledger(path, clock=clock)) as opened:
        account = opened.account()
        assert account.epsilon(1e-5) == epsilon_spent([STEP] * FITS, 1e-5)
        assert account.epsilon_for_life(1e-5) == epsilon_spent([STEP] * 2 * FITS, 1e-5)


def test_a_used_name_stays_used_in_every_period(ledger: Ledger, clock: Clock) -> None:
    ledger.reserve(spend(1), MONTH)
    clock.move(days=40)
    ledger.grant(MONTH, "somebody")
    with pytest.raises(RequestRefused, match="used before"):
        ledger.reserve(replace(spend(1), request_digest="another"), MONTH)


def test_a_reservation_ends_with_its_period_and_a_release_does_not(
    ledger: Ledger, clock: Clock
) -> None:
    """Training for it now would meet users who are charged by the new budget alone."""
    ledger.reserve(spend(1), MONTH)
    ledger.reserve(spend(2), MONTH)
    ledger.commit(spend(2).request_id, "a" * 64)
    clock.move(days=40)
    ledger.grant(MONTH, "somebody")
    with pytest.raises(RequestRefused, match="period that is over"):
        ledger.reserve(spend(1), MONTH)
    assert not ledger.reserve(spend(2), MONTH)


# --- Version 1 ----------------------------------------------------------------------------------

VERSION_1 = """
CREATE TABLE spend (
    sequence INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    request_digest TEXT NOT NULL,
    description TEXT NOT NULL,
    mechanism TEXT NOT NULL,
    mechanism_if_broken TEXT NOT NULL
);
CREATE TABLE release (
    request_id TEXT PRIMARY KEY REFERENCES spend (request_id),
    sha256 TEXT NOT NULL
);
CREATE TRIGGER spend_is_append_only_i BEFORE INSERT ON spend
    WHEN EXISTS (SELECT 1 FROM spend
                 WHERE request_id = NEW.request_id OR sequence = NEW.sequence)
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER spend_is_append_only_d BEFORE DELETE ON spend
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER release_is_append_only_d BEFORE DELETE ON release
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


def ledger_of_version_1(path: Path, number: int = FITS - 1, mechanism: str | None = None) -> None:
    """As the program wrote it before there were entries; the last spend was never released."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA application_id={0x43526563}")
        db.execute("PRAGMA user_version=1")
        db.executescript(VERSION_1)
        for one in map(spend, range(1, number + 1)):
            row = (
                one.request_id,
                one.request_digest,
                one.description,
                json.dumps(one.mechanism.to_dict()) if mechanism is None else mechanism,
                json.dumps(one.mechanism_if_broken.to_dict()),
            )
            db.execute("INSERT INTO spend VALUES (NULL, ?, ?, ?, ?, ?)", row)
            if one != spend(number):
                db.execute("INSERT INTO release VALUES (?, 'aa')", (one.request_id,))
        db.commit()


def test_a_ledger_of_version_1_is_carried_over_and_counts_in_the_first_period(
    path: Path, clock: Clock
) -> None:
    ledger_of_version_1(path)
    with closing(Ledger(path, clock=clock)) as ledger:
        account = ledger.account()
        assert account.spends == tuple(spend(number) for number in range(1, FITS))
        assert account.releases == {spend(n).request_id: "aa" for n in range(1, FITS - 1)}
        assert account.grant is None
        assert not ledger.reserve(spend(FITS - 1), MONTH), "it was charged before"
        assert ledger.reserve(spend(FITS), MONTH)
        with pytest.raises(BudgetExhausted):
            ledger.reserve(spend(FITS + 1), MONTH)
        assert ledger.account().period_start == clock()
        assert len(ledger.account().mechanisms()) == FITS
        clock.move(days=30)
        ledger.grant(MONTH, "somebody")
        assert ledger.account().mechanisms() == []
        assert len(ledger.account().spends) == FITS
    check_chain(entries(path))
    with closing(sqlite3.connect(path)) as other:
        tables = other.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        assert tables == [("entry",)]
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            other.execute("DELETE FROM entry")


def test_an_empty_ledger_of_version_1_is_carried_over(path: Path) -> None:
    ledger_of_version_1(path, number=0)
    with closing(Ledger(path)) as ledger:
        assert kinds(ledger) == ["note"]
        assert ledger.reserve(spend(1), BUDGET)


def test_reading_does_not_carry_over(path: Path) -> None:
    ledger_of_version_1(path)
    before = path.read_bytes()
    with pytest.raises(StateError, match="version"):
        Ledger(path, read_only=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("when", ["before the head", "after the head"])
def test_a_kill_while_it_is_carried_over_loses_nothing(path: Path, when: str) -> None:
    ledger_of_version_1(path)

    def die(file: Path, content: bytes) -> None:
        if when == "after the head":
            write_durably(file, content)
        os.kill(os.getpid(), signal.SIGKILL)

    def migrate(_: int) -> int:
        setattr(ledger_module, "write_durably", die)  # noqa: B010 - mypy knows its type
        Ledger(path)
        return 0

    assert in_processes(1, migrate) == [-signal.SIGKILL]
    assert read(path) == tuple(spend(number) for number in range(1, FITS))


@pytest.mark.parametrize("mechanism", ["", "{", "[]", "null", '{"type": "laplace"}', "{}"])
def test_a_damaged_ledger_of_version_1_is_named_and_left_as_it_was(
    path: Path, mechanism: str
) -> None:
    ledger_of_version_1(path, mechanism=mechanism)
    for _ in range(2):
        with pytest.raises(StateError, match=r"ledger\.sqlite"):
            Ledger(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM spend").fetchone() == (FITS - 1,)


def test_an_older_copy_of_version_1_put_back_is_found(path: Path, tmp_path: Path) -> None:
    """Carrying it over again would forget everything since, and write a head that says so."""
    ledger_of_version_1(path, number=1)
    copies(path, tmp_path / "backup")
    use(path, 3)
    for file in files_of(path):
        file.unlink()
    shutil.copy(tmp_path / "backup" / path.name, path)
    for _ in range(2):
        with pytest.raises(StateError, match="an older copy, of version 1, was put in the place"):
            Ledger(path)
