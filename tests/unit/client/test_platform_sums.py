"""Sums keep the promises of rounds: spend first, then look, then send; once, and with its noise."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest

import client.platform
from client.adaptation import Adapted
from client.data import load_platform_data
from client.parts import Blend, ItemWeights
from client.platform import Platform
from client.state import STOPPED_FILE, PlatformState
from common.errors import RequestRefused
from common.messages import SumRequest, to_json
from common.models.pairs import num_pairs
from common.models.partition import LATTICE
from common.privacy.ledger import LEDGER_FILE, Ledger
from common.storage import pack_arrays
from common.wire import decode, encode
from tests.harm import TAMPERING
from tests.laws.training import check_gaussian, check_uncorrelated
from tests.terms import secagg_terms
from tests.unit.client.homes import (
    NUM_ITEMS,
    NUM_LISTED,
    adopt_request,
    asked_arrays,
    declined,
    durable_entries,
    durable_rows,
    fit_quickly,
    move_in,
    purchases,
    shared_arrays,
    sum_request,
    train_request,
    true_sum,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.config import PlatformConfig
    from client.model_files import PlatformModels, ServedName
    from common.messages import Reply
    from common.models.pairs import PairSum
    from common.models.partition import Arrays, SumQuantity
    from common.privacy.mechanisms import TrustMode

QUANTITIES: tuple[SumQuantity, ...] = ("item-counts", "item-pairs")
both = pytest.mark.parametrize("quantity", QUANTITIES)
LOUD: dict[str, Any] = {"noise_multiplier": 1e4}
"""Next to it the sums are nothing."""
SECRET = "u007-alice@example.org"  # noqa: S105 - a user id


@pytest.fixture
def config(tmp_path: Path) -> PlatformConfig:
    return move_in(tmp_path)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.platform, "fit_alone", fit_quickly)


@pytest.fixture
def data_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object, **__: object) -> NoReturn:
        pytest.fail("user data was touched")

    monkeypatch.setattr(client.platform, "load_platform_data", locked)


def ask(
    config: PlatformConfig,
    quantity: SumQuantity = "item-pairs",
    arrays: Arrays | None = None,
    **changes: Any,  # noqa: ANN401 - any field
) -> tuple[Reply, Arrays | None]:
    request = sum_request(config, quantity=quantity, **changes)
    return Platform(config).sum_up(request, arrays or asked_arrays(quantity))


def released(config: PlatformConfig, quantity: SumQuantity = "item-pairs", **more: Any) -> Arrays:  # noqa: ANN401
    reply, release = ask(config, quantity, **more)
    assert (reply.outcome, reply.round_number) == ("released", 0), reply.reason
    assert release is not None
    return release


def without_noise(folder: Path) -> PlatformConfig:
    folder.mkdir()
    return move_in(folder, trust="none", epsilon=math.inf, min_noise_multiplier=0.0)


# --- What is released ---------------------------------------------------------------------------


@both
def test_the_sum_is_over_everything_that_users_did(tmp_path: Path, quantity: SumQuantity) -> None:
    """Also over what validation users gave up, and of unlisted items nothing."""
    config = without_noise(tmp_path / "home")
    release = released(config, quantity, noise_multiplier=0.0)
    assert release.keys() == {"sum"}
    assert release["sum"].dtype == np.float32
    np.testing.assert_allclose(release["sum"], true_sum(config, quantity), atol=1e-4)
    num_asked = NUM_ITEMS - 2
    size = num_asked if quantity == "item-counts" else num_pairs(num_asked)
    assert release["sum"].shape == (size,)


@pytest.mark.parametrize("trust", ["local", "secagg-simulated"])
@both
def test_noise_is_as_accounted_on_every_number_in_a_simulation(
    tmp_path: Path, quantity: SumQuantity, trust: TrustMode
) -> None:
    share = 1.0 if trust == "local" else 0.5
    noise, config = 200.0, move_in(tmp_path, trust=trust, epsilon=50.0)
    check_noise(config, quantity, noise, share, **(SUMMED if share < 1 else {}))


@both
def test_noise_is_as_accounted_on_every_number(tmp_path: Path, quantity: SumQuantity) -> None:
    """Of the operating system's draws: a false alarm once in a million runs."""
    check_noise(move_in(tmp_path, simulation=False, epsilon=50.0), quantity, 200.0, 1.0)


