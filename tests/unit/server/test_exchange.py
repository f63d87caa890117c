"""Replies are known by the message that they answer: order, forgery and garbage change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from flwr.app import Error, Message

from common.messages import TRAIN
from server.config import TrainingSection, ValidationSection
from server.exchange import shortened
from server.run import FederationRun
from tests.unit.server.scripted import (
    ScriptedGrid,
    Shop,
    events,
    federation,
    outcomes,
    profile,
    write_catalogue_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from server.strategy import ServerState

NAMES = ("east", "evil", "north", "west")


class LastFirst(ScriptedGrid):
    """Platforms that were asked last answer first."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        newest = next(reversed(self._waiting), None)
        return super().pull_messages([m for m in message_ids if m == newest])


class Tampering(ScriptedGrid):
    """Does something to what comes back of ``evil`` in rounds."""

    tamper: Callable[[Message], list[Message]]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = list(message_ids)
        asked = self._waiting.get(wanted[0])
        replies = super().pull_messages(wanted)
        is_round = asked is not None and asked.metadata.message_type == TRAIN
        if is_round and self.requests[-1].platform == "evil":
            return self.tamper(replies[0])
        return replies


def shops(folder: Path) -> list[Shop]:
    return [Shop(profile=profile(name, folder / "catalogue.csv")) for name in NAMES]


def run(folder: Path, grid: ScriptedGrid) -> ServerState:
    folder.mkdir()
    write_catalogue_file(folder)
    config = federation(folder, NAMES, rounds=3, training=TrainingSection())
    return FederationRun(config, grid).run()


def test_order_of_arrival_changes_no_bit(tmp_path: Path) -> None:
    write_catalogue_file(tmp_path)
    first = run(tmp_path / "a", ScriptedGrid(shops(tmp_path)))
    last_first = LastFirst(shops(tmp_path))
    found = run(tmp_path / "b", last_first)
    assert [r.platform for r in last_first.requests[:4]] == list(reversed(NAMES))
    for part in ("parameters", "first_moment", "second_moment"):
        for name, array in getattr(first, part).items():
            np.testing.assert_array_equal(getattr(found, part)[name], array)


def forged(message: Message) -> list[Message]:
    message.metadata.__dict__["_src_node_id"] = 1
    return [message]


def of_another_round(message: Message) -> list[Message]:
    message.metadata.__dict__["_reply_to_message_id"] = "1"
    return [message]


def unreadable(_: Message) -> list[Message]:
    raise KeyError("a1b2")  # as Flower does where a child of an object is missing


def no_message(_: Message) -> list[Message]:
    return [object()]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (forged, "no answer: its reply says that it comes from node 1"),
        (of_another_round, "no answer: its reply says that it comes from node 2"),
        (unreadable, "no answer: its reply cannot be read (KeyError)"),
        (no_message, "no answer: its reply cannot be read (AttributeError)"),
    ],
)
def test_a_reply_that_is_none_is_left_out_and_the_run_goes_on(
    tmp_path: Path, tamper: Callable[[Message], list[Message]], said: str
) -> None:
    write_catalogue_file(tmp_path)
    grid = Tampering(shops(tmp_path))
    grid.tamper = tamper
    config = federation(tmp_path, NAMES)
    FederationRun(config, grid).run()
    assert outcomes(config) == dict.fromkeys(NAMES, "released") | {"evil": said}


def test_late_replies_of_a_former_round_are_ignored(tmp_path: Path) -> None:
    write_catalogue_file(tmp_path)
    late: list[Message] = []

    class Late(Tampering):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            replies = super().pull_messages(message_ids)
            return replies + [m for m in late if replies]

    def delay(message: Message) -> list[Message]:
        late.append(message)
        return []

    grid = Late(shops(tmp_path))
    grid.tamper = delay
    config = federation(tmp_path, NAMES, rounds=2)
    config = replace(config, federation=replace(config.federation, round_timeout_seconds=0.5))
    FederationRun(config, grid).run()
    assert len(late) == 2
    assert outcomes(config) == dict.fromkeys(NAMES, "released") | {
        "evil": "no answer: the round closed before it answered"
    }


