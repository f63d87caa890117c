"""What a platform promises: spend first, then look, then send; once, and nothing else."""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.common.serde import recorddict_to_proto

import client.platform
from client import model_files
from client.adaptation import Adapted, fit_alone
from client.config import SimulationSection
from client.data import load_platform_data
from client.parts import Blend, ItemScores
from client.personal_ncf import PersonalNcf
from client.platform import Platform
from client.state import STOPPED_FILE, PlatformState
from client.trainer import train_round
from common.data.readers import read_interactions
from common.errors import DataError, NonFiniteUpdate, RequestRefused, StateError
from common.messages import TrainRequest, to_json
from common.privacy import ledger as ledger_module
from common.privacy.ledger import LEDGER_FILE, Ledger
from common.storage import pack_arrays
from common.wire import decode, encode
from tests.harm import (
    OLDER,
    TAMPERING,
    Clock,
    files_of,
    fill,
    in_processes,
    read_only,
    small_disk,
)
from tests.terms import secagg_terms
from tests.unit.client.homes import (
    MODEL,
    NAME,
    NUM_ITEMS,
    NUM_LISTED,
    NUM_USERS,
    adopt_request,
    declined,
    durable_entries,
    durable_rows,
    fit_quickly,
    move_in,
    purchases,
    shared_arrays,
    train_request,
    write_catalogue_file,
    write_users,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.config import PlatformConfig
    from client.data import PlatformData
    from client.model_files import PlatformModels, ServedName
    from client.user_vectors import UserVectors
    from common.messages import Reply
    from common.models.partition import Arrays

SECRET = "u007-alice@example.org"  # noqa: S105 - a user id


@pytest.fixture
def config(tmp_path: Path) -> PlatformConfig:
    return move_in(tmp_path)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.platform, "fit_alone", fit_quickly)


