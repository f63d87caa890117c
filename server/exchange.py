"""Questions to platforms and what comes back: every reply is checked, a bad one is left out.

Platforms are known by name: node ids are only addresses.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from common.errors import CrossRecError, InvalidRelease, RunFailed
from common.messages import Reply
from common.wire import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

    from common.models.partition import Arrays
    from server.config import FederationConfig

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
_LONGEST_REASON = 500


class Exchange:
    """Sends messages over a Flower grid on behalf of one run."""

    def __init__(self, config: FederationConfig, grid: Grid) -> None:
        """Take the run's name, quorum and patience from ``config``."""
        self._config = config
        self._grid = grid

    def nodes(self) -> list[int]:
        """Addresses of everybody who is there."""
        return list(self._grid.get_node_ids())

    def send(self, messages: Mapping[int, Message]) -> Iterator[tuple[int, RecordDict | None, str]]:
        """Send one message to each node; yield (node, content or None, cause) as replies arrive."""
        deadline = time.monotonic() + self._config.federation.round_timeout_seconds
        waiting: dict[str, int] = {}
        for node, message in messages.items():
            # One at a time: push_messages leaves out unreachable nodes without saying which.
            sent = list(self._grid.push_messages([message]))
            if not sent or not sent[0]:
                yield node, None, "the node could not be reached"
            else:
                waiting[sent[0]] = node
        while waiting and time.monotonic() < deadline:
            arrived = False
            for reply in self._grid.pull_messages(list(waiting)):
                node_id = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node_id is None:
                    continue
                arrived = True
                if reply.has_error():
                    yield node_id, None, str(reply.error.reason)
                else:
                    yield node_id, reply.content, ""
            if waiting and not arrived:
                time.sleep(POLL_SECONDS)
        for node in waiting.values():
            yield node, None, "the round closed before it answered"

    def ask(
        self,
        messages: Mapping[str, Message],
        *,
        number: int,
        wanted: str,
        check: Callable[[Arrays], Arrays] | None = None,
    ) -> Iterator[tuple[str, Arrays | None, str]]:
        """Send one message to each platform; yield (name, arrays or None, outcome).

        Args:
            messages: by platform.
            number: the round that replies must be for.
            wanted: the outcome of a platform that does what it is asked; its arrays are yielded.
            check: refuses the arrays of such a reply, or returns them.
        """
        names = {message.metadata.dst_node_id: name for name, message in messages.items()}
        by_node = {message.metadata.dst_node_id: message for message in messages.values()}
        for node, content, cause in self.send(by_node):
            yield names[node], *self._read(names[node], number, wanted, content, cause, check)

    def check_quorum(self, what: str, num_releases: int, num_asked: int) -> None:
        """End the run if too few platforms released.

        Raises:
            RunFailed: saying what was missing.
        """
        # Under secure aggregation each platform adds a share of the noise: all are needed.
        is_summed = self._config.mechanism.trust == "secagg-simulated"
        needed = num_asked if is_summed else self._config.federation.quorum
        if num_releases < needed:
            msg = (
                f"{what}: {num_releases} of {num_asked} platforms released, {needed} are "
                f"needed{' for all of the noise' if is_summed else ''}. What is finished is kept; "
                "see the journal for each platform's reason, then start the same run again."
            )
            raise RunFailed(msg)

    def _read(
        self,
        name: str,
        number: int,
        wanted: str,
        content: RecordDict | None,
        cause: str,
        check: Callable[[Arrays], Arrays] | None,
    ) -> tuple[Arrays | None, str]:
        """Take one reply: its arrays if the platform did what was asked, and what it did."""
        if content is None:
            return None, shortened(f"no answer: {cause}")
        try:
            reply, arrays = decode(content, Reply)
            run_id = self._config.federation.run_id
            if (reply.platform, reply.run_id, reply.round_number) != (name, run_id, number):
                msg = (
                    f"answers for {reply.platform!r}, run {reply.run_id!r}, round "
                    f"{reply.round_number}; expected {name!r}, {run_id!r}, {number}."
                )
                raise InvalidRelease(msg)
            if reply.outcome == "declined":
                return None, shortened(f"declined: {reply.reason}")
            if reply.outcome != wanted:
                msg = f"outcome {reply.outcome!r}, expected {wanted!r}."
                raise InvalidRelease(msg)
            if check is not None:
                arrays = check(arrays)
        except CrossRecError as error:
            outcome = shortened(f"left out: {error}")
            log.warning("reply of %s %s", name, outcome)
            return None, outcome
        return arrays, wanted


def shortened(reason: object) -> str:
    """A platform's own words, of a length that the journal can hold."""
    text = str(reason)
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
