"""What is changed in Flower's SuperNode: how often it looks, and that it tells no durations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import InMemoryNodeState, NodeStateFactory

from client import supernode
from tests.unit.client.durations import durations_sent

DURATION = "get_message_processing_duration"


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes; the process stays, and what is changed in Flower is put back."""
    ends: list[int] = []
    of_flower = vars(start_client_internal)
    monkeypatch.setitem(of_flower, "time", of_flower["time"])
    monkeypatch.setattr(InMemoryNodeState, DURATION, vars(InMemoryNodeState)[DURATION])
    monkeypatch.setattr(os, "_exit", ends.append)
    return ends


def test_flower_still_has_the_names_that_are_replaced() -> None:
    assert "time" in vars(start_client_internal)
    assert DURATION in vars(InMemoryNodeState)
    assert type(NodeStateFactory(ObjectStoreFactory()).state()) is InMemoryNodeState


def test_it_waits_less_and_is_otherwise_flowers(
    ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    of_flower = vars(start_client_internal)
    monkeypatch.setattr(supernode, "sleep", waits.append)
    monkeypatch.setattr(supernode, "flower_supernode", lambda: of_flower["time"].sleep(3))
    supernode.main()
    assert ends == [0]
    assert waits == [supernode.LONGEST_WAIT_SECONDS]


def test_nobody_is_told_how_long_work_on_users_data_took(monkeypatch: pytest.MonkeyPatch) -> None:
    (measured,) = durations_sent(monkeypatch)
    assert measured >= 0.01, "Flower sends it: the test must be able to fail"
    monkeypatch.setattr(supernode, "flower_supernode", lambda: None)
    supernode.main()
    assert durations_sent(monkeypatch) == [0.0]


@pytest.mark.parametrize(
    ("ending", "code"), [("raise OSError('connection lost')", 1), ("sys.exit(305)", 305 % 256)]
)
def test_one_that_failed_ends_although_a_thread_of_flowers_lives(ending: str, code: int) -> None:
    program = (
        "import sys, threading, time; from client import supernode\n"
        "def fails():\n"
        "    threading.Thread(target=time.sleep, args=(600,)).start()\n"
        f"    {ending}\n"
        "supernode.flower_supernode = fails\n"
        "supernode.main()"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, timeout=120, check=False)
    assert done.returncode == code
