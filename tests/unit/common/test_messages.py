"""Messages: decoded strictly, named for ever, and priced as what an observer faces."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, RequestRefused
from common.messages import (
    AdoptRequest,
    Agreement,
    AssortmentRequest,
    Profile,
    Reply,
    SumRequest,
    TrainRequest,
    from_json,
    is_round,
    to_json,
)
from common.models.ncf import NcfConfig
from common.privacy.mechanisms import SampledGaussian
from common.secagg.terms import SecaggTerms
from common.storage import pack_arrays, sha256
from tests.terms import secagg_terms

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from common.privacy.mechanisms import TrustMode

TRAIN = TrainRequest(
    run_id="spring",
    round_number=3,
    platform="north",
    catalogue_digest="c" * 64,
    model=NcfConfig(dim=4),
    trust="local",
    num_platforms=3,
    noise_multiplier=1.5,
    clipping_norm=0.25,
    sampling_rate=0.5,
    local_steps=2,
    denominator=100.0,
    learning_rate=1.0,
    user_steps=5,
    dropout=0.5,
)
PROFILE = Profile(
    platform="north",
    population=300,
    catalogue_digest="c" * 64,
    trust="local",
    unit="user",
    delta=1e-5,
)
SUM = SumRequest(
    run_id="spring",
    platform="north",
    catalogue_digest="c" * 64,
    trust="local",
    num_platforms=3,
    noise_multiplier=1.5,
    quantity="item-pairs",
)
ADOPT = AdoptRequest(
    run_id="spring",
    platform="north",
    catalogue_digest="c" * 64,
    model=NcfConfig(dim=4),
    rounds_done=3,
    num_sums=2,
    own_included=True,
    noise_std=1.5,
)
ASSORTMENT = AssortmentRequest(run_id="spring", platform="north", max_items=100)
AGREEMENT = Agreement(
    run_id="spring",
    platform="north",
    assortment_digest="a" * 64,
    origin="b" * 64,
    version=2,
    catalogue_digest="c" * 64,
    num_items=100,
)
REPLY = Reply(platform="north", run_id="spring", round_number=3, outcome="released")
MESSAGES: list[DataclassInstance] = [
    TRAIN,
    SUM,
    PROFILE,
    ADOPT,
    ASSORTMENT,
    AGREEMENT,
    REPLY,
]
every_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)


def plain(message: DataclassInstance) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(to_json(message))
    return table


def decode_with(message: DataclassInstance, change: dict[str, Any]) -> DataclassInstance:
    return from_json(json.dumps({**plain(message), **change}), type(message))


@every_message
def test_a_message_comes_back_as_it_went_in(message: DataclassInstance) -> None:
    assert from_json(to_json(message), type(message)) == message


def test_what_a_platform_says_of_itself_is_this_and_nothing_else() -> None:
    """A loss, a count or a metric in a reply would leave without a price."""
    assert plain(REPLY).keys() == {"platform", "run_id", "round_number", "outcome", "reason"}
    assert plain(PROFILE).keys() == {
        "platform",
        "population",
        "catalogue_digest",
        "trust",
        "unit",
        "delta",
    }


@every_message
def test_a_field_too_many_or_too_few_is_refused(message: DataclassInstance) -> None:
    with pytest.raises(RequestRefused, match="num_examples"):
        decode_with(message, {"num_examples": 31})
    for field in plain(message):
        rest = {name: value for name, value in plain(message).items() if name != field}
        with pytest.raises(RequestRefused, match=field):
            from_json(json.dumps(rest), type(message))


@every_message
def test_a_field_of_another_type_is_refused(message: DataclassInstance) -> None:
    others: list[Any] = ["text", True, None, [], [1], {"a": 1}, 1.5, -1]
    for field, value in plain(message).items():
        for other in others:
            if type(other) is type(value) and not isinstance(value, dict):
                continue
            if isinstance(value, float) and type(other) is int:
                continue
            with pytest.raises(RequestRefused):
                decode_with(message, {field: other})


@pytest.mark.parametrize("field", ["trust", "unit", "outcome"])
def test_an_unknown_choice_is_refused(field: str) -> None:
    message = next(m for m in MESSAGES if hasattr(m, field))
    with pytest.raises(RequestRefused, match=field):
        decode_with(message, {field: "whatever"})


NUMBERS = [f.name for f in fields(TrainRequest) if f.type in {"int", "float"}]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1", "-1e-300", "1" + "0" * 400, "true"]
)
def test_numbers_that_no_round_can_have_are_refused(field: str, number: str) -> None:
    text = json.dumps({**plain(TRAIN), field: "HERE"}).replace('"HERE"', number)
    with pytest.raises(RequestRefused):
        from_json(text, TrainRequest)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round_number", 0),
        ("num_platforms", 0),
        ("local_steps", 0),
        ("local_steps", 10**6),
        ("user_steps", 0),
        ("dropout", -0.1),
        ("dropout", 1.0),
        ("user_steps", 10**6),
        ("clipping_norm", 0.0),
        ("clipping_norm", 1e-38),
        ("clipping_norm", 1e38),
        ("denominator", 0.0),
        ("denominator", 1e-300),
        ("learning_rate", 0.0),
        ("learning_rate", 1e300),
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.1),
        ("run_id", ""),
        ("run_id", "a/b"),
        ("run_id", "../spring"),
        ("run_id", "spring\n"),
        ("run_id", "x" * 65),
    ],
)
def test_values_out_of_range_are_refused_by_name(
    field: str,
    value: Any,  # noqa: ANN401
) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(TRAIN, **{field: value})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "3",
        '"text"',
        "[]",
        "[{}]",
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 10_000,
        '{"run_id": "\\ud800"}',
        "{} {}",
        "\x00",
    ],
    ids=lambda text: repr(text[:12]),
)
@every_message
def test_junk_is_refused(text: str, message: DataclassInstance) -> None:
    with pytest.raises(RequestRefused):
        from_json(text, type(message))


@pytest.mark.parametrize(
    "model",
    [
        {**plain(TRAIN)["model"], "kind": "own"},
        {**plain(TRAIN)["model"], "dim": "4"},
        {**plain(TRAIN)["model"], "dim": 4.0},
        {**plain(TRAIN)["model"], "hidden": [1.5]},
        {**plain(TRAIN)["model"], "hidden": [[8]]},
        {**plain(TRAIN)["model"], "hidden": {"0": 8}},
        {**plain(TRAIN)["model"], "optimiser": "adam"},
    ],
    ids=str,
)
def test_a_nested_model_is_decoded_as_strictly(model: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused):
        decode_with(TRAIN, {"model": model})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    message=st.sampled_from(MESSAGES),
    changes=st.dictionaries(
        st.sampled_from(sorted({k for m in MESSAGES for k in plain(m)})), json_values
    ),
)
def test_any_change_is_accepted_as_it_is_or_refused(
    message: DataclassInstance, changes: dict[str, Any]
) -> None:
    try:
        found = decode_with(message, changes)
    except RequestRefused:
        return
    accepted = plain(found)
    for name, value in changes.items():
        if name != "model":
            assert accepted[name] == value or math.isnan(value)
            assert not isinstance(accepted[name], bool)


def test_the_name_of_a_request_is_run_round_and_platform() -> None:
    assert TRAIN.request_id == "spring/3/north"
    names = {
        replace(TRAIN, run_id=run, round_number=number, platform=platform).request_id
        for run in ("a", "a.1", "a-1")
        for number in (1, 11)
        for platform in ("b", "1/b", "11/b")
    }
    assert len(names) == 18


def test_the_name_of_a_sum_is_run_quantity_and_platform_and_no_round_has_it() -> None:
    assert SUM.request_id == "spring/item-pairs/north"
    assert replace(SUM, quantity="item-counts").request_id == "spring/item-counts/north"
    assert SUM.round_number == 0
    assert not is_round(SUM.request_id)
    assert not is_round("carried-over")
    assert is_round(replace(TRAIN, platform="1/b").request_id)


ARRAYS = {"items.bias": np.zeros(3, np.float32), "items.weight": np.zeros((3, 4), np.float32)}
ARRAYS_DIGEST = sha256(pack_arrays(ARRAYS, {}))

OTHER_VALUES: dict[str, Any] = {
    "run_id": "autumn",
    "round_number": 4,
    "platform": "south",
    "catalogue_digest": "d" * 64,
    "model": NcfConfig(dim=5),
    "trust": "none",
    "num_platforms": 4,
    "noise_multiplier": math.nextafter(1.5, 2.0),
    "clipping_norm": math.nextafter(0.25, 1.0),
    "sampling_rate": 0.51,
    "local_steps": 3,
    "denominator": 101.0,
    "learning_rate": 1.1,
    "user_steps": 6,
    "dropout": 0.25,
}
OTHER_MODELS: dict[str, Any] = {
    "kind": "mlp",
    "dim": 8,
    "hidden": (32, 17),
    "loss": "bce",
    "num_negatives": 201,
}


def test_the_digest_changes_with_every_field() -> None:
    assert {*OTHER_VALUES, "secagg"} == {field.name for field in fields(TrainRequest)}
    assert OTHER_MODELS.keys() == {field.name for field in fields(NcfConfig)}
    base = replace(TRAIN, model=NcfConfig(loss="sampled-softmax"))
    requests = [replace(base, **{name: value}) for name, value in OTHER_VALUES.items()]
    models = [replace(base.model, **{name: value}) for name, value in OTHER_MODELS.items()]
    requests += [replace(base, model=model) for model in models]
    digests = {request.digest(ARRAYS_DIGEST) for request in [base, *requests]}
    assert len(digests) == 1 + len(requests)
    assert from_json(to_json(base), TrainRequest).digest(ARRAYS_DIGEST) in digests


def test_the_digest_of_a_sum_changes_with_every_field() -> None:
    others: dict[str, Any] = {
        name: OTHER_VALUES[name] for name in OTHER_VALUES.keys() & set(plain(SUM))
    }
    others["quantity"] = "item-counts"
    assert {*others, "secagg"} == {field.name for field in fields(SumRequest)}
    requests = [SUM, *(replace(SUM, **{name: value}) for name, value in others.items())]
    assert len({request.digest(ARRAYS_DIGEST) for request in requests}) == len(requests)
    assert SUM.digest("other") != SUM.digest(ARRAYS_DIGEST)


def test_a_hand_over_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounds_done and num_sums"):
        replace(ADOPT, rounds_done=0, num_sums=0)
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="noise_std"):
            replace(ADOPT, noise_std=value)


def test_the_digest_changes_with_the_arrays() -> None:
    one_bit = {**ARRAYS, "items.bias": np.array([0, 0, 1e-45], np.float32)}
    assert TRAIN.digest(sha256(pack_arrays(one_bit, {}))) != TRAIN.digest(ARRAYS_DIGEST)


Asked = TrainRequest | SumRequest


def summed(request: Asked, terms: SecaggTerms, trust: TrustMode = "secagg") -> Asked:
    changes: dict[str, Any] = {
        "trust": trust,
        "num_platforms": len(terms.participants),
        "secagg": terms,
    }
    if isinstance(request, TrainRequest):
        changes["local_steps"] = 1
    return replace(request, **changes)


OTHER_TERMS: dict[str, Any] = {
    "participants": (*secagg_terms(10).participants[:-1], "zoo"),
    "max_dropped": 2,
    "max_colluding": 2,
    "neighbours": 8,
    "lattice": replace(secagg_terms(10).lattice, exponent=3),
}


@pytest.mark.parametrize("asked", [TRAIN, SUM], ids=["round", "sum"])
def test_the_digest_changes_with_every_term_of_a_secure_sum(
    asked: TrainRequest | SumRequest,
) -> None:
    assert OTHER_TERMS.keys() == {field.name for field in fields(SecaggTerms)}
    base = secagg_terms(10, max_dropped=1)
    changed: list[SecaggTerms] = [
        replace(base, **{name: value}) for name, value in OTHER_TERMS.items()
    ]
    requests = [summed(asked, terms) for terms in (base, *changed)]
    for digest in (asked.digest.__name__, asked.common_digest.__name__):
        digests = {getattr(request, digest)(ARRAYS_DIGEST) for request in requests}
        assert len(digests) == 1 + len(OTHER_TERMS)
    assert from_json(to_json(requests[0]), type(asked)) == requests[0]


def test_all_platforms_share_one_digest_of_what_they_are_asked_and_have_one_of_their_own() -> None:
    for asked in (TRAIN, SUM):
        first = summed(asked, secagg_terms(4))
        second = replace(first, platform="p0001")
        assert first.common_digest(ARRAYS_DIGEST) == second.common_digest(ARRAYS_DIGEST)
        assert first.digest(ARRAYS_DIGEST) != second.digest(ARRAYS_DIGEST)
        assert first.common_digest("other") != first.common_digest(ARRAYS_DIGEST)
        assert (first.id_for("p0001"), second.request_id) == (second.request_id,) * 2


@pytest.mark.parametrize("trust", ["secagg", "secagg-simulated"])
@pytest.mark.parametrize("asked", [TRAIN, SUM], ids=["round", "sum"])
@pytest.mark.parametrize(
    ("num_platforms", "max_dropped", "max_colluding"),
    [(2, 0, 1), (3, 0, 1), (10, 0, 1), (10, 3, 2), (1000, 300, 100)],
)
def test_whoever_knows_what_colluding_platforms_added_still_faces_all_of_the_noise(
    asked: TrainRequest | SumRequest,
    trust: TrustMode,
    num_platforms: int,
    max_dropped: int,
    max_colluding: int,
) -> None:
    terms = secagg_terms(num_platforms, max_dropped=max_dropped, max_colluding=max_colluding)
    request = summed(asked, terms, trust)
    unknown = num_platforms - max_dropped - max_colluding
    assert unknown * request.noise_share**2 == pytest.approx(1.0), "and no more noise than that"
    scale = TRAIN.clipping_norm if asked is TRAIN else 1.0
    assert request.noise_std == request.noise_share * request.noise_multiplier * scale
    assert request.mechanism().noise_multiplier == TRAIN.noise_multiplier


def test_a_secure_sum_has_terms_and_no_other_request_has() -> None:
    terms = secagg_terms(3)
    wrong: list[dict[str, Any]] = [
        {"trust": "secagg"},
        {"trust": "secagg-simulated"},
        {"trust": "local", "secagg": terms},
        {"trust": "none", "secagg": terms},
    ]
    for changes in wrong:
        with pytest.raises(ConfigError, match=r"secagg: .* does not go with trust"):
            replace(SUM, **changes)
    with pytest.raises(ConfigError, match="num_platforms"):
        replace(SUM, trust="secagg", secagg=terms, num_platforms=4)


def test_a_round_of_a_secure_sum_has_one_noisy_step() -> None:
    """A platform's second step follows from its first, which has its own share of the noise."""
    with pytest.raises(ConfigError, match="local_steps: secure aggregation takes one"):
        replace(TRAIN, trust="secagg", num_platforms=3, secagg=secagg_terms(3))


