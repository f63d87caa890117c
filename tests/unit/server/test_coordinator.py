"""The coordinator with Flower's programs replaced by ones that follow a script."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from common.config import load_config
from common.errors import ConfigError, RunFailed, StateError
from server import coordinator
from server.config import FederationConfig
from server.coordinator import MAX_FRUITLESS_STARTS, Coordinator
from server.founding import register_platform
from server.journal import Journal
from server.superlink import RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]
FINISH = [("run-started", {"rounds": 1, "rounds_done": 0}), ("run-finished", {"rounds_done": 1})]
CLOSE = [("round-closed", {"round": 1, "releases": 2, "update_norm": 0.1})]


class Scripted:
    """In place of SuperLink and gateway: each start of a run does what the script says."""

    def __init__(self, config: FederationConfig, *starts: Callable[[Scripted], None]) -> None:
        self.config = config
        self.starts = list(starts)
        self.log: list[str] = []
        self.address = "127.0.0.1:1"
        self.runs = False
        self.state = "running"

    def start(self) -> None:
        self.log.append("start")
        self.runs = True

    def stop(self) -> None:
        self.log.append("stop")
        self.runs = False

    def register(self, keys: dict[str, Path], _: Path) -> dict[str, int]:
        self.log.append(f"register {' '.join(sorted(keys))}")
        return {}

    def submit(self, _: Path, run_id: str) -> int:
        assert run_id == self.config.federation.run_id
        self.log.append("submit")
        self.state = "running"
        self.starts.pop(0)(self)
        return 1

    def status(self, _: int) -> RunStatus:
        return RunStatus(state=self.state, details="")

    def writes(self, events: list[tuple[str, dict[str, Any]]]) -> None:
        journal = Journal(self.config.run_folder)
        for kind, facts in events:
            journal.write(kind, **facts)
        journal.close()


class Gateway:
    """In place of the gateway's process."""

    exit_code = None

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def stop(self) -> None:
        pass

    def last_lines(self) -> str:
        return ""


@pytest.fixture
def config_file(found: Callable[..., Path], public_key: Callable[..., Path]) -> Path:
    config_file = found()
    config = load_config(config_file, FederationConfig)
    register_platform("a", public_key("node.pub"), config_file, config)
    return config_file


def prepared(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, *starts: Callable[[Scripted], None]
) -> tuple[Coordinator, Scripted]:
    config = load_config(config_file, FederationConfig)
    scripted = Scripted(config, *starts)
    monkeypatch.setattr(coordinator, "SuperLink", lambda *_: scripted)
    monkeypatch.setattr(coordinator, "Child", Gateway)
    monkeypatch.setattr(Coordinator, "_wait_for_gateway", lambda *_: None)
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(coordinator, "SILENCE_SECONDS", 0.01)
    return Coordinator(config_file, config), scripted


def finishes(link: Scripted) -> None:
    link.writes(FINISH)


def dies(link: Scripted) -> None:
    """The ServerApp is killed before it gets anywhere."""
    link.state = "finished:failed"


