from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from client.config import PrivacySection
from common.errors import StateError
from common.privacy.accounting import epsilon_spent
from common.privacy.ledger import Ledger
from common.privacy.mechanisms import SampledGaussian
from simulations.audit.evidence import Evidence, ServerEvidence, gather
from simulations.audit.report.platforms import MOST_SAMPLED_STEPS, believe
from simulations.audit.report.schema import report_schema, schema_text
from simulations.audit.report.statement import NOT_KNOWN, POINTS, SCHEMA_VERSION, AuditStatement
from simulations.audit.report.strength import posterior
from simulations.documents import read_document, write_document
from tests.unit.simulations.audit.audited import (
    Clock,
    attack_result,
    reserve,
    round_request,
    state,
    sum_request,
    verification,
    write_platform,
)
from tests.unit.simulations.run_results import run_result

if TYPE_CHECKING:
    from simulations.attacks.membership.result import AttackResult
    from simulations.audit.findings import Verification

DOCS = Path(__file__).parents[5] / "simulations/audit/docs"

REQUIRED = {
    "privacy unit": "privacy_unit",
    "neighbouring relation": "neighbouring",
    "epsilon, delta, population, full curve": "guarantee",
    "mechanism, clip, noise, denominator": "mechanisms",
    "sampling assumed and run": "sampling",
    "microbatching": "microbatching",
    "accountant, version, orders": "accounting",
    "composition over rounds, restarts, retrains": "composition",
    "largest contribution per user": "contribution",
    "what is released, metrics included": "released",
    "trust model": "trust",
    "PRNG and floating point": "randomness",
    "hyper-parameter tuning and public data": "tuning",
    "post-processing (user vectors, serving)": "post_processing",
    "empirical lower bound with confidence, adversary, number of canaries": "lower_bound",
    "utility by group": "utility",
    "retention and deletion": "retention",
    "what an audit of these records cannot know": "cannot_know",
}
"""Everything that a report has to state, and the field that states it."""


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return write_platform(tmp_path / "north")


def whole(found: AuditStatement) -> str:
    """Every sentence of every point."""
    return "\n".join(sentence for name in POINTS for sentence in getattr(found, name).text)


def edited(ledger: Path, change: str) -> Path:
    """Somebody with SQLite changes the ledger of a ``platform.toml``."""
    with closing(sqlite3.connect(ledger.parent / "state/ledger.sqlite")) as db, db:
        for trigger in "iud":
            db.execute(f"DROP TRIGGER append_only_{trigger}")
        db.execute(change)
    return ledger


@pytest.mark.parametrize("name", REQUIRED.values(), ids=REQUIRED)
def test_every_required_point_is_stated_and_a_report_without_it_is_refused(
    name: str, ledger: Path, tmp_path: Path
) -> None:
    found = state([ledger])
    assert name in POINTS
    assert getattr(found, name).text
    assert all(sentence.strip() for sentence in getattr(found, name).text)
    path = tmp_path / "report.json"
    write_document(path, found)
    assert read_document(path, AuditStatement, SCHEMA_VERSION) == found
    document = json.loads(path.read_text())
    del document[name]
    path.write_text(json.dumps(document))
    with pytest.raises(StateError, match=name):
        read_document(path, AuditStatement, SCHEMA_VERSION)


def test_the_schema_on_disk_is_current_describes_every_field_and_takes_a_report(
    ledger: Path, tmp_path: Path
) -> None:
    path = DOCS / "report.schema.json"
    assert path.read_text(encoding="utf-8") == schema_text(), (
        "write it again: python -m simulations.audit.report.schema > simulations/audit/docs/"
        "report.schema.json"
    )
    schema = report_schema()
    for kind in (schema, *schema["$defs"].values()):
        for name, field in kind["properties"].items():
            assert field.get("description") or name == "schema_version", name
    assert set(REQUIRED.values()) <= set(schema["required"])
    jsonschema = pytest.importorskip("jsonschema")
    write_document(tmp_path / "report.json", state([ledger], attack=attack_result()))
    document = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "epsilon_of_my_own": 1}, schema)


