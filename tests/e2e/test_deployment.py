"""Real processes: SuperLink with TLS and node authentication, a gateway, SuperNodes, our apps.

Takes minutes: ``make test-deployment`` runs it.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
from base64 import b64encode
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, get_args

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeRequest

from client.config import PlatformConfig
from client.ledger_view import check_ledger
from client.secure_sum import SessionFiles
from common.config import load_config
from common.keys import read_public_key
from common.models.partition import LATTICE, SumQuantity, shared_shapes, unflatten
from common.privacy.ledger import LEDGER_FILE, Ledger
from common.secagg.protocol import mask_
from common.storage import read_arrays
from server.aggregation import StreamingSum
from server.checkpoint import CollectedSums
from server.membership import settle_membership
from server.run import initial_parameters
from server.strategy import apply_update, initial_state
from tests.e2e.deployed import (
    ROOT,
    DatabaseWatch,
    Deployment,
    Program,
    Wiretap,
    change,
    crossrec,
    processes,
    wait_for,
)
from tests.e2e.hostile_launcher import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from common.models.partition import Arrays

pytestmark = pytest.mark.deployment

USERS = {"t1": 500, "s3": 600, "t2": 500, "s2": 400}


def releases_of(deployment: Deployment, name: str) -> dict[str, Arrays]:
    """Every release that a platform kept, by request."""
    folder = deployment.home(name) / "state/releases"
    found = (read_arrays(path) for path in folder.glob("*.safetensors"))
    return {metadata["request"]: arrays for arrays, metadata in found}


def check_ledgers(deployment: Deployment) -> None:
    """Whole chains, prices that hold, and every release that was added up is a recorded one."""
    for name in USERS:
        if not deployment.toml(name).exists():
            continue
        config = load_config(deployment.toml(name), PlatformConfig)
        crossrec("client", "ledger", "verify", deployment.toml(name))
        with closing(Ledger(config.state.folder / LEDGER_FILE, read_only=True)) as ledger:
            assert not check_ledger(ledger.entries(), config.state.folder / "releases")
            reserved = [e.request_id for e in ledger.entries() if e.kind == "reserve"]
            assert ledger.account().epsilon(config.privacy.delta) <= config.privacy.epsilon
        # Nobody pays twice for a request that was repeated.
        assert len(reserved) == len(set(reserved))


def replayed(deployment: Deployment) -> Arrays:
    """The parameters of a run in which the same releases came in with no disturbance.

    From the journal's outcomes and the platforms' own copies of what they released.
    """
    config = deployment.config()
    run = config.federation.run_id
    by_platform = {name: releases_of(deployment, name) for name in config.federation.platforms}
    num_items = max(array.shape[0] for array in final(deployment).values())
    state = initial_state(initial_parameters(config, num_items))
    for number in range(1, config.federation.rounds + 1):
        outcomes: dict[str, str] = {}
        for event in deployment.events():
            if event["event"] == "round-started" and event["round"] == number:
                outcomes = {}  # a round that was begun again
            elif event["event"] == "reply" and event["round"] == number:
                outcomes[event["platform"]] = event["outcome"]
        released = sorted(name for name, outcome in outcomes.items() if outcome == "released")
        assert len(released) >= config.federation.quorum
        if config.is_summed:
            update = summed_update(deployment, number, released, num_items)
        else:
            total = StreamingSum()
            for name in released:
                total.add(by_platform[name][f"{run}/{number}/{name}"])
            update = total.mean()
        state = apply_update(state, update, config.training, config.federation.rounds)
    return state.parameters


def added_up(deployment: Deployment, what: object, names: Sequence[str]) -> np.ndarray:
    """What the releases that ``names`` have on disk add up to, on the lattice that they signed."""
    run = deployment.config().federation.run_id
    total = np.zeros(1, dtype=np.uint64)
    for name in names:
        release = releases_of(deployment, name)[f"{run}/{what}/{name}"][LATTICE]
        total = total.astype(release.dtype) + release
    kept = SessionFiles(deployment.home(name) / "state/secagg").load(f"{run}/{what}/{name}")
    assert kept is not None
    return kept.terms.lattice.values(total)


def summed_update(
    deployment: Deployment, number: int, names: Sequence[str], num_items: int
) -> Arrays:
    """The mean update of a round of secure aggregation: what each would have sent by itself."""
    config = deployment.config()
    members = settle_membership(config.run_folder, config.federation.run_id, {})
    assert config.mechanism.sampling_rate == 1.0
    step = -config.training.local_learning_rate / members.mean_population / len(names)
    numbers = (added_up(deployment, number, names) * step).astype(np.float32)
    return unflatten(numbers, shared_shapes(config.model, num_items))


def check_sums(deployment: Deployment) -> dict[str, tuple[str, ...]]:
    """Secure sums are exactly their platforms' releases, added up; return whose these are."""
    config = deployment.config()
    files = CollectedSums(config.run_folder, config.federation.run_id)
    found = {}
    for quantity in get_args(SumQuantity):
        collected = files.load(quantity)
        assert collected is not None
        expected = added_up(deployment, quantity, collected.platforms).astype(np.float32)
        np.testing.assert_array_equal(collected.total, expected)
        found[quantity] = collected.platforms
    return found