SUMMED: dict[str, Any] = {
    "num_platforms": 5,
    "secagg": secagg_terms(5, noise_std=200.0),
}


def check_noise(
    config: PlatformConfig,
    quantity: SumQuantity,
    noise: float,
    share: float,
    **changes: Any,  # noqa: ANN401 - any field
) -> None:
    exact = true_sum(config, quantity)
    draws = []
    for number in range(30):
        release = released(
            config, quantity, run_id=f"run-{number}", noise_multiplier=noise, **changes
        )
        terms = changes.get("secagg")
        found = terms.lattice.values(release[LATTICE]) if terms else release["sum"]
        draws.append(found - exact)
    drawn = np.array(draws)
    check_gaussian(drawn, noise * share)
    check_uncorrelated(drawn[:-1], drawn[1:])
    for column in np.unique([0, drawn.shape[1] - 1]):
        assert 0.5 * noise * share < drawn[:, column].std() < 2 * noise * share


def test_counts_and_pairs_have_noise_of_their_own(config: PlatformConfig) -> None:
    """The same noise twice would cancel; ten items and the pairs of five are equally many."""
    few = {name: array[:5] for name, array in asked_arrays().items()}
    counts = released(config, "item-counts", arrays={"items": np.arange(10)}, **LOUD)["sum"]
    pairs = released(config, "item-pairs", arrays=few, **LOUD)["sum"]
    assert not np.allclose(counts, pairs, atol=0.01 * LOUD["noise_multiplier"])


def test_noise_follows_the_seed_in_a_simulation_and_is_fresh_without(tmp_path: Path) -> None:
    releases: dict[str, bytes] = {}
    for name, simulation in (("a", True), ("b", True), ("c", False), ("d", False)):
        (tmp_path / name).mkdir()
        found = released(move_in(tmp_path / name, simulation=simulation))
        releases[name] = pack_arrays(found, {})
    assert releases["a"] == releases["b"]
    assert len(set(releases.values())) == 3


# --- The order of things ------------------------------------------------------------------------


@both
def test_data_is_read_only_after_the_spend_is_on_disk_and_sent_only_after_it_is_recorded(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch, quantity: SumQuantity
) -> None:
    order: list[str] = []

    def spy(place: Any, name: str, rows: tuple[int, int]) -> None:  # noqa: ANN401
        real = getattr(place, name)

        def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            order.append(name)
            # Read by another connection: what it sees would survive a crash right now.
            found = (durable_rows(config, "reserve"), durable_rows(config, "commit"))
            assert found == rows, name
            return real(*arguments, **named)

        monkeypatch.setattr(place, name, call)

    spy(Ledger, "reserve", (0, 0))
    spy(PlatformState, "start_training", (1, 0))
    spy(client.platform, "load_platform_data", (1, 0))
    spy(client.platform, "noisy", (1, 0))
    spy(Ledger, "commit", (1, 0))
    spy(PlatformState, "finish_training", (1, 1))
    released(config, quantity)
    assert order == [
        "reserve", "start_training", "load_platform_data", "noisy", "commit", "finish_training",
    ]  # fmt: skip


@both
def test_the_ledger_is_charged_for_one_gaussian_over_everyone(
    config: PlatformConfig, quantity: SumQuantity
) -> None:
    released(config, quantity)
    (body,) = [body for kind, _, body in durable_entries(config) if kind == "reserve"]
    assert body["mechanism"] == {
        "type": "sampled-gaussian",
        "noise_multiplier": 10.0,
        "sampling_rate": 1.0,
        "steps": 1,
        "unit": "user",
    }
    assert body["mechanism_if_broken"] == body["mechanism"]
    assert body["description"] == f"run spring, {quantity}"


