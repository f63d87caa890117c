"""The same promises through Flower: what the ClientApp sends, and what Flower makes of an error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_to_proto

import client.app
from common.config import dump_config
from common.errors import DataError
from common.messages import (
    ADOPT,
    AGREEMENT,
    ASSORTMENT,
    PROFILE,
    SUM,
    TRAIN,
    Agreement,
    AssortmentRequest,
    Profile,
    Reply,
)
from common.storage import write_durably
from common.wire import decode, encode
from simulations.engines.in_process import InProcessGrid
from tests.unit.client.homes import (
    NAME,
    adopt_request,
    asked_arrays,
    durable_rows,
    fit_quickly,
    move_in,
    shared_arrays,
    sum_request,
    train_request,
)

if TYPE_CHECKING:
    from pathlib import Path

    from client.config import PlatformConfig

SECRET = "u007-alice@example.org"  # noqa: S105 - a user id


@pytest.fixture
def config(tmp_path: Path) -> PlatformConfig:
    config = move_in(tmp_path)
    write_durably(tmp_path / "platform.toml", dump_config(config).encode())
    return config


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.platform.fit_alone", fit_quickly)


def ask(folder: Path, content: RecordDict, kind: str) -> Message:
    """Send one message through Flower's own path and return what it answers."""
    grid = InProcessGrid([folder / "platform.toml"])
    (reply,) = grid.send_and_receive([Message(content, 1, kind)])
    return reply


def test_profile_round_and_adoption_through_flower(config: PlatformConfig, tmp_path: Path) -> None:
    profile, arrays = decode(ask(tmp_path, RecordDict(), PROFILE).content, Profile)
    assert profile.platform == NAME
    assert arrays == {}
    request = train_request(config)
    answer = ask(tmp_path, encode(request, shared_arrays()), TRAIN)
    reply, release = decode(answer.content, Reply)
    assert reply.outcome == "released"
    assert set(release) == {"items.weight", "items.bias"}
    answer = ask(tmp_path, encode(sum_request(config), asked_arrays()), SUM)
    reply, release = decode(answer.content, Reply)
    assert (reply.outcome, reply.round_number) == ("released", 0)
    assert set(release) == {"sum"}
    answer = ask(tmp_path, encode(adopt_request(config), shared_arrays()), ADOPT)
    reply, arrays = decode(answer.content, Reply)
    assert reply.outcome == "adopted"
    assert arrays == {}


def test_records_hold_a_message_and_a_release_and_nothing_else(
    config: PlatformConfig, tmp_path: Path
) -> None:
    trained = ask(tmp_path, encode(train_request(config), shared_arrays()), TRAIN).content
    summed = ask(tmp_path, encode(sum_request(config), asked_arrays()), SUM).content
    adopted = ask(tmp_path, encode(adopt_request(config), shared_arrays()), ADOPT).content
    profile = ask(tmp_path, RecordDict(), PROFILE).content
    for content in (trained, summed):
        assert {key: type(record) for key, record in content.items()} == {
            "message": ConfigRecord,
            "arrays": ArrayRecord,
        }
    for content in (adopted, profile):
        assert {key: type(record) for key, record in content.items()} == {"message": ConfigRecord}
    for content in (trained, summed, adopted, profile):
        assert list(content.config_records["message"]) == ["json", "nonce"]
    assert sorted(json.loads(str(profile.config_records["message"]["json"]))) == [
        "catalogue_digest",
        "delta",
        "platform",
        "population",
        "trust",
        "unit",
    ]


def test_a_declined_request_is_a_reply_and_not_an_error(
    config: PlatformConfig, tmp_path: Path
) -> None:
    content = encode(train_request(config, trust="none"), shared_arrays())
    answer = ask(tmp_path, content, TRAIN)
    reply, release = decode(answer.content, Reply)
    assert reply.outcome == "declined"
    assert release == {}


NONCE = {"nonce": "0" * 32}


def garbage() -> dict[str, RecordDict]:
    return {
        "empty": RecordDict(),
        "not-json": RecordDict({"message": ConfigRecord({"json": SECRET, **NONCE})}),
        "unknown-field": RecordDict(
            {"message": ConfigRecord({"json": '{"dump": "users"}', **NONCE})}
        ),
        "second-record": RecordDict(
            {"message": ConfigRecord({"json": "{}", **NONCE}), "more": ConfigRecord({})}
        ),
    }


