"""Honest records pass; whatever is done to them is found, by the check that is meant for it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import client.app
from common.privacy.accounting import epsilon_spent
from common.storage import sha256
from simulations.audit import accountants
from simulations.audit.checks.integrity import digest_after, recorded_file
from simulations.audit.checks.journal import check_journal
from simulations.audit.evidence import gather
from simulations.audit.verify import verify
from simulations.documents import write_document
from simulations.simulate import SimulationRun
from tests.harm import TAMPERING as HARM
from tests.harm import head_of
from tests.shops import execute, options, write_shops
from tests.unit.simulations.audit.records import (
    KINDS,
    audited,
    chained,
    change_journal,
    change_result,
    copy_of,
    entries_of,
    failures,
    finished_run,
    journal_of,
    ledger_of,
    rebuild,
    with_body,
    write_ledger,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from flwr.app import Context, Message

    from common.privacy.account import Entry
    from common.privacy.mechanisms import SampledGaussian
    from simulations.audit.findings import Finding

    Tamper = Callable[[Path], object]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: finished_run(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


# --- Honest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_fails_where_nothing_was_done(runs: dict[str, Path], kind: str) -> None:
    found = audited(runs[kind])
    assert found.failed == ()
    untold = {one.check for one in found.findings if one.verdict == "unknown"}
    assert untold <= {"copies", "since"}
    assert set(found.prices) == set(found.heads) == {"east", "north", "south"}


@pytest.mark.parametrize("kind", ["local", "secagg", "sampled"])
def test_all_accountants_agree_on_an_honest_run(runs: dict[str, Path], kind: str) -> None:
    price = audited(runs[kind]).prices["north"]
    assert price.recorded is not None
    assert price.product is not None
    assert price.dp_accounting is not None
    assert price.dp_accounting_least is not None
    assert price.opacus_prv is not None
    assert price.opacus_rdp is not None
    assert price.product == pytest.approx(8.0, rel=0.01)
    assert price.recorded >= price.product * (1 - 1e-9)
    assert price.dp_accounting_least <= price.product * (1 + 1e-6)
    assert price.product <= price.opacus_prv + 0.001
    assert price.opacus_prv < price.opacus_rdp


def test_an_audit_changes_nothing_on_disk(runs: dict[str, Path]) -> None:
    before = {path: path.read_bytes() for path in runs["local"].rglob("*") if path.is_file()}
    audited(runs["local"])
    after = {path: path.read_bytes() for path in runs["local"].rglob("*") if path.is_file()}
    assert after == before


def test_the_auditors_hash_is_the_documented_one(runs: dict[str, Path]) -> None:
    entries = entries_of(ledger_of(copy_of(runs["local"], runs["local"].parent / "hash")))
    digests = ["0" * 64, *(entry.digest for entry in entries)]
    for previous, entry in zip(digests, entries, strict=False):
        assert digest_after(previous, entry) == entry.digest
        assert digest_after(previous, replace(entry, body=entry.body + " ")) != entry.digest


def test_who_has_accounts_at_several_platforms_is_charged_for_all(runs: dict[str, Path]) -> None:
    for kind in ("local", "secagg"):
        found = audited(runs[kind])
        compositions = found.compositions
        assert [one.num_platforms for one in compositions] == [1, 2, 3]
        assert compositions[2].platforms == ("east", "north", "south")
    # Releases of their own: noise / sqrt(2). Parts of one sum add up before the noise: noise / 2.
    local, summed = (audited(runs[kind]).compositions for kind in ("local", "secagg"))
    assert local[0].epsilon == pytest.approx(summed[0].epsilon)
    spends = [json.loads(e.body)["mechanism"] for e in _reserves(runs["local"])]
    weight = sum(m["noise_multiplier"] ** -2 for m in spends)
    for times, found_epsilon in ((2, local[1].epsilon), (4, summed[1].epsilon)):
        assert found_epsilon == pytest.approx(_gaussian((times * weight) ** -0.5), rel=1e-6)


def _reserves(run: Path) -> list[Entry]:
    evidence = gather([ledger_of(run)], [])
    return [entry for entry in evidence.ledgers[0].entries if entry.kind == "reserve"]


def _gaussian(noise: float) -> float:
    from common.privacy.mechanisms import SampledGaussian

    return epsilon_spent(
        [SampledGaussian(noise_multiplier=noise, sampling_rate=1.0, steps=1)], 1e-5
    )


# --- Tampering ----------------------------------------------------------------------------------


def _first(entries: list[Entry], kind: str, what: str = "/") -> int:
    return next(n for n, e in enumerate(entries) if e.kind == kind and what in e.request_id)


def _rebuilt(change: Callable[[list[Entry]], list[Entry]]) -> Tamper:
    return lambda run: rebuild(ledger_of(run), change)


def _changed(kind: str, what: str = "/", **changes: Any) -> Tamper:  # noqa: ANN401
    """The first such entry says something else, and the chain is whole again."""

    def change(entries: list[Entry]) -> list[Entry]:
        place = _first(entries, kind, what)
        return [*entries[:place], with_body(entries[place], **changes), *entries[place + 1 :]]

    return _rebuilt(change)


def _without(*kinds: str, what: str) -> Callable[[list[Entry]], list[Entry]]:
    return lambda entries: [e for e in entries if not (e.kind in kinds and what in e.request_id)]


def _sigma(entry: Entry, factor: float, *, everywhere: bool = False) -> Entry:
    """The noise of a spend times ``factor``; ``everywhere``: as if it had been asked for."""
    body = json.loads(entry.body)
    for name in ("mechanism", "mechanism_if_broken"):
        body[name]["noise_multiplier"] *= factor
    if everywhere:
        body["request"]["noise_multiplier"] *= factor
        text = json.dumps([body["request"], body["arrays_digest"]], sort_keys=True)
        body["request_digest"] = hashlib.sha256(text.encode()).hexdigest()
    return replace(entry, body=json.dumps(body))


def _more_noise(*, everywhere: bool) -> Tamper:
    """A spend that looks cheaper than it was; with the epsilons that follow from it."""

    def change(entries: list[Entry]) -> list[Entry]:
        place = _first(entries, "reserve", "item-pairs")
        entries[place] = _sigma(entries[place], 2.0, everywhere=everywhere)
        return _repriced(entries)

    return _rebuilt(change)


def _repriced(entries: list[Entry]) -> list[Entry]:
    """Write down the epsilons that the mechanisms of a ledger cost, as its owner would."""
    from common.privacy.mechanisms import mechanism_from_dict

    mechanisms: list[SampledGaussian] = []
    found = []
    for entry in entries:
        repriced = entry
        if entry.kind == "reserve":
            before = epsilon_spent(mechanisms, 1e-5)
            mechanisms.append(mechanism_from_dict(json.loads(entry.body)["mechanism"]))
            after = epsilon_spent(mechanisms, 1e-5)
            repriced = with_body(
                entry, epsilon_before=before, epsilon_after=after, accountant="prv"
            )
        found.append(repriced)
    return found


def _edit_in_place(run: Path) -> None:
    """As somebody with SQLite and nothing else would."""
    entries = entries_of(ledger_of(run))
    place = _first(entries, "reserve")
    entries[place] = _sigma(entries[place], 2.0)
    write_ledger(ledger_of(run), entries)


def _delete_and_renumber(run: Path) -> None:
    entries = entries_of(ledger_of(run))
    del entries[3]
    renumbered = [replace(entry, sequence=n) for n, entry in enumerate(entries, start=1)]
    write_ledger(ledger_of(run), renumbered)


def _cut_last(run: Path) -> None:
    write_ledger(ledger_of(run), entries_of(ledger_of(run))[:-1], head=False)


def _again(kind: str, **changes: Any) -> Tamper:  # noqa: ANN401 - any JSON value
    """Write the first such entry a second time at the end."""

    def change(entries: list[Entry]) -> list[Entry]:
        found = entries[_first(entries, kind)]
        again = replace(with_body(found, **changes), time=entries[-1].time)
        return _repriced([*entries, again]) if kind == "reserve" else [*entries, again]

    return _rebuilt(change)


def _commit_first(entries: list[Entry]) -> list[Entry]:
    place = _first(entries, "commit")
    first, second = entries[place - 1 : place + 1]
    entries[place - 1] = replace(second, time=first.time)
    entries[place] = replace(first, time=second.time)
    return entries


def _period_over(entries: list[Entry]) -> list[Entry]:
    """A grant for a day, and the last spend two days later."""
    entries[0] = with_body(entries[0], period_days=1)
    last = max(n for n, e in enumerate(entries) if e.kind == "reserve")
    day = int(entries[0].time[8:10])
    later = entries[0].time[:8] + f"{(day + 2 - 1) % 28 + 1:02d}" + entries[0].time[10:]
    if day + 2 > 28:
        later = str(int(later[:4]) + 1) + later[4:]
    return [*entries[:last], *(replace(entry, time=later) for entry in entries[last:])]


def _releases(run: Path) -> list[Path]:
    return sorted((ledger_of(run).parent / "releases").iterdir())


def _swap_release(run: Path) -> None:
    """Another release where one was: that of another platform, whole and well-formed."""
    _releases(run)[0].write_bytes(
        next((ledger_of(run, "south").parent / "releases").iterdir()).read_bytes()
    )


def _rename_release(run: Path) -> None:
    first, second, *_ = _releases(run)
    shutil.copyfile(first, second)


def _fork(run: Path, *, keep: bool = True) -> None:
    """A second release of the last round, kept and recorded as if it had been the only one."""
    ledger = ledger_of(run)
    entries = entries_of(ledger)
    place = max(n for n, e in enumerate(entries) if e.kind == "commit")
    content = (ledger.parent / "releases" / recorded_file(entries[place].request_id)).read_bytes()
    other = content[:-4] + bytes(4)
    if keep:
        (ledger.parent / "releases" / recorded_file(entries[place].request_id)).write_bytes(other)
    entries[place] = with_body(entries[place], sha256=sha256(other))
    write_ledger(ledger, chained(entries))


def _event(kind: str, **changes: Any) -> Tamper:  # noqa: ANN401 - any JSON value
    """What the coordinator wrote down of north says something else."""

    def change(event: dict[str, Any]) -> dict[str, Any]:
        named = event.get("platform", "north") == "north"
        return {**event, **changes} if event["event"] == kind and named else event

    return lambda run: change_journal(run, change)


def _without_event(kind: str) -> Tamper:
    return lambda run: change_journal(run, lambda e: None if e["event"] == kind else e)


def _other_configuration(run: Path) -> None:
    path = run / "federation.toml"
    text = path.read_text()
    found = next(line for line in text.splitlines() if "counts_noise_multiplier" in line)
    path.write_text(text.replace(found, "counts_noise_multiplier = 99.0"))


def _other_sampler(entries: list[Entry]) -> list[Entry]:
    places = [n for n, e in enumerate(entries) if e.kind == "reserve"]
    entries[places[-1]] = _sigma(entries[places[-1]], 1.5, everywhere=True)
    return _repriced(entries)


NOISE = {
    "type": "sampled-gaussian",
    "noise_multiplier": 3.0,
    "sampling_rate": 1.0,
    "steps": 1,
    "unit": "user",
}
OTHER = "ab" * 32

TAMPERING: dict[str, tuple[str, Tamper, set[str]]] = {
    # of what run, what is done to it, which checks of the platform have to fail
    "entry taken out, the rest renumbered": ("local", _delete_and_renumber, {"chain"}),
    "entry taken out, all hashed anew": (
        "local",
        _rebuilt(_without("commit", what="item-pairs")),
        {"releases", "server-releases"},
    ),
    "spend and release taken out, all hashed anew": (
        "local",
        _rebuilt(_without("reserve", "commit", what="item-pairs")),
        {"epsilon", "releases", "server-releases", "result"},
    ),
    "spend taken out, all hashed anew": (
        "local",
        _rebuilt(_without("reserve", what="item-pairs")),
        {"once", "epsilon", "result"},
    ),
    "last entry cut off": ("local", _cut_last, {"head"}),
    "last entry cut off, head rewritten": (
        "local",
        _rebuilt(lambda entries: entries[:-1]),
        {"releases", "server-releases"},
    ),
    "noise edited": ("local", _edit_in_place, {"chain"}),
    "noise edited, all hashed anew": (
        "local",
        _more_noise(everywhere=False),
        {"mechanisms", "server-mechanisms", "federation-toml", "result"},
    ),
    "noise edited in the request too": (
        "local",
        _more_noise(everywhere=True),
        {"server-mechanisms", "federation-toml", "result"},
    ),
    "share of the noise edited": (
        "secagg",
        _changed("reserve", mechanism_if_broken={**NOISE, "noise_multiplier": 1.0}),
        {"mechanisms", "server-mechanisms", "result"},
    ),
    "request edited": ("local", _changed("reserve", arrays_digest=OTHER), {"requests"}),
    "charged under another's name": (
        "local",
        _rebuilt(lambda e: [replace(x, request_id=x.request_id.replace("/2/", "/9/")) for x in e]),
        {"requests", "releases", "server-releases", "server-spends"},
    ),
    "epsilon edited": ("local", _changed("reserve", "item-pairs", epsilon_after=1.0), {"epsilon"}),
    "epsilon of a sampled round edited": (
        "sampled",
        _changed("reserve", "/2/", epsilon_after=1.0),
        {"epsilon"},
    ),
    "epsilon before edited": (
        "local",
        _changed("reserve", "item-pairs", epsilon_before=0.1),
        {"epsilon"},
    ),
    "body of another form": ("local", _changed("commit", more=1), {"entries"}),
    "charged twice": ("local", _again("reserve"), {"once", "result"}),
    "a second release": ("local", _again("commit", sha256=OTHER), {"once"}),
    "released before it was charged": ("local", _rebuilt(_commit_first), {"once"}),
    "two lists for one release": (
        "secagg",
        _again("confirm", sha256=OTHER),
        {"once"},
    ),
    "a list without the platform": ("secagg", _changed("confirm", survivors=["south"]), {"once"}),
    "more than was granted": (
        "local",
        _rebuilt(lambda e: [with_body(e[0], epsilon=7.0), *e[1:]]),
        {"budget"},
    ),
    "more than was granted, with sampling": (
        "sampled",
        _rebuilt(lambda e: [with_body(e[0], epsilon=7.9), *e[1:]]),
        {"budget"},
    ),
    "after the period": ("local", _rebuilt(_period_over), {"budget"}),
    "terms changed within the period": (
        "local",
        _rebuilt(lambda e: [*e, with_body(replace(e[0], time=e[-1].time), delta=1e-4)]),
        {"entries"},
    ),
    "another sampler": ("sampled", _rebuilt(_other_sampler), {"sampler"}),
    "release swapped": ("local", _swap_release, {"releases"}),
    "release under another's name": ("local", _rename_release, {"releases"}),
    "release swapped, ledger rebuilt": ("local", _fork, {"server-releases"}),
    "coordinator reports another epsilon": (
        "local",
        lambda run: change_result(run, epsilon=2.0),
        {"result"},
    ),
    "coordinator reports another history": (
        "local",
        lambda run: change_result(run, epsilon_history=[0.5, 1.0, 1.5, 2.0]),
        {"result"},
    ),
    "coordinator reports fewer releases": (
        "local",
        lambda run: change_result(run, epsilon_history=[]),
        {"result"},
    ),
    "coordinator reports a better price of a broken sum": (
        "secagg",
        lambda run: change_result(run, epsilon_if_secagg_broken=8.0),
        {"result"},
    ),
    "coordinator reports another delta": (
        "local",
        lambda run: change_result(run, delta=1e-3),
        {"result"},
    ),
    "coordinator reports another trust": (
        "local",
        lambda run: change_result(run, trust="secagg", epsilon_if_secagg_broken=8.0),
        {"result"},
    ),
    "coordinator took another release": (
        "local",
        _event("release-taken", sha256=OTHER),
        {"server-releases"},
    ),
    "coordinator names another mechanism": (
        "local",
        _event("round-started", mechanism=NOISE),
        {"server-mechanisms"},
    ),
    "coordinator names none": (
        "local",
        _event("sum-started", mechanism={"type": "laplace"}),
        {"server-mechanisms"},
    ),
    "coordinator confirmed another list": (
        "secagg",
        _event("survivors-confirmed", sha256=OTHER),
        {"server-confirmations"},
    ),
    "confirmed list taken out": (
        "secagg",
        _rebuilt(_without("confirm", what="item-pairs")),
        {"server-confirmations"},
    ),
    "dated back into another period": (
        "local",
        _rebuilt(lambda e: [replace(x, time="2020-01-01T00:00:00+00:00") for x in e]),
        {"server-times"},
    ),
    "dated after it arrived": (
        "local",
        _rebuilt(lambda e: [replace(x, time="2099-01-01T00:00:00+00:00") for x in e]),
        {"server-times"},
    ),
    "request without sense": (
        "local",
        _changed("reserve", request={"noise_multiplier": "much", "secagg": [], "trust": {}}),
        {"requests", "mechanisms"},
    ),
    "coordinator forgets what it asked": (
        "local",
        _without_event("round-started"),
        {"server-spends"},
    ),
    "coordinator configures another noise": ("local", _other_configuration, {"federation-toml"}),
}


@pytest.mark.parametrize(("kind", "tamper", "expected"), TAMPERING.values(), ids=list(TAMPERING))
def test_tampering_is_found_by_the_checks_that_are_meant_for_it(
    runs: dict[str, Path], tmp_path: Path, kind: str, tamper: Tamper, expected: set[str]
) -> None:
    run = copy_of(runs[kind], tmp_path)
    tamper(run)
    found = audited(run)
    assert expected <= failures(found, "north")
    # A ledger that is whole in itself is not said to be broken.
    if "chain" not in expected:
        assert "chain" not in failures(found)
    others = {one.subject for one in found.failed if one.check not in {"journal", *expected}}
    assert others <= {"north"}


@pytest.mark.parametrize("name", [name for name in HARM if name != "ledger-deleted"])
def test_what_hands_and_disks_do_to_a_ledger_is_found(
    runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    run = copy_of(runs["local"], tmp_path)
    HARM[name][0](ledger_of(run))
    found = failures(audited(run), "north")
    assert found & {"readable", "chain", "head"}


def test_a_ledger_that_was_deleted_is_found_and_others_are_still_audited(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = copy_of(runs["local"], tmp_path)
    for file in (ledger_of(run), head_of(ledger_of(run))):
        file.unlink()
    found = audited(run)
    assert {"readable", "server-releases", "result"} <= failures(found, "north")
    assert failures(found, "south") == set()
    assert found.prices["south"].product == pytest.approx(8.0, rel=0.01)


def test_a_state_that_was_deleted_is_found_by_what_others_hold(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = copy_of(runs["local"], tmp_path)
    shutil.rmtree(ledger_of(run).parent)
    assert failures(audited(run)) == {"server-releases", "result"}


def test_a_platform_that_was_not_asked_yet_is_unknown(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = copy_of(runs["local"], tmp_path)
    shutil.rmtree(ledger_of(run).parent)
    for path in (run / "result.json", journal_of(run)):
        path.unlink()
    found = audited(run)
    assert found.failed == ()
    untold = {one.check for one in found.findings if one.subject == "north"}
    assert "readable" in untold
    assert "chain" not in untold


def test_a_damaged_line_of_the_journal_is_a_finding(runs: dict[str, Path], tmp_path: Path) -> None:
    run = copy_of(runs["local"], tmp_path)
    journal = journal_of(run)
    journal.write_bytes(journal.read_bytes().replace(b'{"event"', b'{"eve', 1))
    found = audited(run)
    assert failures(found) == {"journal"}
    assert "line 1" in found.failed[0].detail


def test_a_journal_full_of_nonsense_is_judged_and_not_believed(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = copy_of(runs["secagg"], tmp_path)
    journal = journal_of(run)
    kinds = ["release-taken", "survivors-confirmed", "sum-started", "sum-closed", "secagg-stage"]
    odd: list[Any] = [None, 3, [], {}, "north", ["north", 3], {"north": []}, "\x1b[2J\ud800"]
    keys = ["platform", "platforms", "survivors", "request_id", "request_ids", "sha256"]
    keys += ["mechanism", "releases", "missing", "time"]
    with journal.open("a") as file:
        for kind in kinds:
            file.write(json.dumps({"event": kind}) + "\n")
            for value in odd:
                event = {**dict.fromkeys(keys, value), "event": kind, "stage": "confirm"}
                file.write(json.dumps(event) + "\n")
                file.write(json.dumps({**event, "platform": "north"}) + "\n")
    found = audited(run)
    assert "server-releases" in failures(found, "north")
    write_document(tmp_path / "verify.json", found)
    assert "\x1b" not in "".join(one.subject + one.detail for one in found.findings)


def _about(event: dict[str, Any], what: str) -> bool:
    found = event.get("quantity", event.get("round"))
    return str(found) == what or f"/{what}/" in str(event.get("request_id"))


@pytest.mark.parametrize(
    ("cut", "missing"),
    [
        (lambda e: e["event"] == "run-started", "its first line is not the start of the run"),
        (
            lambda e: e["event"] == "sum-started" and _about(e, "item-pairs"),
            "item-pairs was answered, and never started",
        ),
        (lambda e: e["event"] == "round-started" and _about(e, "2"), "round 2 was answered"),
        (
            lambda e: e["event"] == "round-closed" and _about(e, "1"),
            "round 1 was started, and never closed",
        ),
        (
            lambda e: e["event"] == "round-closed" and _about(e, "2"),
            "round 2 was never closed, and then handed over",
        ),
        (lambda e: _about(e, "1"), "round 1 is missing"),
        (lambda e: _about(e, "2"), "round 2 is missing"),
        (lambda e: _about(e, "item-pairs"), "item-pairs is missing"),
        (lambda e: e["event"] == "handing-over", "the start of the hand-over is missing"),
    ],
)
def test_lines_cut_out_of_the_journal_are_named(
    runs: dict[str, Path], tmp_path: Path, cut: Callable[[dict[str, Any]], bool], missing: str
) -> None:
    run = copy_of(runs["local"], tmp_path)
    change_journal(run, lambda event: None if cut(event) else event)
    server = gather([], [run]).servers[0]
    (found,) = check_journal(server)
    assert found.verdict == "failed"
    assert missing in found.detail


def test_a_charge_without_a_question_is_not_blamed_on_the_platform(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = copy_of(runs["local"], tmp_path)
    change_journal(run, lambda event: None if _about(event, "1") else event)
    found = audited(run)
    details = [one.detail for one in found.failed if one.check == "server-spends"]
    assert len(details) == 3
    assert all("it is incomplete, or it was never asked" in detail for detail in details)


def test_a_round_that_closed_with_more_than_came_is_a_finding(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = copy_of(runs["local"], tmp_path)
    _event("round-closed", releases=7)(run)
    assert "journal" in failures(audited(run))


def test_a_platform_that_was_gone_before_it_confirmed_is_no_failure(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = copy_of(runs["secagg"], tmp_path)
    rebuild(ledger_of(run), _without("confirm", what="item-pairs"))

    def gone(event: dict[str, Any]) -> dict[str, Any]:
        is_it = (event.get("what"), event.get("stage")) == ("item-pairs", "confirm")
        return {**event, "missing": {"north": "no answer: late"}} if is_it else event

    change_journal(run, gone)
    assert "server-confirmations" not in failures(audited(run))


def test_a_run_that_was_interrupted_and_went_on_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SimulationRun.open(options(write_shops(tmp_path / "data")), tmp_path / "run")
    real, asked = client.app.app, 0

    def stop_once(message: Message, context: Context) -> Message:
        nonlocal asked
        asked += 1
        if asked == 8:  # in the middle of the first round
            raise KeyboardInterrupt
        return real(message, context)

    monkeypatch.setattr(client.app, "app", stop_once)
    assert execute(run)["status"] == "partial"
    assert audited(run.folder).failed == ()
    assert execute(run)["status"] == "complete"
    found = audited(run.folder)
    assert found.failed == ()
    assert "run-started" in journal_of(run.folder).read_text()


def test_a_spend_without_a_release_counts_and_is_no_failure(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    """A platform that was killed, or too late: it was charged, and nothing came of it."""
    run = copy_of(runs["local"], tmp_path)
    last = next(e.request_id for e in reversed(entries_of(ledger_of(run))) if e.kind == "commit")
    rebuild(ledger_of(run), lambda e: [x for x in e if (x.kind, x.request_id) != ("commit", last)])
    (ledger_of(run).parent / "releases" / recorded_file(last)).unlink()
    number = int(last.split("/")[1])

    def late(event: dict[str, Any]) -> dict[str, Any] | None:
        if event.get("request_id") == last:
            return None
        if event["event"] == "round-closed" and event["round"] == number:
            return {**event, "releases": 2}
        if event.get("platform") == "north" and event.get("round") == number:
            return {**event, "outcome": "no answer: the round closed before it answered"}
        return event

    change_journal(run, late)
    found = audited(run)
    assert found.failed == ()
    detail = next(
        one.detail
        for one in found.findings
        if (one.check, one.subject) == ("server-spends", "north")
    )
    assert "count all the same" in detail


# --- What platform.toml says now ----------------------------------------------------------------


def _configure(run: Path, old: str, new: str) -> Finding:
    """Change north's platform.toml after the run; the finding on it."""
    path = run / "platforms" / "north" / "platform.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return next(
        one
        for one in audited(run).findings
        if (one.check, one.subject) == ("configuration", "north")
    )