@pytest.mark.parametrize("trust", ["local", "none"])
@pytest.mark.parametrize("num_platforms", [1, 2, 1000])
def test_without_secure_aggregation_a_platform_adds_all_its_noise(
    trust: Any,  # noqa: ANN401
    num_platforms: int,
) -> None:
    request = replace(TRAIN, trust=trust, num_platforms=num_platforms)
    assert request.noise_share == 1.0
    assert request.mechanism_if_broken() == request.mechanism()


def test_the_ledger_is_charged_for_what_was_asked() -> None:
    asked = SampledGaussian(noise_multiplier=1.5, sampling_rate=0.5, steps=2)
    assert TRAIN.mechanism() == asked
    broken = summed(TRAIN, secagg_terms(5)).mechanism_if_broken()
    assert broken == replace(asked, noise_multiplier=0.75, steps=1)


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (AGREEMENT, "origin", "B" * 64),
        (AGREEMENT, "assortment_digest", "a" * 63),
        (AGREEMENT, "catalogue_digest", ""),
        (AGREEMENT, "version", 0),
        (AGREEMENT, "num_items", 0),
        (AGREEMENT, "num_items", 10**12),
        (AGREEMENT, "run_id", "../spring"),
        (ASSORTMENT, "max_items", 0),
        (ASSORTMENT, "run_id", ""),
    ],
)
def test_a_catalogue_that_cannot_be_is_refused(
    message: DataclassInstance, field: str, value: object
) -> None:
    with pytest.raises(RequestRefused, match=field):
        decode_with(message, {field: value})
