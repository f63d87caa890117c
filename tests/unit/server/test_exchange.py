"""Replies are known by the message that they answer: order, forgery and garbage change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from common.messages import TRAIN
from server.config import TrainingSection
from server.rounds import FederationRun
from tests.unit.server.scripted import (
    ScriptedGrid,
    Shop,
    federation,
    outcomes,
    profile,
    write_catalogue_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from flwr.app import Message

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
