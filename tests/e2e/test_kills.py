"""The real client is killed again and again, and what left it is held against its ledger.

Run as a program, this file is a server with one platform: it forks the platform, asks it for the
sums and for round after round, kills it with SIGKILL, looks at the disk as the kill left it, and
starts it again with the same step. A release has left when its bytes are in the pipe. A kill loses
what a process had in memory and nothing that it gave to the operating system: power cuts are not
what is shown here.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
import torch

import client.state
from client.config import (
    AdaptationSection,
    CatalogueSection,
    DataSection,
    PlatformConfig,
    PlatformSection,
    PrivacySection,
    StateSection,
)
from client.data import load_platform_data
from client.platform import Platform
from client.state import PlatformState
from client.user_vectors import UserVectors
from common.data.catalogue import read_catalogue
from common.errors import StateError
from common.messages import SumRequest, TrainRequest
from common.models.ncf import NcfConfig, initialise
from common.models.partition import SumQuantity
from common.privacy.account import check_chain
from common.privacy.accounting import epsilon_spent
from common.privacy.ledger import LEDGER_FILE, Ledger
from common.privacy.randomness import SeededRandom
from common.storage import pack_arrays, sha256, unpack_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from common.models.partition import Arrays

NAME, RUN = "north", "spring"
NUM_USERS, NUM_ITEMS, USER_STEPS = 20, 30, 2
USERS = [f"u{user:03d}" for user in range(NUM_USERS)]
MODEL = NcfConfig(dim=4)
SUMS: tuple[SumQuantity, ...] = get_args(SumQuantity)
KILLS_OF_A_LIFE = 25
"""Random kills before the platform begins anew, in an empty folder."""

_TIMEOUT = 60.0
_TOUCHED, _LEFT = b"touched", b"left"


# --- What is asked ------------------------------------------------------------------------------


def move_in(folder: Path) -> PlatformConfig:
    """Write the platform's files; no simulation, so that noise comes from the system."""
    folder.mkdir(parents=True)
    lines = ["user_id,item_id,timestamp"]
    for number, user in enumerate(USERS):
        items = np.random.default_rng(number).choice(NUM_ITEMS - 4, size=6, replace=False)
        lines += [f"{user},i{item:02d},{1000 + k}" for k, item in enumerate(items)]
    (folder / "purchases.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["item_id,platform", *(f"i{item:02d},{NAME}" for item in range(NUM_ITEMS - 2))]
    lines += [f"i{item:02d},south" for item in range(4, NUM_ITEMS)]
    (folder / "catalogue.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return PlatformConfig(
        platform=PlatformSection(name=NAME, population=NUM_USERS),
        data=DataSection(source=folder / "purchases.csv"),
        catalogue=CatalogueSection(file=folder / "catalogue.csv"),
        privacy=PrivacySection(epsilon=8.0),
        state=StateSection(folder=folder / "state"),
        adaptation=AdaptationSection(validation_users=0),
    )


def request_for(config: PlatformConfig, step: int) -> SumRequest | TrainRequest:
    """What is asked for in a step: both sums first, then rounds."""
    assert config.catalogue.file is not None
    common: dict[str, Any] = {
        "run_id": RUN,
        "platform": NAME,
        "catalogue_digest": read_catalogue(config.catalogue.file, platforms=[NAME]).digest,
        "trust": "local",
        "num_platforms": 2,
        "noise_multiplier": 30.0,
    }
    if step <= len(SUMS):
        return SumRequest(**common, quantity=SUMS[step - 1])
    return TrainRequest(
        **common,
        round_number=step - len(SUMS),
        model=MODEL,
        clipping_norm=0.25,
        sampling_rate=1.0,
        local_steps=1,
        denominator=float(NUM_USERS),
        learning_rate=1.0,
        user_steps=USER_STEPS,
        dropout=0.0,
    )


def arrays_for(step: int) -> Arrays:
    """What comes beside the request of a step, the same whenever it is asked for."""
    if step <= len(SUMS):
        items = np.arange(4, 4 + 8, dtype=np.int64)
        weights = {"weights": np.full(len(items), 0.5, np.float32)}
        return {"items": items, **(weights if SUMS[step - 1] == "item-pairs" else {})}
    generator = torch.Generator().manual_seed(step - len(SUMS))
    parameters = initialise(MODEL, NUM_ITEMS, generator).named_parameters()
    return {name: parameter.detach().numpy().copy() for name, parameter in parameters}


# --- The platform's process ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When a platform's process dies; never, if nothing is said."""

    delay: float | None = None
    """Seconds after its start."""
    event: int | None = None
    """At its n-th event of any kind, from 1 ..."""
    label: str | None = None
    """... or of this kind; all are listed in :func:`planted_kill`."""


class Events:
    """Counts what the process does to its files, and ends it where it was told to."""

    def __init__(self, kill: Kill) -> None:
        self._kill, self._count = kill, 0
        self.seen: list[str] = []

    def __call__(self, label: str) -> None:
        self.seen.append(label)
        self._count += self._kill.label in (None, label)
        if self._count == self._kill.event:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401
            self(f"before {name}")
            result = function(*arguments, **more)
            self(f"after {name}")
            return result

        return watched


def planted_kill(kill: Kill, touched: Callable[[], None]) -> Events:
    """Put events around every change of a file, and before every statement of SQLite."""
    events = Events(kill)
    for name in ("fsync", "replace", "link", "unlink"):
        setattr(os, name, events.around(name, getattr(os, name)))
    connect = sqlite3.connect

    def traced_connect(*arguments: Any, **more: Any) -> sqlite3.Connection:  # noqa: ANN401
        connection: sqlite3.Connection = connect(*arguments, **more)
        connection.set_trace_callback(lambda text: events(f"sql {text.split()[0]}"))
        return connection

    def watched_load_data(config: PlatformConfig) -> Any:  # noqa: ANN401
        touched()
        events("data")
        return load_platform_data(config)

    sqlite3.connect = traced_connect  # type: ignore[assignment]
    pytest.MonkeyPatch().setattr("client.platform.load_platform_data", watched_load_data)
    return events


def work(config: PlatformConfig, requests: int, answers: int, kill: Kill, bug: str) -> None:
    """Answer the steps that are asked for until nobody asks; the process ends with it."""
    current = 0

    def send(kind: bytes, content: bytes = b"") -> None:
        message = b"%s %d %d\n%s" % (kind, current, len(content), content)
        assert len(message) <= select.PIPE_BUF, "a pipe takes this much whole, or not at all"
        os.write(answers, message)

    events = planted_kill(kill, lambda: send(_TOUCHED))
    after_reply = BUGS[bug]()
    for line in os.fdopen(requests, "r"):
        current = int(line)
        platform = Platform(config)
        request, arrays = request_for(config, current), arrays_for(current)
        if isinstance(request, SumRequest):
            reply, release = platform.sum_up(request, arrays)
        else:
            reply, release = platform.train(request, arrays)
        assert release is not None, reply.reason
        events("before reply")
        send(_LEFT, pack_arrays(release, {"events": json.dumps(events.seen)}))
        events.seen.clear()
        events("after reply")
        after_reply(config)


# --- Bugs that the harness must find ------------------------------------------------------------


def _no_bug() -> Callable[[PlatformConfig], None]:
    return lambda _: None


def _reserves_after_training() -> Callable[[PlatformConfig], None]:
    reserve, commit = Ledger.reserve, Ledger.commit
    waiting: list[tuple[Any, Any]] = []

    def wait(_: Ledger, spend: Any, budget: Any) -> bool:  # noqa: ANN401
        waiting.append((spend, budget))
        return True

    def reserve_and_commit(ledger: Ledger, request_id: str, digest: str) -> None:
        reserve(ledger, *waiting.pop())
        commit(ledger, request_id, digest)

    Ledger.reserve = wait  # type: ignore[method-assign, assignment]
    Ledger.commit = reserve_and_commit  # type: ignore[method-assign, assignment]
    return lambda _: None


def _never_commits() -> Callable[[PlatformConfig], None]:
    Ledger.commit = lambda *_: None  # type: ignore[method-assign]
    return lambda _: None


def _sends_before_storing() -> Callable[[PlatformConfig], None]:
    store = PlatformState.store_release
    waiting: list[tuple[Any, ...]] = []

    def store_now(config: PlatformConfig) -> None:
        with closing(PlatformState(config.state.folder, config.state.keep_releases)) as state:
            while waiting:
                store(state, *waiting.pop())

    PlatformState.store_release = (  # type: ignore[method-assign]
        lambda _, *arguments: waiting.append(arguments)
    )
    return store_now


def _charges_again() -> Callable[[PlatformConfig], None]:
    """Charges a repeated request under another name, as a ledger without unique names would."""
    reserve = Ledger.reserve

    def reserve_again(ledger: Ledger, spend: Any, budget: Any) -> bool:  # noqa: ANN401
        if reserve(ledger, spend, budget):
            return True
        again = f"{spend.request_id}+{len(ledger.account().spends)}"
        return reserve(ledger, replace(spend, request_id=again), budget)

    Ledger.reserve = reserve_again  # type: ignore[method-assign, assignment]
    return lambda _: None


def _head_before_commit() -> Callable[[PlatformConfig], None]:
    append = Ledger._append

    def append_with_head(ledger: Ledger, *arguments: Any) -> None:  # noqa: ANN401
        append(ledger, *arguments)
        ledger._write_head()

    Ledger._append = append_with_head  # type: ignore[method-assign, assignment]
    return lambda _: None


def _vectors_in_place() -> Callable[[PlatformConfig], None]:
    """Private vectors of the latest round are found before its release is recorded."""
    load = PlatformState.load_vectors

    def load_unrecorded(state: PlatformState, run_id: str, *more: Any) -> UserVectors:  # noqa: ANN401
        account = state.ledger.account()
        digests = dict.fromkeys((spend.request_id for spend in account.spends), "")
        unrecorded = replace(account, releases=digests)
        state.ledger.account = lambda: unrecorded  # type: ignore[method-assign]
        try:
            return load(state, run_id, *more)
        finally:
            del state.ledger.account

    PlatformState.load_vectors = load_unrecorded  # type: ignore[method-assign, assignment]
    return lambda _: None


BUGS: dict[str, Callable[[], Callable[[PlatformConfig], None]]] = {
    "none": _no_bug,
    "reserves after training": _reserves_after_training,
    "never commits": _never_commits,
    "sends before storing": _sends_before_storing,
    "charges again": _charges_again,
    "head before commit": _head_before_commit,
    "vectors in place": _vectors_in_place,
}


# --- The server ---------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Child:
    """A platform's process as its server sees it."""

    pid: int
    requests: int
    answers: int
    buffer: bytes = b""
    has_failed: bool = False
    """Whether it ended by itself, with an error."""

    def ask(self, round_number: int) -> None:
        with suppress(BrokenPipeError):  # it is dead: the reader will find that nothing comes
            os.write(self.requests, b"%d\n" % round_number)

    def next_message(self, deadline: float) -> tuple[bytes, int, bytes] | None:
        """The next message; None at the end of the pipe, or at the deadline."""
        while True:
            head, found, rest = self.buffer.partition(b"\n")
            if found:
                kind, round_number, size = head.split()
                if len(rest) >= int(size):
                    self.buffer = rest[int(size) :]
                    return kind, int(round_number), rest[: int(size)]
            wait = max(0.0, deadline - time.monotonic())
            if not select.select([self.answers], [], [], wait)[0]:
                return None
            more = os.read(self.answers, 1 << 16)
            if not more:
                return None
            self.buffer += more


@contextmanager
def started(config: PlatformConfig, kill: Kill, bug: str) -> Iterator[Child]:
    (asked, requests), (answers, answered) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(requests)
            os.close(answers)
            work(config, asked, answered, kill, bug)
        except BaseException:  # noqa: BLE001 - nothing of the server's may run in this process
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(asked)
    os.close(answered)
    child = Child(pid=pid, requests=requests, answers=answers)
    try:
        yield child
    finally:
        os.kill(pid, signal.SIGKILL)  # not waited for yet, so the id is still its own
        child.has_failed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) > 0
        os.close(requests)
        os.close(answers)


