"""What a ledger's entries mean, without a file: chains, grants, periods, prices."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from common.errors import BudgetExhausted, ConfigError, RequestRefused, StateError
from common.privacy import account as account_module
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
from common.privacy.accounting import epsilon_spent
from common.privacy.mechanisms import SampledGaussian

if TYPE_CHECKING:
    from collections.abc import Iterable

STEP = SampledGaussian(noise_multiplier=4.0, sampling_rate=1.0, steps=1)
BUDGET = Budget(epsilon=3.0, delta=1e-5)
MONTH = replace(BUDGET, period_days=30)
FITS = 8
"""Steps that fit into the budget, as the ledger's own tests check."""

Line = tuple[str, EntryKind, str, dict[str, Any]]


def day(number: int) -> str:
    return (datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(days=number)).isoformat()


def spend(number: int, mechanism: SampledGaussian = STEP) -> Spend:
    return Spend(
        request_id=f"spring/{number}/north",
        request_digest=f"digest of {number}",
        description=f"run spring, round {number}",
        mechanism=mechanism,
        mechanism_if_broken=replace(mechanism, noise_multiplier=mechanism.noise_multiplier / 3),
    )


def granted(budget: Budget, time: str = day(0)) -> Line:
    return (time, "grant", "", grant_body(budget, "somebody"))


def reserved(number: int, time: str = day(0), mechanism: SampledGaussian = STEP) -> Line:
    body = reserve_body(spend(number, mechanism), Price(before=0.0, after=0.0, accountant="prv"))
    return (time, "reserve", spend(number).request_id, body)


def chain(*lines: Line) -> list[Entry]:
    entries: list[Entry] = []
    digest = GENESIS
    for sequence, (time, kind, request_id, body) in enumerate(lines, start=1):
        entry = Entry(
            sequence=sequence,
            time=time,
            kind=kind,
            request_id=request_id,
            body=json.dumps(body),
            digest="",
        )
        digest = entry_digest(digest, entry)
        entries.append(replace(entry, digest=digest))
    return entries


def account(*lines: Line) -> Account:
    return account_of(chain(*lines))


# --- The chain ----------------------------------------------------------------------------------

WHOLE = chain(granted(BUDGET), *[reserved(number, day(number)) for number in range(1, 6)])


def test_a_whole_chain_is_accepted_in_one_piece_or_in_several() -> None:
    check_chain([])
    check_chain(WHOLE)
    for cut in range(1, len(WHOLE)):
        check_chain(WHOLE[:cut])
        check_chain(WHOLE[cut:], WHOLE[cut - 1])


@pytest.mark.parametrize("place", range(len(WHOLE)))
@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 99},
        {"time": day(400)},
        {"time": ""},
        {"kind": "note"},
        {"request_id": "another"},
        {"body": "{}"},
        {"digest": GENESIS},
    ],
    ids=lambda change: f"{change}",
)
def test_a_changed_entry_is_named(place: int, change: dict[str, Any]) -> None:
    entries = [*WHOLE]
    entries[place] = replace(entries[place], **change)
    with pytest.raises(StateError, match=rf"entry ({place + 1}|99|{place + 2}) "):
        check_chain(entries)


@pytest.mark.parametrize("place", range(len(WHOLE)))
def test_an_entry_recomputed_after_a_change_breaks_the_next_one(place: int) -> None:
    entries = [*WHOLE]
    forged = replace(entries[place], body='{"text": "nothing happened"}')
    before = entries[place - 1].digest if place else GENESIS
    entries[place] = replace(forged, digest=entry_digest(before, forged))
    if place == len(WHOLE) - 1:  # it is the ledger's head file that knows the last digest
        check_chain(entries)
    else:
        with pytest.raises(StateError, match=f"entry {place + 2} "):
            check_chain(entries)


