"""A platform that keeps failing is set aside, with the cause; one that refuses is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import Error
from typer.testing import CliRunner

from common.config import dump_config
from common.errors import RunFailed
from common.wire import encode
from server.commands import app
from server.config import ValidationSection
from server.journal import read_journal
from server.run import FederationRun
from server.status import summarise
from tests.unit.server.scripted import (
    Answer,
    ScriptedGrid,
    Shop,
    events,
    federation,
    honest_release,
    profile,
    reply,
    write_catalogue_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from common.messages import TrainRequest
    from server.config import FederationConfig

HONEST = ("east", "north")
ROUNDS = 6


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.exchange.POLL_SECONDS", 0.01)


def setting(folder: Path, **changes: Any) -> FederationConfig:  # noqa: ANN401 - any field
    write_catalogue_file(folder)
    return federation(folder, [*HONEST, "evil"], rounds=ROUNDS, **changes)


def run(
    config: FederationConfig, folder: Path, train: Callable[[TrainRequest], Answer]
) -> ScriptedGrid:
    shops = [Shop(profile=profile(name, folder / "catalogue.csv")) for name in HONEST]
    evil = Shop(profile=profile("evil", folder / "catalogue.csv"), train=train)
    grid = ScriptedGrid([*shops, evil])
    FederationRun(config, grid).run()
    return grid


def rounds_asked(grid: ScriptedGrid, name: str = "evil") -> list[int]:
    return [request.round_number for request in grid.requests if request.platform == name]


def declined(request: TrainRequest) -> Answer:
    number = request.round_number
    return encode(reply("evil", number, outcome="declined", reason="budget: all spent."))


BAD: dict[str, Callable[[TrainRequest], Answer]] = {
    "error": lambda _: Error(0, "gone"),
    "garbage": lambda request: encode(reply("evil", request.round_number), {}),
    "silence": lambda _: None,
}


@pytest.mark.parametrize("case", BAD)
def test_after_three_failures_in_a_row_it_is_not_asked_again(tmp_path: Path, case: str) -> None:
    config = setting(tmp_path)
    grid = run(config, tmp_path, BAD[case])
    assert rounds_asked(grid) == [1, 2, 3]
    assert rounds_asked(grid, "east") == [1, 2, 3, 4, 5, 6]
    (event,) = events(config, "platform-set-aside")
    assert event["platform"] == "evil"
    assert event["cause"] == next(
        reply["outcome"]
        for reply in events(config, "reply")
        if (reply["platform"], reply["round"]) == ("evil", 3)
    )
    assert {request.platform for request, _ in grid.adopted} == set(HONEST)
    # What the others are asked does not change: a repeated request must stay the same.
    assert {request.num_platforms for request in grid.requests} == {3}
    status = summarise(event for _, event in read_journal(config.run_folder))
    assert status.platforms["evil"].set_aside == event["cause"]
    assert status.platforms["east"].set_aside == ""


def test_failures_that_are_not_in_a_row_are_forgiven(tmp_path: Path) -> None:
    def moody(request: TrainRequest) -> Answer:
        is_good = request.round_number % 3 == 0
        return honest_release(request) if is_good else Error(0, "flat battery")

    config = setting(tmp_path)
    assert rounds_asked(run(config, tmp_path, moody)) == [1, 2, 3, 4, 5, 6]
    assert events(config, "platform-set-aside") == []


def test_refusals_do_not_count_and_do_not_make_up_for_failures(tmp_path: Path) -> None:
    config = setting(tmp_path)
    assert len(rounds_asked(run(config, tmp_path, declined))) == ROUNDS

    def sly(request: TrainRequest) -> Answer:
        return declined(request) if request.round_number % 2 else Error(0, "gone")

    (folder := tmp_path / "sly").mkdir()
    validation = ValidationSection(max_failures=2)
    config = setting(folder, validation=validation)
    assert rounds_asked(run(config, folder, sly)) == [1, 2, 3, 4]


def test_with_zero_nobody_is_set_aside(tmp_path: Path) -> None:
    config = setting(tmp_path, validation=ValidationSection(max_failures=0))
    assert len(rounds_asked(run(config, tmp_path, BAD["error"]))) == ROUNDS


def test_a_resumed_run_does_not_ask_again_until_the_operator_says_so(tmp_path: Path) -> None:
    config = setting(tmp_path)

    def crash(request: TrainRequest) -> Answer:
        if request.round_number == 5:
            raise KeyboardInterrupt
        return honest_release(request)

    shops = [
        Shop(profile=profile("east", tmp_path / "catalogue.csv"), train=crash),
        Shop(profile=profile("north", tmp_path / "catalogue.csv")),
        Shop(profile=profile("evil", tmp_path / "catalogue.csv"), train=BAD["error"]),
    ]
    with pytest.raises(KeyboardInterrupt):
        FederationRun(config, ScriptedGrid(shops)).run()

    def crash_again(_: TrainRequest) -> Answer:
        raise KeyboardInterrupt

    shops[0].train = crash_again
    shops[2].train = honest_release
    grid = ScriptedGrid(shops)
    with pytest.raises(KeyboardInterrupt):
        FederationRun(config, grid).run()
    assert rounds_asked(grid) == []
    assert (
        "'evil' was set aside in this run: no answer: gone"
        in (events(config, "platform-refused")[-1]["reason"])
    )

    config_file = tmp_path / "federation.toml"
    config_file.write_text(dump_config(config))
    runner = CliRunner()
    assert runner.invoke(app, ["readmit", "east", str(config_file)]).exit_code != 0
    shown = runner.invoke(app, ["status", str(config_file)], env={"COLUMNS": "200"}).output
    assert "set aside" in shown
    done = runner.invoke(app, ["readmit", "evil", str(config_file)])
    assert done.exit_code == 0, done.output
    shops[0].train = honest_release
    grid = ScriptedGrid(shops)
    FederationRun(config, grid).run()
    assert rounds_asked(grid) == [5, 6]


def test_under_secure_aggregation_a_run_cannot_go_on_without_it(tmp_path: Path) -> None:
    config = setting(tmp_path, trust="secagg-simulated", quorum=1)
    catalogue = tmp_path / "catalogue.csv"
    shops = [Shop(profile=profile(n, catalogue, trust="secagg-simulated")) for n in HONEST]
    evil = profile("evil", catalogue, trust="secagg-simulated")
    with pytest.raises(RunFailed, match=r"2 of 3 platforms released, .* at least 3"):
        FederationRun(config, ScriptedGrid([*shops, Shop(profile=evil, train=BAD["error"])])).run()
