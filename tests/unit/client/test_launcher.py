"""Whatever a bundle holds, the platform executes what it installed."""

from __future__ import annotations

import hashlib
import multiprocessing
import socket
import sys
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResultStatus
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp

from client import launcher
from client.app import PLATFORM_CONFIG, SIMULATION_MARKER
from common import peers

if TYPE_CHECKING:
    from collections.abc import Iterator

EVIL = """
from pathlib import Path
Path({trace!r}).write_text("executed")
from flwr.clientapp import ClientApp
from flwr.app import Message, RecordDict
app = ClientApp()
@app.query("profile")
def profile(message, context):
    return Message(RecordDict(), reply_to=message)
"""
PROJECT = """
[project]
name = "crossrec-run"
version = "1.0.0"
[tool.flwr.app]
publisher = "crossrec"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "{reference}"
"""
SPEC = ExecutionSpec(
    task_type=TaskType.CLIENT_APP,
    runtime_api_address="127.0.0.1:1",
    token="token",  # noqa: S106 - of no one
    insecure=True,
    root_certificates_path=None,
    runtime_dependency_install=False,
    parent_pid=None,
    suppress_output=False,
    task_id=1,
)


def hostile_bundle(trace: Path, module: str) -> Fab:
    """A bundle in Flower's format whose ClientApp lies in its own file ``module``."""
    files = {
        "pyproject.toml": PROJECT.format(reference=f"{module.replace('/', '.')}:app"),
        f"{module}.py": EVIL.format(trace=str(trace)),
    }
    if "/" in module:
        files[f"{module.split('/', maxsplit=1)[0]}/__init__.py"] = ""
    listed = "\n".join(
        f"{name},{hashlib.sha256(text.encode()).hexdigest()},{8 * len(text)}"
        for name, text in files.items()
    )
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in {**files, ".info/CONTENT": listed}.items():
            archive.writestr(name, text)
    content = packed.getvalue()
    return Fab(hashlib.sha256(content).hexdigest(), content, {})


class _Quiet:
    """In place of Flower's connection and heartbeat."""

    is_running = False

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - anything may be asked of it
        return lambda *_, **__: None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    modules, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("evil"):
            del sys.modules[name]


def answer_in_child(bundle: Fab, replies: Any, answer: Any) -> None:  # noqa: ANN401
    """Run Flower's own process for one message, with everything but the network."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(RecordDict(), 1, "query.profile")
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(1, 1, {}, RecordDict(), {})
    run = SimpleNamespace(run_id=1, fab_id="crossrec/crossrec-run", fab_version="1.0.0")
    vars(run_clientapp).update(
        RuntimeHttpClient=SimpleNamespace(from_server_address=lambda **_: _Quiet()),
        HeartbeatSender=_Quiet,
        make_task_heartbeat_fn_http=lambda _: None,
        pull_task_input=lambda _: (message, context, run, bundle),
        push_message=lambda _, reply, __: replies.put(
            reply.error.reason if reply.has_error() else "answered"
        ),
        start_parent_process_monitor=lambda _: None,
    )
    answer(SPEC)


def outcome(bundle: Fab, answer: Any) -> str:  # noqa: ANN401
    context = multiprocessing.get_context("fork")
    replies = context.Queue()
    process = context.Process(target=answer_in_child, args=(bundle, replies, answer))
    process.start()
    reply: str = replies.get(timeout=60)
    process.join(60)
    return reply


def installed(home: Path) -> Any:  # noqa: ANN401
    """What the launcher forks."""
    return partial(launcher._answer, platform_config=home / "platform.toml")


def flowers_own(spec: ExecutionSpec) -> None:
    """What ``flwr-clientapp`` does."""
    run_clientapp.run_clientapp(
        runtime_api_address=spec.runtime_api_address, token=spec.token, insecure=True
    )


@pytest.mark.parametrize("module", ["evil", "client/app", "common/wire"])
def test_code_in_a_bundle_is_not_executed_nor_unpacked(home: Path, module: str) -> None:
    trace = home / "trace"
    reply = outcome(hostile_bundle(trace, module), installed(home))
    assert not trace.exists()
    assert not list(home.glob("flower/**/*.py"))
    # The installed application answered: it wants a platform's configuration.
    assert "the cause is in the platform's own log" in reply


def test_flowers_own_process_would_execute_it(home: Path) -> None:
    # The bundle above is one that Flower accepts: the test must be able to fail.
    trace = home / "trace"
    assert outcome(hostile_bundle(trace, "evil"), flowers_own) == "answered"
    assert trace.read_text() == "executed"


def test_a_damaged_bundle_changes_nothing(home: Path) -> None:
    reply = outcome(Fab("0" * 64, b"no bundle at all", {}), installed(home))
    assert "the cause is in the platform's own log" in reply
    assert not (home / "flower/apps").exists()


def test_only_messages_to_a_clientapp_are_taken() -> None:
    executor = launcher.InstalledApp(Path("platform.toml"))
    assert executor.get_eligible_capacity(set(TaskType))[0] == {TaskType.CLIENT_APP}
    for kind in set(TaskType) - {TaskType.CLIENT_APP}:
        spec = ExecutionSpec(**{**vars(SPEC), "task_type": kind})
        assert executor.launch(spec).status is LaunchResultStatus.FAILED


def test_the_platform_is_the_one_that_the_launcher_was_started_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(launcher, "app", lambda _, context: seen.append(context.node_config))
    theirs = str(tmp_path / "theirs.toml")
    told: dict[str, Any] = {PLATFORM_CONFIG: theirs, SIMULATION_MARKER: True}
    context = Context(1, 1, told, RecordDict(), {})
    answer = launcher._installed_app(tmp_path / "platform.toml", "fab", "1.0.0", "hash")
    message: Any = None
    answer(message, context)
    assert seen == [{PLATFORM_CONFIG: str(tmp_path / "platform.toml")}]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose a socket is")
def test_nobody_elses_supernode_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[object] = []
    process = SimpleNamespace(start=lambda: forked.append("one"))
    monkeypatch.setattr(launcher, "_FORKED", SimpleNamespace(Process=lambda **_: process))
    executor = launcher.InstalledApp(Path("platform.toml"))
    assert executor.launch(SPEC).status is LaunchResultStatus.FAILED, "nobody listens there"
    with socket.create_server(("127.0.0.1", 0)) as supernode:
        address = f"127.0.0.1:{supernode.getsockname()[1]}"
        spec = ExecutionSpec(**{**vars(SPEC), "runtime_api_address": address})
        assert executor.launch(spec).status is LaunchResultStatus.ACCEPTED
        me = peers.own_user()
        monkeypatch.setattr(peers, "own_user", lambda: me + 1)
        assert executor.launch(spec).status is LaunchResultStatus.FAILED
    assert forked == ["one"]


def test_flower_still_has_the_names_that_are_replaced() -> None:
    assert {"install_from_fab", "get_load_client_app_fn"} <= set(vars(run_clientapp))
    assert "get_executor" in vars(run_superexec)