def test_whoever_breaks_secure_aggregation_faces_the_platforms_own_noise(tmp_path: Path) -> None:
    config = move_in(tmp_path, trust="secagg-simulated")
    released(config, num_platforms=5, secagg=secagg_terms(5, noise_std=10.0))
    (body,) = [body for kind, _, body in durable_entries(config) if kind == "reserve"]
    assert body["mechanism"]["noise_multiplier"] == 10.0
    assert body["mechanism_if_broken"]["noise_multiplier"] == 5.0


CRASHES: dict[str, tuple[Any, str]] = {
    "loading": (client.platform, "load_platform_data"),
    "summing": (client.platform, "pair_sum"),
    "noise": (client.platform, "noisy"),
    "storing": (PlatformState, "store_release"),
    "recording": (Ledger, "commit"),
}


def fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError(SECRET)


def die(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", [fail, die])
@pytest.mark.parametrize("where", CRASHES)
def test_after_a_crash_the_spend_is_there_and_nothing_was_sent(
    config: PlatformConfig,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    how: Callable[..., NoReturn],
    tmp_path: Path,
) -> None:
    place, name = CRASHES[where]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, how)
        if how is die:
            with pytest.raises(KeyboardInterrupt):
                ask(config)
        else:
            reply, release = ask(config)
            assert release is None
            assert reply.reason == "failed: the cause is in the platform's own log."
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (1, 0)
    if how is fail:
        reply, release = ask(config)
        assert release is None
        assert reply.reason.startswith("refused: this platform stopped after a failure")
        (config.state.folder / STOPPED_FILE).unlink()  # the operator has looked
    after_retry = released(config)
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (1, 1)
    (tmp_path / "undisturbed").mkdir()
    undisturbed = released(move_in(tmp_path / "undisturbed"))
    assert pack_arrays(after_retry, {}) == pack_arrays(undisturbed, {})


# --- One request, one release -------------------------------------------------------------------


@pytest.mark.parametrize("simulation", [True, False], ids=["seeded", "system-randomness"])
@both
def test_a_repeated_request_gets_the_same_bytes_for_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, quantity: SumQuantity, *, simulation: bool
) -> None:
    config = move_in(tmp_path, simulation=simulation)
    first = released(config, quantity)
    request.getfixturevalue("data_is_locked")
    purchases(config).unlink()
    for _ in range(2):  # every call opens the state anew, as after a restart
        assert pack_arrays(released(config, quantity), {}) == pack_arrays(first, {})
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (1, 1)


def with_weight(value: float) -> Arrays:
    arrays = asked_arrays()
    arrays["weights"][3] = value
    return arrays


