"""A platform's log lines follow from public facts, and not from what its users did."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

import client.platform
from client.platform import Platform
from common.logs import configure_logging
from tests.unit.client.homes import (
    adopt_request,
    asked_arrays,
    fit_quickly,
    move_in,
    purchases,
    shared_arrays,
    sum_request,
    train_request,
    write_users,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from client.config import PlatformConfig
    from common.logs import LogStyle

QUOTED = "cannot work on {}: alice bought i07"
ALL_USERS, OTHER_USERS = range(20), range(37, 90)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(client.platform, "fit_alone", fit_quickly)
    loggers = [logging.getLogger(), logging.getLogger("flwr")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def logged(config: PlatformConfig, style: LogStyle, users: range) -> str:
    """What a platform with these users writes while it answers requests of every kind."""
    write_users(purchases(config), users)
    stream = io.StringIO()
    configure_logging(style, stream=stream, names={"platform": config.platform.name})
    platform = Platform(config)
    platform.profile()
    platform.train(train_request(config, trust="none"), shared_arrays())
    platform.train(train_request(config), shared_arrays())
    platform.sum_up(sum_request(config), asked_arrays())
    platform.sum_up(sum_request(config, noise_multiplier=11.0), asked_arrays())
    platform.adopt(adopt_request(config), shared_arrays())
    return stream.getvalue()


def quote(error: type[Exception]) -> Any:  # noqa: ANN401
    """A step that fails with whatever it was given in the text of its exception."""

    def fail(*arguments: Any, **_: Any) -> NoReturn:  # noqa: ANN401
        values = [getattr(argument, "data", argument) for argument in arguments]
        raise error(QUOTED.format(values))

    return fail


STEPS = {
    "nothing": None,
    "training": "client.platform.train_round",
    "summing": "client.platform.pair_sum",
    "fitting": "client.platform.fit_alone",
    "reading": "client.data.read_interactions",
    "indexing": "client.data.leave_last_out",
}


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("error", [ValueError, KeyError])
@pytest.mark.parametrize("step", STEPS)
def test_the_lines_are_the_same_whatever_the_users_did(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    style: LogStyle,
    error: type[Exception],
    step: str,
) -> None:
    place = STEPS[step]
    if place:
        monkeypatch.setattr(place, quote(error))
    found = []
    config = move_in(tmp_path)
    for users in (ALL_USERS, OTHER_USERS):
        state = tmp_path / f"state-{users.start}"
        own = replace(config, state=replace(config.state, folder=state))
        lines = logged(own, style, users).replace(str(state), "state").splitlines()
        if style == "json":
            lines = [
                json.dumps({k: v for k, v in json.loads(x).items() if k != "time"}) for x in lines
            ]
        else:  # a line of ours begins with the time, its continuation with blanks
            lines = [line if line.startswith(" ") else line.partition(" ")[2] for line in lines]
        found.append(lines)
    assert found[0] == found[1]
    assert any("refused: " in line or "trust: asked for" in line for line in found[0])
    assert not any("alice" in line or "i07" in line for line in found[0])
    if step != "nothing":
        assert any(error.__name__ in line for line in found[0])
