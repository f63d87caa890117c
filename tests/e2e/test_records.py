"""What ledgers and the coordinator's journal write down of a run, held against each other."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from common.messages import SumRequest, TrainRequest, from_json, is_round
from common.privacy.ledger import LEDGER_FILE, Ledger
from server.journal import read_journal
from server.records import RELEASE_TAKEN, SURVIVORS_CONFIRMED
from tests.shops import options, run_all, write_shops

if TYPE_CHECKING:
    from pathlib import Path

THREE_SHOPS = {"east": 12, "north": 18, "south": 14}
NUM_RELEASES = 4
"""Of each platform: two sums and two rounds."""


@pytest.fixture(scope="module", params=["local", "secagg"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / str(request.param)
    shops = write_shops(folder.parent / "shops", THREE_SHOPS)
    run_all(options(shops, trust=request.param, adapting=("south",)), folder)
    return folder


def bodies(run: Path, platform: str, kind: str) -> dict[str, dict[str, Any]]:
    """By request, the entries of one kind in a platform's ledger."""
    path = run / "platforms" / platform / "state" / LEDGER_FILE
    with closing(Ledger(path, read_only=True)) as ledger:
        return {e.request_id: json.loads(e.body) for e in ledger.entries() if e.kind == kind}


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    (folder,) = (run / "federation-state").iterdir()
    return [event for _, event in read_journal(folder) if event["event"] in kinds]


@pytest.mark.parametrize("platform", THREE_SHOPS)
def test_a_reservation_holds_the_whole_request_that_its_digest_and_price_follow_from(
    run: Path, platform: str
) -> None:
    reserved = bodies(run, platform, "reserve")
    assert len(reserved) == NUM_RELEASES
    for request_id, body in reserved.items():
        text = json.dumps([body["request"], body["arrays_digest"]], sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == body["request_digest"]
        schema = TrainRequest if is_round(request_id) else SumRequest
        request = from_json(json.dumps(body["request"]), schema)
        assert request.request_id == request_id
        assert request.mechanism().to_dict() == body["mechanism"]
        assert request.mechanism_if_broken().to_dict() == body["mechanism_if_broken"]


def test_the_coordinator_writes_down_the_price_of_what_it_asks_for(run: Path) -> None:
    asked = events(run, "sum-started", "round-started")
    assert len(asked) == NUM_RELEASES
    for platform in THREE_SHOPS:
        reserved = bodies(run, platform, "reserve")
        for event, body in zip(asked, reserved.values(), strict=True):
            for name in ("mechanism", "mechanism_if_broken"):
                assert event[name] == body[name]


def test_the_coordinator_writes_down_the_digest_that_each_ledger_has(run: Path) -> None:
    commits = {
        request_id: body["sha256"]
        for platform in THREE_SHOPS
        for request_id, body in bodies(run, platform, "commit").items()
    }
    taken = {event["request_id"]: event["sha256"] for event in events(run, RELEASE_TAKEN)}
    assert taken == ({} if run.name == "secagg" else commits)
    assert len(commits) == NUM_RELEASES * len(THREE_SHOPS)


def test_the_coordinator_writes_down_the_lists_that_platforms_confirmed(run: Path) -> None:
    confirmed = {
        request_id: (body["sha256"], body["survivors"])
        for platform in THREE_SHOPS
        for request_id, body in bodies(run, platform, "confirm").items()
    }
    noted = {
        request_id: (event["sha256"], event["survivors"])
        for event in events(run, SURVIVORS_CONFIRMED)
        for request_id in event["request_ids"]
    }
    assert noted == confirmed
    assert len(noted) == (NUM_RELEASES * len(THREE_SHOPS) if run.name == "secagg" else 0)
