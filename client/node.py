"""Keeps a platform in the federation: Flower's SuperNode, and the launcher of the installed app.

Both are started again when they end: a SuperNode that was killed is let in again only after the
coordinator has noticed (about a minute), and a coordinator may be away for days.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from time import sleep
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.locks import FileLock, holder_of
from common.processes import Child, free_port
from common.storage import make_private, write_durably

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.config import PlatformConfig, ServerSection

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 2.0, 60.0
STEADY_SECONDS = 120.0
"""After so long a life, a program's end is no sign that its next start will fail."""

LOCK_FILE = "node.lock"
_ENVIRONMENT = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}


class Node:
    """The programs of one platform."""

    launcher = "client.launcher"
    """Module that answers the SuperNode's tasks."""

    def __init__(self, config_file: Path, config: PlatformConfig) -> None:
        """Check what is needed; nothing is started yet.

        Raises:
            ConfigError: if there is no [server], or a file of it is missing.
        """
        self._config_file = config_file.absolute()
        self._server = server_section(config_file, config)
        self._folder = config.state.folder / "flower"
        self._secret = self._folder / "launcher.secret"
        self._children: list[Child] = []

    def run(self, on_start: Callable[[], None] = lambda: None) -> None:
        """Take part until interrupted.

        Args:
            on_start: called after each start of the programs.
        """
        wait = FIRST_WAIT_SECONDS
        lock = self._hold_lock()
        try:
            while True:
                began = time.monotonic()
                self._start()
                on_start()
                ended = self._wait()
                if time.monotonic() - began > STEADY_SECONDS:
                    wait = FIRST_WAIT_SECONDS
                log.warning(
                    "%s ended (exit code %s); next start in %.0f s. Its log, %s, ends with:\n%s",
                    ended.name,
                    ended.exit_code,
                    wait,
                    ended.log,
                    ended.last_lines(),
                )
                self.stop()
                sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        finally:
            self.stop()
            lock.close()

    def _hold_lock(self) -> FileLock:
        """One `crossrec client run` for each platform."""
        make_private(self._folder.parent)
        make_private(self._folder)
        busy = "this platform runs already; stop the other `client run` first."
        return FileLock(self._folder / LOCK_FILE, busy=busy)

    def stop(self) -> None:
        """End all programs; a request that was not answered will be asked again."""
        for child in reversed(self._children):
            child.stop()
        self._children = []

    def _start(self) -> None:
        # The SuperNode hands tasks only to who knows this secret: no other user of this machine.
        write_durably(self._secret, secrets.token_bytes(32))
        port = free_port()
        environment = {"FLWR_HOME": str(self._folder), **_ENVIRONMENT}
        server = self._server
        supernode = Child(
            [
                *(sys.executable, "-m", "client.supernode"),
                *("--superlink", server.address),
                *("--root-certificates", str(server.root_certificate)),
                *("--auth-supernode-private-key", str(server.private_key)),
                *("--isolation", "process", "--superexec-auth-secret-file", str(self._secret)),
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            log=self._folder / "supernode.log",
            environment=environment,
        )
        self._children = [supernode]
        self._children.append(
            Child(
                [
                    *(sys.executable, "-m", self.launcher),
                    *("--runtime-api-address", f"127.0.0.1:{port}"),
                    *("--secret-file", str(self._secret)),
                    *("--platform-config", str(self._config_file)),
                    *("--parent-pid", str(os.getpid())),
                ],
                log=self._folder / "clientapp.log",
                environment=environment,
            )
        )

    def _wait(self) -> Child:
        while True:
            for child in self._children:
                if child.exit_code is not None:
                    return child
            sleep(POLL_SECONDS)


def is_running(state: Path) -> bool:
    """Whether a ``crossrec client run`` runs this platform."""
    return holder_of(state / "flower" / LOCK_FILE) is not None


def server_section(config_file: Path, config: PlatformConfig) -> ServerSection:
    """How the platform reaches its coordinator.

    Raises:
        ConfigError: if the file does not say, or a file that it names is missing.
    """
    if config.server is None:
        msg = f"{config_file}: [server] is missing; `crossrec client init` writes one."
        raise ConfigError(msg)
    for path in (config.server.root_certificate, config.server.private_key):
        if not path.is_file():
            msg = f"{path}: is missing; {config_file} names it in [server]."
            raise ConfigError(msg)
    return config.server