@pytest.mark.parametrize(
    "order",
    [(0, 1, 3, 4, 5), (1, 2, 3), (0, 2, 1, 3, 4, 5), (0, 0, 1), (0, 1, 2, 2, 3)],
)
def test_what_is_left_out_put_in_or_swapped_is_found(order: tuple[int, ...]) -> None:
    with pytest.raises(StateError, match="stands in the place of"):
        check_chain([WHOLE[place] for place in order])
    renumbered = [
        replace(WHOLE[place], sequence=number) for number, place in enumerate(order, start=1)
    ]
    with pytest.raises(StateError, match="entry"):
        check_chain(renumbered)


def test_time_never_decreases_along_a_chain() -> None:
    check_chain(chain(granted(BUDGET, day(1)), reserved(1, day(1))))
    with pytest.raises(StateError, match="out of time"):
        check_chain(chain(granted(BUDGET, day(1)), reserved(1, day(0))))


def test_a_digest_is_of_every_field_and_of_where_it_ends() -> None:
    entry = WHOLE[1]
    changed = [
        replace(entry, sequence=3),
        replace(entry, time=day(9)),
        replace(entry, kind="note"),
        replace(entry, request_id="x"),
        replace(entry, body="{}"),
        replace(entry, request_id=entry.request_id + "a", body="b"),
        replace(entry, request_id=entry.request_id, body="ab"),
    ]
    digests = {entry_digest(GENESIS, one) for one in [entry, *changed]}
    assert len(digests) == 1 + len(changed)
    assert entry_digest("1" * 64, entry) not in digests
    assert entry_digest(GENESIS, replace(entry, digest="another")) in digests


# --- What entries mean --------------------------------------------------------------------------


def test_folding_in_pieces_is_folding_at_once() -> None:
    commit: Line = (day(3), "commit", spend(1).request_id, {"sha256": "aa"})
    decline: Line = (day(3), "decline", "spring/9/north", {"reason": "no"})
    note: Line = (day(3), "note", "", {"text": "looked at it"})
    confirm: Line = (day(3), "confirm", spend(1).request_id, {"sha256": "dd", "survivors": ["n"]})
    entries = chain(
        granted(MONTH), reserved(1), commit, decline, confirm, note, reserved(2, day(4))
    )
    whole = account_of(entries)
    assert whole.spends == (spend(1), spend(2))
    assert whole.releases == {spend(1).request_id: "aa"}
    assert whole.confirmations == {spend(1).request_id: "dd"}
    assert whole.num_declined == 1
    for cut in range(len(entries)):
        first = account_of(entries[:cut])
        untouched = replace(
            first, releases=dict(first.releases), confirmations=dict(first.confirmations)
        )
        assert account_of(entries[cut:], first) == whole
        assert first == untouched


@pytest.mark.parametrize(
    "line",
    [
        ("reserve", {}),
        ("reserve", {**reserved(1)[3], "mechanism": {"type": "laplace"}}),
        ("reserve", {**reserved(1)[3], "mechanism": {}}),
        ("reserve", {**reserved(1)[3], "mechanism": None}),
        ("reserve", {**reserved(1)[3], "mechanism": {**STEP.to_dict(), "sampling_rate": [1]}}),
        ("reserve", {**reserved(1)[3], "mechanism": {**STEP.to_dict(), "noise_multiplier": -1}}),
        ("reserve", []),
        ("reserve", None),
        ("commit", {}),
        ("confirm", {}),
        ("confirm", {"survivors": ["north"]}),
        ("confirm", []),
        ("grant", {}),
        ("grant", {**grant_body(BUDGET, ""), "epsilon": -1}),
        ("grant", {**grant_body(BUDGET, ""), "epsilon": "much"}),
        ("grant", {**grant_body(BUDGET, ""), "unit": "interaction"}),
        ("refund", {}),
    ],
    ids=str,
)
def test_an_entry_that_makes_no_sense_is_an_error_and_not_skipped(line: tuple[Any, Any]) -> None:
    kind, body = line
    with pytest.raises(StateError, match=rf"entry 2 \({kind}\) cannot be understood"):
        account(granted(BUDGET), (day(0), kind, "a", body))


def test_text_that_is_no_json_is_an_error() -> None:
    entries = chain(granted(BUDGET), reserved(1))
    with pytest.raises(StateError, match=r"entry 2 \(reserve\) cannot be understood"):
        account_of([entries[0], replace(entries[1], body="{")])


