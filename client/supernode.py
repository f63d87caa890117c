"""Flower's SuperNode, asked to look for messages more often than every three seconds.

Takes the arguments of ``flower-supernode``; Flower has no option for its waits.
"""

from __future__ import annotations

from time import sleep
from types import SimpleNamespace

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

LONGEST_WAIT_SECONDS = 0.5


def main() -> None:
    """Run the SuperNode until it ends."""

    def shortened(seconds: float) -> None:
        sleep(min(seconds, LONGEST_WAIT_SECONDS))

    vars(start_client_internal).update(time=SimpleNamespace(sleep=shortened))
    flower_supernode()


if __name__ == "__main__":
    main()