def signed_by_another(public_key: Path) -> dict[str, str]:
    """Headers that name a registered platform's key, signed by a key that is not its own."""
    named = read_public_key(public_key)
    moment = datetime.now(UTC).isoformat()
    signature = ec.generate_private_key(ec.SECP384R1()).sign(
        moment.encode(), ec.ECDSA(hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {
        "flwr-public-key": b64encode(named.public_bytes(*form)).decode(),
        "flwr-timestamp": moment,
        "flwr-signature": b64encode(signature).decode(),
    }


def test_a_federation_over_tls(tmp_path: Path, xmrec_folder: Path) -> None:
    with Deployment(tmp_path, xmrec_folder, USERS, plan="both", rounds=2, epsilon=6) as subject:
        server = subject.start_server()
        wait_for(lambda: "platforms connect to" in server.said(), "the coordinator")
        context = ssl.create_default_context(cafile=tmp_path / "market/ca.crt")
        door = f"https://127.0.0.1:{subject.port}"

        # Who is not registered, or signs wrongly, is refused; so is whoever wants to start a run.
        call = f"{door}/v1/fleet/activate-node"
        for headers in ({}, signed_by_another(subject.home("t1") / "node.pub")):
            request = ActivateNodeRequest(public_key=b"key", heartbeat_interval=30)
            answer = httpx.post(
                call,
                content=request.SerializeToString(),
                headers={"content-type": "application/protobuf", **headers},
                verify=context,
                trust_env=False,
            )
            assert answer.status_code == 401, answer.text
        for path in ("/v1/control/start-run", "/v1/control/list-runs", "/v1/runtime/acquire-task"):
            assert httpx.post(door + path, verify=context, trust_env=False).status_code == 404
        with pytest.raises(httpx.HTTPError):  # no TLS, no answer
            httpx.post(call.replace("https", "http"), trust_env=False)
        with (
            pytest.raises(ssl.SSLCertVerificationError),
            socket.create_connection(("127.0.0.1", subject.port)) as plain,
        ):
            ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")
        stranger = tmp_path / "stranger"
        crossrec(
            *("client", "init", stranger, "--name", "t1", "--server", f"127.0.0.1:{subject.port}"),
            *(
                "--root-certificate",
                tmp_path / "market/ca.crt",
                "--data",
                tmp_path / "t1-orders.csv",
            ),
            *("--assortment", tmp_path / "t1-items.csv", "--population", 500),
        )
        subject.programs["stranger"] = Program(
            tmp_path / "stranger.log",
            [
                *(sys.executable, "-c", "from common.cli import main; main()"),
                *("client", "run", str(stranger / "platform.toml")),
            ],
        )

        # One platform connects through a wiretap.
        tap = Wiretap(subject.port)
        change(subject.toml("t1"), address=f"127.0.0.1:{tap.port}")
        for name in USERS:
            subject.start_platform(name)
        subject.wait_for_end()
        heard = b"".join(tap.heard)
        assert len(heard) > 100_000
        assert heard[:2] == b"\x16\x03"  # a TLS handshake
        items = (tmp_path / "t1-items.csv").read_text().split()[1:20]
        for word in ("POST", "flwr", "crossrec", "run-1", *items):
            assert word.encode() not in heard, word

        joined = [event["platform"] for event in subject.events("platform-joined")]
        assert sorted(joined) == sorted(USERS)
        assert (
            "without a registered key" in (tmp_path / "market/state/flower/gateway.log").read_text()
        )
        assert not (stranger / "state" / LEDGER_FILE).exists()
        outcomes = [event["outcome"] for event in subject.events("handed-over")]
        assert outcomes == ["adopted"] * len(USERS)
        check_ledgers(subject)
        assert_equal(replayed(subject), final(subject))

        # A second run, with the same keys, folders, and a catalogue that stays.
        change(subject.config_file, run_id="run-2")
        subject.start_server()
        subject.wait_for_end()
        outcomes = [event["outcome"] for event in subject.events("handed-over")]
        assert outcomes == ["adopted"] * len(USERS)
        check_ledgers(subject)
        assert_equal(replayed(subject), final(subject))
        status = crossrec("server", "status", subject.config_file)
        assert "Run run-2: finished, 2 of 2 rounds" in status
        assert "epsilon" in crossrec("client", "status", subject.toml("t1"))
        tap.close()


def final(deployment: Deployment) -> Arrays:
    """The shared parameters of the last checkpoint."""
    arrays, _ = read_arrays(deployment.config().run_folder / "checkpoint.safetensors")
    prefix = "parameters/"
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def assert_equal(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def kill_all(*words: str) -> None:
    found = processes(*words)
    assert found, f"no process to kill: {words}"
    for pid in found:
        with suppress(ProcessLookupError):  # it may have ended with its parent
            os.kill(pid, signal.SIGKILL)


def kill_platform(deployment: Deployment, name: str) -> None:
    """SIGKILL to its command, and to everything that it started."""
    kill_all(str(deployment.home(name)))
    deployment.programs[name].kill()


def test_whatever_is_killed_the_federation_completes(tmp_path: Path, xmrec_folder: Path) -> None:
    with Deployment(tmp_path, xmrec_folder, USERS, plan="both", rounds=8, epsilon=8) as subject:
        subject.start_server()
        for name in USERS:
            subject.start_platform(name)

        # A platform, in the middle of a round: its command, and everything that it started.
        subject.wait_for_event("round-started", round=2)
        kill_platform(subject, "t2")
        subject.start_platform("t2")

        # The ServerApp.
        subject.wait_for_event("round-started", round=4)
        kill_all("flwr-serverapp")

        # The SuperLink.
        subject.wait_for_event("round-started", round=6)
        kill_all("server.guarded_superlink", str(subject.folder))
        subject.wait_for_end()

        # And the coordinator's own command, after which `resume` hands over once more to everyone.
        subject.start_server("resume")
        wait_for(
            lambda: [e["outcome"] for e in subject.events("handed-over")][-4:] == ["adopted"] * 4,
            "a hand-over to all four platforms",
        )
        subject.wait_for_end()
        assert len(subject.events("run-started")) >= 4
        check_ledgers(subject)
        assert_equal(replayed(subject), final(subject))


def is_in(content: bytes, array: np.ndarray) -> bool:
    """Whether a piece of ``array`` is there: the pages of a database cut it."""
    raw = array.tobytes()
    starts = range(0, len(raw) - 32, len(raw) // 16)
    return any(raw[start : start + 32] in content for start in starts)


def check_seen(deployment: Deployment, pages: bytes) -> None:
    """Of what platforms released, the database held what they masked, and nothing else."""
    seen = set()
    for name in USERS:
        sessions = SessionFiles(deployment.home(name) / "state/secagg")
        for request_id, arrays in releases_of(deployment, name).items():
            assert not is_in(pages, arrays[LATTICE]), request_id
            kept = sessions.load(request_id)
            if kept is not None and kept.session is not None and kept.survivors:
                masked = arrays[LATTICE].copy()
                mask_(masked, kept.session, name, kept.own, kept.sharers)
                seen |= {name} if is_in(pages, masked) else set()
    assert seen == set(USERS)  # so a release that was sent as it is would have been found


def test_secure_sums_are_finished_without_the_platform_that_is_killed(
    tmp_path: Path, xmrec_folder: Path
) -> None:
    options = {"plan": "both", "rounds": 2, "epsilon": 6, "trust": "secagg", "max_dropped": 1}
    database = tmp_path / "market/state/flower/superlink.db"
    with (
        Deployment(tmp_path, xmrec_folder, USERS, **options) as subject,
        DatabaseWatch(database) as watch,
    ):
        change(subject.config_file, stage_timeout_seconds=30.0, round_timeout_seconds=300.0)
        with subject.config_file.open("a") as file:
            file.write("\n[validation]\nmax_failures = 0\n")
        subject.start_server()
        for name in USERS:
            subject.start_platform(name)

        # Its masked release has arrived, and it does not help to take the masks away.
        subject.wait_for_event("secagg-stage", what="item-pairs", stage="mask")
        kill_platform(subject, "t2")
        subject.start_platform("t2")
        subject.wait_for_end()
        stages = {(e["what"], e["stage"]): e["platforms"] for e in subject.events("secagg-stage")}
        assert stages["item-pairs", "mask"] == 4
        assert stages["item-pairs", "unmask"] == 3
        assert check_sums(subject) == dict.fromkeys(get_args(SumQuantity), tuple(sorted(USERS)))
        check_ledgers(subject)
        assert_equal(replayed(subject), final(subject))
        outcomes = {e["platform"]: e["outcome"] for e in subject.events("handed-over")}
        assert [outcomes[name] for name in ("s2", "s3", "t1")] == ["adopted"] * 3

        # A second run. One platform has dealt shares and never sends its masked release.
        change(subject.config_file, run_id="run-2", rounds=1)
        subject.start_server()
        subject.wait_for_event("secagg-stage", what="item-counts", stage="share")
        kill_platform(subject, "s2")
        subject.start_platform("s2")

        # Then one drops out too many, just before a sum would be opened.
        subject.wait_for_event("secagg-stage", what="round 1", stage="mask")
        kill_platform(subject, "t1")
        kill_platform(subject, "t2")
        server = subject.programs["server"]
        wait_for(lambda: server.process.poll() is not None, "the end of the run")
        assert server.process.returncode != 0
        assert "platforms confirmed who is in the sum" in server.said()
        assert "at least 3; without: t1, t2." in server.said()
        assert subject.events("secagg-stage")[-1]["missing"].keys() == {"t1", "t2"}
        checkpoint = subject.config().run_folder / "checkpoint.safetensors"
        assert not checkpoint.exists()

        # They come back, and the very same sum is opened.
        subject.start_platform("t1")
        subject.start_platform("t2")
        subject.start_server("resume")
        subject.wait_for_end()
        assert check_sums(subject)["item-counts"] == ("s3", "t1", "t2")
        check_ledgers(subject)
        assert_equal(replayed(subject), final(subject))
        check_seen(subject, watch.pages())


def test_no_reply_of_a_hostile_platform_ends_the_run(tmp_path: Path, xmrec_folder: Path) -> None:
    users = {"t1": 300, "s3": 300, "t2": 300}
    rounds = len(KINDS)
    with Deployment(tmp_path, xmrec_folder, users, plan="ncf", rounds=rounds) as subject:
        change(subject.config_file, round_timeout_seconds=60.0)
        with subject.config_file.open("a") as file:
            file.write("\n[validation]\nmax_failures = 0\n")
        subject.start_server()
        for name in ("t1", "s3"):
            subject.start_platform(name)
        hostile = (
            "import sys; from pathlib import Path; from client.config import PlatformConfig; "
            "from client.node import Node; from common.config import load_config; "
            "Node.launcher = 'tests.e2e.hostile_launcher'; path = Path(sys.argv[1]); "
            "Node(path, load_config(path, PlatformConfig)).run()"
        )
        subject.programs["t2"] = Program(
            tmp_path / "t2.log",
            [sys.executable, "-c", hostile, str(subject.toml("t2"))],
            PYTHONPATH=str(ROOT),
        )
        subject.wait_for_end()
        replies = subject.events("reply")
        causes = {e["round"]: e["outcome"] for e in replies if e["platform"] == "t2"}
        honest = [e["outcome"] for e in replies if e["platform"] != "t2"]
        assert honest == ["released"] * 2 * rounds
        print(*sorted(causes.items()), sep="\n")  # noqa: T201 - what each lie was called
        assert sorted(causes) == list(range(1, rounds + 1))
        assert "released" not in causes.values()
        assert len(set(causes.values())) == rounds
        status = crossrec("server", "status", subject.config_file)
        assert "finished" in status
