"""Laws of what a platform answers: spend first, then look, then send; once, and nothing else.

As in tests/laws/platforms.py each check lets real platforms answer in a folder of its own, and
raises an AssertionError where the law is broken.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import InMemoryNodeState
from scipy.special import ndtr

import client.platform
from client import supernode
from client.data import load_platform_data
from client.platform import Platform
from client.state import PlatformState
from common.config import dump_config
from common.messages import ADOPT, PROFILE, SUM, TRAIN
from common.privacy.ledger import LEDGER_FILE, Ledger
from common.storage import pack_arrays, write_durably
from common.wire import encode, question
from simulations.engines.in_process import InProcessGrid
from tests.laws.platforms import PLENTY, QUANTITIES, home, round_of, sum_of, taken
from tests.unit.client.durations import durations_sent
from tests.unit.client.homes import (
    NUM_ITEMS,
    adopt_request,
    asked_arrays,
    durable_rows,
    fit_quickly,
    shared_arrays,
    sum_request,
    train_request,
    write_users,
)
from tests.unit.secagg_homes import FIVE, Coordinator, settle

if TYPE_CHECKING:
    from pathlib import Path

    from client.config import PlatformConfig
    from common.messages import Reply
    from common.models.partition import Arrays


_DURATION = "get_message_processing_duration"


class Ask(Protocol):
    """Ask a platform for one release."""

    def __call__(self, config: PlatformConfig, **changes: Any) -> tuple[Reply, Arrays | None]: ...  # noqa: ANN401


def ask_round(config: PlatformConfig, **changes: Any) -> tuple[Reply, Arrays | None]:  # noqa: ANN401
    return Platform(config).train(train_request(config, **changes), shared_arrays())


def ask_sum(config: PlatformConfig, **changes: Any) -> tuple[Reply, Arrays | None]:  # noqa: ANN401
    request = sum_request(config, **changes)
    return Platform(config).sum_up(request, asked_arrays(request.quantity))


# --- Budget -------------------------------------------------------------------------------------


def check_what_is_over_budget_is_declined(folder: Path) -> None:
    """One release at noise 1 costs 4.4, two cost 6.6: of a budget of 5 the second one is refused.

    Whatever it is, in the same run or another; every request opens the ledger anew, as a restarted
    platform does.
    """
    loud: dict[str, Any] = {"noise_multiplier": 1.0}
    orders: dict[str, tuple[Ask, Ask, dict[str, Any]]] = {
        "the next round": (ask_round, ask_round, {"round_number": 2}),
        "a round of another run": (ask_round, ask_round, {"run_id": "autumn"}),
        "a sum after a round": (ask_round, ask_sum, {}),
        "a round after a sum": (ask_sum, ask_round, {}),
        "a sum after a sum": (ask_sum, ask_sum, {"quantity": "item-counts"}),
        "a sum of another run": (ask_sum, ask_sum, {"run_id": "autumn"}),
    }
    for what, (first, second, changes) in orders.items():
        config = home(folder, what.replace(" ", "-"), epsilon=5.0)
        taken(first(config, **loud))
        reply, release = second(config, **loud, **changes)
        assert release is None, f"{what} is beyond the budget, and was answered"
        assert reply.reason.startswith("budget: "), f"{what}: {reply.reason}"


def check_every_release_is_charged(folder: Path) -> None:
    """Two runs of rounds and sums: the ledger composes all of them, and no more.

    Its price is held against Gaussians added up by hand: 1/noise^2 of the whole is the sum.
    """
    config, precision = home(folder, "home", epsilon=PLENTY), 0.0
    for run in ("autumn", "spring"):
        for number in (1, 2):
            round_of(config, run_id=run, round_number=number, noise_multiplier=3.0)
        for quantity in QUANTITIES:
            sum_of(config, quantity, run_id=run, noise_multiplier=5.0)
        precision += 2 / 3.0**2 + 2 / 5.0**2
        with closing(Ledger(config.state.folder / LEDGER_FILE, read_only=True)) as ledger:
            found = ledger.account().epsilon(1e-5)
        # Balle and Wang 2018, theorem 8.
        mean = math.sqrt(precision)
        low, high = (ndtr(sign * mean / 2 - found / mean) for sign in (-1, 1))
        delta = high - math.exp(found) * low
        assert delta == pytest.approx(1e-5, rel=1e-3), f"at epsilon {found:.2f}, delta {delta:.1e}"


def check_spent_before_data_are_read_and_recorded_before_sent(folder: Path) -> None:
    """Another connection reads the ledger at each step: what it sees would survive a crash."""
    config = home(folder, "home", epsilon=PLENTY)

    with pytest.MonkeyPatch.context() as patch:
        # The platform would answer what is raised inside: what was seen is asserted outside.
        seen: list[str] = []

        def note(*arguments: Any) -> Any:  # noqa: ANN401
            seen.append(str((durable_rows(config, "reserve"), durable_rows(config, "commit"))))
            return load_platform_data(*arguments)

        patch.setattr(client.platform, "load_platform_data", note)
        for number, ask in enumerate((ask_round, ask_sum), start=1):
            reply, release = ask(config, noise_multiplier=20.0)
            assert release is not None, reply.reason
            rows = durable_rows(config, "reserve"), durable_rows(config, "commit")
            assert rows == (number, number), f"a release was sent, and the ledger has {rows}"
            assert seen[0] == str((number, number - 1)), "data were read before the spend"
            seen.clear()


# --- Once ---------------------------------------------------------------------------------------


def check_a_repeated_request_gets_the_same_bytes(folder: Path) -> None:
    """For nothing, from a platform whose noise is fresh whenever it is drawn."""
    config = home(folder, "home", simulation=False, epsilon=PLENTY)
    for number, ask in enumerate((ask_round, ask_sum), start=1):
        answers = []
        for _ in range(3):
            reply, release = ask(config, noise_multiplier=20.0)
            assert release is not None, f"asked again it is declined: {reply.reason}"
            answers.append(pack_arrays(release, {}))
        assert len(set(answers)) == 1, "a second look at the same data"
        assert durable_rows(config, "reserve") == number, "charged again"


def check_a_request_asked_again_otherwise_is_refused(folder: Path) -> None:
    """Another noise, norm or array under the same name would be a second release for one price."""
    config = home(folder, "home", epsilon=PLENTY)
    changes: tuple[dict[str, Any], ...] = (
        {"noise_multiplier": 2.0},
        {"clipping_norm": 0.2},
        {"denominator": 21.0},
        {"sampling_rate": 0.5},
        {"local_steps": 2},
    )
    round_of(config)
    for change in changes:
        reply, release = ask_round(config, **change)
        assert release is None, f"answered again, with {change}"
        assert reply.reason.startswith("refused: "), reply.reason
    _, release = Platform(config).train(train_request(config), shared_arrays(seed=1))
    assert release is None, "answered again, with other arrays"


def check_a_changed_release_is_not_sent(folder: Path) -> None:
    """What lies in the folder of releases is held against the ledger before it leaves again."""
    config = home(folder, "home", epsilon=PLENTY)
    round_of(config)
    round_of(config, run_id="autumn")
    (state := PlatformState(config.state.folder, 3)).close()
    spring, autumn = (
        state._file("releases", train_request(config, run_id=run).request_id)
        for run in ("spring", "autumn")
    )
    spring.write_bytes(autumn.read_bytes())
    _, release = ask_round(config)
    assert release is None, "another file was sent in the place of the release"


# --- Nothing else -------------------------------------------------------------------------------


def check_what_is_beside_a_release_does_not_depend_on_data(folder: Path) -> None:
    """Names, shapes and every word of each reply, as Flower gets it, from two sets of users."""
    seen = []
    for name, users in (("few", range(9)), ("others", range(100, 120))):
        config = home(folder, name, epsilon=PLENTY)
        write_users(folder / name / "purchases.csv", users)
        file = folder / name / "platform.toml"
        write_durably(file, dump_config(config).encode())
        grid = InProcessGrid([file])
        questions = (
            (PROFILE, question()),
            (TRAIN, encode(train_request(config), shared_arrays())),
            (SUM, encode(sum_request(config), asked_arrays())),
            (ADOPT, encode(adopt_request(config), shared_arrays())),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client.platform, "fit_alone", fit_quickly)
            for kind, content in questions:
                (reply,) = grid.send_and_receive([Message(content, 1, kind)])
                if reply.has_error():
                    raise RuntimeError(reply.error.reason)
                seen.append((kind, _outside(reply)))
    half = len(seen) // 2
    for (kind, one), (_, other) in zip(seen[:half], seen[half:], strict=True):
        assert one == other, f"{kind}: the reply shows whose data they are"
        assert "declined" not in str(one), f"{kind} was declined"
    arrays = [sorted(found["arrays"]) for _, found in seen[:half]]
    assert arrays == [[], ["items.bias", "items.weight"], ["sum"], []], "more than the release"
    for _, found in seen[:half]:
        assert set(found["records"]) <= {"arrays", "message"}, "more records"
        assert found["keys"] == ["json", "nonce"], "more keys"
    for _, found in seen[1:half]:
        fields = sorted(found["message"])
        assert fields == ["outcome", "platform", "reason", "round_number", "run_id"], "more fields"
        assert found["message"]["reason"] == "", "words beside a release"


def _outside(reply: Message) -> dict[str, Any]:
    """Everything in a reply but the numbers of its release and what says nothing."""
    found: dict[str, Any] = {"records": sorted(reply.content), "arrays": {}}
    for record in reply.content.values():
        if isinstance(record, ConfigRecord):
            found["keys"] = sorted(record)
            found["message"] = json.loads(str(record["json"]))
            found["message"].pop("catalogue_digest", None)
        elif isinstance(record, ArrayRecord):
            found["arrays"] = {name: (a.dtype, tuple(a.shape)) for name, a in record.items()}
        else:
            found[type(record).__name__] = dict(record)
    return found


def check_a_masked_release_shows_nothing(folder: Path) -> None:
    """Under secure aggregation what leaves is neither the release nor near it."""
    market = settle(folder)
    sums = Coordinator(market, market.counts_request()).up_to("confirm")
    lattice = sums.terms.lattice
    for name in FIVE:
        gap = lattice.values(sums.masked[name] - market.stored(sums.request, name))
        assert (gap != 0).sum() >= NUM_ITEMS - 1, "a release left without its mask"


def check_survivors_are_confirmed_once(folder: Path) -> None:
    """Two sums with the same release in them could be subtracted from each other."""
    market = settle(folder)
    sums = Coordinator(market, market.counts_request()).up_to("confirm")
    sums.confirm()
    name = FIVE[0]
    for attempt in ("the same session", "a new session"):
        if attempt == "a new session":
            market.session_file(sums.request, name).unlink()
            _, answer = sums.ask(name)
        else:
            _, answer = sums.send(name, "confirm", FIVE[:4])
        assert answer is None, f"{attempt} confirms another list"


def check_durations_are_not_told() -> None:
    """Flower's SuperNode would tell how long work on users' data took; ours tells nothing."""
    of_flower = vars(start_client_internal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "_exit", lambda _: None)
        patch.setitem(of_flower, "time", of_flower["time"])
        patch.setattr(InMemoryNodeState, _DURATION, vars(InMemoryNodeState)[_DURATION])
        patch.setattr(supernode, "flower_supernode", lambda: None)
        supernode.main()
        assert durations_sent(patch) == [0.0], "the duration of work on users' data is told"
