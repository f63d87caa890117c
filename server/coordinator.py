"""A deployed run from start to end: keeps SuperLink, gateway and ServerApp alive, and resumes.

Whatever is killed is started again: a run continues from its checkpoint, and platforms answer a
repeated request with the release that they sent before. What decides is the run's own journal,
because Flower forgets a run whose SuperLink died.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from common.config import split_address
from common.errors import ConfigError, RunFailed
from common.locks import FileLock, holder_of
from common.processes import Child
from common.storage import make_private
from server.journal import FILE_NAME, RUN_LOCK, journal_size, read_journal
from server.registrations import REGISTRATIONS_FILE
from server.superlink import SuperLink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from server.config import FederationConfig, NetworkSection

log = logging.getLogger(__name__)

POLL_SECONDS = 0.3
SILENCE_SECONDS = 20.0
"""After so long without a word in the journal, Flower is asked whether the run still lives."""
LOCK_FILE = "coordinator.lock"
START_SECONDS = 60.0
MAX_FRUITLESS_STARTS = 5
"""Starts in a row in which no round, sum or hand-over got done."""

_PROGRESS = frozenset({"sum-closed", "round-closed", "handed-over", "run-finished"})


class Coordinator:
    """The programs of one deployed federation."""

    def __init__(self, config_file: Path, config: FederationConfig) -> None:
        """Check what is needed; nothing is started yet.

        Raises:
            ConfigError: if the federation has no [network], or a file of it is missing.
        """
        if config.network is None:
            msg = f"{config_file}: [network] is missing; `crossrec server init` writes one."
            raise ConfigError(msg)
        self._config_file = config_file
        self._network = config.network
        self._state = config.state.folder
        self._run_id = config.federation.run_id
        self._run_folder = config.run_folder
        self._keys = platform_keys(config.network, config.federation.platforms)
        for path in (self._network.certificate, self._network.root_certificate):
            if not path.is_file():
                msg = f"{path}: is missing; `crossrec server init` makes it."
                raise ConfigError(msg)
        self._superlink = SuperLink(self._state / "flower", config.network)
        self._gateway: Child | None = None

    @property
    def registered(self) -> tuple[str, ...]:
        """Platforms whose key is there, by name."""
        return tuple(self._keys)

    def run(self, on_start: Callable[[], None] = lambda: None) -> None:
        """Run the federation to its end; returns when every platform was handed what it made.

        Args:
            on_start: called once platforms can connect.

        Raises:
            RunFailed: with the journal's reason if the run ended without its result, or if it was
                started several times in a row without getting anywhere.
        """
        fruitless = 0
        make_private(self._state)
        busy = "another `crossrec server run` runs this federation; stop it first."
        lock = FileLock(self._state / LOCK_FILE, busy=busy)
        try:
            self._check_address()
            self._start()
            on_start()
            while fruitless < MAX_FRUITLESS_STARTS:
                self._end_former_run()
                offset = journal_size(self._run_folder)
                run = self._superlink.submit(self._config_file, self._run_id)
                outcome, got_somewhere = self._follow(run, offset)
                if outcome == "run-finished":
                    return
                fruitless = 0 if got_somewhere else fruitless + 1
                log.warning("the run was interrupted (%s); it is started again", outcome)
                if not self._superlink.runs:
                    self._start()
            msg = (
                f"the run was started {MAX_FRUITLESS_STARTS} times and each time ended before a "
                f"step was done. Logs: {self._state / 'flower'}; journal: "
                f"{self._run_folder / FILE_NAME}."
            )
            raise RunFailed(msg)
        finally:
            self.stop()
            lock.close()

    def _check_address(self) -> None:
        """Nobody else may listen where platforms are to connect."""
        host, port = split_address(self._network.address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise RunFailed(
                    f"[network] address = {self._network.address!r} cannot be listened on "
                    f"({error.strerror}). Stop the program that does, or choose another port."
                ) from error

    def _end_former_run(self) -> None:
        """A ServerApp can outlive its SuperLink, and would keep the next one from its work."""
        former = holder_of(self._run_folder / RUN_LOCK)
        if former is not None:
            log.warning("the ServerApp of a former start still ran (process %d); ended", former)
            with suppress(ProcessLookupError):
                os.kill(former, signal.SIGKILL)

    def stop(self) -> None:
        """End all programs; the checkpoint stays."""
        if self._gateway is not None:
            self._gateway.stop()
            self._gateway = None
        self._superlink.stop()

    def _start(self) -> None:
        self._superlink.start()
        try:
            self._superlink.register(self._keys, self._state / REGISTRATIONS_FILE)
        except ConfigError as error:
            log.warning("%s Registering everybody anew.", error)
            self._superlink.forget()
            self._superlink.start()
            self._superlink.register(self._keys, self._state / REGISTRATIONS_FILE)
        self._start_gateway()

    def _start_gateway(self) -> None:
        if self._gateway is not None:
            self._gateway.stop()
        network = self._network
        self._gateway = Child(
            [
                *(sys.executable, "-m", "server.gateway"),
                *("--listen", network.address, "--superlink", self._superlink.address),
                *("--certificate", str(network.certificate), "--key", str(network.private_key)),
                *("--root-certificate", str(network.root_certificate)),
                *("--platform-keys", str(network.platform_keys)),
            ],
            log=self._state / "flower" / "gateway.log",
        )
        self._wait_for_gateway(self._gateway)

    def _wait_for_gateway(self, gateway: Child) -> None:
        host, port = split_address(self._network.address)
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up:
            if gateway.exit_code is not None:
                break
            with suppress(OSError), socket.create_connection((_reached_at(host), port), 1.0):
                return
            time.sleep(POLL_SECONDS)
        raise RunFailed(
            f"[network] address = {self._network.address!r}: nothing could listen there; is it in "
            f"use by another program? {gateway.log} ends with:\n{gateway.last_lines()}"
        )

    def _follow(self, run: int, offset: int) -> tuple[str, bool]:
        """Wait until the run is over; return how it ended, and whether it got anywhere."""
        got_somewhere, last_word = False, time.monotonic()
        while True:
            for end, event in read_journal(self._run_folder, start=offset):
                offset, last_word = end, time.monotonic()
                got_somewhere |= event["event"] in _PROGRESS
                if event["event"] == "run-finished":
                    return "run-finished", True
                if event["event"] == "run-failed":
                    raise RunFailed(_reason(event))
            if not self._superlink.runs:
                return "the SuperLink ended", got_somewhere
            if self._gateway is None or self._gateway.exit_code is not None:
                log.warning("the gateway ended and is started again")
                self._start_gateway()
            if time.monotonic() - last_word > SILENCE_SECONDS:
                last_word = time.monotonic()
                try:
                    status = self._superlink.status(run)
                except RunFailed as error:
                    log.warning("%s", error)
                    continue
                # The journal may have had its last word while Flower was asked.
                if status.is_over and journal_size(self._run_folder) == offset:
                    return f"Flower: {status.state} {status.details}".strip(), got_somewhere
            time.sleep(POLL_SECONDS)


def _reached_at(host: str) -> str:
    """Where this machine reaches what listens on ``host``, which may stand for all addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here


def platform_keys(network: NetworkSection, platforms: tuple[str, ...]) -> dict[str, Path]:
    """Public key file of each platform that was registered.

    Raises:
        ConfigError: if there is none.
    """
    keys = {name: network.platform_keys / f"{name}.pub" for name in platforms}
    found = {name: path for name, path in keys.items() if path.is_file()}
    if not found:
        msg = (
            f"{network.platform_keys}: holds no platform's key. Register each platform first: "
            "crossrec server register NAME node.pub"
        )
        raise ConfigError(msg)
    return found


def _reason(event: Mapping[str, Any]) -> str:
    return str(event.get("reason", "the journal gives no reason"))