def test_less_allowed_than_spent_is_told_and_is_no_failure(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    found = _configure(copy_of(runs["local"], tmp_path), "epsilon = 8.0", "epsilon = 1.0")
    assert found.verdict == "unknown"
    assert "allows epsilon 1 now" in found.detail
    assert "spent of the granted 8" in found.detail


def test_more_allowed_than_granted_is_fine_until_it_is_granted(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    found = _configure(copy_of(runs["local"], tmp_path), "epsilon = 8.0", "epsilon = 9.0")
    assert found.verdict == "ok"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("delta = 1e-05", "delta = 1e-03"),
        ("epsilon = 8.0", "epsilon = 8.0\nperiod_days = 30"),
    ],
    ids=["delta", "period_days"],
)
def test_other_terms_than_granted_fail(
    runs: dict[str, Path], tmp_path: Path, old: str, new: str
) -> None:
    found = _configure(copy_of(runs["local"], tmp_path), old, new)
    assert found.verdict == "failed"
    assert new.split()[-3] in found.detail


def test_what_was_spent_in_a_period_that_is_over_does_not_count(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    def renewed(entries: list[Entry]) -> list[Entry]:
        old = [with_body(entries[0], period_days=1), *entries[1:]]
        return [*old, replace(old[0], time="2099-01-01T00:00:00+00:00")]

    run = copy_of(runs["local"], tmp_path)
    rebuild(ledger_of(run), renewed)
    found = _configure(run, "epsilon = 8.0", "epsilon = 1.0\nperiod_days = 1")
    assert found.verdict == "ok"


# --- Forks and ledgers that were rebuilt --------------------------------------------------------


def _cheaper(entries: list[Entry]) -> list[Entry]:
    """Everything of the last round is gone, and nothing in the ledger shows it."""
    last = next(e.request_id for e in reversed(entries) if e.kind == "reserve")
    return [entry for entry in entries if entry.request_id != last]


def test_two_continuations_of_one_ledger_are_a_fork(runs: dict[str, Path], tmp_path: Path) -> None:
    run = copy_of(runs["local"], tmp_path)
    copy = tmp_path / "kept" / "ledger.sqlite"
    shutil.copytree(ledger_of(run).parent, copy.parent)
    rebuild(copy, lambda entries: [*entries[:-2], *_other_end(entries[-2:])])
    found = audited(ledgers=[ledger_of(run), copy])
    assert failures(found) == {"copies"}
    detail = next(one.detail for one in found.failed if one.check == "copies")
    assert "another entry 8" in detail


def _other_end(entries: list[Entry]) -> Iterable[Entry]:
    for entry in entries:
        yield replace(entry, request_id=entry.request_id, time=entry.time.replace("20", "21", 1))


def test_an_older_copy_of_the_same_ledger_is_no_fork(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "older" / "ledger.sqlite"
    shutil.copytree(ledger_of(runs["local"]).parent, copy.parent)
    rebuild(copy, lambda entries: entries[:-2])
    found = audited(ledgers=[ledger_of(runs["local"]), copy])
    assert failures(found) == {"releases"}  # which the copy of the files still holds
    assert {one.verdict for one in found.findings if one.check == "copies"} == {"ok"}


@pytest.fixture
def rebuilt(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A run where north rebuilt its ledger without its last round, and deleted the release."""
    run = copy_of(runs["local"], tmp_path)
    ledger = ledger_of(run)
    last = next(e.request_id for e in reversed(entries_of(ledger)) if e.kind == "commit")
    rebuild(ledger, _cheaper)
    (ledger.parent / "releases" / recorded_file(last)).unlink()
    return run


def test_a_ledger_rebuilt_from_its_first_entry_is_undetectable_by_itself(rebuilt: Path) -> None:
    """Nothing in principle can tell, so what would have told is listed as unknown."""
    found = audited(ledgers=[ledger_of(rebuilt)])
    assert found.failed == ()
    untold = {one.check for one in found.findings if one.verdict == "unknown"}
    assert {"copies", "since"} <= untold


def test_the_coordinators_journal_finds_a_rebuilt_ledger(rebuilt: Path) -> None:
    journal = journal_of(rebuilt).parent
    found = audited(journal, ledgers=[ledger_of(rebuilt)])
    assert failures(found) == {"server-releases"}
    assert "lacks" in found.failed[0].detail


def test_an_earlier_audit_finds_a_rebuilt_ledger(runs: dict[str, Path], rebuilt: Path) -> None:
    earlier = audited(runs["local"])
    found = audited(ledgers=[ledger_of(rebuilt)], since=earlier)
    assert failures(found) == {"since"}
    rebuild(ledger_of(rebuilt), lambda entries: [*entries, *2 * [_note(entries[-1])]])
    found = audited(ledgers=[ledger_of(rebuilt)], since=earlier)
    assert failures(found) == {"since"}
    assert "another one" in next(one.detail for one in found.failed)


def _note(entry: Entry) -> Entry:
    return replace(entry, kind="note", request_id="", body='{"text": "x"}')


def test_a_copy_finds_a_rebuilt_ledger(runs: dict[str, Path], rebuilt: Path) -> None:
    rebuild(ledger_of(rebuilt), lambda entries: [*entries, _note(entries[-1])])
    found = audited(ledgers=[ledger_of(rebuilt), ledger_of(runs["local"])])
    assert failures(found) == {"copies"}


def test_a_ledger_that_went_on_passes_an_earlier_audit(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    earlier = audited(runs["local"])
    run = copy_of(runs["local"], tmp_path)
    rebuild(ledger_of(run), lambda entries: [*entries, _note(entries[-1])])
    found = audited(run, since=earlier)
    assert found.failed == ()
    assert "unknown" not in {one.verdict for one in found.findings if one.check == "since"}


def test_a_ledger_that_is_not_shown_any_more_is_unknown(runs: dict[str, Path]) -> None:
    earlier = audited(runs["local"])
    found = audited(ledgers=[ledger_of(runs["local"])], since=earlier)
    untold = {one.subject for one in found.findings if one.check == "since" and one.verdict != "ok"}
    assert untold == {"east", "south"}


def test_a_release_of_a_platform_whose_ledger_was_not_given_is_unknown(
    runs: dict[str, Path],
) -> None:
    found = audited(journal_of(runs["local"]).parent)
    untold = {one.subject for one in found.findings if one.check == "server-releases"}
    assert untold == {"east", "north", "south"}
    assert found.failed == ()


# --- Accountants that are mistaken --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local", "sampled"])
@pytest.mark.parametrize("factor", [0.5, 0.99, 3.0])
def test_a_product_that_prices_wrongly_is_found(
    runs: dict[str, Path], kind: str, factor: float
) -> None:
    """Also where the ledger itself wrote down what that accountant said."""

    def mistaken(
        mechanisms: Iterable[SampledGaussian],
        delta: float,
        accountant: Any = "prv",  # noqa: ANN401
    ) -> float:
        return factor * epsilon_spent(mechanisms, delta, accountant)

    found = verify(gather([ledger_of(runs[kind])], []), product=mistaken)
    assert {"price-dp-accounting", "price-opacus"} <= failures(found)


def test_without_dp_accounting_its_check_is_unknown_and_names_the_command(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "dp_accounting"]:
        monkeypatch.setitem(sys.modules, name, None)
    accountants._by_pld.cache_clear()
    found = audited(runs["sampled"])
    accountants._by_pld.cache_clear()
    assert found.failed == ()
    untold = {one.detail for one in found.findings if one.check == "price-dp-accounting"}
    assert len(untold) == 1
    assert "pip install -c constraints.txt -e '.[audit]'" in untold.pop()
    assert found.prices["north"].dp_accounting is None
    assert found.compositions[0].epsilon == found.prices["north"].opacus_rdp


def test_a_price_on_releases_without_noise_is_found(runs: dict[str, Path]) -> None:
    found = verify(gather([ledger_of(runs["none"])], []), product=lambda *_: 1.0)
    assert "price-dp-accounting" in failures(found)
