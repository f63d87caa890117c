"""Flower's own programs at the coordinator: SuperLink, registration of platforms, start of runs.

Wraps the executables; nothing of Flower's is done again here. What a local user could do to the
SuperLink is prevented by :mod:`server.guarded_superlink`. The bundle that is started holds no
code: coordinator and platforms run the CrossRec that each of them installed.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from common.errors import ConfigError, RunFailed
from common.processes import Child, free_port, script
from common.storage import make_private, read_content, sha256, write_durably
from server.registrations import Registration, read_registrations, write_registrations

if TYPE_CHECKING:
    from pathlib import Path

    from server.config import NetworkSection

_CONNECTION = "coordinator"
_BUNDLE = """\
# Written by `crossrec server run`. No code travels in this bundle.
[project]
name = "crossrec-run"
version = "1.0.0"

[tool.flwr.app]
publisher = "crossrec"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
federation-config = ""
run-id = ""
"""
_START_SECONDS = 120.0
_CALL_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """What Flower says about a run."""

    state: str
    """``pending``, ``starting``, ``running``, ``finished:completed``, ``finished:failed``, ..."""
    details: str
    """Its words for what went wrong, or an empty text."""

    @property
    def is_over(self) -> bool:
        """Whether its ServerApp has ended."""
        return self.state.startswith("finished")


class SuperLink:
    """One SuperLink on loopback with its database in ``folder``, for this user only."""

    def __init__(self, folder: Path, network: NetworkSection) -> None:
        """Name the place; nothing is started yet."""
        self._folder = folder
        self._network = network
        self._child: Child | None = None
        self.address = ""

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RunFailed: if it ends or does not answer in time; names its log.
        """
        self.stop()
        make_private(self._folder)
        self.address = f"127.0.0.1:{free_port()}"
        host, _, port = self.address.rpartition(":")
        self._write_settings()
        network = self._network
        self._child = Child(
            [
                *(sys.executable, "-m", "server.guarded_superlink"),
                *("--host", host, "--port", port),
                "--disable-runtime-dependency-installation",
                "--enable-supernode-auth",
                *("--ssl-ca-certfile", str(network.root_certificate)),
                *("--ssl-certfile", str(network.certificate)),
                *("--ssl-keyfile", str(network.private_key)),
                *("--database", str(self._folder / "superlink.db")),
            ],
            log=self._folder / "superlink.log",
            environment=self._environment(),
        )
        give_up = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._child.exit_code is not None or time.monotonic() > give_up:
                raise RunFailed(
                    f"the SuperLink did not start; the end of {self._child.log} says:\n"
                    f"{self._child.last_lines()}"
                )
            time.sleep(0.2)

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._child is not None and self._child.exit_code is None

    def stop(self) -> None:
        """End it, and with it the run that it executes."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def forget(self) -> None:
        """End it and drop its database; a run's own state is elsewhere.

        Flower keeps a key for ever: one that was registered by a start that was cut short, or
        replaced and put back, can be registered in a new database only.
        """
        self.stop()
        for path in self._folder.glob("superlink.db*"):
            path.unlink()

    def register(self, keys: dict[str, Path], registrations: Path) -> dict[str, int]:
        """Make the SuperLink accept exactly these platforms; write down and return their node ids.

        Args:
            keys: public key file of each platform.
            registrations: file that remembers what was registered.

        Raises:
            ConfigError: if a key is refused.
        """
        known = read_registrations(registrations)
        there = {int(node["node-id"]) for node in self._call("supernode", "list")["nodes"]}
        digests = {name: sha256(read_content(path)) for name, path in keys.items()}
        found = {
            name: before
            for name, before in known.items()
            if before.key_sha256 == digests.get(name) and before.node_id in there
        }
        for name in known.keys() - found.keys():
            if known[name].node_id in there:
                self._call("supernode", "unregister", str(known[name].node_id))
        for name, path in sorted(keys.items()):
            if name not in found:
                try:
                    node = int(self._call("supernode", "register", str(path))["node-id"])
                except RunFailed as error:
                    raise ConfigError(
                        f"{path}: the key of platform {name!r} was not accepted. {error}"
                    ) from error
                found[name] = Registration(node_id=node, key_sha256=digests[name])
        write_registrations(registrations, found)
        return {name: entry.node_id for name, entry in found.items()}

    def submit(self, federation_config: Path, run_id: str) -> int:
        """Start the ServerApp on ``federation_config``; return Flower's number of the run.

        The file may be edited before the ServerApp reads it: one of another ``run_id`` is refused.
        """
        bundle = self._folder / "bundle"
        write_durably(bundle / "pyproject.toml", _BUNDLE.encode())
        path = json.dumps(str(federation_config.absolute()))
        setting = f"federation-config={path} run-id={json.dumps(run_id)}"
        return int(self._call("run", str(bundle), "--run-config", setting)["run-id"])

    def status(self, run: int) -> RunStatus:
        """What Flower says about ``run``."""
        for found in self._call("list")["runs"]:
            if int(found["run-id"]) == run:
                details = found["status-details"]
                return RunStatus(
                    state=str(found["status"]), details="" if details == "N/A" else str(details)
                )
        return RunStatus(state="finished:unknown", details="the SuperLink does not know the run")

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=self._network.root_certificate)
        try:
            url = f"https://{self.address}/health"
            return httpx.get(url, verify=context, trust_env=False, timeout=5).is_success
        except httpx.HTTPError:
            return False

    def _environment(self) -> dict[str, str]:
        return {"FLWR_HOME": str(self._folder)}

    def _write_settings(self) -> None:
        certificate = json.dumps(str(self._network.root_certificate))
        settings = (
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
            f'address = "{self.address}"\nroot-certificates = {certificate}\n'
        )
        write_durably(self._folder / "config.toml", settings.encode())

    def _call(self, *arguments: str) -> dict[str, Any]:
        """Run one ``flwr`` command and return what it prints as JSON."""
        # The name of the connection follows the first positional argument, or comes alone.
        options = next((k for k, text in enumerate(arguments) if text.startswith("--")), None)
        place = len(arguments) if options is None else options
        command = [script("flwr"), *arguments[:place], _CONNECTION, *arguments[place:]]
        command += ["--format", "json"]
        what = " ".join(arguments[:2])
        try:
            done = subprocess.run(  # noqa: S603 - Flower's own command
                command,
                capture_output=True,
                text=True,
                timeout=_CALL_SECONDS,
                env={**os.environ, **self._environment()},
                check=False,
            )
            answer = json.loads(done.stdout)
        except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
            raise RunFailed(f"`flwr {what}` failed ({type(error).__name__}).") from error
        if not isinstance(answer, dict) or not answer.get("success"):
            reason = answer.get("error-message", "") if isinstance(answer, dict) else ""
            raise RunFailed(f"`flwr {what}` failed: {' '.join(str(reason).split())}")
        return answer