@dataclass(kw_only=True)
class Life:
    """A platform from its first step on, and everything that left it."""

    config: PlatformConfig
    bug: str = "none"
    heads: bool = False
    """Whether the head must cover every release that left."""
    left: dict[int, bytes] = field(default_factory=dict)
    """What left, packed, by step."""
    touched: set[int] = field(default_factory=set)
    """Steps in which the platform looked at its data."""
    fell: Counter[str] = field(default_factory=Counter)
    """Where kills fell, by what was on disk."""
    events: list[list[str]] = field(default_factory=list)
    """What the process did for each answer."""

    @property
    def current(self) -> int:
        """The step that is asked for: the first that has not left."""
        return len(self.left) + 1

    def run(self, kill: Kill, steps: int | None = None) -> float:
        """Start the platform and kill it, or let it finish ``steps`` more; then look at its disk.

        Returns:
            seconds until the last answer.
        """
        begin = time.monotonic()
        last, answered = begin, begin
        deadline = begin + (_TIMEOUT if kill.delay is None else kill.delay)
        goal = self.current + (steps if steps is not None else 1_000)
        repeats = list(self.left)[-2:]
        with started(self.config, kill, self.bug) as child:
            while True:
                repeated = repeats.pop() if repeats else None
                asked = self.current if repeated is None else repeated
                if asked == goal:
                    break
                child.ask(asked)
                if not self._listen(child, asked, deadline):
                    last = time.monotonic()
                    os.kill(child.pid, signal.SIGKILL)
                    self._listen(child, asked, last + _TIMEOUT)  # it may have left in between
                    break
                answered = time.monotonic()
        assert not child.has_failed, "the platform declined a step; see above"
        assert steps is None or self.current == goal, f"step {self.current} was not answered"
        assert steps is not None or last < begin + _TIMEOUT, "the process was never killed"
        self.examine(is_killed=steps is None)
        return answered - begin

    def _listen(self, child: Child, asked: int, deadline: float) -> bool:
        """Take in what comes until the answer; False if it does not come."""
        while (message := child.next_message(deadline)) is not None:
            kind, step, content = message
            if kind == _TOUCHED:
                self.touched.add(step)
                continue
            assert step == asked
            arrays, metadata = unpack_arrays(content, "the pipe")
            self.events.append(json.loads(metadata["events"]))
            packed = pack_arrays(arrays, {"request": request_for(self.config, asked).request_id})
            assert self.left.setdefault(asked, packed) == packed, f"step {asked} left twice"
            return True
        return False

    def examine(self, *, is_killed: bool) -> None:
        """Hold the disk, as it was left, against what left; a copy, so that nothing is mended.

        Raises:
            AssertionError: if a law of the ledger is broken.
        """
        folder = self.config.state.folder
        if not (folder / LEDGER_FILE).exists():
            assert not self.left, "releases left, and there is no ledger"
            assert not self.touched, "data was touched, and there is no ledger"
            self.fell["no ledger yet"] += is_killed
            return
        copy = folder.with_name("copy")
        shutil.copytree(folder, copy)
        try:
            with closing(PlatformState(copy, self.config.state.keep_releases)) as state:
                where = self._examine_state(state, copy)
        except StateError as error:
            raise AssertionError(f"the ledger does not open: {error}") from error
        finally:
            shutil.rmtree(copy)
        self.fell[where] += is_killed

    def _examine_state(self, state: PlatformState, folder: Path) -> str:
        entries = state.ledger.entries()
        check_chain(entries)
        account = state.ledger.account()
        names = {n: request_for(self.config, n).request_id for n in range(1, self.current + 1)}
        reserved = [entry.request_id for entry in entries if entry.kind == "reserve"]
        charged, left = set(reserved), {names[number] for number in self.left}
        assert len(reserved) == len(charged), "a request is charged twice"
        assert charged <= set(names.values()), "something is charged that nobody asked for"
        assert {names[n] for n in self.touched} <= charged, "data was touched before it was charged"
        assert left <= account.releases.keys() <= charged, "a release left before it was recorded"
        crashed = charged - left
        assert len(crashed) <= 1

        delta, one = self.config.privacy.delta, request_for(self.config, 1).mechanism()
        epsilon = epsilon_spent(account.mechanisms(), delta, "rdp")
        assert epsilon >= epsilon_spent([one] * len(left), delta, "rdp")
        assert epsilon <= epsilon_spent([one] * (len(left) + len(crashed)), delta, "rdp")

        for number, packed in self.left.items():
            assert account.releases[names[number]] == sha256(packed), "recorded otherwise"
        sums = account.releases.keys() & {names[n] for n in names if n <= len(SUMS)}
        for name in {*sums, *list(account.releases)[-self.config.state.keep_releases :]}:
            assert state.load_release(name) is not None, "recorded, and not there"
        fresh = UserVectors.initial(NUM_USERS, MODEL.user_dim, SeededRandom(0))
        steps = state.load_vectors(RUN, USERS, fresh).num_steps
        num_rounds = len(account.releases) - len(sums)
        assert (steps == USER_STEPS * num_rounds).all(), "vectors of another round"

        if self.heads:
            covered = int((folder / f"{LEDGER_FILE}.head").read_text(encoding="ascii").split()[0])
            commits = [e.sequence for e in entries if e.kind == "commit" and e.request_id in left]
            assert covered >= max(commits, default=0), "the head knows less than what left"

        name = names[self.current]
        if name not in charged:
            return "between steps"
        stored = [kind for kind in ("private", "releases") if state._file(kind, name).exists()]
        return "recorded" if name in account.releases else " ".join(["reserved", *stored])


