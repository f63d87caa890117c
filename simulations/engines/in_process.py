"""The default engine: a Flower Grid in this process, repeatable bit for bit.

It runs the same ServerApp and ClientApp that are deployed, one message at a time and in the order
in which they were pushed. A message is executed when its reply is pulled, so that replies arrive
one by one and at most one of them is in memory.

``flwr.supercore.task_identity`` and a message's ``_message_id`` are private names of Flower 1.41;
``tests/unit/simulations/test_engines.py`` is the contract test that a newer Flower must pass.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

import client.app
import server.app

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

RUN_ID = 1
_SERVER_NODE = 0
_CLIENT_APP_RAISED = 2  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION


class InProcessGrid(Grid):
    """Delivers messages to the ClientApp of each platform in this process."""

    def __init__(self, platform_configs: Sequence[Path]) -> None:
        """Give each ``platform.toml`` a node, numbered from 1."""
        self._run = Run.create_empty(RUN_ID)
        self._contexts = {
            node: Context(
                run_id=RUN_ID,
                node_id=node,
                node_config={"platform-config": str(path), client.app.SIMULATION_MARKER: True},
                state=RecordDict(),
                run_config={},
            )
            for node, path in enumerate(platform_configs, start=1)
        }
        self._waiting: dict[str, Message] = {}
        self._num_pushed = 0
        TaskIdentity.run_id = RUN_ID
        TaskIdentity.task_id = 0
        TaskIdentity.node_id = _SERVER_NODE

    def set_run(self, run: Run) -> None:
        """Replace the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message from the server (Flower's older way of saying ``Message(...)``)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in the order of the configurations."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; unknown nodes get an empty id, as Flower's grids do."""
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                ids.append("")
                continue
            self._num_pushed += 1
            message_id = str(self._num_pushed)
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the ClientApp for the oldest of ``message_ids`` and return its reply."""
        wanted = set(message_ids)
        for message_id in self._waiting:
            if message_id in wanted:
                return [self._execute(self._waiting.pop(message_id))]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and return all replies."""
        del timeout  # nothing to wait for: a reply is computed when it is pulled
        ids = list(self.push_messages(messages))
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]

    def _execute(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = copy.deepcopy(self._contexts[node])
        TaskIdentity.node_id = node
        try:
            reply = client.app.app(message, context)
        except Exception as error:
            log.warning("node %d raised: %s", node, error, exc_info=error)
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(_CLIENT_APP_RAISED, reason), reply_to=message)
        else:
            self._contexts[node] = context  # as Flower does: state is kept on success only
        finally:
            TaskIdentity.node_id = _SERVER_NODE
        return reply


def run_in_process(
    federation_config: Path, platform_configs: Sequence[Path], grid: InProcessGrid | None = None
) -> None:
    """Run the deployed ServerApp and ClientApp in this process, to the end of the run.

    Args:
        federation_config: the server's ``federation.toml``.
        platform_configs: each platform's ``platform.toml``.
        grid: another way of delivering between them; None is the plain one.
    """
    grid = grid or InProcessGrid(platform_configs)
    context = Context(
        run_id=RUN_ID,
        node_id=_SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config={"federation-config": str(federation_config)},
    )
    server.app.app(grid, context)