@pytest.mark.parametrize("kind", [TRAIN, SUM, ADOPT, ASSORTMENT, AGREEMENT])
@pytest.mark.parametrize("case", ["empty", "not-json", "unknown-field", "second-record"])
def test_a_malformed_request_touches_nothing(
    config: PlatformConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, case: str
) -> None:
    def locked(*_: object) -> NoReturn:
        pytest.fail("user data was touched")

    monkeypatch.setattr("client.platform.load_platform_data", locked)
    answer = ask(tmp_path, garbage()[case], kind)
    assert answer.has_error()
    assert durable_rows(config, "reserve") == 0


def agreement() -> Agreement:
    return Agreement(
        run_id="spring",
        platform=NAME,
        assortment_digest="a" * 64,
        origin="b" * 64,
        version=1,
        catalogue_digest="c" * 64,
        num_items=2,
    )


PLANTED: dict[str, tuple[str, str]] = {
    "profile": ("client.platform.catalogue_digest", PROFILE),
    "reporting": ("client.platform.read_assortment", ASSORTMENT),
    "encoding-a-report": ("client.app.encode", ASSORTMENT),
    "agreeing": ("client.platform.PlatformState", AGREEMENT),
    "configuration": ("client.app.load_config", TRAIN),
    "encoding-a-release": ("client.app.encode", TRAIN),
    "encoding-an-adoption": ("client.app.encode", ADOPT),
    "training": ("client.platform.train_round", TRAIN),
    "summing": ("client.platform.pair_sum", SUM),
    "encoding-a-sum": ("client.app.encode", SUM),
    "declining": ("client.platform.Platform._declined", TRAIN),
    "adapting": ("client.platform.fit_alone", ADOPT),
    "joining": ("client.platform.join", ADOPT),
}


@pytest.mark.parametrize("error", ["unexpected", "named"])
@pytest.mark.parametrize("case", PLANTED)
def test_no_text_of_an_error_crosses_the_boundary_in_a_reply_or_a_flower_error(
    config: PlatformConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    case: str,
    error: str,
) -> None:
    def plant(*_: object, **__: object) -> NoReturn:
        if error == "unexpected":
            raise RuntimeError(SECRET)
        raise DataError("bad", source=SECRET, found=SECRET, expected="")

    place, kind = PLANTED[case]
    content = {
        PROFILE: RecordDict(),
        TRAIN: encode(train_request(config), shared_arrays()),
        SUM: encode(sum_request(config), asked_arrays()),
        ADOPT: encode(adopt_request(config), shared_arrays()),
        ASSORTMENT: encode(AssortmentRequest(run_id="spring", platform=NAME, max_items=100)),
        AGREEMENT: encode(agreement(), {"rows": np.arange(2)}),
    }[kind]
    if case == "declining":
        content = encode(train_request(config, trust="none"), shared_arrays())
    monkeypatch.setattr(place, plant)
    answer = ask(tmp_path, content, kind)
    answer.metadata.__dict__["_message_id"] = "x"
    assert SECRET in caplog.text  # the operator does learn the cause
    assert SECRET.encode() not in message_to_proto(answer).SerializeToString()


def test_a_node_that_names_no_configuration_is_told_how_to_in_its_own_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    InProcessGrid([])  # lets messages be made outside a run
    message = Message(RecordDict(), 1, PROFILE)
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(RuntimeError, match="the platform's own log"):
        client.app.app(message, context)
    assert "node-config: 'platform-config' is missing" in caplog.text


def test_a_simulations_configuration_is_refused_outside_a_simulation(
    config: PlatformConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Its noise follows from a seed: a release would protect nobody.
    InProcessGrid([])
    message = Message(encode(train_request(config), shared_arrays()), 1, TRAIN)
    message.metadata.__dict__["_message_id"] = "1"
    node_config = {"platform-config": str(tmp_path / "platform.toml")}
    context = Context(
        run_id=1, node_id=1, node_config=dict(node_config), state=RecordDict(), run_config={}
    )
    with pytest.raises(RuntimeError, match="the platform's own log"):
        client.app.app(message, context)
    assert "[simulation] makes the noise predictable" in caplog.text
    assert durable_rows(config, "reserve") == 0
