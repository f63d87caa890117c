"""Contract of the engines: private names of Flower 1.41, and one result whatever the engine."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

import client.app
from common.errors import ConfigError
from common.models.ncf import NcfConfig
from simulations.engines import in_process
from simulations.engines.in_process import RUN_ID, InProcessGrid
from simulations.engines.ray import run_on_ray
from tests.shops import SIZES, options, run_all, write_shops

if TYPE_CHECKING:
    from collections.abc import Callable

KIND = MessageType.QUERY


@pytest.fixture
def shops(tmp_path: Path) -> Path:
    return write_shops(tmp_path / "shops")


def grid_of(
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[Message, Context], RecordDict],
    num_nodes: int = 3,
) -> InProcessGrid:
    """A grid whose nodes run ``answer`` as their ClientApp."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(answer(message, context), reply_to=message)

    monkeypatch.setattr(client.app, "app", app)
    return InProcessGrid([Path(f"{k}.toml") for k in range(1, num_nodes + 1)])


def messages(*nodes: int) -> list[Message]:
    return [Message(RecordDict(), node, KIND) for node in nodes]


def echo(message: Message, context: Context) -> RecordDict:
    del message
    config = context.node_config["platform-config"]
    return RecordDict({"echo": ConfigRecord({"node": context.node_id, "config": str(config)})})


# --- Private names ------------------------------------------------------------------------------


def test_flower_still_has_the_private_names_that_the_engine_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = grid_of(monkeypatch, echo)
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (RUN_ID, 0, 0)
    (message,) = messages(2)
    assert message.metadata.run_id == RUN_ID
    assert message.metadata.src_node_id == 0
    (message_id,) = grid.push_messages([message])
    # The property reads the private field: this is what a reply refers to.
    assert message.metadata.message_id == message_id
    (reply,) = grid.pull_messages([message_id])
    assert reply.metadata.reply_to_message_id == message_id
    assert reply.metadata.src_node_id == 2
    assert reply.metadata.dst_node_id == 0
    assert ErrorCode.CLIENT_APP_RAISED_EXCEPTION == in_process._CLIENT_APP_RAISED


def test_it_is_a_whole_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(monkeypatch, echo)
    assert not getattr(InProcessGrid, "__abstractmethods__", None)
    assert grid.run.run_id == RUN_ID
    other = Run.create_empty(7)
    grid.set_run(other)
    assert grid.run is other
    made = grid.create_message(RecordDict(), KIND, 2, "group", ttl=9.0)
    assert (made.metadata.dst_node_id, made.metadata.message_type) == (2, KIND)
    assert (made.metadata.group_id, made.metadata.ttl) == ("group", 9.0)


# --- Behaviour ----------------------------------------------------------------------------------


def test_each_node_gets_its_own_configuration_and_replies_come_in_the_order_of_asking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = grid_of(monkeypatch, echo)
    assert list(grid.get_node_ids()) == [1, 2, 3]
    replies = grid.send_and_receive(messages(3, 1, 2), timeout=1.0)
    assert [dict(reply.content.config_records["echo"]) for reply in replies] == [
        {"node": node, "config": f"{node}.toml"} for node in (3, 1, 2)
    ]


def test_a_message_is_executed_when_its_reply_is_pulled_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def note(message: Message, context: Context) -> RecordDict:
        asked.append(context.node_id)
        return echo(message, context)

    grid = grid_of(monkeypatch, note)
    ids = list(grid.push_messages(messages(1, 2, 3)))
    assert asked == []
    (first,) = grid.pull_messages(ids)
    assert asked == [1]
    assert first.metadata.reply_to_message_id == ids[0]
    assert list(grid.pull_messages(ids[:1])) == []
    assert list(grid.pull_messages(["unknown"])) == []
    assert len(list(grid.pull_messages(ids[2:]))) == 1
    assert asked == [1, 3]


def test_an_unknown_node_gets_an_empty_id_as_in_flowers_grids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = grid_of(monkeypatch, echo)
    ids = list(grid.push_messages(messages(1, 99, 2)))
    assert ids[1] == ""
    assert len(set(ids)) == 3