def test_epsilon_and_its_curve_are_those_of_the_accountant_on_what_the_ledger_says(
    ledger: Path,
) -> None:
    part = state([ledger]).platforms["north"]
    mechanism = SampledGaussian(noise_multiplier=2.0, sampling_rate=1.0, steps=1)
    spent = epsilon_spent([mechanism] * 2, 1e-5)
    assert part.epsilon == part.epsilon_for_life == pytest.approx(spent)
    assert [step.epsilon for step in part.history] == pytest.approx(
        [epsilon_spent([mechanism], 1e-5), spent]
    )
    assert (spent, 1e-5) in [pytest.approx(point) for point in part.curve]
    epsilons, deltas = zip(*part.curve, strict=True)
    assert list(deltas) == sorted(deltas)
    assert list(epsilons) == sorted(epsilons, reverse=True)
    for epsilon, delta in part.curve:
        assert epsilon == pytest.approx(epsilon_spent([mechanism] * 2, delta))
    assert (part.population, part.budget, part.delta, part.unit) == (400, 8.0, 1e-5, "user")
    assert part.posterior_from_half == posterior(0.5, spent)
    # The best guess of one Gaussian of mean m = sqrt(2)/2: Phi(m/2), Balle and Wang 2018.
    exact = 0.5 * (1 + math.erf(math.sqrt(2) / 4 / math.sqrt(2)))
    assert part.best_guess is not None
    assert exact <= part.best_guess <= exact + 0.02


def test_mechanism_clip_noise_and_denominator_are_what_was_asked_for(tmp_path: Path) -> None:
    requests = [sum_request("north"), *(round_request("north", n) for n in (1, 2, 3))]
    uses = state([write_platform(tmp_path, requests=requests)]).mechanisms.uses
    assert [(use.what, use.times) for use in uses] == [("item-counts", 1), ("rounds", 3)]
    counts, rounds = uses
    assert (counts.clipping_norm, counts.own_noise_std, counts.denominator) == (1.0, 2.0, None)
    assert (rounds.clipping_norm, rounds.denominator) == (0.25, 400.0)
    assert rounds.own_noise_std == pytest.approx(1.5 * 0.25)
    assert rounds.noise_multiplier == rounds.noise_multiplier_if_broken == 1.5


def test_a_ledger_that_does_not_hold_requests_says_that_they_are_not_known(ledger: Path) -> None:
    """Older ledgers; the chain is of no interest here."""
    found = gather([ledger], [])
    entries = []
    for entry in found.ledgers[0].entries:
        body = json.loads(entry.body)
        body.pop("request", None)
        body.pop("arrays_digest", None)
        entries.append(replace(entry, body=json.dumps(body)))
    old = replace(found.ledgers[0], entries=rechained(entries), head=None, config=None)
    found = replace(found, ledgers=(old,))
    statement = state(found)
    assert statement.platforms["north"].guarantee == "bounded"
    assert [use.clipping_norm for use in statement.mechanisms.uses] == [None, None]
    assert statement.sampling.asked is None
    for name in ("mechanisms", "sampling", "contribution", "trust", "randomness", "retention"):
        assert any(NOT_KNOWN in text for text in getattr(statement, name).text), name


def rechained(entries: list[Any]) -> tuple[Any, ...]:
    from common.privacy.account import GENESIS, entry_digest

    previous, done = GENESIS, []
    for entry in entries:
        done.append(replace(entry, digest=entry_digest(previous, entry)))
        previous = done[-1].digest
    return tuple(done)


def test_a_changed_entry_ends_what_is_believed_and_the_verdict_is_red(ledger: Path) -> None:
    edited(ledger, "UPDATE entry SET body = replace(body, '2.0', '9.0') WHERE sequence = 4")
    statement = state([ledger])
    part = statement.platforms["north"]
    assert (part.is_whole, part.num_entries, part.num_believed) == (False, 5, 3)
    assert part.guarantee == "unknown"
    assert part.is_within_budget is None
    assert part.curve == ()
    assert statement.conclusion.light == "red"
    assert "ledger of north is not whole" in statement.conclusion.line
    assert "that is the least" in statement.guarantee.text[0]
    assert statement.guarantee.largest_epsilon is None