@pytest.fixture
def data_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at user data fails the test."""

    def locked(*_: object, **__: object) -> NoReturn:
        pytest.fail("user data was touched")

    monkeypatch.setattr(client.platform, "load_platform_data", locked)
    monkeypatch.setattr("client.data.read_interactions", locked)


def train(config: PlatformConfig, **changes: Any) -> tuple[Reply, Arrays | None]:  # noqa: ANN401
    return Platform(config).train(train_request(config, **changes), shared_arrays())


def released(config: PlatformConfig, **changes: Any) -> Arrays:  # noqa: ANN401 - any field
    reply, release = train(config, **changes)
    assert reply.outcome == "released", reply.reason
    assert release is not None
    return release


def assert_same_bits(found: Arrays | None, expected: Arrays) -> None:
    assert found is not None
    assert pack_arrays(found, {}) == pack_arrays(expected, {})


# --- The order of things ------------------------------------------------------------------------


def test_data_is_read_only_after_the_spend_is_on_disk_and_sent_only_after_it_is_recorded(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def spy(place: Any, name: str, label: str, rows: tuple[int, int]) -> None:  # noqa: ANN401
        real = getattr(place, name)

        def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            order.append(label)
            # Read by another connection: what it sees would survive a crash right now.
            found = (durable_rows(config, "reserve"), durable_rows(config, "commit"))
            assert found == rows, label
            return real(*arguments, **named)

        monkeypatch.setattr(place, name, call)

    spy(Ledger, "reserve", "reserve", (0, 0))
    spy(client.platform, "load_platform_data", "load data", (1, 0))
    monkeypatch.setattr(
        "client.data.read_interactions", _labelled(order, "client.data.read_interactions")
    )
    spy(client.platform, "train_round", "train", (1, 0))
    spy(Ledger, "commit", "record", (1, 0))
    released(config)
    assert order == ["reserve", "load data", "client.data.read_interactions", "train", "record"]
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (1, 1)


def _labelled(order: list[str], label: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:  # noqa: ANN401
        order.append(label)
        return read_interactions(*arguments)

    return call


def test_a_profile_holds_public_facts_and_touches_no_data(
    config: PlatformConfig, data_is_locked: None
) -> None:
    del data_is_locked
    purchases(config).unlink()
    profile = Platform(replace(config, platform=replace(config.platform, population=31))).profile()
    assert json.loads(to_json(profile)) == {
        "platform": NAME,
        "population": 31,
        "catalogue_digest": train_request(config).catalogue_digest,
        "trust": "local",
        "unit": "user",
        "delta": 1e-5,
    }
    assert not config.state.folder.exists()


# --- Refusals -----------------------------------------------------------------------------------


def test_over_budget_is_declined_and_data_stay_untouched(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = move_in(tmp_path, epsilon=5.0)  # one round at noise 1 costs 4.4, two cost 6.6
    released(config)
    request.getfixturevalue("data_is_locked")
    purchases(config).unlink()
    reply, release = train(config, round_number=2)
    assert release is None
    assert reply.outcome == "declined"
    assert reply.reason.startswith("budget: run spring, round 2 would bring the spend to epsilon")
    assert declined(config) == [("spring/2/north", reply.reason)]
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (1, 1)


def array_with(name: str, array: np.ndarray | None) -> Arrays:
    arrays: dict[str, Any] = {**shared_arrays(), name: array}
    return {key: value for key, value in arrays.items() if value is not None}


def with_first(value: float) -> np.ndarray:
    array = shared_arrays()["items.bias"]
    array[0] = value
    return array


REFUSED_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "no-noise": ({"trust": "none"}, "trust: asked for 'none', this platform accepts 'local'"),
    "less-noise": (
        {"trust": "secagg", "secagg": secagg_terms(2)},
        "trust: asked for 'secagg', this platform accepts 'local'",
    ),
    "wide-clipping": ({"clipping_norm": 10.01}, "clipping_norm: .*at most 10"),
    "little-noise": ({"noise_multiplier": 0.29}, "noise_multiplier: .*at least 0.3"),
    "late-round": ({"round_number": 1001}, "round: asked for 1001, .* at most 1000 rounds"),
    "other-platform": ({"platform": "south"}, "platform: the request is for 'south'"),
    "other-catalogue": ({"catalogue_digest": "0" * 64}, "catalogue: .*another version"),
    "other-model": ({"model": replace(MODEL, dim=5)}, r"items.weight: .*\(14, 4\)"),
}
REFUSED_ARRAYS: dict[str, tuple[Arrays, str]] = {
    "nan": (array_with("items.bias", with_first(np.nan)), "items.bias: found NaN"),
    "infinity": (array_with("items.bias", with_first(np.inf)), "items.bias: .*infinity"),
    "huge": (array_with("items.bias", with_first(101.0)), "a value is beyond 100"),
    "missing": (array_with("items.bias", None), r"missing \['items.bias'\]"),
    "foreign": (array_with("probe", np.zeros(3, "f4")), r"not allowed \['probe'\]"),
    "float64": (array_with("items.bias", np.zeros(NUM_ITEMS)), "items.bias: found float64"),
    "shape": (array_with("items.bias", np.zeros(1, "f4")), r"items.bias: .*\(1,\)"),
    "nothing": ({}, "missing"),
}


@pytest.mark.parametrize("case", [*REFUSED_REQUESTS, *REFUSED_ARRAYS])
def test_what_the_platform_did_not_agree_to_is_refused_for_nothing(
    config: PlatformConfig, data_is_locked: None, case: str
) -> None:
    del data_is_locked
    changes, said = REFUSED_REQUESTS.get(case, ({}, ""))
    arrays, said = REFUSED_ARRAYS.get(case, (shared_arrays(), said))
    request = train_request(config, **changes)
    reply, release = Platform(config).train(request, arrays)
    assert release is None
    assert (reply.platform, reply.run_id) == (NAME, "spring")
    assert reply.round_number == request.round_number
    assert reply.outcome == "declined"
    assert reply.reason.startswith("refused: ")
    assert_matches(said, reply.reason)
    decline = ("decline", request.request_id, {"reason": reply.reason})
    assert durable_entries(config) == [decline], "nothing was granted, let alone reserved"


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


def test_a_request_without_noise_is_over_any_finite_budget(
    tmp_path: Path, data_is_locked: None
) -> None:
    del data_is_locked
    config = move_in(tmp_path, min_noise_multiplier=0.0)
    reply, release = train(config, noise_multiplier=0.0)
    assert release is None
    assert reply.reason.startswith("budget: ")
    assert declined(config) == [("spring/1/north", reply.reason)]
    assert len(durable_entries(config)) == 1


@pytest.mark.parametrize("case", ["other-platform", "other-catalogue", "other-model", "nan"])
def test_a_finished_model_that_is_not_meant_for_it_is_refused(
    config: PlatformConfig, data_is_locked: None, case: str
) -> None:
    del data_is_locked
    changes, _ = REFUSED_REQUESTS.get(case, ({}, ""))
    arrays, _ = REFUSED_ARRAYS.get(case, (shared_arrays(), ""))
    reply = Platform(config).adopt(adopt_request(config, **changes), arrays)
    assert reply.outcome == "declined"
    assert reply.reason.startswith("refused: ")
    assert not (config.state.folder / "model").exists()


# --- One request, one release -------------------------------------------------------------------


@pytest.mark.parametrize("simulation", [True, False], ids=["seeded", "system-randomness"])
def test_a_repeated_request_gets_the_same_bits_for_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, *, simulation: bool
) -> None:
    config = move_in(tmp_path, simulation=simulation)
    first = released(config)
    request.getfixturevalue("data_is_locked")
    purchases(config).unlink()
    for _ in range(2):
        reply, again = train(config)
        assert reply.outcome == "released"
        assert_same_bits(again, first)
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (1, 1)


def test_noise_is_fresh_without_a_simulation_and_follows_the_seed_with_one(tmp_path: Path) -> None:
    releases: dict[str, Arrays] = {}
    for name, simulation in (("a", True), ("b", True), ("c", False), ("d", False)):
        (tmp_path / name).mkdir()
        releases[name] = released(move_in(tmp_path / name, simulation=simulation))
    assert_same_bits(releases["a"], releases["b"])
    for one, other in (("a", "c"), ("c", "d")):
        for key, array in releases[one].items():
            assert not np.array_equal(array, releases[other][key])


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 2.0},
        {"clipping_norm": 0.2},
        {"denominator": 21.0},
        {"learning_rate": 0.5},
        {"num_platforms": 3},
        {"user_steps": 1},
        {"dropout": 0.25},
        {"sampling_rate": 0.5},
        {"local_steps": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_round_asked_again_otherwise_is_refused(
    config: PlatformConfig, request: pytest.FixtureRequest, changes: dict[str, Any]
) -> None:
    # A second release of one round with other parameters would be a second look at the data.
    released(config)
    request.getfixturevalue("data_is_locked")
    reply, release = train(config, **changes)
    assert release is None
    assert reply.reason.startswith("refused: run spring, round 1: this request id was used before")
    assert declined(config) == [("spring/1/north", reply.reason)]
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (1, 1)


def test_a_round_asked_again_with_other_shared_arrays_is_refused(
    config: PlatformConfig, request: pytest.FixtureRequest
) -> None:
    released(config)
    request.getfixturevalue("data_is_locked")
    reply, release = Platform(config).train(train_request(config), shared_arrays(seed=1))
    assert release is None
    assert reply.reason.startswith("refused: ")
    assert declined(config) == [("spring/1/north", reply.reason)]
    assert durable_rows(config, "reserve") == 1


def test_the_release_has_no_row_outside_the_public_listing(config: PlatformConfig) -> None:
    release = released(config)
    assert release["items.weight"].shape == (NUM_ITEMS, MODEL.dim)
    assert not release["items.weight"][NUM_LISTED:].any()
    assert not release["items.bias"][NUM_LISTED:].any()
    assert release["items.weight"][:NUM_LISTED].all()  # noise is on every listed row


# --- Failures -----------------------------------------------------------------------------------


def fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError(SECRET)


def die(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


CRASHES: dict[str, tuple[Any, str]] = {
    "loading": (client.platform, "load_platform_data"),
    "training": (client.platform, "train_round"),
    "storing": (PlatformState, "store_release"),
    "recording": (Ledger, "commit"),
}


@pytest.mark.parametrize("how", [fail, die])
@pytest.mark.parametrize("where", CRASHES)
def test_after_a_crash_nothing_was_sent_and_a_retry_is_charged_once(
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
                train(config)
        else:
            reply, release = train(config)
            assert release is None
            assert reply.reason == "failed: the cause is in the platform's own log."
            (config.state.folder / STOPPED_FILE).unlink()  # the operator has looked
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (1, 0)
    after_retry = released(config)
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (1, 1)
    (tmp_path / "undisturbed").mkdir()
    assert_same_bits(after_retry, released(move_in(tmp_path / "undisturbed")))


@pytest.mark.parametrize("where", CRASHES)
def test_after_a_failure_the_platform_answers_nobody_until_its_operator_has_looked(
    config: PlatformConfig,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    where: str,
) -> None:
    # Which requests fail may depend on the data: asking on would be a way to learn of them.
    released(config, noise_multiplier=20.0)
    place, name = CRASHES[where]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        train(config, noise_multiplier=20.0, round_number=2)
    request.getfixturevalue("data_is_locked")
    for number in (1, 2, 3):
        reply, release = train(config, noise_multiplier=20.0, round_number=number)
        assert release is None
        assert reply.reason.startswith("refused: this platform stopped after a failure")
        assert SECRET not in reply.reason
    assert [request_id for request_id, _ in declined(config)] == [
        f"spring/{number}/north" for number in (1, 2, 3)
    ]
    assert durable_rows(config, "reserve") == 2


def test_after_a_crash_while_recording_the_private_vectors_are_those_of_the_round_before(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    released(config)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", fail)
        train(config, round_number=2)
    (config.state.folder / STOPPED_FILE).unlink()
    second = released(config, round_number=2)
    (tmp_path / "undisturbed").mkdir()
    undisturbed = move_in(tmp_path / "undisturbed")
    released(undisturbed)
    assert_same_bits(second, released(undisturbed, round_number=2))


ERRORS: dict[str, Callable[[], Exception]] = {
    "runtime": lambda: RuntimeError(SECRET),
    "key": lambda: KeyError(SECRET),
    "data": lambda: DataError("bad", source=SECRET, found=SECRET, expected="", column=SECRET),
    "state": lambda: StateError(SECRET),
    "non-finite": lambda: NonFiniteUpdate(SECRET),
    "memory": lambda: MemoryError(SECRET),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", CRASHES)
def test_no_text_of_an_internal_error_is_in_the_encoded_reply(
    config: PlatformConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    error: str,
) -> None:
    def raise_it(*_: object, **__: object) -> NoReturn:
        error_to_raise = ERRORS[error]()
        raise error_to_raise

    place, name = CRASHES[where]
    monkeypatch.setattr(place, name, raise_it)
    reply, release = train(config)
    assert SECRET in caplog.text  # the operator does learn the cause
    sent = recorddict_to_proto(encode(reply, release)).SerializeToString()
    assert SECRET.encode() not in sent
    assert b"failed: the cause is in the platform's own log." in sent


ADAPTING: dict[str, tuple[Any, str]] = {
    "loading": (client.platform, "load_platform_data"),
    "fitting alone": (client.platform, "fit_alone"),
    "comparing items": (client.platform, "similarity_of_vectors"),
    "joining": (client.platform, "join"),
    "loading vectors": (PlatformState, "load_vectors"),
    "fitting vectors": (client.platform, "fit_user_vectors"),
}


@pytest.mark.parametrize("where", ADAPTING)
def test_a_failed_adoption_looks_like_any_other_from_outside_and_leaves_what_was_served(
    config: PlatformConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(client.platform, "join", join_gladly)
        undisturbed = Platform(config).adopt(adopt_request(config), shared_arrays())
    before = model_folder(config)
    assert served(config) == "joined"
    write_users(purchases(config), range(NUM_USERS + 1))  # so that all is fitted again
    with monkeypatch.context() as patch:
        patch.setattr(*ADAPTING[where], fail)
        reply = Platform(config).adopt(adopt_request(config), shared_arrays(seed=1))
    assert SECRET in caplog.text
    # Whether the fitting succeeded is nobody else's business.
    assert reply == undisturbed
    sent = recorddict_to_proto(encode(reply)).SerializeToString()
    assert SECRET.encode() not in sent
    assert model_folder(config) == before
    assert served(config) == "joined"
    Platform(config).adopt(adopt_request(config), shared_arrays(seed=1))
    assert model_folder(config) != before, "the next one succeeds"


# --- What leaves --------------------------------------------------------------------------------


def test_a_release_is_an_allow_list_down_to_the_last_key(config: PlatformConfig) -> None:
    reply, release = train(config)
    record = encode(reply, release)
    assert list(record) == ["message", "arrays"]
    message, arrays = record["message"], record["arrays"]
    assert isinstance(message, ConfigRecord)
    assert isinstance(arrays, ArrayRecord)
    assert list(message) == ["json", "nonce"]
    assert json.loads(str(message["json"])) == {
        "platform": "north",
        "run_id": "spring",
        "round_number": 1,
        "outcome": "released",
        "reason": "",
    }
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "items.weight": ("float32", (NUM_ITEMS, 4)),
        "items.bias": ("float32", (NUM_ITEMS,)),
    }


def test_every_other_reply_is_one_message_of_five_fields_and_no_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = move_in(tmp_path, epsilon=5.0)
    replies = [Platform(config).adopt(adopt_request(config), shared_arrays())]
    replies.append(train(config, platform="south")[0])
    released(config)
    replies.append(train(config, round_number=2)[0])
    monkeypatch.setattr(client.platform, "load_platform_data", fail)
    replies.append(train(config, round_number=1, run_id="autumn", noise_multiplier=50.0)[0])
    kinds = ("adopted", "declined refused", "declined budget", "declined failed")
    for reply, kind in zip(replies, kinds, strict=True):
        assert f"{reply.outcome} {reply.reason.split(':')[0]}".strip() == kind
        record = encode(reply, None)
        assert list(record) == ["message"]
        fields = json.loads(to_json(reply))
        assert list(fields) == ["outcome", "platform", "reason", "round_number", "run_id"]
        assert {name: type(value) for name, value in fields.items()} == {
            **dict.fromkeys(fields, str),
            "round_number": int,
        }


# --- Private vectors ----------------------------------------------------------------------------


@pytest.fixture
def vectors_given(monkeypatch: pytest.MonkeyPatch) -> list[UserVectors]:
    """The private vectors that each round started from."""
    seen: list[UserVectors] = []
    real = train_round

    def watch(model: Any, shared: Any, vectors: UserVectors, *rest: Any, **more: Any) -> Any:  # noqa: ANN401
        seen.append(vectors)
        return real(model, shared, vectors, *rest, **more)

    monkeypatch.setattr(client.platform, "train_round", watch)
    return seen


def test_private_vectors_live_from_round_to_round_and_start_afresh_in_another_run(
    config: PlatformConfig, vectors_given: list[UserVectors]
) -> None:
    few = {"noise_multiplier": 20.0}
    released(config, **few)
    released(config, round_number=2, **few)
    released(config, run_id="autumn", **few)
    released(config, round_number=3, **few)
    steps = [float(vectors.num_steps.max()) for vectors in vectors_given]
    assert steps == [0.0, 2.0, 0.0, 4.0]


@pytest.mark.parametrize(
    "users", [range(NUM_USERS + 1), range(1, NUM_USERS), range(100, 100 + NUM_USERS)]
)
def test_when_users_come_or_go_those_who_stay_keep_their_vectors(
    config: PlatformConfig, vectors_given: list[UserVectors], users: range
) -> None:
    few = {"noise_multiplier": 20.0}
    released(config, **few)
    write_users(purchases(config), users)
    released(config, round_number=2, **few)
    released(config, round_number=3, **few)
    sizes = [len(vectors.values) for vectors in vectors_given]
    assert sizes == [NUM_USERS, len(users), len(users)]
    second, third = (vectors.num_steps.tolist() for vectors in vectors_given[1:])
    assert second == [2.0 if user < NUM_USERS else 0.0 for user in users]
    assert third == [steps + 2.0 for steps in second]
    reply = Platform(config).adopt(adopt_request(config), shared_arrays())
    assert reply.outcome == "adopted"
    found = models(config).parts["shared"]
    assert isinstance(found, PersonalNcf)
    assert len(found.user_vectors) == len(users)


# --- Adopting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [0, 1])
def test_adopting_writes_the_models_and_neither_releases_nor_spends(
    config: PlatformConfig, rounds: int
) -> None:
    for number in range(1, rounds + 1):
        released(config, round_number=number)
    before = (durable_rows(config, "reserve"), durable_rows(config, "commit"))
    files = sorted(config.state.folder.glob("releases/*"))
    reply = Platform(config).adopt(adopt_request(config), shared_arrays())
    assert reply.outcome == "adopted"
    assert (reply.run_id, reply.round_number, reply.reason) == ("spring", 0, "")
    assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == before
    assert sorted(config.state.folder.glob("releases/*")) == files
    assert not (config.state.folder / "training.txt").exists()
    found = models(config)
    assert found.joined is not None
    shared = found.parts["shared"]
    assert isinstance(shared, PersonalNcf)
    assert shared.user_vectors.shape == (NUM_USERS, MODEL.user_dim)
    for name, array in shared.items.items():
        np.testing.assert_array_equal(array, shared_arrays()[name][:NUM_LISTED])
    assert served(config) == ("alone" if found.joined.weights == found.alone.weights else "joined")


def model_folder(config: PlatformConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in config.state.folder.glob("model/*")}


def models(config: PlatformConfig) -> PlatformModels:
    state = PlatformState(config.state.folder, keep_releases=3)
    found = state.models.load(load_platform_data(config).users_digest)
    state.close()
    assert found is not None
    return found


def served(config: PlatformConfig) -> ServedName | None:
    state = PlatformState(config.state.folder, keep_releases=3)
    name = state.models.served()
    state.close()
    return name


def join_gladly(alone: Adapted, federated: Any, *_: object) -> Adapted:  # noqa: ANN401
    """Stands in for :func:`client.adaptation.join`: whatever comes is served."""
    values = ItemScores(values=np.ones(NUM_LISTED, dtype=np.float32))
    blend = Blend(
        parts={**alone.blend.parts, **dict.fromkeys(federated, values)},
        weights={**alone.blend.weights, **dict.fromkeys(federated, 0.5)},
    )
    return Adapted(blend=blend, scores=alone.scores)


@pytest.mark.parametrize("fit", [fit_quickly, fit_alone])
def test_adopting_again_gives_the_same_models_fitted_again_or_not(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch, fit: Callable[..., Adapted]
) -> None:
    monkeypatch.setattr(client.platform, "fit_alone", fit)
    config = replace(config, adaptation=replace(config.adaptation, validation_users=NUM_USERS))
    released(config)

    def adopt() -> dict[str, bytes]:
        assert Platform(config).adopt(adopt_request(config), shared_arrays()).outcome == "adopted"
        return model_folder(config)

    before = adopt()
    assert adopt() == before
    shutil.rmtree(config.state.folder / "model")
    assert adopt() == before


def test_going_alone_depends_on_nothing_that_others_sent(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def watch(interactions: Any, folds: Any, *arguments: Any, **named: Any) -> Adapted:  # noqa: ANN401
        given.append((id(interactions), id(folds), arguments, named))
        return fit_quickly(interactions, folds)

    def alone(seed: int) -> bytes:
        Platform(config).adopt(adopt_request(config), shared_arrays(seed=seed))
        content = model_folder(config)["local.safetensors"]
        shutil.rmtree(config.state.folder / "model")
        return content

    monkeypatch.setattr(client.platform, "fit_alone", watch)
    assert alone(0) == alone(1)
    data = load_platform_data(config)
    assert given[0] == given[1]
    assert given[0][:3] == (id(data.users.matrix), id(data.folds), (MODEL,))


@pytest.mark.parametrize("is_joined", [True, False])
def test_the_gate_decides_what_is_served(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch, *, is_joined: bool
) -> None:
    def refuse(alone: Adapted, federated: Any, *_: object) -> Adapted:  # noqa: ANN401
        found = join_gladly(alone, federated)
        return replace(found, blend=replace(found.blend, weights=alone.blend.weights))

    monkeypatch.setattr(client.platform, "join", join_gladly if is_joined else refuse)
    Platform(config).adopt(adopt_request(config), shared_arrays())
    assert served(config) == ("joined" if is_joined else "alone")
    found = models(config)
    assert found.joined is not None
    assert found.parts.keys() == {"popularity", "ncf_items", "shared"}
    assert ("ncf_items" in found.joined.weights) == is_joined
    assert "shared" not in found.joined.weights


def test_what_rounds_brought_is_judged_on_the_first_fold_only(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rounds have seen what the other folds give up.
    data = load_platform_data(config)
    seen: list[tuple[list[str], bool, list[int]]] = []

    def watch(alone: Adapted, federated: Any, interactions: Any, folds: Any) -> Adapted:  # noqa: ANN401
        is_all = (interactions != data.users.matrix).nnz == 0
        seen.append((list(federated), is_all, [data.folds.index(fold) for fold in folds]))
        return alone

    monkeypatch.setattr(client.platform, "join", watch)
    Platform(config).adopt(adopt_request(config), shared_arrays())
    assert seen == [(["ncf_items"], True, [0])]
    assert len(data.folds) == 5


def test_a_round_never_sees_what_the_first_fold_gives_up(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = train_round

    def watch(model: Any, shared: Any, vectors: Any, history: Any, *rest: Any, **more: Any) -> Any:  # noqa: ANN401
        seen.append(history)
        return real(model, shared, vectors, history, *rest, **more)

    monkeypatch.setattr(client.platform, "train_round", watch)
    released(config)
    data = load_platform_data(config)
    (history,) = seen
    assert data.folds[0].held_out.nnz == NUM_USERS
    assert history.multiply(data.folds[0].held_out).nnz == 0
    assert (history + data.folds[0].held_out != data.users.matrix).nnz == 0


# --- Fitted alone once --------------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The interactions of each time that models were fitted alone."""
    seen: list[Any] = []

    def watch(interactions: Any, *arguments: Any, **named: Any) -> Adapted:  # noqa: ANN401
        seen.append(interactions)
        return fit_quickly(interactions, *arguments, **named)

    monkeypatch.setattr(client.platform, "fit_alone", watch)
    return seen


