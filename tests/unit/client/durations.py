"""How long work took, as Flower would tell the SuperLink; and what a SuperNode of ours tells."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

if TYPE_CHECKING:
    import pytest


def durations_sent(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the SuperLink is told of how long a message took, by Flower's own code."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    objects = ObjectStoreFactory()
    state = NodeStateFactory(objects).state()
    asked = Message(RecordDict(), 1, "train.round")
    asked.metadata.__dict__["_message_id"] = "b" * 64
    reply = Message(RecordDict(), reply_to=asked)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    state.store_message(asked)
    state.record_message_processing_start(message_id=asked.metadata.message_id)
    time.sleep(0.01)
    state.record_message_processing_end(message_id=asked.metadata.message_id)
    state.store_message(reply)
    objects.store().preregister(1, get_object_tree(reply))
    sent: list[float] = []

    def send(_: object, __: object, clientapp_runtime: float) -> tuple[set[str], str]:
        sent.append(clientapp_runtime)
        return set(), ""

    start_client_internal._push_messages(state, objects.store(), send, lambda *_: None)
    assert state.get_messages_legacy() == []
    return sent