def test_an_older_copy_is_found_out_by_its_head_and_the_verdict_is_red(ledger: Path) -> None:
    edited(ledger, "DELETE FROM entry WHERE sequence > 3")
    statement = state([ledger])
    assert statement.conclusion.light == "red"
    assert statement.platforms["north"].problems == (
        "it ends at entry 3; its head file knows entry 5.",
    )


def test_without_noise_there_is_no_guarantee_and_the_verdict_is_red(tmp_path: Path) -> None:
    requests = [sum_request("north", noise=0.0)]
    path = write_platform(tmp_path, requests=requests, epsilon=math.inf, seed=3)
    statement = state([path])
    part = statement.platforms["north"]
    assert (part.guarantee, part.epsilon, part.curve) == ("none", None, ())
    assert statement.conclusion.light == "red"
    assert "no privacy guarantee at north" in statement.conclusion.line
    assert "Nobody at north" in statement.summary[0].text[0]
    assert "no guarantee" in statement.guarantee.text[0]


@pytest.mark.parametrize(
    ("found", "attack", "light", "said"),
    [
        (verification("chain", "head"), attack_result(), "red", "2 checks of 3 failed"),
        (verification(), attack_result(lower=2.9), "red", "proved epsilon >= 2.90"),
        (verification(), attack_result(gaussian=2.95), "red", "proved epsilon >= 2.95"),
        (verification(), None, "amber", "nobody tried to attack it"),
        (verification(unknown=["copies"]), attack_result(), "amber", "copies 1"),
    ],
)
def test_the_verdict_is_never_greener_than_what_was_found(
    ledger: Path, found: Verification, attack: AttackResult | None, light: str, said: str
) -> None:
    conclusion = state([ledger], found, attack).conclusion
    assert conclusion.light == light
    assert any(said in reason for reason in conclusion.reasons)
    assert conclusion.line.lower().startswith(light)


def test_green_takes_checks_that_passed_an_attack_and_a_promise_that_is_not_weak(
    ledger: Path,
) -> None:
    conclusion = state([ledger], verification(), attack_result(accounted=2.95)).conclusion
    assert (conclusion.light, conclusion.reasons) == ("green", ())


def test_more_than_was_granted_is_a_broken_budget(ledger: Path) -> None:
    """A ledger that a changed program wrote: whole, and over what it granted."""
    found = gather([ledger], [])
    entries = list(found.ledgers[0].entries)
    entries[0] = replace(entries[0], body=entries[0].body.replace("8.0", "2.5"))
    broken = replace(found.ledgers[0], entries=rechained(entries), head=None)
    statement = state(replace(found, ledgers=(broken,)))
    assert statement.platforms["north"].is_within_budget is False
    assert statement.conclusion.light == "red"
    assert "spent more than was granted" in statement.conclusion.line
    assert "No at north" in statement.summary[2].text[0]


@pytest.mark.parametrize(("epsilon", "word"), [(0.4, "strong"), (2.0, "moderate"), (8.0, "weak")])
def test_a_large_epsilon_is_called_weak_and_what_it_allows_is_spelled_out(
    tmp_path: Path, epsilon: float, word: str
) -> None:
    noise = {0.4: 10.0, 2.0: 2.0, 8.0: 0.63}[epsilon]
    statement = state(
        [write_platform(tmp_path, requests=[sum_request("north", noise=noise)])],
        attack=attack_result(lower=0.1, accounted=epsilon),
    )
    strong = statement.summary[1].text
    assert f"At worst {word} (" in strong[0]
    assert ("weak promise" in " ".join(strong)) == (word == "weak")
    if word == "weak":
        assert statement.conclusion.light == "amber"
        assert "99.9" in strong[0]


def test_epsilon_8_is_said_to_change_odds_2981_fold(tmp_path: Path) -> None:
    requests = [
        sum_request("north", noise=1.8992194931675326),
        sum_request("north", "item-pairs", noise=0.6330731643891775),
    ]
    statement = state([write_platform(tmp_path, requests=requests, seed=0)])
    assert "2,981-fold" in statement.conclusion.line
    assert "2,981-fold" in statement.summary[1].text[0]
    assert "at most 99.97 % likely" in statement.summary[1].text[0]
    assert any("seed" in reason for reason in statement.conclusion.reasons)


