"""A federation of real processes on loopback, made and run by the commands of the README."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from client.config import PlatformConfig
from client.joining import trust_platform
from common.config import load_config
from common.data.readers import read_marketplace
from common.processes import free_port
from server.config import FederationConfig
from server.journal import read_journal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).parents[2]
CROSSREC = [sys.executable, "-c", "from common.cli import main; main()"]
PATIENCE = 300.0


def crossrec(*words: object) -> str:
    """Run one command to its end; return what it printed."""
    done = subprocess.run(
        [*CROSSREC, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something holds, or fail with its name."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.1)


class Program:
    """A command that runs for long."""

    def __init__(self, log: Path, command: Sequence[str], **environment: str) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL: nothing of its own runs any more."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        """SIGTERM, as a service manager does."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()


class Deployment:
    """Folder, ports and programs of one federation; everything ends with the context."""

    def __init__(self, folder: Path, markets: Path, users: dict[str, int], **init: object) -> None:
        """Found the federation, and make and register one platform for each of ``users``.

        Args:
            folder: everything is written there.
            markets: folder of the real markets.
            users: how many users of each market its platform has.
            init: options of ``crossrec server init``; platforms have the same trust mode.
        """
        self.folder = folder
        self.port = free_port()
        self.config_file = folder / "market/federation.toml"
        self.programs: dict[str, Program] = {}
        options = [word for name in users for word in ("--platform", name)]
        for name, value in init.items():
            options += [f"--{name.replace('_', '-')}", str(value)]
        crossrec(
            *("server", "init", folder / "market", "--host", "127.0.0.1", "--port", self.port),
            *options,
        )
        tables = {table.name: table for table in read_marketplace(markets).platforms}
        for name, size in users.items():
            self._settle(name, tables[name].interactions, size, init.get("trust", "local"))
        if init.get("trust") == "secagg":
            for name, other in permutations(users, 2):
                # In this process: the command takes seconds, and every pair of platforms needs it.
                config = load_config(self.toml(name), PlatformConfig)
                trust_platform(other, self.home(other) / "node.pub", self.toml(name), config)

    def _settle(self, name: str, interactions: pd.DataFrame, size: int, trust: object) -> None:
        chosen = interactions["user_id"].drop_duplicates().head(size)
        mine = interactions[interactions["user_id"].isin(chosen)]
        mine.to_csv(self.folder / f"{name}-orders.csv", index=False)
        items = mine["item_id"].drop_duplicates().sort_values()
        pd.DataFrame({"item_id": items}).to_csv(self.folder / f"{name}-items.csv", index=False)
        crossrec(
            *("client", "init", self.home(name), "--name", name),
            *("--server", f"127.0.0.1:{self.port}"),
            *("--root-certificate", self.folder / "market/ca.crt"),
            *("--data", self.folder / f"{name}-orders.csv"),
            *("--assortment", self.folder / f"{name}-items.csv"),
            *("--population", size, "--epsilon", 32, "--trust", trust),
        )
        change(self.toml(name), keep_releases=100)
        with self.toml(name).open("a") as file:
            file.write("\n[adaptation]\nmax_epochs = 1\nvalidation_users = 50\n")
        crossrec("server", "register", name, self.home(name) / "node.pub", self.config_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.programs)):
            self.programs[name].stop()

    def home(self, name: str) -> Path:
        return self.folder / name

    def toml(self, name: str) -> Path:
        return self.home(name) / "platform.toml"

    def config(self) -> FederationConfig:
        return load_config(self.config_file, FederationConfig)

    def start_server(self, command: str = "run") -> Program:
        words = ["server", command, str(self.config_file), "--quiet"]
        self.programs["server"] = Program(self.folder / "server.log", [*CROSSREC, *words])
        return self.programs["server"]

    def start_platform(self, name: str) -> Program:
        words = ["client", "run", str(self.toml(name))]
        self.programs[name] = Program(self.folder / f"{name}.log", [*CROSSREC, *words])
        return self.programs[name]

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """What the journal of the present run says, oldest first."""
        journal = read_journal(self.config().run_folder)
        return [event for _, event in journal if kind in {"", event["event"]}]

    def wait_for_event(self, kind: str, **facts: object) -> None:
        def is_there() -> bool:
            server = self.programs["server"]
            assert server.process.poll() in {None, 0}, server.said()
            return any(
                all(event.get(name) == value for name, value in facts.items())
                for event in self.events(kind)
            )

        wait_for(is_there, f"{kind} {facts}")

    def wait_for_end(self) -> None:
        server = self.programs["server"].process
        wait_for(lambda: server.poll() is not None, "the end of the run", 2 * PATIENCE)
        assert server.returncode == 0, self.programs["server"].said()


class DatabaseWatch:
    """Every page of a SQLite database that was seen on disk, in the file or in its log.

    What is deleted is overwritten with zeros at once, so one look at the end would see nothing.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._pages: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        log, size = self._database.with_name(f"{self._database.name}-wal"), 4096
        while not self._stop.wait(0.1):
            with suppress(OSError):
                content = self._database.read_bytes()
                self._pages.update(content[k : k + size] for k in range(0, len(content), size))
                content = log.read_bytes()
                frames = range(32 + 24, len(content), 24 + size)
                self._pages.update(content[k : k + size] for k in frames)

    def pages(self) -> bytes:
        return b"".join(self._pages)


def change(path: Path, **values: object) -> None:
    """Set keys of a TOML file; one that is not there is added to ``[state]``, the last section."""
    text = path.read_text()
    for name, value in values.items():
        written = f"{name} = {str(value) if not isinstance(value, str) else repr(value)}"
        changed, count = re.subn(rf"(?m)^{name} = [^#\n]*", f"{written}  ", text)
        text = changed if count else text.replace("[state]\n", f"[state]\n{written}\n")
    path.write_text(text)


def processes(*words: str) -> list[int]:
    """Ids of processes whose command line holds all of ``words``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if all(word in line for word in words):
                    found.append(int(entry.name))
    return found


class Wiretap:
    """A relay before the coordinator that keeps every byte that passes."""

    def __init__(self, target: int) -> None:
        self.heard: list[bytes] = []
        self._target = target
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._door.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # the coordinator is away between two runs
                    near.close()
                    continue
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._relay, args=(one, other), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                self.heard.append(piece)
                sink.sendall(piece)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._door.close()
