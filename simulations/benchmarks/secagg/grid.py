"""The grid that messages of a measured round go through: it counts bytes and keeps the time."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Error, Message
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.task_identity import TaskIdentity

from common.messages import TRAIN
from simulations.benchmarks.secagg.costs import StageCost
from simulations.engines.in_process import InProcessGrid

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np
    from flwr.app import RecordDict

_SERVER_NODE = 0
_GONE = 1  # flwr.common.constant.ErrorCode.UNKNOWN


@dataclass(slots=True)
class Traffic:
    """What was counted of one stage, by platform."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Time, as a difference or since some moment."""

    seconds: float
    """On the clock."""
    cpu_seconds: float
    """Of the processor, which counts no one else's work on a busy machine."""

    def since(self, before: Spent) -> Spent:
        """The difference."""
        return Spent(
            seconds=self.seconds - before.seconds,
            cpu_seconds=self.cpu_seconds - before.cpu_seconds,
        )


class CountingGrid(InProcessGrid):
    """Sends messages to the platforms' process, and stands still while that works."""

    def __init__(
        self, pipe: Connection, platforms: int, dropped: frozenset[int], masked_stage: str
    ) -> None:
        """Number the platforms from 1.

        Args:
            pipe: to :func:`simulations.benchmarks.secagg.rounds.serve`.
            platforms: their number.
            dropped: who does not answer any more when ``masked_stage`` comes.
            masked_stage: at which releases are sent.
        """
        super().__init__([Path()] * platforms)
        self._pipe = pipe
        self.dropped = dropped
        self._masked_stage = masked_stage
        self.traffic: dict[str, Traffic] = {}
        self.messages = 0
        self._away = Spent(seconds=0.0, cpu_seconds=0.0)

    def own_time(self) -> Spent:
        """What this process worked so far, but for carrying messages and waiting for answers."""
        away = self._away
        return Spent(
            seconds=time.perf_counter() - away.seconds,
            cpu_seconds=time.process_time() - away.cpu_seconds,
        )

    def _execute(self, message: Message) -> Message:
        before = self.own_time()
        node, stage = message.metadata.dst_node_id, _stage_of(message)
        self.messages += 1
        TaskIdentity.node_id = node
        try:
            if node in self.dropped and stage == self._masked_stage:
                return Message(Error(_GONE, "dropped out"), reply_to=message)
            content = to_bytes(message.content)
            self._pipe.send((node, stage))
            self._pipe.send_bytes(content)
            traffic = self.traffic.setdefault(stage, Traffic())
            traffic.received.append(len(content))
            del content
            seconds, cpu_seconds = self._pipe.recv()
            traffic.seconds.append(seconds)
            traffic.cpu_seconds.append(cpu_seconds)
            answer = self._pipe.recv_bytes()
            traffic.sent.append(len(answer))
            self.messages += 1
            return Message(from_bytes(answer), reply_to=message)
        finally:
            TaskIdentity.node_id = _SERVER_NODE
            away, passed = self._away, self.own_time().since(before)
            self._away = Spent(
                seconds=away.seconds + passed.seconds,
                cpu_seconds=away.cpu_seconds + passed.cpu_seconds,
            )

    def costs(self) -> tuple[StageCost, ...]:
        """Medians over the platforms that answered, by stage."""
        return tuple(
            StageCost(
                stage=stage,
                seconds=statistics.median(traffic.seconds),
                cpu_seconds=statistics.median(traffic.cpu_seconds),
                sent_bytes=statistics.median(traffic.sent),
                received_bytes=statistics.median(traffic.received),
            )
            for stage, traffic in self.traffic.items()
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """What the coordinator has in the end."""

    numbers: np.ndarray
    """float64 or float32, flat."""
    survivors: list[int]
    """Whose releases are in it."""
    tolerance: float
    """By how much the numbers may be off; 0 if they are exact."""
    lattice_bits: int = 32


def platform_name(node: int) -> str:
    """Of the platform at address ``node``, from 1."""
    return f"platform{node:04d}"


def to_bytes(record: RecordDict) -> bytes:
    """A record as Flower puts it on the wire."""
    content: bytes = recorddict_to_proto(record).SerializeToString()
    return content


def from_bytes(content: bytes) -> RecordDict:
    """Undo :func:`to_bytes`."""
    return recorddict_from_proto(RecordDictProto.FromString(content))


def _stage_of(message: Message) -> str:
    if message.metadata.message_type == TRAIN:
        return "round"
    content = message.content.config_records.get(RECORD_KEY_CONFIGS)
    stage = message.metadata.group_id if content is None else content[Key.STAGE]
    return str(stage)