def test_grants_and_periods_are_told_apart_and_life_is_charged_for_all(tmp_path: Path) -> None:
    clock = Clock()
    path = write_platform(tmp_path, period_days=30, clock=clock)
    privacy = PrivacySection(epsilon=8.0, period_days=30)
    with closing(Ledger(tmp_path / "state/ledger.sqlite", clock=clock)) as ledger:
        ledger.grant(replace(privacy.budget(), epsilon=6.0), by="Ada")
        for _ in range(60):
            clock()
        ledger.grant(privacy.budget(), by="Grace")
        reserve(ledger, sum_request("north", run="run-2"), privacy)
    statement = state([path])
    part = statement.platforms["north"]
    assert [(g.by, g.epsilon, g.begins_period, g.charges_before) for g in part.grants] == [
        ("platform.toml, at first use", 8.0, True, 0),
        ("Ada", 6.0, False, 2),
        ("Grace", 8.0, True, 2),
    ]
    assert [step.period for step in part.history] == [1, 1, 2]
    assert part.epsilon == part.history[0].epsilon == part.history[2].epsilon
    assert part.epsilon_for_life is not None
    assert part.epsilon is not None
    assert part.epsilon_for_life > part.history[1].epsilon > part.epsilon  # type: ignore[operator]
    assert [run.num_charges for run in statement.composition.runs] == [2, 1]
    assert "north granted a new period" in whole(statement)


def test_many_sampled_rounds_are_priced_at_few_places_and_the_last_is_one(tmp_path: Path) -> None:
    requests = [round_request("north", n, noise=8.0, rate=0.01) for n in range(1, 61)]
    path = write_platform(tmp_path, requests=requests)
    part = state([path]).platforms["north"]
    assert len(part.history) <= MOST_SAMPLED_STEPS + 1
    assert part.history[-1].number == 60
    assert part.history[-1].epsilon == part.epsilon
    assert part.num_reserved == 60


def test_a_deployed_ledger_alone_gives_a_report_that_says_what_it_cannot_know(
    tmp_path: Path,
) -> None:
    write_platform(tmp_path / "north")
    (tmp_path / "north/platform.toml").unlink()
    statement = state([tmp_path / "north/state"], attack=attack_result(accounted=2.95))
    part = statement.platforms["north"]
    assert (part.population, part.is_simulation) == (None, None)
    assert part.guarantee == "bounded"
    for name in ("guarantee", "randomness", "utility", "composition"):
        assert any(NOT_KNOWN in text for text in getattr(statement, name).text), name
    assert statement.lower_bound.is_of_these_runs is True
    assert "no journal of the coordinator" in " ".join(statement.cannot_know.text)
    assert statement.utility.groups == ()
    assert statement.conclusion.light == "amber"
    assert any("where the noise of north came from" in r for r in statement.conclusion.reasons)


def test_restarts_are_counted_from_the_journal(ledger: Path) -> None:
    events = [{"event": "run-started"}, {"event": "run-started"}, {"event": "sum-closed"}]
    server = ServerEvidence(run_id="run-1", folder=Path("x"), events=tuple(events), config=None)
    statement = state(replace(gather([ledger], []), servers=(server,)))
    assert "Run run-1: started 2 times; 1 sums and 0 rounds were closed." in whole(statement)


def test_of_copies_the_longest_whole_one_is_reported(tmp_path: Path) -> None:
    short = write_platform(tmp_path / "a", requests=[sum_request("north")])
    whole_one = write_platform(tmp_path / "b")
    broken = edited(
        write_platform(tmp_path / "c", requests=[round_request("north", n) for n in range(1, 5)]),
        "UPDATE entry SET body = '{}' WHERE sequence = 8",
    )
    for order in ([short, whole_one, broken], [broken, whole_one, short]):
        part = state(order).platforms["north"]
        assert (part.is_whole, part.num_reserved) == (True, 2)


