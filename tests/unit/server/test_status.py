from __future__ import annotations

from typing import Any

import pytest

from server.status import PlatformStatus, summarise

BEGIN: dict[str, Any] = {"event": "run-started", "rounds": 2, "rounds_done": 0, "time": 1.0}


def test_no_journal_is_a_run_that_was_not_started() -> None:
    assert summarise([]).state == "not started"


def test_a_run_in_the_middle() -> None:
    run = summarise(
        [
            BEGIN,
            {"event": "platform-joined", "platform": "a"},
            {"event": "platform-joined", "platform": "b"},
            {"event": "platform-refused", "node": "7", "reason": "unknown"},
            {"event": "sum-closed", "quantity": "item-counts", "releases": 2},
            {"event": "round-started", "round": 1, "platforms": ["a", "b"]},
            {"event": "reply", "round": 1, "platform": "a", "outcome": "released"},
            {"event": "reply", "round": 1, "platform": "b", "outcome": "invalid: NaN"},
            {"event": "round-closed", "round": 1, "time": 5.0},
            {"event": "round-started", "round": 2, "platforms": ["a"]},
        ]
    )
    assert (run.state, run.rounds_done, run.step) == ("running or interrupted", 1, "round 2")
    assert run.sums_done == ("item-counts",)
    assert run.updated == 5.0
    assert run.refused == ("node 7: unknown",)
    assert run.platforms["a"] == PlatformStatus(
        joined=True, num_releases=1, last_outcome="released"
    )
    assert run.platforms["b"] == PlatformStatus(
        joined=True, num_refusals=1, last_outcome="invalid: NaN"
    )


def test_a_second_start_begins_anew_who_is_there() -> None:
    run = summarise(
        [BEGIN, {"event": "platform-joined", "platform": "a"}, {**BEGIN, "rounds_done": 1}]
    )
    assert (run.num_starts, run.rounds_done) == (2, 1)
    assert not run.platforms["a"].joined


def test_the_end_of_a_run() -> None:
    done: list[dict[str, Any]] = [
        BEGIN,
        {"event": "handed-over", "platform": "a", "outcome": "adopted"},
    ]
    run = summarise([*done, {"event": "run-finished", "rounds_done": 2}])
    assert run.state == "finished"
    assert run.platforms["a"].has_result
    run = summarise([*done, {"event": "run-failed", "reason": "quorum"}])
    assert (run.state, run.reason) == ("failed", "quorum")
    assert summarise([*done, {"event": "run-failed", "reason": "quorum"}, BEGIN]).reason == ""


@pytest.mark.parametrize(
    ("over", "now"), [("share", "mask"), ("mask", "confirm"), ("confirm", "unmask")]
)
def test_the_stage_of_a_secure_sum_is_the_one_after_that_which_is_over(over: str, now: str) -> None:
    stage = {"event": "secagg-stage", "what": "item-pairs", "stage": over, "platforms": 4}
    begin = {"event": "sum-started", "quantity": "item-pairs", "platforms": ["a"]}
    assert summarise([BEGIN, begin]).step == "sum of item-pairs"
    assert summarise([BEGIN, begin, stage]).step == f"item-pairs, stage {now} (4 platforms)"
    in_round = {**stage, "what": "round 2"}
    assert summarise([BEGIN, in_round]).step == f"round 2, stage {now} (4 platforms)"


def test_a_secure_sum_that_is_open_has_no_stage_left() -> None:
    last = {"event": "secagg-stage", "what": "round 2", "stage": "unmask", "platforms": 3}
    assert summarise([BEGIN, last]).step == "round 2, opened"
    done = {"event": "round-closed", "round": 2, "releases": 3}
    following = {"event": "round-started", "round": 3, "platforms": ["a"]}
    assert summarise([BEGIN, last, done, following]).step == "round 3"


def test_a_platform_that_drops_out_at_a_stage_keeps_its_cause() -> None:
    cause = "declined: refused: secagg: unknown key (secure aggregation, stage 'share')"
    run = summarise([BEGIN, {"event": "reply", "round": 1, "platform": "a", "outcome": cause}])
    assert run.platforms["a"] == PlatformStatus(num_refusals=1, last_outcome=cause)


def test_who_did_not_help_to_open_a_sum_is_named_until_the_sum_is_open() -> None:
    silent = {"b": "no answer: the round closed before it answered"}
    stage = {"what": "round 1", "stage": "confirm", "platforms": 1, "missing": silent}
    failed = [BEGIN, {"event": "secagg-stage", **stage}]
    run = summarise(failed)
    assert run.platforms["b"] == PlatformStatus(last_outcome=f"{silent['b']} (stage 'confirm')")
    opened = {"event": "reply", "round": 1, "platform": "b", "outcome": "released"}
    run = summarise([*failed, opened])
    assert run.platforms["b"] == PlatformStatus(num_releases=1, last_outcome="released")
