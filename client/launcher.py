"""Runs this platform's installed ClientApp for its SuperNode, and nothing that a server ships.

Flower's own SuperExec would unpack the bundle of a run and execute whatever its pyproject.toml
names. Here SuperExec hands each task to :class:`InstalledApp`, which forks a process that has
loaded :mod:`client.app` from this installation; the bundle is not unpacked, and of it
only Flower's SuperNode reads anything, its pyproject.toml. Forking also saves the seconds that
importing torch takes for each message.

A platform trusts: this installation (CrossRec, Flower, torch) and its own platform.toml, which this
program is told of when it is started. It need not trust the server with anything that is executed,
nor whoever listens on the SuperNode's port after the SuperNode has ended.

    python -m client.launcher --runtime-api-address 127.0.0.1:9094 --secret-file FILE \
        --platform-config /etc/crossrec/platform.toml --parent-pid N
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.supercore.superexec.run_superexec import run_superexec as start_superexec
from flwr.supernode.runtime import run_clientapp

from client.app import PLATFORM_CONFIG, app
from common.config import split_address
from common.logs import configure_child_logging
from common.peers import listener_is_ours

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.app import Context, Message

log = logging.getLogger(__name__)

_FORKED = multiprocessing.get_context("fork")


class InstalledApp:
    """An executor of Flower's SuperExec: one forked process for each message to this platform."""

    def __init__(self, platform_config: Path) -> None:
        """No process yet.

        Args:
            platform_config: the platform that answers, whatever the SuperNode says.
        """
        self._platform_config = platform_config
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
        if not listener_is_ours(split_address(spec.runtime_api_address)):
            log.error("%s: not this user's SuperNode; not answered", spec.runtime_api_address)
            return LaunchResult.failed("this platform answers its own SuperNode only.")
        process = _FORKED.Process(target=_answer, args=(spec, self._platform_config))
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


def _answer(spec: ExecutionSpec, platform_config: Path) -> None:
    # Flower has no option for it: two names of its module are replaced in this forked process.
    vars(run_clientapp).update(
        install_from_fab=_leave_packed,
        get_load_client_app_fn=lambda **_: partial(_installed_app, platform_config),
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


def _installed_app(platform_config: Path, *_: object) -> Callable[[Message, Context], Message]:
    """In place of Flower's loading of the application that a bundle names."""

    def answer(message: Message, context: Context) -> Message:
        # Nothing that the SuperNode says stays, a simulation's marker least of all.
        context.node_config = {PLATFORM_CONFIG: str(platform_config)}
        return app(message, context)

    return answer


def main() -> None:
    """Serve the SuperNode's tasks until the parent process ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime-api-address", required=True)
    parser.add_argument("--secret-file", type=Path, required=True)
    parser.add_argument("--platform-config", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    arguments = parser.parse_args()
    configure_child_logging()
    vars(run_superexec).update(
        get_executor=lambda *_, **__: InstalledApp(arguments.platform_config)
    )
    start_superexec(
        runtime_api_address=arguments.runtime_api_address,
        insecure=True,  # loopback only; requests are signed with the secret
        superexec_auth_secret=arguments.secret_file.read_bytes(),
        parent_pid=arguments.parent_pid,
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    main()