def test_utility_by_group_is_paired_over_users_and_needs_a_run(tmp_path: Path) -> None:
    ledger = write_platform(tmp_path / "north", seed=1)
    place = tmp_path / "result.json"
    run = run_result()
    rows = [
        ("north", model, user, value, 1.0, activity, purchases)
        for model, values in (("local", (0.2, 0.8, 0.0)), ("federated", (0.3, 0.8, 0.2)))
        for user, (value, activity, purchases) in enumerate(
            zip(values, (2, 6, 30), (0, 3, 40), strict=True)
        )
    ]
    columns = ["platform", "model", "user", "ndcg@10", "hr@10", "interactions", "item_purchases"]
    table = pd.DataFrame(rows, columns=columns)
    evidence = replace(gather([ledger], []), results={place: run})
    groups = state(evidence, tables={place: table}).utility.groups
    by = {(group.by, group.group.split(" ")[0]): group for group in groups}
    assert {kind for kind, _ in by} == {
        "platform", "platform size", "item popularity", "user activity",
    }  # fmt: skip
    everybody = by["platform size", "larger"]
    assert everybody.gain == pytest.approx(0.1)
    assert everybody.stderr == pytest.approx(0.1 / math.sqrt(3))
    assert by["user activity", "1-4"].gain == pytest.approx(0.1)
    assert by["item popularity", "20+"].served == pytest.approx(0.2)
    without = state(evidence).utility
    assert {group.by for group in without.groups} == {"platform"}
    assert any(NOT_KNOWN in text for text in without.text)


OPTIONS = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "trust": "local",
    "privacy_unit": "user",
    "plan": "pairs",
    "rounds": 2,
    "sampling_rate": 1.0,
    "local_steps": 1,
    "clipping_norm": 0.25,
}


def planned(home: Path, counts: float = 1.8992, pairs: float = 0.63307) -> Path:
    """What a run of :data:`OPTIONS` leaves at a platform."""
    requests = [
        sum_request("north", noise=counts),
        sum_request("north", "item-pairs", noise=pairs),
    ]
    return write_platform(home, requests=requests)


def test_an_attack_on_the_settings_of_the_platforms_is_taken_for_one_on_these(
    tmp_path: Path,
) -> None:
    ledger = planned(tmp_path)
    attack = attack_result(accounted=7.99, configuration=OPTIONS)
    statement = state([ledger], attack=attack)
    assert (statement.lower_bound.is_of_these_runs, statement.lower_bound.differences) == (True, ())
    assert not any("attack" in reason for reason in statement.conclusion.reasons)
    run = run_result(configuration={**OPTIONS, "data": None})
    evidence = replace(gather([ledger], []), results={tmp_path / "result.json": run})
    assert state(evidence, attack=attack).lower_bound.is_of_these_runs is True


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ({}, {"accounted": 6.0}, "epsilon 6, and not 8 (north)"),
        ({}, {"delta": 1e-6}, "delta 1e-06, and not 1e-05 (north)"),
        ({"trust": "secagg"}, {}, "trust secagg, and not local (north)"),
        ({"plan": "both"}, {}, "item-pairs, rounds, and not item-counts, item-pairs (north)"),
        ({"epsilon": 6.0}, {}, "noise 2.415 on item-counts, and not 1.899 (north)"),
    ],
    ids=["epsilon", "delta", "trust", "plan", "noise"],
)
def test_an_attack_on_other_settings_does_not_count_as_one_on_these(
    tmp_path: Path, options: dict[str, object], changes: dict[str, Any], said: str
) -> None:
    attack = attack_result(**({"accounted": 7.99} | changes), configuration=OPTIONS | options)
    statement = state([planned(tmp_path)], attack=attack)
    assert statement.lower_bound.is_of_these_runs is False
    assert statement.conclusion.light == "amber"
    reason = next(r for r in statement.conclusion.reasons if "on other settings: " in r)
    assert said in reason
    assert "Nobody tried" in reason
    guesses = " ".join(statement.summary[4].text)
    assert said in guesses
    assert "sure enough to guess about" in guesses


def test_an_attack_on_rounds_of_other_steps_rate_or_clipping_is_on_other_settings(
    tmp_path: Path,
) -> None:
    requests = [round_request("north", number, noise=8.0, rate=0.01) for number in (1, 2)]
    ledger = write_platform(tmp_path, requests=requests)
    spent = state([ledger]).platforms["north"].epsilon_for_life
    same = {**OPTIONS, "plan": "ncf", "sampling_rate": 0.01}
    for changes, said in (
        ({}, ""),
        ({"rounds": 3}, "3 noisy steps of 1 a round, and not 2"),
        ({"sampling_rate": 0.02}, "sampling rate 0.02, and not 0.01"),
        ({"clipping_norm": 1.0}, "clipping norm 1.0, and not 0.25"),
    ):
        attack = attack_result(0.0, spent, 0.0, configuration=same | changes)
        found = state([ledger], attack=attack).lower_bound
        assert found.is_of_these_runs is (not changes)
        assert said in "; ".join(found.differences)