def test_a_superlink_that_is_gone_is_no_platforms_doing(tmp_path: Path) -> None:
    write_catalogue_file(tmp_path)

    def gone(_: Message) -> list[Message]:
        raise httpx.ConnectError("refused")

    grid = Tampering(shops(tmp_path))
    grid.tamper = gone
    with pytest.raises(httpx.ConnectError):
        FederationRun(federation(tmp_path, NAMES), grid).run()


def http_error(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://superlink/v1/runtime/x")
    return httpx.HTTPStatusError(
        "error", request=request, response=httpx.Response(status, request=request)
    )


def test_a_reply_that_the_superlink_fails_on_is_left_out(tmp_path: Path) -> None:
    write_catalogue_file(tmp_path)

    def fails(_: Message) -> list[Message]:
        raise http_error(500)

    grid = Tampering(shops(tmp_path))
    grid.tamper = fails
    config = federation(tmp_path, NAMES)
    FederationRun(config, grid).run()
    said = "no answer: the SuperLink cannot read its reply (HTTP 500)"
    assert outcomes(config) == dict.fromkeys(NAMES, "released") | {"evil": said}


@pytest.mark.parametrize("status", [401, 403, 502, 503, 504])
def test_a_superlink_that_is_away_is_no_platforms_doing(tmp_path: Path, status: int) -> None:
    write_catalogue_file(tmp_path)

    def away(_: Message) -> list[Message]:
        raise http_error(status)

    grid = Tampering(shops(tmp_path))
    grid.tamper = away
    with pytest.raises(httpx.HTTPStatusError):
        FederationRun(federation(tmp_path, NAMES), grid).run()


class Blocked(ScriptedGrid):
    """A SuperLink that fails on every request for a round of ``west``."""

    status = 500

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        for message in messages:
            node = message.metadata.dst_node_id
            if message.metadata.message_type == TRAIN and node == 1 + NAMES.index("west"):
                raise http_error(self.status)
        return super().push_messages(messages)


def test_a_request_that_cannot_be_delivered_is_not_held_against_the_platform(
    tmp_path: Path,
) -> None:
    write_catalogue_file(tmp_path)
    grid = Blocked(shops(tmp_path))
    config = federation(tmp_path, NAMES, rounds=3, validation=ValidationSection(max_failures=2))
    FederationRun(config, grid).run()
    said = "undelivered: the SuperLink answered HTTP 500"
    assert outcomes(config) == dict.fromkeys(NAMES, "released") | {"west": said}
    assert not events(config, "platform-set-aside")


def test_a_superlink_that_is_away_ends_the_run_also_where_it_is_pushed_to(tmp_path: Path) -> None:
    write_catalogue_file(tmp_path)
    grid = Blocked(shops(tmp_path))
    grid.status = 503
    with pytest.raises(httpx.HTTPStatusError):
        FederationRun(federation(tmp_path, NAMES), grid).run()


def test_a_platform_cannot_call_its_own_failures_undelivered(tmp_path: Path) -> None:
    write_catalogue_file(tmp_path)

    def pretends(message: Message) -> list[Message]:
        return [Message(Error(0, "undelivered: x"), reply_to=message)]

    grid = Tampering(shops(tmp_path))
    grid.tamper = pretends
    config = federation(tmp_path, NAMES, rounds=2, validation=ValidationSection(max_failures=2))
    FederationRun(config, grid).run()
    assert [event["platform"] for event in events(config, "platform-set-aside")] == ["evil"]


def test_no_request_has_an_id_that_could_be_guessed(tmp_path: Path) -> None:
    write_catalogue_file(tmp_path)
    ids: list[str] = []

    class Noting(ScriptedGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            messages = list(messages)
            ids.extend(message.content.object_id for message in messages)
            return super().push_messages(messages)

    for again in ("a", "b"):
        run(tmp_path / again, Noting(shops(tmp_path)))
    assert len(ids) == len(set(ids)), "also of two runs of one seed, and of questions"


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;title\x07", "a\nb", "\x9b2J", "\u202egnp", "\x00"])
def test_words_of_a_platform_do_not_steer_a_terminal(text: str) -> None:
    assert shortened(text).isprintable()
    assert len(shortened(text * 1000)) == 500
    assert shortened("all spent: 3.1 of 3") == "all spent: 3.1 of 3"
