from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.journal import Journal
from server.metrics import metrics_of, serve_run_metrics

if TYPE_CHECKING:
    from pathlib import Path

Found = dict[tuple[str, ...], float]

START = ("run-started", {"rounds": 3, "rounds_done": 0})
PLAYED: list[tuple[str, dict[str, Any]]] = [
    START,
    ("platform-joined", {"platform": "north"}),
    ("platform-joined", {"platform": "south"}),
    ("platform-refused", {"node": "7", "reason": "who are you"}),
    ("sum-started", {"quantity": "item-counts", "items": 5, "platforms": ["north", "south"]}),
    ("sum-reply", {"quantity": "item-counts", "platform": "north", "outcome": "released"}),
    ("sum-reply", {"quantity": "item-counts", "platform": "south", "outcome": "no answer: gone"}),
    ("sum-closed", {"quantity": "item-counts", "releases": 1}),
    ("round-started", {"round": 1, "platforms": ["north", "south"]}),
    ("reply", {"round": 1, "platform": "north", "outcome": "released"}),
    ("reply", {"round": 1, "platform": "south", "outcome": "declined: budget: 3.1 of 3"}),
    ("an-event-of-tomorrow", {"what": "ever"}),
    ("round-closed", {"round": 1, "releases": 1, "update_norm": 0.5}),
    ("round-started", {"round": 2, "platforms": ["north", "south"]}),
    ("reply", {"round": 2, "platform": "north", "outcome": "released"}),
]
FAILED: tuple[str, dict[str, Any]] = ("run-failed", {"reason": "too few"})


def events(script: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"event": kind, "time": 1000.0 + 10 * k, **facts} for k, (kind, facts) in enumerate(script)
    ]


def samples(script: list[tuple[str, dict[str, Any]]]) -> Found:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in metrics_of(events(script))
        for sample in metric.samples
    }


def state(found: Found) -> list[str]:
    return [key[1] for key, on in found.items() if key[0] == "crossrec_run_state" and on]


def test_the_journal_is_counted() -> None:
    found = samples(PLAYED)
    assert state(found) == ["running or interrupted"]
    assert found["crossrec_rounds_planned",] == 3
    assert found["crossrec_rounds_done",] == 1
    assert found["crossrec_sums_done",] == 1
    assert found["crossrec_platforms_joined",] == 2
    assert found["crossrec_nodes_refused",] == 1
    assert found["crossrec_last_round_seconds",] == 40
    assert found["crossrec_last_event_timestamp_seconds",] == 1000 + 10 * (len(PLAYED) - 1)
    replies = {key[1:]: value for key, value in found.items() if key[0] == "crossrec_replies_total"}
    assert replies == {
        ("north", "item-counts", "released"): 1,
        ("south", "item-counts", "no-answer"): 1,
        ("north", "round", "released"): 2,
        ("south", "round", "declined"): 1,
    }


def test_a_resumed_run_goes_on_from_its_checkpoint() -> None:
    again: tuple[str, dict[str, Any]] = ("run-started", {"rounds": 3, "rounds_done": 1})
    found = samples([*PLAYED, FAILED, again])
    assert state(found) == ["running or interrupted"]
    assert found["crossrec_rounds_done",] == 1
    assert found["crossrec_platforms_joined",] == 0
    assert found["crossrec_replies_total", "north", "round", "released"] == 2


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([], "not started"),
        (PLAYED, "running or interrupted"),
        ([*PLAYED, ("run-finished", {"rounds_done": 3})], "finished"),
        ([*PLAYED, FAILED], "failed"),
    ],
)
def test_a_run_is_in_one_state(script: list[tuple[str, dict[str, Any]]], expected: str) -> None:
    assert state(samples(script)) == [expected]


def test_metrics_of_a_running_journal_over_http(tmp_path: Path) -> None:
    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    with serve_run_metrics("127.0.0.1:0", tmp_path) as port:
        assert 'crossrec_run_state{crossrec_run_state="not started"} 1.0' in get("/metrics")
        journal = Journal(tmp_path)
        for kind, facts in PLAYED:
            journal.write(kind, **facts)
        families = {f.name: f for f in text_string_to_metric_families(get("/metrics"))}
        assert [s.value for s in families["crossrec_rounds_done"].samples] == [1.0]
        assert len(families["crossrec_replies"].samples) == 4
        assert get("/health") == "ok\n"
        journal.write(FAILED[0], **FAILED[1])
        with pytest.raises(urllib.error.HTTPError) as caught:
            get("/health")
        assert caught.value.code == 503
        assert caught.value.read() == b"the run failed: too few\n"
        journal.close()
