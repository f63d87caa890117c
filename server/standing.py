"""Who is still asked: a platform that keeps failing is set aside for the rest of the run.

Bad replies, unreadable ones, errors and time-outs count, if ``max_failures`` of them come in a row.
A refusal (``declined``) does not, however often: it is an honest answer, costs no time, and a
budget may be raised while the run goes on. Nor does it make up for failures before it. A request
that the SuperLink could not take (``undelivered``) says nothing of the platform.

The journal remembers. A resumed run does not ask again until the operator says so
(``crossrec server readmit``); failures before the start do not count.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from server.journal import Journal

log = logging.getLogger(__name__)

T = TypeVar("T")

SET_ASIDE = "platform-set-aside"
READMITTED = "platform-readmitted"


class Standing:
    """Counts the failures of each platform, and writes down when they are too many."""

    def __init__(
        self, journal: Journal, max_failures: int, set_aside: Mapping[str, str] | None = None
    ) -> None:
        """Start with everybody but ``set_aside`` (name -> cause) in good standing.

        Args:
            journal: where it is written down.
            max_failures: failures in a row until a platform is set aside; 0 never does.
            set_aside: by an earlier start of the run.
        """
        self._journal = journal
        self._max_failures = max_failures
        self._failures: dict[str, int] = {}
        self.set_aside = dict(set_aside or {})
        """Who is not asked any more, and the last cause."""

    def record(self, platform: str, outcome: str) -> None:
        """Count what became of a platform's reply, in the words of the journal."""
        if outcome.startswith(("declined:", "undelivered:")):
            return
        if not outcome.startswith(("left out:", "no answer:")):
            self._failures[platform] = 0
        else:
            self._failures[platform] = self._failures.get(platform, 0) + 1
            if self._failures[platform] == self._max_failures:
                self.set_aside[platform] = outcome
                self._journal.write(SET_ASIDE, platform=platform, cause=outcome)
                log.warning("%s is not asked any more: %s", platform, outcome)

    def remaining(self, platforms: Mapping[str, T]) -> dict[str, T]:
        """``platforms`` without those that were set aside."""
        return {name: value for name, value in platforms.items() if name not in self.set_aside}


def set_aside_in(events: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Platform -> cause, as a journal tells it: set aside and not readmitted since."""
    found: dict[str, str] = {}
    for event in events:
        if event["event"] == SET_ASIDE:
            found[event["platform"]] = event["cause"]
        elif event["event"] == READMITTED:
            found.pop(event["platform"], None)
    return found