def test_an_attack_on_other_options_than_those_of_the_runs_is_on_other_settings(
    tmp_path: Path,
) -> None:
    run = run_result(configuration={**OPTIONS, "max_colluding": 3})
    evidence = replace(gather([planned(tmp_path)], []), results={tmp_path / "result.json": run})
    attack = attack_result(accounted=7.99, configuration=OPTIONS)
    found = state(evidence, attack=attack).lower_bound
    assert found.is_of_these_runs is False
    assert found.differences == ("option max_colluding not told, and not 3",)


def test_an_attack_whose_settings_are_not_told_does_not_count_either(tmp_path: Path) -> None:
    attack = attack_result(accounted=7.99, configuration={})
    statement = state([planned(tmp_path)], attack=attack)
    assert statement.lower_bound.is_of_these_runs is None
    assert any("is not known: attack.json" in reason for reason in statement.conclusion.reasons)
    assert NOT_KNOWN in statement.summary[4].text[0]


def test_a_catalogue_that_was_read_off_the_data_is_said_to_be_uncovered(tmp_path: Path) -> None:
    ledger = write_platform(tmp_path, seed=1)
    evidence = replace(gather([ledger], []), results={tmp_path / "result.json": run_result()})
    statement = state(evidence)
    assert statement.tuning.catalogue_derived is True
    assert any("read off its users' data" in r for r in statement.conclusion.reasons)


def test_no_ledger_at_all_is_red() -> None:
    statement = state(Evidence(ledgers=(), servers=(), results={}))
    assert statement.conclusion.light == "red"
    assert "no ledger" in statement.conclusion.line


def test_what_does_not_make_sense_ends_what_is_believed(ledger: Path) -> None:
    found = gather([ledger], []).ledgers[0]
    entries = list(found.entries)
    entries[3] = replace(entries[3], body='{"mechanism": {"type": "magic"}}')
    believed = believe(replace(found, entries=rechained(entries), head=None))
    assert len(believed.entries) == 3
    assert "cannot be understood" in believed.problems[0]


def test_the_list_of_points_and_the_fields_are_the_same() -> None:
    assert set(REQUIRED.values()) == set(POINTS)
    assert set(POINTS) <= {field.name for field in fields(AuditStatement)}


def test_a_first_audit_of_single_copies_is_told_as_that_and_other_gaps_as_gaps(
    ledger: Path,
) -> None:
    first = state([ledger], verification(unknown=["since", "copies"])).conclusion.reasons
    assert any("first audit of these ledgers" in reason for reason in first)
    assert not any("lack of records" in reason for reason in first)
    more = state([ledger], verification(unknown=["since", "copies", "head"])).conclusion.reasons
    assert any("lack of records (since 1, copies 1, head 1)" in reason for reason in more)


def test_of_a_simulation_the_first_word_is_that_nobody_was_protected(tmp_path: Path) -> None:
    simulated = state([write_platform(tmp_path / "a", seed=1)])
    assert simulated.summary[0].text[0].startswith("Nobody: this was a simulation, ")
    deployed = state([write_platform(tmp_path / "b")])
    assert deployed.summary[0].text[0].startswith("Each single user of north")
    assert any("if it ran the released software" in text for text in deployed.randomness.text)


def test_platforms_with_the_same_promise_share_a_sentence(tmp_path: Path) -> None:
    names = ("east", "north", "south")
    ledgers = [write_platform(tmp_path / name, name) for name in names[:2]]
    ledgers.append(
        write_platform(tmp_path / "south", "south", requests=[sum_request("south", noise=9.0)])
    )
    text = state(ledgers).guarantee.text
    assert text[0].startswith("east, north: epsilon 2.95 ")
    assert text[1].startswith("south: epsilon ")
