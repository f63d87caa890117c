"""Questions to platforms and what comes back: every reply is checked, a bad one is left out.

Platforms are known by name: node ids are only addresses.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

import httpx

from common.errors import CrossRecError, InvalidRelease, RunFailed
from common.logs import on_one_line
from common.messages import Reply
from common.wire import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

    from common.models.partition import Arrays
    from server.config import FederationConfig
    from server.standing import Standing

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
_LONGEST_REASON = 500

LARGEST_MESSAGE = 1 << 16
"""Bytes of a reply beside its arrays."""

_OUR_TROUBLE = frozenset({401, 403, 502, 503, 504})
"""Answers of the SuperLink to any call while it is away, or to a run that it has ended.

Any other error, 500 above all, is about the one message: Flower met what a platform put there.
"""


class Exchange:
    """Sends messages over a Flower grid on behalf of one run."""

    def __init__(self, config: FederationConfig, grid: Grid, standing: Standing) -> None:
        """Take the run's name, quorum and patience from ``config``.

        Args:
            config: of the federation.
            grid: delivers messages.
            standing: is told what became of every reply; whom to ask is the caller's to say.
        """
        self._config = config
        self._grid = grid
        self._standing = standing

    def nodes(self) -> list[int]:
        """Addresses of everybody who is there."""
        return list(self._grid.get_node_ids())

    def send(
        self, messages: Mapping[int, Message], patience: float = math.inf
    ) -> Iterator[tuple[int, RecordDict | None, str]]:
        """Send one message to each node; yield (node, content or None, cause) as replies arrive.

        A cause is the outcome for the journal, of the node's doing (``no answer: ...``) or not
        (``undelivered: ...``).

        Args:
            messages: by node.
            patience: seconds, if that is less than a round may take.
        """
        patience = min(patience, self._config.federation.round_timeout_seconds)
        deadline = time.monotonic() + patience
        waiting: dict[str, int] = {}
        for node, message in messages.items():
            # One at a time: push_messages leaves out unreachable nodes without saying which.
            try:
                sent = list(self._grid.push_messages([message]))
            except httpx.HTTPStatusError as error:
                if error.response.status_code in _OUR_TROUBLE:
                    raise
                log.warning("node %d: the SuperLink did not take a message (%s)", node, error)
                yield node, None, f"undelivered: the SuperLink answered {_status(error)}"
                continue
            if not sent or not sent[0]:
                yield node, None, "no answer: the node could not be reached"
            else:
                waiting[sent[0]] = node
        while waiting and time.monotonic() < deadline:
            arrived = False
            # All of them, even past the deadline: a large reply must not cost others their turn.
            for message_id in list(waiting):
                answer = self._pull(message_id, waiting[message_id])
                if answer is not None:
                    arrived = True
                    yield waiting.pop(message_id), *answer
            if waiting and not arrived:
                time.sleep(POLL_SECONDS)
        for node in waiting.values():
            yield node, None, "no answer: the round closed before it answered"

    def _pull(self, message_id: str, node: int) -> tuple[RecordDict | None, str] | None:
        """What answers one message: its content, or None and the cause; None if nothing is there.

        One at a time: at most one reply is in memory, and one that Flower cannot read, which makes
        it raise, is known by whom it was asked from. The metadata in a reply are its sender's.
        """
        try:
            replies = list(self._grid.pull_messages([message_id]))
            if not replies:
                return None
            reply = replies[0]
            if reply.has_error():
                return None, f"no answer: {reply.error.reason}"
            said = reply.metadata
            if (said.reply_to_message_id, said.src_node_id) != (message_id, node):
                return None, f"no answer: its reply says that it comes from node {said.src_node_id}"
        except httpx.HTTPStatusError as error:
            if error.response.status_code in _OUR_TROUBLE:
                raise
            return None, f"no answer: the SuperLink cannot read its reply ({_status(error)})"
        except (httpx.HTTPError, OSError):
            raise  # the SuperLink does not answer: no platform's doing
        except Exception as error:  # noqa: BLE001 - Flower's readers raise what they meet
            return None, f"no answer: its reply cannot be read ({type(error).__name__})"
        return reply.content, ""

    def ask(
        self,
        messages: Mapping[str, Message],
        *,
        number: int,
        wanted: str,
        check: Callable[[str, Arrays], Arrays] | None = None,
        max_bytes: int = 0,
        patience: float = math.inf,
    ) -> Iterator[tuple[str, Arrays | None, str]]:
        """Send one message to each platform; yield (name, arrays or None, outcome).

        Args:
            messages: by platform.
            number: the round that replies must be for.
            wanted: the outcome of a platform that does what it is asked; its arrays are yielded.
            check: refuses the arrays of such a reply of a platform, or returns them.
            max_bytes: of these arrays; larger replies are not decoded.
            patience: seconds, if that is less than a round may take.
        """
        most = LARGEST_MESSAGE + max_bytes
        names = {message.metadata.dst_node_id: name for name, message in messages.items()}
        by_node = {message.metadata.dst_node_id: message for message in messages.values()}
        for node, content, cause in self.send(by_node, patience):
            name = names[node]
            if content is None:
                arrays, outcome = None, shortened(cause)
            else:
                arrays, outcome = self._read(name, number, wanted, content, check, most)
            yield name, arrays, outcome
            del arrays
            self._standing.record(name, outcome)

    def check_quorum(
        self, what: str, num_releases: int, num_platforms: int, *, at_least: int = 1
    ) -> None:
        """End the run if too few platforms released.

        Args:
            what: is asked for.
            num_releases: that were accepted.
            num_platforms: that were asked.
            at_least: releases that the aggregation needs.

        Raises:
            RunFailed: saying what was missing.
        """
        needed = max(self._config.federation.quorum, at_least)
        if num_releases < needed:
            msg = (
                f"{what}: {num_releases} of {num_platforms} platforms released, {needed} are "
                "needed. What is finished is kept; see the journal for each platform's reason, "
                "then start the same run again."
            )
            raise RunFailed(msg)

    def _read(
        self,
        name: str,
        number: int,
        wanted: str,
        content: RecordDict,
        check: Callable[[str, Arrays], Arrays] | None,
        max_bytes: int,
    ) -> tuple[Arrays | None, str]:
        """Take one reply: its arrays if the platform did what was asked, and what it did."""
        try:
            reply, arrays = decode(content, Reply, max_bytes=max_bytes)
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
                arrays = check(name, arrays)
        except CrossRecError as error:
            outcome = shortened(f"left out: {error}")
            log.warning("reply of %s %s", name, outcome)
            return None, outcome
        return arrays, wanted


def _status(error: httpx.HTTPStatusError) -> str:
    return f"HTTP {error.response.status_code}"


def shortened(reason: object) -> str:
    """A platform's own words, on one line of a length that the journal can hold.

    Control characters are written out: a terminal would obey them.
    """
    text = on_one_line(str(reason)[: _LONGEST_REASON + 1])
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