def test_a_budget_comes_back_from_its_entry_infinity_included() -> None:
    for budget in (BUDGET, MONTH, Budget(epsilon=math.inf, delta=1e-6)):
        assert account(granted(budget)).grant == budget


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"unit": "interaction"}, "unit"),
        ({"period_days": 0}, "period_days"),
        ({"period_days": -30}, "period_days"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        replace(BUDGET, **changes)


@pytest.mark.parametrize("days", [10**7, 10**10])
def test_a_period_that_no_calendar_holds_is_refused(days: int) -> None:
    with pytest.raises(ConfigError, match="period_days"):
        replace(BUDGET, period_days=days)


# --- Periods ------------------------------------------------------------------------------------


def test_a_period_ends_to_the_second_and_a_budget_for_life_never() -> None:
    month, life = account(granted(MONTH, day(0))), account(granted(BUDGET, day(0)))
    assert month.period_end() == "2026-01-31T12:00:00+00:00"
    assert not month.has_ended("2026-01-31T11:59:59+00:00")
    assert month.has_ended("2026-01-31T12:00:00+00:00")
    assert life.period_end() is None
    assert not life.has_ended("9999-12-31T23:59:59+00:00")
    assert Account().period_end() is None


def test_a_grant_within_a_period_changes_the_limit_and_never_resets_the_spend() -> None:
    for budget in (BUDGET, MONTH):
        lines = [granted(budget), *[reserved(number, day(1)) for number in range(1, 4)]]
        before = account(*lines)
        raised = account(*lines, granted(replace(budget, epsilon=9.0), day(2)))
        assert raised.grant == replace(budget, epsilon=9.0)
        assert raised.mechanisms() == before.mechanisms() == [STEP] * 3
        assert raised.period_start == before.period_start == day(0)
        assert raised.period_end() == before.period_end()


def test_a_grant_after_the_end_begins_at_zero_and_a_life_counts_everything() -> None:
    lines = [granted(MONTH), *[reserved(number, day(1)) for number in range(1, 4)]]
    later = account(*lines, granted(MONTH, day(40)), reserved(4, day(41)))
    assert later.period_start == day(40)
    assert later.mechanisms() == [STEP]
    assert len(later.spends) == 4
    assert later.epsilon(1e-5) == epsilon_spent([STEP], 1e-5)
    assert later.epsilon_for_life(1e-5) == epsilon_spent([STEP] * 4, 1e-5)
    third = account(*lines, granted(MONTH, day(40)), reserved(4, day(41)), granted(MONTH, day(80)))
    assert third.mechanisms() == []
    assert third.epsilon(1e-5) == 0.0
    assert third.epsilon_for_life(1e-5) == epsilon_spent([STEP] * 4, 1e-5)


def test_a_gap_between_periods_belongs_to_none() -> None:
    """A period begins when it is granted, not when the one before ended."""
    later = account(granted(MONTH), granted(MONTH, day(100)))
    assert later.period_start == day(100)
    assert later.has_ended(day(129)) is False


def test_spends_before_the_first_grant_count_in_the_first_period() -> None:
    old = account(reserved(1, "1970-01-01T00:00:00+00:00"), granted(MONTH, day(0)))
    assert old.mechanisms() == [STEP]
    assert old.period_start == day(0)
    assert account(reserved(1), granted(MONTH), granted(MONTH, day(40))).mechanisms() == []


# --- Prices -------------------------------------------------------------------------------------


def spent(number: int, budget: Budget = BUDGET) -> Account:
    return account(granted(budget), *[reserved(one) for one in range(1, number + 1)])


def test_a_price_is_that_of_the_whole_period() -> None:
    price = spent(FITS - 1).price(spend(99), BUDGET, day(0))
    assert price.accountant == "prv"
    assert price.before == epsilon_spent([STEP] * (FITS - 1), 1e-5)
    assert price.after == epsilon_spent([STEP] * FITS, 1e-5)
    with pytest.raises(BudgetExhausted):
        spent(FITS).price(spend(99), BUDGET, day(0))


def test_without_sampling_the_price_is_exact_from_the_first_release_on() -> None:
    cheap = spent(1).price(spend(99), BUDGET, day(0))
    assert cheap.accountant == "prv"
    assert cheap.before == epsilon_spent([STEP], 1e-5)
    assert cheap.after == epsilon_spent([STEP] * 2, 1e-5) < epsilon_spent([STEP] * 2, 1e-5, "rdp")


def test_with_sampling_the_quick_accountant_is_asked_first_and_the_tight_one_decides() -> None:
    sampled = SampledGaussian(noise_multiplier=1.0, sampling_rate=0.01, steps=10)
    one = replace(spend(1), mechanism=sampled, mechanism_if_broken=sampled)
    cheap = account(granted(BUDGET)).price(one, BUDGET, day(0))
    quick, tight = (epsilon_spent([sampled], 1e-5, name) for name in ("rdp", "prv"))
    assert (cheap.accountant, cheap.after) == ("rdp", quick)
    between = replace(BUDGET, epsilon=(quick + tight) / 2)
    dear = account(granted(between)).price(one, between, day(0))
    assert (dear.accountant, dear.after) == ("prv", tight)


def test_earlier_periods_are_not_in_the_price_of_this_one() -> None:
    full = [granted(MONTH), *[reserved(number, day(1)) for number in range(1, FITS + 1)]]
    with pytest.raises(BudgetExhausted):
        account(*full).price(spend(99), MONTH, day(2))
    fresh = account(*full, granted(MONTH, day(40)))
    assert fresh.price(spend(99), MONTH, day(40)).before == 0.0
    again = account(
        *full,
        granted(MONTH, day(40)),
        *[reserved(number, day(41)) for number in range(FITS + 1, 2 * FITS + 1)],
    )
    with pytest.raises(BudgetExhausted):
        again.price(spend(99), MONTH, day(42))


def test_what_was_granted_binds_and_so_does_a_lower_wish_of_today() -> None:
    found = spent(2)
    found.price(spend(99), BUDGET, day(0))
    low = epsilon_spent([STEP] * 2, 1e-5) + 1e-6
    with pytest.raises(BudgetExhausted) as caught:
        found.price(spend(99), replace(BUDGET, epsilon=low), day(0))
    assert caught.value.budget == low
    with pytest.raises(BudgetExhausted) as caught:
        spent(FITS).price(spend(99), replace(BUDGET, epsilon=1e9), day(0))
    assert caught.value.budget == BUDGET.epsilon


@pytest.mark.parametrize(
    "budget",
    [replace(BUDGET, delta=1e-4), replace(BUDGET, delta=1e-6), replace(BUDGET, period_days=30)],
)
def test_other_terms_than_the_granted_ones_are_refused(budget: Budget) -> None:
    with pytest.raises(StateError, match=r"platform\.toml asks for .*, and the ledger grants"):
        spent(0).price(spend(1), budget, day(0))


def test_nothing_fits_before_a_grant_or_after_its_end() -> None:
    with pytest.raises(StateError, match="nothing is granted"):
        Account().price(spend(1), BUDGET, day(0))
    month = account(granted(MONTH, day(0)))
    month.price(spend(1), MONTH, day(27))
    with pytest.raises(StateError, match=r"the granted period ended on 2026-01-31.*client grant"):
        month.price(spend(1), MONTH, "2026-01-31T12:00:00+00:00")


def test_after_the_end_the_way_out_is_a_grant_whatever_terms_are_wished_for() -> None:
    with pytest.raises(StateError, match="client grant"):
        account(granted(MONTH, day(0))).price(spend(1), replace(MONTH, delta=1e-6), day(60))


def test_another_unit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampledGaussian, "__post_init__", lambda _: None)
    other = replace(STEP, unit="interaction")  # type: ignore[arg-type]
    with pytest.raises(RequestRefused, match="unit"):
        spent(0).price(spend(1, other), BUDGET, day(0))


