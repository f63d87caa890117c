"""Flower's SuperNode, asked to look for messages more often and to tell no durations.

Takes the arguments of ``flower-supernode``; Flower has no option for its waits, nor for the time
that it measures for each message and sends with the reply: how long work on users' data took, as a
number without noise.
"""

from __future__ import annotations

import os
import sys
import traceback
from time import sleep
from types import SimpleNamespace

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate import InMemoryNodeState

LONGEST_WAIT_SECONDS = 0.5


def main() -> None:
    """Run the SuperNode until it ends."""
    _change_flower()
    code = 1
    try:
        flower_supernode()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except Exception:  # noqa: BLE001 - whatever it was, the process must end
        traceback.print_exc()
    # A thread of Flower's would keep a SuperNode that has failed alive for ever, and nobody would
    # start it again.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _change_flower() -> None:
    def shortened(seconds: float) -> None:
        sleep(min(seconds, LONGEST_WAIT_SECONDS))

    measured = InMemoryNodeState.get_message_processing_duration

    def untold(state: InMemoryNodeState, message_id: str) -> float:
        measured(state, message_id)  # it also forgets old messages
        return 0.0

    vars(start_client_internal).update(time=SimpleNamespace(sleep=shortened))
    InMemoryNodeState.get_message_processing_duration = untold  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    main()
