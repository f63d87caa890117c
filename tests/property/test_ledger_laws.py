"""Any interleaving of what can happen to a ledger keeps its laws; and the laws of its arithmetic.

The mechanisms are Gaussians without sampling, whose epsilon a formula gives exactly: the check
prices with its own copy of it, keeps its own periods, and believes no number of the ledger.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
import tempfile
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from scipy.stats import norm

from common.errors import BudgetExhausted, RequestRefused, StateError
from common.privacy import ledger as ledger_module
from common.privacy.account import (
    GENESIS,
    Account,
    Budget,
    Entry,
    EntryKind,
    Price,
    Spend,
    account_of,
    check_chain,
    entry_digest,
    grant_body,
    reserve_body,
    rounds_left,
)
from common.privacy.ledger import Ledger
from common.privacy.mechanisms import SampledGaussian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DELTA = 1e-5
SLACK = 0.05
"""How far above the exact epsilon the ledger's own price may lie."""

NOISES = (2.0, 4.0, 8.0)
"""Powers of two, so that sums of 1/noise^2 are exact and few prices differ."""

mechanisms = st.builds(
    SampledGaussian,
    noise_multiplier=st.sampled_from(NOISES),
    sampling_rate=st.just(1.0),
    steps=st.integers(1, 2),
)
epsilons = st.sampled_from((0.5, 1.0, 2.0, 4.0, 8.0))


def exact_epsilon(spends: Sequence[SampledGaussian], delta: float = DELTA) -> float:
    """Epsilon of Gaussians without sampling: Balle and Wang 2018, arXiv:1805.06530, theorem 8."""
    mean = math.sqrt(sum(m.steps / m.noise_multiplier**2 for m in spends))
    if mean == 0.0:
        return 0.0

    def delta_at(epsilon: float) -> float:
        second = epsilon + float(norm.logcdf(-mean / 2 - epsilon / mean))
        return float(norm.cdf(mean / 2 - epsilon / mean)) - math.exp(second)

    low, high = 0.0, 100.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return low


def spend_of(number: int, mechanism: SampledGaussian, digest: str = "as asked") -> Spend:
    return Spend(
        request_id=f"spring/{number}/north",
        request_digest=digest,
        description=f"round {number}",
        mechanism=mechanism,
        mechanism_if_broken=mechanism,
    )


# --- The ledger under any interleaving ----------------------------------------------------------


@dataclass(kw_only=True)
class Clock:
    """Says what it is told to."""

    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> str:
        return self.time.isoformat()


class Fragile:
    """A connection whose next COMMIT fails: before it is done, or after."""

    def __init__(self, db: sqlite3.Connection, *, is_done: bool) -> None:
        self._db, self._is_done = db, is_done

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._db, name)

    def execute(self, text: str, *more: Any) -> sqlite3.Cursor:  # noqa: ANN401
        if text != "COMMIT":
            return self._db.execute(text, *more)
        if self._is_done:
            self._db.execute(text)
        raise sqlite3.OperationalError("disk I/O error")


FAILURES = ("none", "none", "none", "commit fails", "commit is done and fails", "head fails")