@pytest.mark.parametrize("price", [math.nan, math.inf])
def test_a_price_that_is_no_number_is_refused(
    price: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = spent(0)
    monkeypatch.setattr(account_module, "epsilon_spent", lambda *_: price)
    with pytest.raises(BudgetExhausted):
        found.price(spend(1), BUDGET, day(0))


def test_no_noise_never_fits_a_finite_budget() -> None:
    silent = spend(1, replace(STEP, noise_multiplier=0.0))
    generous, endless = replace(BUDGET, epsilon=1e300), replace(BUDGET, epsilon=math.inf)
    with pytest.raises(BudgetExhausted):
        spent(0, generous).price(silent, generous, day(0))
    assert spent(0, endless).price(silent, endless, day(0)).after == math.inf
    # A finite wish binds what is granted without limit.
    with pytest.raises(BudgetExhausted):
        spent(0, endless).price(silent, generous, day(0))


# --- What is left -------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [1, 3, FITS - 1, FITS])
def test_the_rounds_left_are_those_that_the_budget_would_pay(done: int) -> None:
    assert rounds_left(spent(done), BUDGET, STEP) == FITS - done


def test_the_rounds_left_are_none_before_a_grant_and_never_more_than_asked() -> None:
    assert rounds_left(Account(), BUDGET, STEP) is None
    assert rounds_left(spent(0), BUDGET, STEP) == FITS
    endless = replace(BUDGET, epsilon=math.inf)
    assert rounds_left(spent(1, endless), endless, STEP, at_most=5) == 5
    assert rounds_left(spent(2), replace(BUDGET, epsilon=0.1), STEP) == 0


def test_the_rounds_left_are_of_this_period_and_of_the_kind_asked_for() -> None:
    lines: Iterable[Line] = [granted(MONTH), *[reserved(one, day(1)) for one in range(1, 7)]]
    assert rounds_left(account(*lines, granted(MONTH, day(40))), MONTH, STEP) == FITS
    double = replace(STEP, steps=2)
    assert rounds_left(account(*lines), MONTH, double) == (FITS - 6) // 2
    after_double = account(granted(MONTH), reserved(7, day(2), double))
    assert rounds_left(after_double, MONTH, STEP) == FITS - 2
    assert rounds_left(after_double, MONTH, double) == FITS // 2 - 1


SAMPLED = SampledGaussian(noise_multiplier=4.0, sampling_rate=0.1, steps=1)


@pytest.mark.parametrize(
    "changed",
    [
        replace(SAMPLED, noise_multiplier=5.0),
        replace(SAMPLED, sampling_rate=0.2),
        replace(SAMPLED, sampling_rate=1.0),
    ],
)
def test_with_sampling_noise_and_rate_stay_the_same(changed: SampledGaussian) -> None:
    """A server that chose them by what it saw could get more than delta out of the releases."""
    held = account(granted(BUDGET), reserved(1, mechanism=SAMPLED))
    with pytest.raises(RequestRefused, match="noise multiplier and rate stay the same"):
        held.price(spend(2, changed), BUDGET, day(1))
    with pytest.raises(RequestRefused, match="noise multiplier and rate stay the same"):
        account(granted(BUDGET), reserved(1, mechanism=changed)).price(
            spend(2, SAMPLED), BUDGET, day(1)
        )
    held.price(spend(2, replace(SAMPLED, steps=3)), BUDGET, day(1))


def test_without_sampling_noise_may_change_as_one_goes() -> None:
    held = account(granted(BUDGET), reserved(1))
    held.price(spend(2, replace(STEP, noise_multiplier=7.0)), BUDGET, day(1))


def test_another_period_may_sample_in_another_way() -> None:
    held = account(granted(MONTH), reserved(1, mechanism=SAMPLED), granted(MONTH, day(31)))
    held.price(spend(2), MONTH, day(32))


def test_a_ledger_with_two_lists_for_one_release_is_not_whole() -> None:
    lists: list[Line] = [
        (day(3), "confirm", spend(1).request_id, {"sha256": digest, "survivors": ["n"]})
        for digest in ("dd", "ee")
    ]
    account_of(chain(granted(MONTH), reserved(1), lists[0], lists[0]))
    with pytest.raises(StateError, match="names a second list"):
        account_of(chain(granted(MONTH), reserved(1), *lists))