def adopt(config: PlatformConfig, seed: int = 0, **changes: Any) -> None:  # noqa: ANN401
    reply = Platform(config).adopt(adopt_request(config, **changes), shared_arrays(seed=seed))
    assert reply.outcome == "adopted"


def test_what_changes_nothing_alone_is_not_fitted_again(
    config: PlatformConfig, fits: list[Any]
) -> None:
    adopt(config)
    alone = model_folder(config)["local.safetensors"]
    adopt(config, run_id="autumn")
    adopt(config, rounds_done=7)
    adopt(config, seed=1)
    adopt(replace(config, privacy=replace(config.privacy, epsilon=1.0)))
    adopt(replace(config, state=replace(config.state, keep_releases=1)))
    released(config)
    adopt(config)
    text = purchases(config).read_text(encoding="utf-8")
    header, *lines = text.splitlines()
    purchases(config).write_text("\n".join([header, *reversed(lines)]), encoding="utf-8")
    adopt(config)
    assert len(fits) == 1
    assert model_folder(config)["local.safetensors"] == alone
    (interactions,) = fits
    assert (interactions != load_platform_data(config).users.matrix).nnz == 0


def newer_algorithm(_: PlatformConfig, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model_files, "_ALGORITHM", "0")


def sold_more(config: PlatformConfig, _: pytest.MonkeyPatch) -> None:
    with purchases(config).open("a", encoding="utf-8") as file:
        unbought = next(k for k in range(NUM_LISTED) if not bought(config, f"u000,i{k:02d},"))
        file.write(f"u000,i{unbought:02d},999\n")


