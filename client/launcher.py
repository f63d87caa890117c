"""Runs this platform's installed ClientApp for its SuperNode, and nothing that a server ships.

Flower's own SuperExec would unpack the bundle of a run and execute whatever its pyproject.toml
names. Here SuperExec hands each task to :class:`InstalledApp`, which forks a process that has
loaded :mod:`client.app` from this installation; the bundle is neither unpacked nor read. Forking
also saves the seconds that importing torch takes for each message.

A platform trusts: this installation (CrossRec, Flower, torch) and its own platform.toml. It need
not trust the server with anything that is executed.

    python -m client.launcher --runtime-api-address 127.0.0.1:9094 --secret-file FILE --parent-pid N
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.supercore.superexec.run_superexec import run_superexec as start_superexec
from flwr.supernode.runtime import run_clientapp

from client.app import app
from common.logs import configure_child_logging

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

_FORKED = multiprocessing.get_context("fork")


class InstalledApp:
    """An executor of Flower's SuperExec: one forked process for each message to this platform."""

    def __init__(self) -> None:
        """No process yet."""
        self._running: list[multiprocessing.process.BaseProcess] = []

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], **_: object
    ) -> tuple[set[TaskType], set[str]]:
        """Messages to a ClientApp, whatever else Flower knows."""
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(self, *_: object, **__: object) -> None:
        """Return at once: a SuperNode handles one message at a time."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork a process that answers one message."""
        if spec.task_type is not TaskType.CLIENT_APP:
            return LaunchResult.failed(f"this platform runs no {spec.task_type}.")
        process = _FORKED.Process(target=_answer, args=(spec,))
        process.start()
        self._running.append(process)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Let go of processes that have ended."""
        self._running = [process for process in self._running if process.is_alive()]

    def close(self) -> None:
        """End what is still running; a request that was not answered is asked again."""
        for process in self._running:
            process.terminate()


def _answer(spec: ExecutionSpec) -> None:
    # Flower has no option for it: two names of its module are replaced in this forked process.
    vars(run_clientapp).update(
        install_from_fab=_leave_packed, get_load_client_app_fn=lambda **_: _installed_app
    )
    run_clientapp.run_clientapp(
        runtime_api_address=spec.runtime_api_address,
        token=spec.token,
        insecure=spec.insecure,
        parent_pid=os.getppid(),
        runtime_dependency_install=False,
    )


def _leave_packed(*_: object, **__: object) -> None:
    """In place of Flower's unpacking of a bundle."""


def _installed_app(*_: object) -> ClientApp:
    """In place of Flower's loading of the application that a bundle names."""
    return app


def main() -> None:
    """Serve the SuperNode's tasks until the parent process ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime-api-address", required=True)
    parser.add_argument("--secret-file", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    arguments = parser.parse_args()
    configure_child_logging()
    vars(run_superexec).update(get_executor=lambda *_, **__: InstalledApp())
    start_superexec(
        runtime_api_address=arguments.runtime_api_address,
        insecure=True,  # loopback only; requests are signed with the secret
        superexec_auth_secret=arguments.secret_file.read_bytes(),
        parent_pid=arguments.parent_pid,
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    main()