def test_a_run_is_started_once_and_everything_is_stopped(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready: list[bool] = []
    subject, link = prepared(config_file, monkeypatch, finishes)
    subject.run(lambda: ready.append(link.runs))
    assert link.log == ["start", "register a", "submit", "stop"]
    assert ready == [True]
    assert link.config.state.folder.stat().st_mode & 0o777 == 0o700


def test_a_serverapp_that_died_is_started_again(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, link = prepared(config_file, monkeypatch, dies, dies, finishes)
    subject.run()
    assert link.log == ["start", "register a", "submit", "submit", "submit", "stop"]


def test_a_superlink_that_died_is_started_again_and_knows_the_platforms(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses_its_superlink(link: Scripted) -> None:
        link.writes(CLOSE)
        link.runs = False

    subject, link = prepared(config_file, monkeypatch, loses_its_superlink, finishes)
    subject.run()
    assert link.log == ["start", "register a", "submit", "start", "register a", "submit", "stop"]


def test_it_gives_up_only_when_nothing_gets_done(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, link = prepared(config_file, monkeypatch, *[dies] * MAX_FRUITLESS_STARTS)
    with pytest.raises(RunFailed, match=f"started {MAX_FRUITLESS_STARTS} times"):
        subject.run()
    assert link.log[-1] == "stop"

    def closes_a_round_and_dies(link: Scripted) -> None:
        link.writes(CLOSE)
        link.state = "finished:failed"

    few = [dies] * (MAX_FRUITLESS_STARTS - 1)
    subject, link = prepared(
        config_file, monkeypatch, *few, closes_a_round_and_dies, *few, finishes
    )
    subject.run()
    assert not link.starts


def test_a_run_that_failed_by_itself_is_not_started_again(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(link: Scripted) -> None:
        link.writes([("run-failed", {"reason": "1 of 2 platforms joined"})])

    subject, link = prepared(config_file, monkeypatch, fails)
    with pytest.raises(RunFailed, match="1 of 2 platforms joined"):
        subject.run()
    assert link.log == ["start", "register a", "submit", "stop"]


def test_what_a_former_start_wrote_does_not_end_this_one(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, link = prepared(config_file, monkeypatch, finishes)
    link.writes([("run-failed", {"reason": "long ago"})])
    subject.run()


def test_programs_are_stopped_on_ctrl_c(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Scripted) -> None:
        raise KeyboardInterrupt

    subject, link = prepared(config_file, monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        subject.run()
    assert link.log[-1] == "stop"


def test_a_federation_without_network_keys_or_certificate_is_refused(config_file: Path) -> None:
    def opened() -> Coordinator:
        return Coordinator(config_file, load_config(config_file, FederationConfig))

    opened()
    (config_file.parent / "server.crt").rename(config_file.parent / "elsewhere")
    with pytest.raises(ConfigError, match=r"server\.crt: is missing"):
        opened()
    (config_file.parent / "platforms/a.pub").unlink()
    with pytest.raises(ConfigError, match="crossrec server register NAME"):
        opened()
    text = config_file.read_text()
    config_file.write_text(text[: text.index("[network]")])
    with pytest.raises(ConfigError, match=r"\[network\] is missing"):
        opened()


def test_an_address_in_use_is_named(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Coordinator._wait_for_gateway
    subject, _ = prepared(config_file, monkeypatch, finishes)
    monkeypatch.setattr(Coordinator, "_wait_for_gateway", waiting)
    monkeypatch.setattr(Gateway, "exit_code", 1)
    monkeypatch.setattr(Gateway, "log", "gateway.log", raising=False)
    with pytest.raises(RunFailed, match=r"0\.0\.0\.0:8000.*in use by another program"):
        subject.run()


def test_a_serverapp_that_outlived_its_superlink_is_ended(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, link = prepared(config_file, monkeypatch, finishes)
    link.config.run_folder.mkdir(parents=True)
    program = (
        "import sys, time; from pathlib import Path; from server.journal import Journal; "
        "journal = Journal(Path(sys.argv[1])); print('runs', flush=True); time.sleep(600)"
    )
    former = subprocess.Popen(
        [sys.executable, "-c", program, str(link.config.run_folder)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert former.stdout is not None
    with former.stdout:
        former.stdout.readline()
    subject.run()
    assert former.wait(30) == -signal.SIGKILL
    assert not link.starts


def test_two_coordinators_do_not_end_each_others_run(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def is_joined_by_another(link: Scripted) -> None:
        monkeypatch.setattr(coordinator, "SuperLink", lambda *_: link)
        with pytest.raises(StateError, match="another `crossrec server run` runs") as error:
            Coordinator(config_file, link.config).run()
        said.append(str(error.value))
        link.writes(FINISH)

    subject, _ = prepared(config_file, monkeypatch, is_joined_by_another)
    subject.run()
    assert len(said) == 1


def test_a_key_that_flower_will_not_take_again_is_registered_in_a_new_database(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, link = prepared(config_file, monkeypatch, finishes)
    register = link.register

    def refuses_once(keys: dict[str, Path], path: Path) -> dict[str, int]:
        if "forget" not in link.log:
            raise ConfigError("Public key already in use.")
        return register(keys, path)

    monkeypatch.setattr(link, "register", refuses_once)
    monkeypatch.setattr(link, "forget", lambda: link.log.append("forget"), raising=False)
    subject.run()
    assert link.log == ["start", "forget", "start", "register a", "submit", "stop"]


def test_a_port_that_another_program_holds_is_named_before_anything_starts(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        text = config_file.read_text().replace("0.0.0.0:8000", f"0.0.0.0:{port}")
        config_file.write_text(text)
        subject, link = prepared(config_file, monkeypatch, finishes)
        with pytest.raises(RunFailed, match=f"0:{port}' cannot be listened on"):
            subject.run()
    assert link.log == ["stop"]