# --- Runs ---------------------------------------------------------------------------------------


def random_and_chosen_kills(folder: Path, num_kills: int) -> dict[str, Any]:
    """Kills at events of the first steps, then at random times, ``num_kills`` in all."""
    rng = random.Random(num_kills)  # noqa: S311 - where a test looks
    begin = time.monotonic()
    lives: list[Life] = []

    def new_life() -> Life:
        lives.append(Life(config=move_in(folder / str(len(lives)))))
        return lives[-1]

    # What a process does, and how long it takes: in a new folder, and after a kill.
    plain = new_life()
    plain.run(Kill(), steps=len(SUMS) + 1)
    num_first = sum(map(len, plain.events))
    durations = sorted(plain.run(Kill(), steps=1) for _ in range(5))
    num_later = sum(map(len, plain.events[-3:]))  # two repeats and a round
    for event in _spread(num_first, num_kills // 3):
        life = new_life()
        life.run(Kill(event=event))
        life.run(Kill(), steps=1)
    num_in_sums = sum(life.fell.total() for life in lives if life.current <= len(SUMS) + 1)
    life = new_life()
    for event in _spread(num_later, num_kills // 3):
        life.run(Kill(event=event))
    life.run(Kill(), steps=2)
    num_chosen = killed = sum(life.fell.total() for life in lives)
    longest = 1.5 * durations[len(durations) // 2]
    while killed < num_kills:
        if (killed - num_chosen) % KILLS_OF_A_LIFE == 0:
            life.run(Kill(), steps=2)
            life = new_life()
        life.run(Kill(delay=rng.uniform(0.0, longest)))
        killed += 1
    life.run(Kill(), steps=2)
    fell: Counter[str] = sum((life.fell for life in lives), Counter())
    return {
        "kills": fell.total(),
        "at chosen events": num_chosen,
        "of these in sums": num_in_sums,
        "fell": dict(fell.most_common()),
        "events of both sums and a first round": num_first,
        "events of a later round and two repeats": num_later,
        "milliseconds of the latter": round(1000 * durations[len(durations) // 2]),
        "releases that left": sum(len(life.left) for life in lives),
        "lives": len(lives),
        "drafts of files left behind": sum(1 for _ in folder.rglob("*.part")),
        "drafts of ledgers left behind": sum(1 for _ in folder.rglob(f".{LEDGER_FILE}.*")),
        "seconds": round(time.monotonic() - begin, 1),
    }


def _spread(num_events: int, num_kills: int) -> list[int]:
    """At most ``num_kills`` events, from the first to the last."""
    return sorted({1 + k * num_events // num_kills for k in range(num_kills)})


def one_kill(
    folder: Path, *, bug: str, label: str, event: int, peace: int, heads: bool = False
) -> str:
    """Some steps in peace, a kill in the next, and three more steps with their repeats.

    Returns:
        which law was found broken; empty if none.
    """
    life = Life(config=move_in(folder), bug=bug, heads=heads)
    try:
        life.run(Kill(), steps=peace)
        life.run(Kill(label=label, event=event))
        for _ in range(3):
            life.run(Kill(), steps=1)
    except AssertionError as broken:
        return str(broken)
    return ""


def main(folder: Path, task: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    # A platform stops after ten kills in a row; here the same step is killed more often.
    client.state._MOST_KILLS = 10_000
    mechanism = request_for(move_in(folder / "warm"), 1).mechanism()
    epsilon_spent([mechanism], 1e-5, "rdp")  # forks inherit what is in the cache
    if "num_kills" in task:
        report = random_and_chosen_kills(folder / "lives", task["num_kills"])
    else:
        report = {name: one_kill(folder / name, **how) for name, how in task.items()}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def harness(folder: Path, **task: Any) -> dict[str, Any]:  # noqa: ANN401
    """Run :func:`main` in a process of its own, which has one thread and so may fork.

    Raises:
        AssertionError: with what it printed, if it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.test_kills", str(folder), json.dumps(task)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


# --- Tests --------------------------------------------------------------------------------------


def test_what_left_is_charged_once_and_never_changes_however_often_the_client_is_killed(
    tmp_path: Path,
) -> None:
    report = harness(tmp_path, num_kills=200)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    assert report["kills"] == 200
    assert report["of these in sums"] > 20
    everywhere = {"no ledger yet", "between steps", "reserved", "recorded"}
    # Of sums a release alone is stored, of rounds private vectors first.
    assert report["fell"].keys() >= {*everywhere, "reserved releases"}
    assert report["fell"].keys() >= {"reserved private", "reserved private releases"}


# Events are counted from the start of a process, which first repeats up to two steps before.
PLANTED = {
    "reserves after training": ("data", 1, "data was touched before it was charged"),
    "never commits": ("after reply", 1, "a release left before it was recorded"),
    "sends before storing": ("after reply", 1, "a release left before it was recorded"),
    "charges again": ("data", 1, "something is charged that nobody asked for"),
    "head before commit": ("sql COMMIT", 1, "the ledger does not open"),
    "vectors in place": ("sql COMMIT", 2, "vectors of another round"),
}
"""The kill that shows a planted bug, and the law that it breaks."""
PEACE = {"pairs": 1, "round": len(SUMS) + 1}
"""Steps before the one of the kill; each is repeated first, two at most."""


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the harness says of each planted bug, and of the same kill without it."""
    tasks: dict[str, dict[str, Any]] = {}
    for place, peace in PEACE.items():
        for bug, (label, event, _) in PLANTED.items():
            # A repeat replies, and looks into the ledger, before the step of the kill begins.
            number = event + (0 if label == "data" else min(2, peace))
            how = {"label": label, "event": number, "peace": peace}
            tasks[f"{bug}, {place}"] = {"bug": bug, **how}
            tasks[f"not {bug}, {place}"] = {"bug": "none", **how}
    # The head of the release's record is the last file that a step writes.
    how = {"bug": "none", "label": "before replace", "heads": True}
    tasks["head, pairs"] = {**how, "event": 3, "peace": PEACE["pairs"]}
    tasks["head, round"] = {**how, "event": 4, "peace": PEACE["round"]}
    return harness(tmp_path_factory.mktemp("planted"), **tasks)


@pytest.mark.parametrize("place", PEACE)
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found_by_one_kill(findings: dict[str, str], bug: str, place: str) -> None:
    assert findings[f"not {bug}, {place}"] == ""
    # Sums have no private vectors.
    expected = "" if (bug, place) == ("vectors in place", "pairs") else PLANTED[bug][2]
    assert findings[f"{bug}, {place}"].startswith(expected)


@pytest.mark.parametrize("place", PEACE)
def test_a_release_that_left_is_in_the_head(findings: dict[str, str], place: str) -> None:
    assert findings[f"head, {place}"] == ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
