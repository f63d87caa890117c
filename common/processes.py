"""Child processes of a command: they log to a file, and end when the command ends.

For the commands that wrap other programs; nothing else starts a process.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import StateError
from common.logs import on_one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PR_SET_PDEATHSIG = 1
_SECONDS_TO_STOP = 10.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def script(name: str) -> str:
    """The installed command ``name`` of this very environment, whatever PATH says."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        found.bind((host, 0))
        port: int = found.getsockname()[1]
    return port


class Child:
    """A running program. On Linux the kernel ends it when its parent is killed, too."""

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start ``command``; its output is appended to ``log``.

        Args:
            command: program and arguments.
            log: created with its folder if it is not there; readable by the owner only.
            environment: variables on top of this process's own. PATH begins with this Python's
                own folder, so that programs find the ones that were installed with them. Python
                imports nothing from the working folder, which may be anyone's.

        Raises:
            StateError: if the program or the log cannot be opened.
        """
        self.name = _name_of(command)
        self.log = log
        variables = {**os.environ, **(environment or {})}
        variables["PATH"] = os.pathsep.join(
            [sysconfig.get_path("scripts"), variables.get("PATH", os.defpath)]
        )
        variables["PYTHONSAFEPATH"] = "1"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)) as output:
                self._process = subprocess.Popen(  # noqa: S603 - our own commands only
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=variables,
                    start_new_session=True,  # Ctrl-C reaches the command, which stops its children
                    preexec_fn=_end_with_parent,  # noqa: PLW1509 - one system call, no lock
                )
        except OSError as error:
            msg = f"{self.name}: cannot be started ({error.strerror}: {error.filename or log})."
            raise StateError(msg) from error

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it and all that it started to end; after ten seconds, make them."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_STOP)

    def last_lines(self, count: int = 5) -> str:
        """The end of its log for an error message, control characters written out, no colours."""
        try:
            lines = _COLOUR.sub("", self.log.read_text(errors="replace")).splitlines()
        except OSError:
            return ""
        return "\n".join(on_one_line(line.rstrip()) for line in lines[-count:] if line.strip())


def _name_of(command: Sequence[str]) -> str:
    """The program's name; of ``python -m module`` the module's."""
    is_module = len(command) > 2 and command[1] == "-m"
    return command[2] if is_module else Path(command[0]).name


def _end_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
