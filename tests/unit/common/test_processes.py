from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from common.errors import StateError
from common.processes import Child, free_port, script

if TYPE_CHECKING:
    from collections.abc import Callable

SLEEP = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_output_goes_to_a_log_for_the_owner_only(tmp_path: Path) -> None:
    child = Child(
        [
            sys.executable,
            "-c",
            "import sys; print('\\x1b[92mone\\x1b[0m'); sys.exit('two\\x1b[2J')",
        ],
        log=tmp_path / "logs/child.log",
    )
    wait_for(lambda: child.exit_code is not None)
    assert child.exit_code == 1
    assert child.last_lines() == "one\ntwo\\x1b[2J"
    assert child.last_lines(1) == r"two\x1b[2J"
    assert child.log.stat().st_mode & 0o077 == 0


def test_a_module_goes_by_its_own_name(tmp_path: Path) -> None:
    names = {"client.launcher": [sys.executable, "-m", "client.launcher", "--help"]}
    names[Path(sys.executable).name] = [sys.executable, "-c", "pass"]
    for name, command in names.items():
        child = Child(command, log=tmp_path / "log")
        child.stop()
        assert child.name == name


def test_programs_of_this_environment_come_first_on_the_path(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import shutil; print(shutil.which('flower-superlink'))"]
    child = Child(command, log=tmp_path / "log", environment={"PATH": "/nowhere"})
    wait_for(lambda: child.exit_code is not None)
    assert child.last_lines() == script("flower-superlink")


def test_nothing_is_imported_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("print('taken from the working folder')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    child = Child([sys.executable, "-m", "client.launcher", "--help"], log=tmp_path / "log")
    wait_for(lambda: child.exit_code is not None)
    assert child.exit_code == 0
    assert "taken from" not in child.log.read_text()
    assert "--platform-config" in child.log.read_text()


def test_stop_ends_it_and_what_it_started(tmp_path: Path) -> None:
    command = f"import subprocess, sys; p = subprocess.Popen({SLEEP!r}); print(p.pid, flush=True)"
    child = Child([sys.executable, "-c", f"{command}; p.wait()"], log=tmp_path / "log")
    wait_for(lambda: len(child.last_lines().split()) == 2)
    grandchild = next(int(word) for word in child.last_lines().split() if word.isdigit())
    assert child.exit_code is None
    assert lives(grandchild)
    child.stop()
    assert child.exit_code is not None
    wait_for(lambda: not lives(grandchild))
    child.stop()  # once more changes nothing


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from common.processes import Child; import time; "
        f"c = Child({SLEEP!r}, log=Path({str(tmp_path / 'log')!r})); "
        "print(c.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    assert lives(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not lives(pid))


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no-such-program: cannot be started"):
        Child(["/no-such-program"], log=tmp_path / "log")


def test_free_ports_can_be_listened_on() -> None:
    assert 0 < free_port() < 65536