def bought(config: PlatformConfig, line: str) -> bool:
    return line in purchases(config).read_text(encoding="utf-8")


def user_left(config: PlatformConfig, _: pytest.MonkeyPatch) -> None:
    write_users(purchases(config), range(1, NUM_USERS))


def user_renamed(config: PlatformConfig, _: pytest.MonkeyPatch) -> None:
    text = purchases(config).read_text(encoding="utf-8")
    purchases(config).write_text(text.replace("u019,", "u0190,"), encoding="utf-8")


def damaged(config: PlatformConfig, _: pytest.MonkeyPatch) -> None:
    path = config.state.folder / "model/local.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


HAPPENED = {
    "newer algorithm": newer_algorithm,
    "sold more": sold_more,
    "user left": user_left,
    "user renamed": user_renamed,
    "damaged": damaged,
}


@pytest.mark.parametrize("what", HAPPENED)
def test_what_has_changed_is_fitted_again(
    config: PlatformConfig, fits: list[Any], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    adopt(config)
    HAPPENED[what](config, monkeypatch)
    adopt(config)
    adopt(config)
    assert len(fits) == 2
    assert models(config).joined is not None


SETTINGS: dict[str, Callable[[PlatformConfig], PlatformConfig]] = {
    "folds": lambda config: replace(
        config, adaptation=replace(config.adaptation, validation_users=NUM_USERS)
    ),
    "population": lambda config: replace(config, platform=replace(config.platform, population=500)),
    "max_epochs": lambda config: replace(
        config, adaptation=replace(config.adaptation, max_epochs=3)
    ),
    "seed": lambda config: replace(config, simulation=SimulationSection(seed=4)),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_other_settings_are_fitted_again(
    config: PlatformConfig, fits: list[Any], what: str
) -> None:
    adopt(config)
    adopt(SETTINGS[what](config))
    adopt(SETTINGS[what](config))
    assert len(fits) == 2


def test_another_model_is_fitted_again(config: PlatformConfig, fits: list[Any]) -> None:
    adopt(config)
    adopt(config, model=replace(MODEL, loss="bce"))
    assert len(fits) == 2


def test_an_item_that_nobody_bought_yet_is_fitted_again(
    config: PlatformConfig, fits: list[Any]
) -> None:
    """The models that are stored have no score for it."""
    assert config.catalogue.file is not None
    with config.catalogue.file.open("a", encoding="utf-8") as file:
        file.write(f"i{NUM_ITEMS - 1:02d},{NAME}\n")
    adopt(config)
    write_catalogue_file(config.catalogue.file)
    adopt(config)
    assert [interactions.shape[1] for interactions in fits] == [NUM_LISTED + 1, NUM_LISTED]


# --- Without adaptation -------------------------------------------------------------------------


def test_a_platform_that_does_not_adapt_fits_nothing_and_keeps_what_it_serves(
    config: PlatformConfig, fits: list[Any], request: pytest.FixtureRequest
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.platform, "join", join_gladly)
        adopt(config)
    before = model_folder(config)
    still = replace(config, adaptation=replace(config.adaptation, enabled=False))
    request.getfixturevalue("data_is_locked")
    adopt(still, seed=1)
    assert len(fits) == 1
    assert model_folder(still) == before
    assert served(still) == "joined"
    assert not (config.state.folder / "training.txt").exists()


def test_a_platform_that_never_adapts_has_no_models(
    config: PlatformConfig, data_is_locked: None
) -> None:
    del data_is_locked
    still = replace(config, adaptation=replace(config.adaptation, enabled=False))
    adopt(still)
    assert model_folder(still) == {}
    assert served(still) is None


def test_training_never_reads_what_adopting_wrote(config: PlatformConfig, tmp_path: Path) -> None:
    # A release that read a model fitted on all users would carry others' data into a gradient.
    few = {"noise_multiplier": 20.0}
    released(config, **few)
    Platform(config).adopt(adopt_request(config), shared_arrays())
    after_adopting = released(config, round_number=2, **few)
    (tmp_path / "never").mkdir()
    never = move_in(tmp_path / "never")
    released(never, **few)
    assert_same_bits(after_adopting, released(never, round_number=2, **few))


def test_the_data_seen_in_training_are_the_platforms_own(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PlatformData] = []
    real = load_platform_data

    def watch(asked: PlatformConfig) -> PlatformData:
        seen.append(real(asked))
        return seen[-1]

    monkeypatch.setattr(client.platform, "load_platform_data", watch)
    released(config)
    assert seen[0].users.num_users == NUM_USERS
    assert seen[0].users.num_items == NUM_LISTED


# --- A hostile server ---------------------------------------------------------------------------


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "no-noise": ({"noise_multiplier": 0.0}, "refused: noise_multiplier"),
    "noise-too-small-to-see": ({"noise_multiplier": 5e-324}, "refused: noise_multiplier"),
    "huge-clipping-norm": ({"clipping_norm": 1e4}, "refused: clipping_norm"),
    "absurdly-many-steps": ({"local_steps": 1000}, "budget: "),
    "absurdly-many-steps-on-few": ({"local_steps": 1000, "sampling_rate": 0.5}, "budget: "),
    "no-trust": ({"trust": "none", "noise_multiplier": 0.0}, "refused: trust"),
    "promised-secrecy": (
        {"trust": "secagg-simulated", "num_platforms": 1000, "secagg": secagg_terms(1000)},
        "refused: trust",
    ),
    "round-10000": ({"round_number": 10_000, "noise_multiplier": 1e6}, "refused: round"),
    "nobody": ({"platform": ""}, "refused: platform"),
    "name-that-is-no-text": ({"platform": "\ud800"}, "refused: platform"),
    "name-with-a-zero": ({"platform": "north\x00"}, "refused: platform"),
    "path-as-a-name": ({"platform": "../north"}, "refused: platform"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("with_history", [False, True], ids=["first-ever", "later"])
def test_a_hostile_request_learns_nothing_and_is_written_down(
    config: PlatformConfig, request: pytest.FixtureRequest, case: str, *, with_history: bool
) -> None:
    if with_history:
        released(config, run_id="honest", noise_multiplier=20.0)
    request.getfixturevalue("data_is_locked")
    before = durable_entries(config)
    changes, said = HOSTILE[case]
    reply, release = train(config, **changes)
    assert release is None
    assert reply.outcome == "declined"
    if with_history and changes.get("sampling_rate", 1.0) < 1.0:
        said = "refused: mechanism"  # sampling now, after rounds without
    assert reply.reason.startswith(said)
    *same, (kind, _, body) = durable_entries(config)
    assert same == before
    assert (kind, body) == ("decline", {"reason": reply.reason})
    sent = recorddict_to_proto(encode(reply, release)).SerializeToString()
    assert len(sent) < 10_000


def test_a_name_without_end_is_not_written_down_without_end(
    config: PlatformConfig, data_is_locked: None
) -> None:
    """The number of declined requests that are kept is bounded; so must be each of them."""
    del data_is_locked
    reply, _ = train(config, platform="x" * 10**6)
    assert reply.reason.startswith("refused: platform")
    assert len(json.dumps(durable_entries(config))) < 10_000


SMUGGLED: dict[str, tuple[dict[str, object], str]] = {
    "unit": ({"unit": "interaction"}, "unit"),
    "own-unit": ({"unit": "user"}, "unit"),
    "delta": ({"delta": 0.5}, "delta"),
    "epsilon": ({"epsilon": 1e9}, "epsilon"),
    "mechanism": ({"mechanism": {"steps": 1}}, "mechanism"),
    "request-id": ({"request_id": "spring/2/north"}, "request_id"),
    **{
        f"{name}-{value}": ({name: value}, name)
        for name in (
            "noise_multiplier",
            "clipping_norm",
            "sampling_rate",
            "denominator",
            "learning_rate",
        )
        for value in (math.nan, math.inf, -math.inf, -1.0)
    },
    "steps-nan": ({"local_steps": math.nan}, "local_steps"),
    "steps-beyond": ({"local_steps": 10**9}, "local_steps"),
    "no-steps": ({"local_steps": 0}, "local_steps"),
    "steps-that-are-true": ({"local_steps": True}, "local_steps"),
    "sampling-nobody": ({"sampling_rate": 0.0}, "sampling_rate"),
    "clipping-norm-beyond": ({"clipping_norm": 1e300}, "clipping_norm"),
    "round-0": ({"round_number": 0}, "round_number"),
    "round-infinity": ({"round_number": math.inf}, "round_number"),
    "path-as-a-run": ({"run_id": "../../etc"}, "run_id"),
    "run-without-end": ({"run_id": "x" * 65}, "run_id"),
    "trust-of-another-kind": ({"trust": "blind"}, "trust"),
}


@pytest.mark.parametrize("case", SMUGGLED)
def test_what_is_smuggled_into_a_message_stops_it_before_the_platform_is_asked(
    config: PlatformConfig, data_is_locked: None, case: str
) -> None:
    del data_is_locked
    changes, named = SMUGGLED[case]
    record = encode(train_request(config), shared_arrays())
    fields = json.loads(to_json(train_request(config)))
    record.config_records["message"]["json"] = json.dumps({**fields, **changes})
    with pytest.raises(RequestRefused, match=named):
        decode(record, TrainRequest)
    assert durable_rows(config, "reserve") == 0


def test_after_the_budget_is_spent_nothing_is_answered_however_often_it_is_asked(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = move_in(tmp_path, epsilon=5.0)
    released(config)
    request.getfixturevalue("data_is_locked")
    for number in range(2, 6):
        reply, release = train(config, round_number=number)
        assert release is None
        assert reply.reason.startswith("budget: ")
    reply, release = train(config, run_id="autumn")
    assert release is None
    assert [name for name, _ in declined(config)] == [
        *[f"spring/{number}/north" for number in range(2, 6)],
        "autumn/1/north",
    ]
    assert durable_rows(config, "reserve") == 1


def test_a_flood_of_declined_requests_neither_fills_the_ledger_nor_locks_out_an_honest_one(
    config: PlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_DECLINES", 6)
    with monkeypatch.context() as patch:
        patch.setattr(client.platform, "load_platform_data", die)
        for number in range(1, 11):
            reply, release = train(config, round_number=number, noise_multiplier=0.0)
            assert release is None
            assert reply.reason.startswith("refused: ")
    assert len(declined(config)) == 6
    released(config)


def test_where_a_declined_request_cannot_be_written_down_it_is_declined_all_the_same(
    config: PlatformConfig,
    data_is_locked: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    del data_is_locked

    def full(*_: object) -> NoReturn:
        message = "the disk is full"
        raise StateError(message)

    monkeypatch.setattr(Ledger, "decline", full)
    reply, release = train(config, noise_multiplier=0.0)
    assert release is None
    assert reply.reason.startswith("refused: noise_multiplier")
    assert "the disk is full" in caplog.text


# --- A ledger that is not whole, and time -------------------------------------------------------


FEW: dict[str, Any] = {"noise_multiplier": 20.0}
FAILED = "failed: the cause is in the platform's own log."


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> PlatformConfig:
    """A platform that made three releases; nobody may write into it."""
    config = move_in(tmp_path_factory.mktemp("settled"))
    for number in (1, 2, 3):
        released(config, round_number=number, **FEW)
    return config


@pytest.fixture
def copy(settled: PlatformConfig, tmp_path: Path) -> PlatformConfig:
    shutil.copytree(settled.state.folder, tmp_path / "state")
    return replace(settled, state=replace(settled.state, folder=tmp_path / "state"))


def test_the_copy_of_these_tests_is_a_platform_that_goes_on(copy: PlatformConfig) -> None:
    released(copy, round_number=3, **FEW)
    released(copy, round_number=4, **FEW)
    assert durable_rows(copy, "reserve") == 4


@pytest.mark.parametrize("name", TAMPERING)
def test_on_a_ledger_that_is_not_whole_nothing_is_released_and_no_data_touched(
    copy: PlatformConfig, data_is_locked: None, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    del data_is_locked
    act, cause = TAMPERING[name]
    act(copy.state.folder / LEDGER_FILE)
    for number in (1, 3, 4):  # what was made before is not sent again, either
        reply, release = train(copy, round_number=number, **FEW)
        assert release is None
        assert (reply.outcome, reply.reason) == ("declined", FAILED)
    assert_matches(cause, caplog.text)
    assert not (copy.state.folder / STOPPED_FILE).exists()


def test_on_an_older_copy_of_the_ledger_nothing_is_released(
    copy: PlatformConfig, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = copy.state.folder / LEDGER_FILE
    older = ledger.read_bytes()
    released(copy, round_number=4, **FEW)
    for file in files_of(ledger):
        file.unlink()
    ledger.write_bytes(older)
    request.getfixturevalue("data_is_locked")
    for number in (3, 4, 5):
        reply, release = train(copy, round_number=number, **FEW)
        assert release is None
        assert reply.reason == FAILED
    assert_matches(OLDER, caplog.text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("client.state.Ledger", partial(Ledger, clock=clock))
    return clock


def test_while_time_runs_backwards_nothing_is_released_and_no_data_touched(
    config: PlatformConfig,
    clock: Clock,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    released(config, **FEW)
    clock.move(seconds=-30)
    released(config, round_number=2, **FEW)
    clock.move(hours=-2)
    request.getfixturevalue("data_is_locked")
    reply, release = train(config, round_number=3, **FEW)
    assert release is None
    assert reply.reason == FAILED
    assert "set the clock" in caplog.text
    assert durable_rows(config, "reserve") == 2


def test_while_time_runs_backwards_a_round_reserved_before_a_crash_touches_no_data(
    config: PlatformConfig,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(client.platform, "load_platform_data", die)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    clock.move(hours=-2)
    request.getfixturevalue("data_is_locked")
    reply, release = train(config)
    assert release is None
    assert reply.reason == FAILED


def test_a_clock_that_goes_forward_changes_nothing_without_a_period(
    config: PlatformConfig, clock: Clock
) -> None:
    released(config, **FEW)
    clock.move(days=4000)
    released(config, round_number=2, **FEW)


def test_after_its_period_a_platform_takes_part_again_when_a_person_grants_it(
    tmp_path: Path, clock: Clock, request: pytest.FixtureRequest
) -> None:
    config = move_in(tmp_path, epsilon=5.0, period_days=30)
    first = released(config)
    clock.move(days=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.platform, "load_platform_data", die)
        reply, release = train(config, round_number=2)
    assert release is None
    assert reply.reason == FAILED
    with closing(Ledger(config.state.folder / LEDGER_FILE, clock=clock)) as ledger:
        ledger.grant(config.privacy.budget(), "a person")
    released(config, round_number=2)
    request.getfixturevalue("data_is_locked")
    reply, release = train(config, round_number=3)
    assert reply.reason.startswith("budget: run spring, round 3 would bring the spend to epsilon")
    assert_same_bits(train(config, round_number=1)[1], first)
    assert durable_rows(config, "reserve") == 2


def test_a_lower_epsilon_binds_at_once_and_a_higher_one_when_it_is_granted(
    config: PlatformConfig, request: pytest.FixtureRequest
) -> None:
    def asking(epsilon: float) -> PlatformConfig:
        return replace(config, privacy=replace(config.privacy, epsilon=epsilon))

    released(asking(5.0))
    with closing(Ledger(config.state.folder / LEDGER_FILE)) as ledger:
        ledger.grant(asking(100.0).privacy.budget(), "a person")
    released(asking(100.0), round_number=2)
    request.getfixturevalue("data_is_locked")
    reply, release = train(asking(7.0), round_number=3)
    assert release is None
    assert "of 7.000" in reply.reason
    reply, release = train(asking(1e9), round_number=3, noise_multiplier=0.3, local_steps=30)
    assert release is None
    assert "of 100.000" in reply.reason
    assert len(declined(config)) == 2


# --- Disks and processes ------------------------------------------------------------------------


def test_on_a_full_disk_nothing_leaves_and_with_space_again_everything_is_charged_once(
    copy: PlatformConfig, tmp_path: Path, settled: PlatformConfig
) -> None:
    undisturbed = released(copy, round_number=4, **FEW)
    outcomes = []
    with small_disk(tmp_path / "disk", kilobytes=1024):
        for kilobytes in (0, 4, 8, 16, 24, 32, 36, 40, 44, 48, 52, 56, 60, 64, 72, 80, 400):
            folder = tmp_path / "disk" / "state"
            shutil.copytree(settled.state.folder, folder)
            config = replace(settled, state=replace(settled.state, folder=folder))
            ballast = fill(tmp_path / "disk", leave=kilobytes * 1024)
            reply, release = train(config, round_number=4, **FEW)
            outcomes.append(reply.outcome)
            ballast.unlink()
            if release is None:
                assert reply.reason == FAILED
                assert durable_rows(config, "reserve") in (3, 4)
                assert durable_rows(config, "commit") in (3, 4)
            else:
                assert durable_rows(config, "commit") == 4
            (folder / STOPPED_FILE).unlink(missing_ok=True)  # the operator has looked
            assert_same_bits(released(config, round_number=4, **FEW), undisturbed)
            assert (durable_rows(config, "reserve"), durable_rows(config, "commit")) == (4, 4)
            shutil.rmtree(folder)
    assert outcomes[0] == "declined"
    assert outcomes[-1] == "released"


@pytest.mark.parametrize("what", ["state", "ledger.sqlite", "lock"])
def test_where_the_ledger_cannot_be_written_nothing_leaves(
    copy: PlatformConfig, what: str, request: pytest.FixtureRequest
) -> None:
    place = copy.state.folder if what == "state" else copy.state.folder / what
    with read_only(place):
        request.getfixturevalue("data_is_locked")
        reply, release = train(copy, round_number=4, **FEW)
    assert release is None
    assert reply.reason == FAILED
    assert durable_rows(copy, "reserve") == 3


def test_of_two_processes_one_answers_and_the_other_declines(
    copy: PlatformConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = load_platform_data

    def wait_for_the_other(config: PlatformConfig) -> PlatformData:
        deadline = time.monotonic() + 30
        while not (tmp_path / "declined").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return real(config)

    monkeypatch.setattr(client.platform, "load_platform_data", wait_for_the_other)

    def answer(place: int) -> int:
        reply, release = train(copy, round_number=4 + place, **FEW)
        if release is not None:
            return 0
        (tmp_path / "declined").touch()
        return 3 if reply.reason == FAILED else 1

    assert sorted(in_processes(2, answer), key=str) == [0, 3]
    assert (durable_rows(copy, "reserve"), durable_rows(copy, "commit")) == (4, 4)
    monkeypatch.undo()
    released(copy, round_number=4, **FEW)
    released(copy, round_number=5, **FEW)
    assert durable_rows(copy, "reserve") == 5


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_nothing_that_is_drawn_for_a_release_comes_from_a_generator_with_few_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Literal["softmax", "bce"]
) -> None:
    # torch's generator keeps 32 bits of its seed: an observer could go through all of them, and
    # draws shift from user to user when one of them leaves.
    config = move_in(tmp_path, simulation=False)
    model = replace(MODEL, loss=loss)
    shared = shared_arrays(model)
    seeds: list[int] = []

    def few_starts(*_: object, **__: object) -> None:
        raise AssertionError("a generator of torch was used")

    def many_starts(seed: int) -> np.random.Generator:
        seeds.append(seed)
        return np.random.Generator(np.random.PCG64(seed))

    for name in ("Generator", "rand", "randn", "bernoulli", "randint", "randperm"):
        monkeypatch.setattr(torch, name, few_starts)
    monkeypatch.setattr(np.random, "default_rng", many_starts)
    request = train_request(config, model=model, dropout=0.5)
    reply, release = Platform(config).train(request, shared)
    assert (reply.outcome, release is None) == ("released", False)
    assert all(seed.bit_length() > 100 for seed in seeds)
    assert seeds
