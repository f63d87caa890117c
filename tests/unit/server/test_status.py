from __future__ import annotations

from typing import Any

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