def test_an_exception_is_an_error_reply_and_the_node_keeps_its_old_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def count(message: Message, context: Context) -> RecordDict:
        context.state["calls"] = ConfigRecord({"n": int(_calls(context)) + 1})
        if _calls(context) == 2:
            raise ZeroDivisionError
        return echo(message, context)

    def _calls(context: Context) -> int:
        record = context.state.get("calls", ConfigRecord({"n": 0}))
        assert isinstance(record, ConfigRecord)
        count = record["n"]
        assert isinstance(count, int)
        return count

    grid = grid_of(monkeypatch, count)
    first, second, third = (next(iter(grid.send_and_receive(messages(1)))) for _ in range(3))
    assert not first.has_error()
    assert second.has_error()
    assert second.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "ZeroDivisionError" in str(second.error.reason)
    assert third.has_error()  # the count of the failed call was not kept
    (other,) = grid.send_and_receive(messages(2))
    assert not other.has_error()
    assert TaskIdentity.node_id == 0


def test_ctrl_c_in_a_platform_ends_the_run_and_leaves_the_server_itself_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(_message: Message, _context: Context) -> RecordDict:
        assert TaskIdentity.node_id == 2
        raise KeyboardInterrupt

    grid = grid_of(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive(messages(2))
    assert TaskIdentity.node_id == 0


# --- On the wire --------------------------------------------------------------------------------


def over_the_wire(message: Message) -> Message:
    """Encode and decode a message both ways that Flower 1.41 has: protobuf and objects."""
    proto = message_to_proto(message).SerializeToString()
    message = message_from_proto(ProtoMessage.FromString(proto))
    contents = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(arrived, Message)
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id  # sent beside it
    return arrived


class WireGrid(InProcessGrid):
    """Every message and every reply goes through Flower's serialisation."""

    def _execute(self, message: Message) -> Message:
        return over_the_wire(super()._execute(over_the_wire(message)))


@pytest.mark.parametrize(
    "model",
    [
        NcfConfig(dim=3),
        NcfConfig(kind="neumf", dim=3, hidden=(4,), loss="bce", num_negatives=5),
    ],
    ids=["gmf", "neumf"],
)
def test_all_messages_are_encodable_and_the_wire_changes_nothing(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: NcfConfig
) -> None:
    plain = run_all(options(shops, model=model), tmp_path / "plain")
    monkeypatch.setattr(in_process, "InProcessGrid", WireGrid)
    wired = run_all(options(shops, model=model), tmp_path / "wired")
    assert wired == plain
    assert wired["rounds"][-1]["platforms"] == dict.fromkeys(SIZES, "released")
    finals = [
        next(tmp_path.glob(f"{name}/federation-state/*/checkpoint.safetensors")).read_bytes()
        for name in ("plain", "wired")
    ]
    assert finals[0] == finals[1]


def test_a_value_that_cannot_be_encoded_does_not_pass_the_wire() -> None:
    # The round trip above must be able to fail.
    InProcessGrid([])
    (message,) = messages(1)
    message.metadata.__dict__["_message_id"] = "1"
    record = ConfigRecord({"n": 1})
    message.content["n"] = record
    assert over_the_wire(message).content == message.content
    dict.__setitem__(record._data, "n", {"no": "mapping"})  # type: ignore[attr-defined]
    with pytest.raises((TypeError, ValueError)):
        over_the_wire(message)


# --- Ray ----------------------------------------------------------------------------------------


def test_without_ray_the_engine_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs Ray: pip install .*\[ray\]"):
        run_on_ray(tmp_path / "federation.toml", [])


def test_a_failing_platform_is_logged_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_message: Message, _context: Context) -> RecordDict:
        raise ZeroDivisionError("by the platform")

    grid = grid_of(monkeypatch, fail)
    with caplog.at_level(logging.WARNING):
        (reply,) = grid.send_and_receive(messages(1))
    assert isinstance(reply.error, Error)
    assert "by the platform" in caplog.text