@contextmanager
def failing(ledger: Ledger, how: str) -> Iterator[None]:
    """One operation in which something breaks; the head is torn in that its draft stays."""
    db = ledger._db
    if how.startswith("commit"):
        ledger._db = cast("sqlite3.Connection", Fragile(db, is_done="done" in how))

    def torn(path: Path, content: bytes) -> None:
        path.with_name(f"{path.name}.1-1.part").write_bytes(content[: len(content) // 2])
        raise StateError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        if how.startswith("head"):
            patch.setattr(ledger_module, "write_durably", torn)
        try:
            yield
        finally:
            ledger._db = db


class LedgerLaws(RuleBasedStateMachine):
    """Spends, crashes, grants and clocks in any order."""

    ledger_type: ClassVar[type[Ledger]] = Ledger

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.entries: list[Entry] = []
        self.limits: dict[str, float] = {}
        """What platform.toml said when a request was reserved."""
        self.releases: dict[str, str] = {}
        self.ledger = self.open()

    def open(self, **more: Any) -> Ledger:  # noqa: ANN401
        return self.ledger_type(self.folder / "ledger.sqlite", clock=self.clock, **more)

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    @initialize(
        epsilon=st.sampled_from((2.0, 4.0, 8.0)), period_days=st.sampled_from((None, 1, 30))
    )
    def configure(self, epsilon: float, period_days: int | None) -> None:
        self.budget = Budget(epsilon=epsilon, delta=DELTA, period_days=period_days)

    # What happens.

    @rule(mechanisms=st.lists(mechanisms, min_size=1, max_size=3))
    def go_on(self, mechanisms: list[SampledGaussian]) -> None:
        """Rounds in which nothing goes wrong, if the budget allows them."""
        for mechanism in mechanisms:
            number = 1 + len(self.ledger.account().spends)
            self.reserve(number, mechanism, "as asked", "none")
            self.commit(number, "a", "none")

    @precondition(lambda self: self.budget.period_days is not None)
    @rule(epsilon=epsilons)
    def begin_a_new_period(self, epsilon: float) -> None:
        end = account_of(self.ledger.entries()).period_end()
        if end is not None:
            self.clock.time = max(self.clock.time, datetime.fromisoformat(end))
            self.grant(epsilon, "none")

    @rule(
        number=st.integers(1, 5),
        mechanism=mechanisms,
        digest=st.sampled_from(("as asked", "as asked", "otherwise")),
        failure=st.sampled_from(FAILURES),
    )
    def reserve(self, number: int, mechanism: SampledGaussian, digest: str, failure: str) -> None:
        earlier = self.spend(number)
        spend = spend_of(number, earlier.mechanism if earlier else mechanism, digest)
        is_known = earlier is not None and earlier.request_digest == digest
        account, name = self.ledger.account(), spend.request_id
        try:
            with failing(self.ledger, failure):
                assert self.ledger.reserve(spend, self.budget) == (not is_known)
            assert failure == "none" or is_known, "a failed write went by without a word"
        except BudgetExhausted:
            assert not is_known, "what is charged already is not refused"
            together = exact_epsilon([*account.mechanisms(), spend.mechanism], self.budget.delta)
            assert together > min(self.granted(), self.budget.epsilon) - SLACK, "it was affordable"
        except RequestRefused:
            assert earlier is not None
            assert not is_known or self.is_over(earlier), "a retry is not refused"
        except StateError:
            assert failure != "none" or self.may_not_reserve(), "nothing was in the way"
        if self.spend(number) is not None and earlier is None:
            self.limits[name] = self.budget.epsilon

    @rule(
        number=st.integers(1, 5),
        content=st.sampled_from(("a", "a", "b")),
        failure=st.sampled_from(FAILURES),
    )
    def commit(self, number: int, content: str, failure: str) -> None:
        name = f"spring/{number}/north"
        recorded = self.ledger.account().releases.get(name)
        try:
            with failing(self.ledger, failure):
                self.ledger.commit(name, content)
            assert recorded in (None, content), "a second release is recorded"
            assert self.spend(number) is not None, "a release without a spend"
        except StateError:
            is_wrong = self.spend(number) is None or recorded not in (None, content)
            assert failure != "none" or is_wrong or self.is_clock_wrong()

    @rule(failure=st.sampled_from(FAILURES))
    def decline(self, failure: str) -> None:
        with suppress(StateError), failing(self.ledger, failure):
            self.ledger.decline("spring/99/north", "budget: no")

    @rule(epsilon=epsilons, failure=st.sampled_from(FAILURES))
    def grant(self, epsilon: float, failure: str) -> None:
        """More, less or the same; after the end of a period, a new one."""
        self.budget = replace(self.budget, epsilon=epsilon)
        with suppress(StateError), failing(self.ledger, failure):
            self.ledger.grant(self.budget, by="a test")

    @rule(period_days=st.sampled_from((None, 1, 30)))
    def grant_other_terms(self, period_days: int | None) -> None:
        account = self.ledger.account()
        other = replace(self.budget, period_days=period_days)
        is_running = account.grant is not None and not account.has_ended(self.clock())
        is_other = account.grant is not None and account.grant.period_days != period_days
        try:
            self.ledger.grant(other, by="a test")
            assert not (is_running and is_other), "the terms of a running period were changed"
            self.budget = other
        except StateError:
            assert (is_running and is_other) or self.is_clock_wrong()

    @rule(epsilon=epsilons)
    def change_platform_toml(self, epsilon: float) -> None:
        self.budget = replace(self.budget, epsilon=epsilon)

    @rule(seconds=st.sampled_from((1, 600, 80_000, 86_400, 31 * 86_400, -1, -1800, -7200)))
    def let_time_pass(self, seconds: int) -> None:
        self.clock.time += timedelta(seconds=seconds)

    @precondition(lambda self: self.is_clock_wrong())
    @rule()
    def set_the_clock_right(self) -> None:
        self.clock.time = datetime.fromisoformat(self.entries[-1].time)

    @rule()
    def crash(self) -> None:
        """Nothing but the files stays."""
        before = self.ledger.account()
        self.ledger.close()
        self.ledger = self.open()
        assert self.ledger.account() == before, "the account is another after it was read again"

    # What is known without asking the ledger.

    def spend(self, number: int) -> Spend | None:
        return account_of(self.ledger.entries()).find(f"spring/{number}/north")

    def is_over(self, earlier: Spend) -> bool:
        """It was reserved in an earlier period, and nothing was released."""
        account = account_of(self.ledger.entries())
        before = account.spends[: account.spends_before_period]
        return earlier in before and earlier.request_id not in account.releases

    def granted(self) -> float:
        grant = account_of(self.ledger.entries()).grant
        return math.inf if grant is None else grant.epsilon

    def is_clock_wrong(self) -> bool:
        if not self.entries:
            return False
        return self.clock.time + timedelta(hours=1) < datetime.fromisoformat(self.entries[-1].time)

    def may_not_reserve(self) -> bool:
        account = account_of(self.ledger.entries())
        now = max([self.clock(), *(entry.time for entry in self.entries)])
        differs = account.grant is not None and account.grant.period_days != self.budget.period_days
        return self.is_clock_wrong() or account.has_ended(now) or differs

    # The laws.

    @invariant()
    def entries_only_grow(self) -> None:
        found = self.ledger.entries()
        assert found[: len(self.entries)] == self.entries, "an old entry has changed"
        check_chain(found)
        times = [entry.time for entry in found]
        assert times == sorted(times), "time ran backwards"
        self.entries = found

    @invariant()
    def memory_is_what_a_stranger_reads(self) -> None:
        with closing(self.open(read_only=True)) as stranger:
            assert stranger.account() == self.ledger.account(), "memory and disk differ"

    @invariant()
    def a_request_is_charged_and_released_once(self) -> None:
        for kind in ("reserve", "commit"):
            names = [entry.request_id for entry in self.entries if entry.kind == kind]
            assert len(names) == len(set(names)), f"a second {kind}"

    @invariant()
    def no_period_costs_more_than_what_was_allowed(self) -> None:
        account, period, end, limit = Account(), list[SampledGaussian](), "", math.nan
        for entry in self.entries:
            account = account_of([entry], account)
            if entry.kind == "grant":
                assert account.grant is not None
                if end and entry.time >= end:
                    period = []
                if not end or entry.time >= end:
                    days = account.grant.period_days or 365_000
                    start = datetime.fromisoformat(entry.time)
                    end = (start + timedelta(days=days)).isoformat()
                limit = account.grant.epsilon
            elif entry.kind == "reserve":
                assert entry.time < end, "charged to a period that was over"
                period.append(account.spends[-1].mechanism)
                limit_now = min(limit, self.limits.get(entry.request_id, math.inf))
                assert exact_epsilon(period) <= limit_now, "more was spent than was allowed"
        assert self.ledger.account().mechanisms() == period, "the period holds other spends"


SETTINGS = settings(
    max_examples=60,
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
)

LedgerLaws.TestCase.settings = SETTINGS
TestLedgerLaws = LedgerLaws.TestCase


# --- Ledgers that break a law -------------------------------------------------------------------


class Forgetful(Ledger):
    """Prices a request as if nothing had been spent before."""

    def reserve(self, spend: Spend, budget: Budget) -> bool:
        with self._writing():
            if self._account.find(spend.request_id) is not None:
                return False
            if self._account.grant is None:
                self._append("grant", "", grant_body(budget, "a test"), self.now())
            nothing = replace(self._account, spends=(), spends_before_period=0)
            price = nothing.price(spend, budget, self.now())
            self._append("reserve", spend.request_id, reserve_body(spend, price), self.now())
        self._write_head()
        return True


class Generous(Ledger):
    """Knows what was granted, and not what platform.toml says."""

    def reserve(self, spend: Spend, budget: Budget) -> bool:
        grant = self.account().grant
        return super().reserve(spend, budget if grant is None else replace(grant))


class Restarting(Ledger):
    """Begins a new period with every grant."""

    def account(self) -> Account:
        return self._restart(super().account())

    def _refresh(self) -> None:
        super()._refresh()
        self._account = self._restart(self._account)

    def _restart(self, account: Account) -> Account:
        entries = self.entries()
        granted = max((e.sequence for e in entries if e.kind == "grant"), default=0)
        before = sum(e.kind == "reserve" for e in entries if e.sequence < granted)
        return replace(account, spends_before_period=before)


class Backdating(Ledger):
    """Believes its clock, wherever it stands."""

    def now(self) -> str:
        return self._clock()


class Dreaming(Ledger):
    """Remembers what it failed to write."""

    @contextmanager
    def _writing(self) -> Iterator[None]:
        after = None
        try:
            with super()._writing():
                yield
                after = self._last, self._account
        except StateError:
            if after is not None:
                self._last, self._account = after
            raise


class Silent(Ledger):
    """Says that a failed write went well."""

    def reserve(self, spend: Spend, budget: Budget) -> bool:
        known = self.account().find(spend.request_id) is not None
        try:
            return super().reserve(spend, budget)
        except StateError:
            return not known


WRONG: dict[type[Ledger], str] = {
    Forgetful: "more was spent than was allowed",
    Generous: "more was spent than was allowed",
    Restarting: "more was spent than was allowed|the period holds other spends",
    Backdating: "out of time",
    Dreaming: "memory and disk differ|went by without a word",
    Silent: "went by without a word",
}
"""Ledgers with a bug, and the law that each breaks."""


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_ledger_breaks_a_law(wrong: type[Ledger]) -> None:
    machine = cast("type[LedgerLaws]", type("Wrong", (LedgerLaws,), {"ledger_type": wrong}))
    once = settings(
        SETTINGS,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        database=None,
        print_blob=False,
    )
    with pytest.raises((AssertionError, StateError), match=WRONG[wrong]):
        run_state_machine_as_test(machine, settings=once)


DAY = Budget(epsilon=1.0, delta=DELTA, period_days=1)
BEFORE_END, AFTER_END = (datetime(2026, 1, 2, 0, 0, s, tzinfo=UTC) for s in (0, 1))


@contextmanager
def clock_that_moves(folder: Path, *times: datetime) -> Iterator[Ledger]:
    """A ledger whose period began on 1 January at 0:00:01; its clock then says ``times``."""
    told = [datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)]

    def clock() -> str:
        return (told.pop(0) if len(told) > 1 else told[0]).isoformat()

    with closing(Ledger(folder / "ledger.sqlite", clock=clock)) as ledger:
        ledger.grant(DAY, by="a test")
        told[:] = times
        yield ledger


def test_a_clock_set_back_during_a_grant_does_not_change_the_terms_of_a_period(
    tmp_path: Path,
) -> None:
    with clock_that_moves(tmp_path, AFTER_END, BEFORE_END) as ledger:
        with suppress(StateError):
            ledger.grant(replace(DAY, delta=1e-3), by="a test")
        account = ledger.account()
        assert account.grant == DAY or account.period_start == AFTER_END.isoformat()


def test_a_period_that_ends_during_a_reservation_is_not_charged_after_its_end(
    tmp_path: Path,
) -> None:
    spend = spend_of(1, SampledGaussian(noise_multiplier=8.0, sampling_rate=1.0, steps=1))
    with clock_that_moves(tmp_path, BEFORE_END, AFTER_END) as ledger:
        with suppress(StateError):
            ledger.reserve(spend, DAY)
        assert ledger.entries()[-1].time < AFTER_END.isoformat()


# --- The arithmetic of entries ------------------------------------------------------------------

PRICE = Price(before=0.0, after=1.0, accountant="rdp")


@st.composite
def chains(draw: st.DrawFn, min_size: int = 0) -> list[Entry]:
    """Whole chains of anything that a ledger writes."""
    entries: list[Entry] = []
    time, num_spends = datetime(2026, 1, 1, tzinfo=UTC), 0
    for _ in range(draw(st.integers(min_size, 12))):
        kind: EntryKind = draw(st.sampled_from(("grant", "reserve", "commit", "decline", "note")))
        time += timedelta(days=draw(st.sampled_from((0, 0, 1, 40))))
        name, body = "", dict[str, Any]()
        if kind == "grant":
            days = draw(st.sampled_from((None, 1, 30)))
            body = grant_body(Budget(epsilon=draw(epsilons), delta=DELTA, period_days=days), "me")
        elif kind == "reserve":
            num_spends += 1
            spend = spend_of(num_spends, draw(mechanisms))
            name, body = spend.request_id, reserve_body(spend, PRICE)
        elif kind == "commit":
            name, body = f"spring/{draw(st.integers(1, 12))}/north", {"sha256": "ab"}
        else:
            body = {"reason": "no", "text": draw(st.text(max_size=5))}
        last = entries[-1] if entries else None
        entries.append(ledger_module._entry_after(last, kind, name, body, time.isoformat()))
    return entries


def check_fold(fold: Callable[[Sequence[Entry], Account], Account], entries: list[Entry]) -> None:
    """Entries in two parts, or one by one, add up to the same account."""
    whole = fold(entries, Account())
    for cut in range(len(entries) + 1):
        assert fold(entries[cut:], fold(entries[:cut], Account())) == whole
    one_by_one = Account()
    for entry in entries:
        one_by_one = fold([entry], one_by_one)
    assert one_by_one == whole


@given(chains())
def test_the_account_is_a_fold(entries: list[Entry]) -> None:
    check_fold(account_of, entries)


def test_a_fold_that_forgets_where_the_period_began_is_found() -> None:
    @given(chains())
    @settings(phases=[Phase.generate], database=None)
    def law(entries: list[Entry]) -> None:
        check_fold(lambda es, start: account_of(es, replace(start, period_start="")), entries)

    with pytest.raises((AssertionError, ValueError, StateError)):
        law()


MUTATIONS: dict[str, Callable[[Any], Any]] = {
    "sequence": lambda value: value + 1,
    "time": lambda value: value.replace("2026", "2027"),
    "kind": lambda value: "note" if value != "note" else "decline",
    "request_id": lambda value: value + "x",
    "body": lambda value: value.replace("}", " }", 1),
    "digest": lambda value: ("0" if value[0] != "0" else "1") + value[1:],
}


@given(entries=chains(min_size=1), data=st.data())
def test_one_changed_field_is_found_and_so_is_a_missing_or_moved_entry(
    entries: list[Entry], data: st.DataObject
) -> None:
    check_chain(entries)
    place = data.draw(st.integers(0, len(entries) - 1))
    for field, change in MUTATIONS.items():
        changed = list(entries)
        changed[place] = replace(entries[place], **{field: change(getattr(entries[place], field))})
        with pytest.raises(StateError, match=f"entry {place + 1}|in the place of"):
            check_chain(changed)
        if place > 0:
            with pytest.raises(StateError):
                check_chain(changed[place:], after=changed[place - 1])
    with pytest.raises(StateError):
        check_chain([*entries[:place], entries[place], *entries[place:]])
    if place < len(entries) - 1:
        with pytest.raises(StateError):
            check_chain([*entries[:place], *entries[place + 1 :]])


def test_entries_that_look_alike_have_different_digests() -> None:
    base = Entry(sequence=1, time="t", kind="note", request_id="", body="", digest="")
    texts = [
        "",
        " ",
        "a",
        "b",
        "ab",
        "a b",
        '"',
        '","',
        '", "',
        "\\",
        '\\"',
        "\\u00e9",
        "é",
        "e\u0301",
    ]
    texts += ["\n", "\\n", "0:", "1:a", "1:", "0: 0:", " 0:", " 1:b", "a 1:b", "]", "['']", "\x00"]
    alike = [
        (GENESIS, replace(base, time=time, request_id=request_id, body=body))
        for time in texts
        for request_id in texts
        for body in texts
    ]
    alike += [(GENESIS, replace(base, sequence=n)) for n in (0, 2, 11, 12, 111)]
    alike += [(GENESIS, replace(base, sequence=1, time=f"{n}t")) for n in (1, 11)]
    alike += [(GENESIS, replace(base, kind=cast("EntryKind", kind))) for kind in ("grant", "notes")]
    alike += [("1" * 64, base), (GENESIS[:-1] + "1", base)]
    alike = list(dict.fromkeys(alike))
    assert len({entry_digest(previous, entry) for previous, entry in alike}) == len(alike)


def test_a_digest_over_joined_fields_is_not_enough() -> None:
    one = Entry(sequence=1, time="t", kind="note", request_id="a", body="b c", digest="")
    other = replace(one, request_id="a b", body="c")
    assert f"{one.request_id} {one.body}" == f"{other.request_id} {other.body}"
    assert entry_digest(GENESIS, one) != entry_digest(GENESIS, other)


def check_rounds_left(
    count: Callable[[Account, Budget, SampledGaussian], int | None],
    account: Account,
    budget: Budget,
) -> None:
    """As many more rounds fit one after the other, and not one more."""
    left = count(account, budget, account.spends[-1].mechanism)
    assert left is not None
    for number in range(left):
        account = with_one_more(account, budget, number)
    with pytest.raises(BudgetExhausted):
        with_one_more(account, budget, left)


def with_one_more(account: Account, budget: Budget, number: int) -> Account:
    spend = replace(account.spends[-1], request_id=f"more {number}")
    account.price(spend, budget, "2026-01-02")
    return replace(account, spends=(*account.spends, spend))


def account_with(spends: list[SampledGaussian], granted: float, earlier: int = 0) -> Account:
    return Account(
        grant=Budget(epsilon=granted, delta=DELTA),
        period_start="2026-01-01",
        spends=tuple(spend_of(number, m) for number, m in enumerate(spends)),
        spends_before_period=min(earlier, len(spends)),
    )


some_rounds = {
    "spends": st.lists(mechanisms, min_size=1, max_size=5),
    "granted": epsilons,
    "configured": epsilons,
    "earlier": st.integers(0, 5),
}


@settings(max_examples=40)
@given(**some_rounds)
def test_rounds_left_is_exact(
    spends: list[SampledGaussian], granted: float, configured: float, earlier: int
) -> None:
    account = account_with(spends, granted, earlier)
    budget = Budget(epsilon=configured, delta=DELTA)
    assume(exact_epsilon(account.mechanisms()) < min(granted, configured) - SLACK)
    check_rounds_left(rounds_left, account, budget)


@pytest.mark.parametrize("off", [-1, 1])
def test_rounds_left_that_is_off_by_one_is_found(off: int) -> None:
    account = account_with([SampledGaussian(noise_multiplier=4.0, sampling_rate=1.0, steps=1)], 2.0)
    budget = Budget(epsilon=2.0, delta=DELTA)
    check_rounds_left(rounds_left, account, budget)
    with pytest.raises((BudgetExhausted, pytest.fail.Exception)):
        check_rounds_left(lambda *known: (rounds_left(*known) or 0) + off, account, budget)


@pytest.mark.parametrize("at_most", [1, 2, 3, 4, 5, 7, 8])
def test_rounds_left_stops_at_most_where_it_is_told(at_most: int) -> None:
    account = account_with([SampledGaussian(noise_multiplier=4.0, sampling_rate=1.0, steps=1)], 2.0)
    budget = Budget(epsilon=2.0, delta=DELTA)
    mechanism = account.spends[-1].mechanism
    everything = rounds_left(account, budget, mechanism)
    assert everything is not None
    assert rounds_left(account, budget, mechanism, at_most=at_most) == min(everything, at_most)
