"""The commands with a coordinator that follows a script."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from common.config import load_config
from common.errors import ConfigError
from common.logs import LOG_STYLE_VARIABLE
from server import coordinator
from server.commands import app
from server.config import FederationConfig
from server.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result


class Scripted:
    """In place of the coordinator: its run has one round and finishes."""

    registered = ("a",)
    started = 0

    def __init__(self, config_file: Path, config: FederationConfig) -> None:
        assert config == load_config(config_file, FederationConfig)
        self._folder = config.run_folder

    def run(self, on_start: Callable[[], None]) -> None:
        Scripted.started += 1
        on_start()
        journal = Journal(self._folder)
        journal.write("run-started", rounds=1, rounds_done=0)
        journal.write("run-finished", rounds_done=1)
        journal.close()


@pytest.fixture
def config_file(found: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(Scripted, "started", 0)
    monkeypatch.setattr(coordinator, "Coordinator", Scripted)
    monkeypatch.setenv(LOG_STYLE_VARIABLE, "text")  # the command sets it: put back at the end
    loggers = [logging.getLogger(name) for name in (None, "flwr", "httpx", "httpcore")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    ending = signal.getsignal(signal.SIGTERM)
    yield found()
    signal.signal(signal.SIGTERM, ending)
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def asked(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_run_is_begun_shown_and_not_begun_again(config_file: Path, quiet: list[str]) -> None:
    first = asked("run", config_file, *quiet)
    assert first.exit_code == 0, first.output
    assert "Not registered, so they cannot join: b" in first.output
    assert "Run run-1: platforms connect to 0.0.0.0:8000; waiting for 2 of" in first.output
    assert "Run run-1: finished, 0 of 1 rounds" in first.output
    again = asked("run", config_file)
    assert again.exit_code == 0
    assert "Run run-1 is finished. For another one choose a new run_id" in again.output
    assert Scripted.started == 1
    assert "started 1 time(s)" in asked("status", config_file).output


def test_only_what_was_begun_is_resumed(config_file: Path) -> None:
    nothing = asked("resume", config_file)
    assert isinstance(nothing.exception, ConfigError)
    assert "there is no run to resume" in str(nothing.exception)
    assert Scripted.started == 0
    asked("run", config_file)
    assert asked("resume", config_file).exit_code == 0
    assert Scripted.started == 2
    assert "started 2 time(s)" in asked("status", config_file).output


def test_a_federation_of_secure_sums_says_who_needs_which_key(tmp_path: Path) -> None:
    names = [word for name in "abcd" for word in ("--platform", name)]
    begin = ("init", tmp_path / "market", "--host", "localhost", *names, "--trust", "secagg")
    refused = asked(*begin, "--max-dropped", 2)
    assert isinstance(refused.exception, ConfigError)
    assert "--max-dropped: found 2, expected at most 1 of 4" in str(refused.exception)
    done = asked(*begin, "--max-dropped", 1, "--max-colluding", 1)
    assert done.exit_code == 0, done.output
    assert "--root-certificate ca.crt --trust secagg" in done.output
    assert "not through you, to every other platform" in done.output
    config = load_config(tmp_path / "market/federation.toml", FederationConfig)
    assert config.mechanism.trust == "secagg"
    assert (config.secagg.max_dropped, config.secagg.max_colluding) == (1, 1)


def test_status_shows_the_stage_of_a_sum_and_why_a_platform_dropped_out(
    config_file: Path,
) -> None:
    journal = Journal(load_config(config_file, FederationConfig).run_folder)
    journal.write("run-started", rounds=0, rounds_done=0)
    journal.write("sum-started", quantity="item-pairs", platforms=["a", "b"])
    cause = "no answer: the round closed before it answered (secure aggregation, stage 'share')"
    journal.write("sum-reply", quantity="item-pairs", platform="b", outcome=cause)
    journal.write("secagg-stage", what="item-pairs", stage="share", platforms=3)
    journal.close()
    shown = asked("status", config_file).output
    assert "at: item-pairs, stage mask (3 platforms), last event" in shown
    assert cause in shown