OTHERWISE: dict[str, tuple[dict[str, Any], Arrays | None]] = {
    "noise": ({"noise_multiplier": 11.0}, None),
    "platforms": ({"num_platforms": 3}, None),
    "weights": ({}, with_weight(0.75)),
    "items": ({}, {name: array[:-1] for name, array in asked_arrays().items()}),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_a_sum_asked_again_otherwise_is_refused(
    config: PlatformConfig, request: pytest.FixtureRequest, case: str
) -> None:
    released(config)
    request.getfixturevalue("data_is_locked")
    changes, arrays = OTHERWISE[case]
    reply, release = ask(config, arrays=arrays, **changes)
    assert release is None
    assert reply.reason.startswith("refused: run spring, item-pairs: this request id was used")
    assert declined(config) == [("spring/item-pairs/north", reply.reason)]
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (1, 1)


# --- Refusals -----------------------------------------------------------------------------------


def test_over_budget_is_declined_and_data_stay_untouched(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = move_in(tmp_path, epsilon=5.0)  # one at noise 1 costs 4.4, two cost 6.6
    released(config, "item-counts", noise_multiplier=1.0)
    request.getfixturevalue("data_is_locked")
    purchases(config).unlink()
    reply, release = ask(config, noise_multiplier=1.0)
    assert release is None
    assert reply.reason.startswith("budget: run spring, item-pairs would bring the spend to eps")
    assert declined(config) == [("spring/item-pairs/north", reply.reason)]
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (1, 1)


def test_sums_and_rounds_are_paid_from_one_budget(tmp_path: Path) -> None:
    config = move_in(tmp_path, epsilon=5.0)
    released(config, noise_multiplier=1.0)
    reply, _ = Platform(config).train(train_request(config), shared_arrays())
    assert reply.reason.startswith("budget: run spring, round 1")


def asked_with(quantity: SumQuantity = "item-pairs", **arrays: Any) -> Arrays:  # noqa: ANN401
    found: dict[str, Any] = {**asked_arrays(quantity), **arrays}
    return {name: array for name, array in found.items() if array is not None}


HOSTILE: dict[str, tuple[dict[str, Any], Arrays | None, str]] = {
    "no-trust": ({"trust": "none", "noise_multiplier": 0.0}, None, "trust: asked for 'none'"),
    "promised-secrecy": (
        {"trust": "secagg", "secagg": secagg_terms(2)},
        None,
        "trust: asked for 'secagg'",
    ),
    "no-noise": ({"noise_multiplier": 0.0}, None, "noise_multiplier: .*at least 0.3"),
    "little-noise": ({"noise_multiplier": 0.29}, None, "noise_multiplier: .*at least 0.3"),
    "other-platform": ({"platform": "south"}, None, "platform: the request is for 'south'"),
    "other-catalogue": ({"catalogue_digest": "0" * 64}, None, "catalogue: .*another version"),
    "unsorted": ({}, asked_with(items=asked_arrays()["items"][::-1].copy()), "items: .*increasing"),
    "twice": ({}, asked_with(items=np.r_[0, 0, np.arange(2, 12)]), "items: .*each once"),
    "negative": ({}, asked_with(items=np.arange(-1, 11)), "items: .*catalogue of 14"),
    "beyond": ({}, asked_with(items=np.arange(3, 15)), "items: .*catalogue of 14"),
    "no-items": (
        {},
        {"items": np.zeros(0, np.int64), "weights": np.zeros(0, np.float32)},
        "items: found 0, expected 2",
    ),
    "one-item": (
        {},
        {"items": np.zeros(1, np.int64), "weights": np.ones(1, np.float32)},
        "items: found 1, expected 2",
    ),
    "items-square": ({}, asked_with(items=np.zeros((12, 1), np.int64)), r"items: .*\(12, 1\)"),
    "items-int32": ({}, asked_with(items=np.arange(12, dtype="i4")), "items: found int32"),
    "items-float": ({}, asked_with(items=np.arange(12.0)), "items: found float64"),
    "missing-items": ({}, asked_with(items=None), r"missing \['items'\]"),
    "missing-weights": ({}, asked_with(weights=None), r"missing \['weights'\]"),
    "foreign": ({}, asked_with(probe=np.zeros(3, "f4")), r"not allowed \['probe'\]"),
    "nothing": ({}, asked_with(items=None, weights=None, x=np.zeros(1)), "missing"),
    "weight-0": ({}, with_weight(0.0), "weights: found 0 to"),
    "weight-tiny": ({}, with_weight(2.0**-11), "weights: found 0.000488"),
    "weight-negative": ({}, with_weight(-0.5), "weights: found -0.5"),
    "weight-2": ({}, with_weight(2.0), "weights: .* to 2, expected"),
    "weight-nan": ({}, with_weight(np.nan), "weights: found NaN"),
    "weight-infinity": ({}, with_weight(np.inf), "weights: .*infinity"),
    "weights-float64": ({}, asked_with(weights=np.ones(12)), "weights: found float64"),
    "weights-short": ({}, asked_with(weights=np.ones(11, "f4")), r"weights: .*\(11,\)"),
    "counts-with-weights": (
        {"quantity": "item-counts"},
        asked_arrays(),
        r"not allowed \['weights'\]",
    ),
    "counts-of-nothing": (
        {"quantity": "item-counts"},
        {"items": np.zeros(0, np.int64)},
        "items: found 0, expected 1",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("with_history", [False, True], ids=["first-ever", "later"])
def test_what_the_platform_did_not_agree_to_is_refused_for_nothing(
    config: PlatformConfig, request: pytest.FixtureRequest, case: str, *, with_history: bool
) -> None:
    if with_history:
        released(config, "item-counts", run_id="honest")
    request.getfixturevalue("data_is_locked")
    before = durable_entries(config)
    changes, arrays, said = HOSTILE[case]
    asked = sum_request(config, **changes)
    reply, release = Platform(config).sum_up(
        asked, asked_arrays(asked.quantity) if arrays is None else arrays
    )
    assert release is None
    assert (reply.outcome, reply.run_id, reply.round_number) == ("declined", "spring", 0)
    with pytest.raises(ValueError, match=f"refused: .*{said}"):
        raise ValueError(reply.reason)
    assert durable_entries(config) == [
        *before,
        ("decline", asked.request_id, {"reason": reply.reason}),
    ]


@pytest.mark.parametrize(
    "number", ["MAX_COUNTED_ITEMS", "MAX_PAIRED_ITEMS"], ids=["item-counts", "item-pairs"]
)
def test_more_items_than_a_platform_has_memory_for_are_refused(
    config: PlatformConfig, data_is_locked: None, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    del data_is_locked
    monkeypatch.setattr(f"common.models.partition.{number}", 11)
    reply, _ = ask(config, "item-counts" if "COUNTED" in number else "item-pairs")
    assert "items: found 12, expected" in reply.reason


SMUGGLED: dict[str, tuple[dict[str, object], str]] = {
    "quantity": ({"quantity": "users"}, "quantity"),
    "steps": ({"local_steps": 1}, "local_steps"),
    "sampling": ({"sampling_rate": 0.1}, "sampling_rate"),
    "round": ({"round_number": 0}, "round_number"),
    "noise-nan": ({"noise_multiplier": math.nan}, "noise_multiplier"),
    "noise-infinity": ({"noise_multiplier": math.inf}, "noise_multiplier"),
    "noise-negative": ({"noise_multiplier": -1.0}, "noise_multiplier"),
    "alone": ({"trust": "secagg-simulated", "num_platforms": 1}, "secagg: found None"),
    "nobody": ({"num_platforms": 0}, "num_platforms"),
    "run": ({"run_id": "spring/1"}, "run_id"),
}


@pytest.mark.parametrize("case", SMUGGLED)
def test_what_is_smuggled_into_a_message_stops_it_before_the_platform_is_asked(
    config: PlatformConfig, case: str
) -> None:
    changes, named = SMUGGLED[case]
    record = encode(sum_request(config), asked_arrays())
    fields = json.loads(to_json(sum_request(config)))
    record.config_records["message"]["json"] = json.dumps({**fields, **changes})
    with pytest.raises(RequestRefused, match=named):
        decode(record, SumRequest)


@pytest.mark.parametrize("name", ["last-row-cut-off", "chain-computed-anew", "head-ahead"])
def test_on_a_ledger_that_is_not_whole_nothing_is_summed(
    config: PlatformConfig, request: pytest.FixtureRequest, name: str
) -> None:
    released(config, "item-counts")
    released(config, "item-pairs")
    request.getfixturevalue("data_is_locked")
    TAMPERING[name][0](config.state.folder / LEDGER_FILE)
    for quantity in QUANTITIES:
        reply, release = ask(config, quantity)
        assert release is None
        assert reply.reason == "failed: the cause is in the platform's own log."


# --- Kept for the whole run ---------------------------------------------------------------------


FEW: dict[str, Any] = {"noise_multiplier": 50.0}


def train(config: PlatformConfig, **changes: Any) -> None:  # noqa: ANN401
    request = train_request(config, **{**FEW, **changes})
    reply, _ = Platform(config).train(request, shared_arrays())
    assert reply.outcome == "released", reply.reason


@pytest.mark.parametrize("keep", [1, 3])
def test_sums_are_kept_to_the_end_of_their_run_and_rounds_as_before(
    tmp_path: Path, keep: int
) -> None:
    config = move_in(tmp_path)
    config = replace(config, state=replace(config.state, keep_releases=keep))
    first = {quantity: released(config, quantity, **FEW) for quantity in QUANTITIES}
    for number in range(1, 6):
        train(config, round_number=number)
    for quantity in QUANTITIES:
        again = released(config, quantity, **FEW)
        assert pack_arrays(again, {}) == pack_arrays(first[quantity], {})
    assert len(list(config.state.folder.glob("releases/*"))) == keep + 2
    assert len(list(config.state.folder.glob("private/*"))) == keep
    released(config, run_id="autumn", **FEW)
    reply, _ = ask(config, **FEW)
    assert reply.reason.startswith("failed"), "the sum of an earlier run is no longer kept"
    assert not (config.state.folder / STOPPED_FILE).exists()


def test_a_sum_leaves_the_private_vectors_of_the_rounds_alone(tmp_path: Path) -> None:
    def last_round(folder: Path, *, with_sum: bool) -> bytes:
        folder.mkdir()
        config = move_in(folder)
        config = replace(config, state=replace(config.state, keep_releases=1))
        train(config, round_number=1)
        if with_sum:
            released(config, **FEW)
        request = train_request(config, round_number=2, **FEW)
        _, release = Platform(config).train(request, shared_arrays())
        assert release is not None
        return pack_arrays(release, {})

    assert last_round(tmp_path / "a", with_sum=True) == last_round(tmp_path / "b", with_sum=False)


# --- Handing over -------------------------------------------------------------------------------


def handed(total: np.ndarray, *, with_rounds: bool = True) -> Arrays:
    pairs = {f"pairs.{name}": array for name, array in asked_arrays().items()}
    shared = shared_arrays() if with_rounds else {}
    return {**shared, **pairs, "pairs.sum": total.astype(np.float32)}


@pytest.fixture
def adapted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Arrays | None, PairSum | None]]:
    """What each adaptation was given."""
    seen: list[tuple[Arrays | None, PairSum | None]] = []

    def watch(*arguments: Any) -> None:  # noqa: ANN401
        seen.append((arguments[2], arguments[3]))

    monkeypatch.setattr(Platform, "_adapt", watch)
    return seen


def adopt(config: PlatformConfig, arrays: Arrays, **changes: Any) -> Reply:  # noqa: ANN401
    fields = {"num_sums": 3, "own_included": True, "noise_std": 10.0, **changes}
    return Platform(config).adopt(adopt_request(config, **fields), arrays)


OTHERS = np.linspace(-5, 40, num_pairs(NUM_ITEMS - 2))


@pytest.mark.parametrize("with_rounds", [True, False])
def test_a_platform_subtracts_its_own_release_and_its_noise(
    config: PlatformConfig,
    adapted: list[tuple[Arrays | None, PairSum | None]],
    *,
    with_rounds: bool,
) -> None:
    own = released(config)["sum"]
    arrays = handed(OTHERS + own, with_rounds=with_rounds)
    assert adopt(config, arrays, rounds_done=int(with_rounds)).outcome == "adopted"
    ((shared, pairs),) = adapted
    assert (shared is not None) == with_rounds
    assert pairs is not None
    np.testing.assert_allclose(pairs.total, OTHERS, atol=1e-4)
    assert pairs.total.dtype == np.float32
    assert pairs.noise_std == pytest.approx(10.0 * math.sqrt(2))
    np.testing.assert_array_equal(pairs.items, asked_arrays()["items"])
    np.testing.assert_array_equal(pairs.weights, asked_arrays()["weights"])


@pytest.mark.parametrize("case", ["never made", "left out", "of another run"])
def test_without_its_own_release_in_it_a_platform_takes_the_sum_as_it_is(
    config: PlatformConfig, adapted: list[tuple[Arrays | None, PairSum | None]], case: str
) -> None:
    if case != "never made":
        released(config, run_id="autumn" if case == "of another run" else "spring")
    adopt(config, handed(OTHERS), own_included=case != "left out")
    ((_, pairs),) = adapted
    assert pairs is not None
    np.testing.assert_array_equal(pairs.total, OTHERS.astype(np.float32))
    assert pairs.noise_std == pytest.approx(10.0 * math.sqrt(3))


def test_a_sum_of_nothing_but_its_own_tells_a_platform_nothing(
    config: PlatformConfig, adapted: list[tuple[Arrays | None, PairSum | None]]
) -> None:
    own = released(config)["sum"]
    adopt(config, handed(own), num_sums=1)
    assert [pairs for _, pairs in adapted] == [None]


def test_a_sum_that_its_own_release_is_no_part_of_by_size_is_not_used(
    config: PlatformConfig,
    adapted: list[tuple[Arrays | None, PairSum | None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    released(config, arrays={name: array[:-1] for name, array in asked_arrays().items()})
    assert adopt(config, handed(OTHERS)).outcome == "adopted"
    assert adapted == []
    assert "not of the items that this platform was asked for" in caplog.text


def kept(config: PlatformConfig) -> tuple[ServedName | None, PlatformModels]:
    """What the platform serves, and all that it has."""
    state = PlatformState(config.state.folder, keep_releases=3)
    found = state.models.load(load_platform_data(config).users_digest)
    name = state.models.served()
    state.close()
    assert found is not None
    assert not (config.state.folder / "training.txt").exists()
    return name, found


@pytest.mark.parametrize("with_rounds", [True, False])
def test_what_others_pairs_say_and_what_rounds_brought_are_parts_of_their_own(
    config: PlatformConfig, *, with_rounds: bool
) -> None:
    adopt(config, handed(OTHERS, with_rounds=with_rounds), rounds_done=int(with_rounds))
    _, found = kept(config)
    assert found.alone.parts.keys() == {"popularity"}
    added = {"pairs", "ncf_items", "shared"} if with_rounds else {"pairs"}
    assert found.parts.keys() == {"popularity"} | added
    pairs = found.parts["pairs"]
    assert isinstance(pairs, ItemWeights)
    assert pairs.weights.shape == (NUM_LISTED, NUM_LISTED)
    assert pairs.weights.nnz > 0


def test_pairs_are_judged_on_every_fold_and_rounds_on_the_first(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], int]] = []

    def watch(alone: Adapted, federated: Any, _: object, folds: Any) -> Adapted:  # noqa: ANN401
        seen.append((list(federated), len(folds)))
        return alone

    monkeypatch.setattr(client.platform, "join", watch)
    adopt(config, handed(OTHERS))
    assert seen == [(["pairs"], 5), (["ncf_items"], 1)]


def join_gladly(alone: Adapted, federated: Any, *_: object) -> Adapted:  # noqa: ANN401
    """Stands in for :func:`client.adaptation.join`: whatever comes is served."""
    parts = {name: ItemWeights(weights=weights) for name, weights in federated.items()}
    blend = Blend(
        parts={**alone.blend.parts, **parts},
        weights={**alone.blend.weights, **dict.fromkeys(parts, 0.5)},
    )
    return Adapted(blend=blend, scores=alone.scores)


def test_after_a_run_that_brought_nothing_a_platform_serves_alone(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier run brought is not served on: its sum has the platform's own part in it."""
    monkeypatch.setattr(client.platform, "join", join_gladly)
    adopt(config, handed(OTHERS))
    name, found = kept(config)
    assert name == "joined"
    assert found.parts.keys() == {"popularity", "pairs", "ncf_items", "shared"}
    own = released(config, run_id="autumn")["sum"]
    arrays = handed(own, with_rounds=False)
    adopt(config, arrays, run_id="autumn", rounds_done=0, num_sums=1)
    name, found = kept(config)
    assert name == "alone"
    assert found.parts.keys() == {"popularity"}
    assert found.joined is not None
    assert found.joined.weights == found.alone.weights


def test_other_pairs_are_joined_again_and_nothing_is_fitted_alone(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[object] = []

    def watch(*arguments: Any, **named: Any) -> Adapted:  # noqa: ANN401
        fits.append(arguments)
        return fit_quickly(*arguments, **named)

    monkeypatch.setattr(client.platform, "fit_alone", watch)
    found = []
    for total, noise_std in ((OTHERS, 10.0), (OTHERS[::-1], 10.0), (OTHERS, 1.0)):
        adopt(config, handed(total), noise_std=noise_std)
        pairs = kept(config)[1].parts["pairs"]
        assert isinstance(pairs, ItemWeights)
        found.append(pairs.weights.toarray())
    assert len(fits) == 1
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[0], found[2])


@pytest.mark.parametrize("where", ["similarity_of_pairs", "join"])
def test_a_failure_with_others_pairs_leaves_what_was_served(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(client.platform, "join", join_gladly)
        adopt(config, handed(OTHERS))
    before = {path.name: path.read_bytes() for path in config.state.folder.glob("model/*")}
    with purchases(config).open("a", encoding="utf-8") as file:
        file.write("u999,i00,1\n")

    def fail(*_: object) -> NoReturn:
        raise RuntimeError

    monkeypatch.setattr(client.platform, where, fail)
    adopt(config, handed(OTHERS))
    assert before == {p.name: p.read_bytes() for p in config.state.folder.glob("model/*")}


def handed_with(**arrays: Any) -> Arrays:  # noqa: ANN401
    found: dict[str, Any] = handed(OTHERS)
    found |= {name.replace("_", ".", 1): array for name, array in arrays.items()}
    return {name: array for name, array in found.items() if array is not None}


MALFORMED: dict[str, tuple[dict[str, Any], Arrays, str]] = {
    "no-sum": ({}, handed_with(pairs_sum=None), r"missing \['sum'\]"),
    "short-sum": ({}, handed(OTHERS[:-1]), r"sum: .*\(65,\)"),
    "sum-nan": ({}, handed(np.where(OTHERS > 0, OTHERS, np.nan)), "sum: found NaN"),
    "no-weights": ({}, handed_with(pairs_weights=None), r"missing \['weights'\]"),
    "weights-0": ({}, handed_with(pairs_weights=np.zeros(12, "f4")), "weights: found 0"),
    "foreign-pair": ({}, handed_with(pairs_more=np.zeros(3, "f4")), r"not allowed \['more'\]"),
    "unannounced": ({"num_sums": 0}, handed(OTHERS), "more than what the request says"),
    "no-pairs": ({}, shared_arrays(), "missing"),
    "rounds-unannounced": ({"rounds_done": 0}, handed(OTHERS), "more than what the request says"),
    "rounds-missing": ({}, handed(OTHERS, with_rounds=False), "shared arrays: missing"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_handed_over_is_exactly_what_the_request_says(
    config: PlatformConfig, data_is_locked: None, case: str
) -> None:
    del data_is_locked
    changes, arrays, said = MALFORMED[case]
    reply = adopt(config, arrays, **changes)
    assert reply.outcome == "declined"
    with pytest.raises(ValueError, match=f"refused: .*{said}"):
        raise ValueError(reply.reason)
    assert not (config.state.folder / "model").exists()
