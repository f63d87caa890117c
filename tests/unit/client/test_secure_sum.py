"""A platform shows its release in one sum with enough others only, whatever is asked of it."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest
from flwr.app import Message

import client.platform
import client.secure_sum
from client.secure_sum import SecureSum, SessionFiles
from client.state import STOPPED_FILE
from common.errors import InvalidRelease, RequestRefused
from common.keys import new_key_pair, read_private_key, sign
from common.messages import SECAGG, SUM, TRAIN, SecaggStage
from common.privacy.account import Account
from common.privacy.ledger import Ledger
from common.secagg.keys import new_private_key, public_key_of
from common.secagg.lattice import Lattice
from common.secagg.protocol import (
    Advertised,
    Secrets,
    commitment,
    deal_shares,
    keys_statement,
    mask_,
    reveal,
    survivors_statement,
)
from common.secagg.sharing import join
from common.secagg.wire import pack_bytes, pack_keys
from common.storage import write_durably
from common.wire import encode
from simulations.engines.in_process import InProcessGrid
from tests.harm import files_of
from tests.unit.client.homes import declined, durable_entries, durable_rows, shared_arrays
from tests.unit.secagg_homes import (
    COUNTS,
    FIVE,
    STAGES,
    Coordinator,
    Market,
    agreed,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from common.messages import Reply, SumRequest, TrainRequest
    from common.models.partition import Arrays
    from common.secagg.protocol import Session
    from common.secagg.terms import SecaggTerms
    from tests.unit.secagg_homes import Stage

ME = "north"
OTHERS = tuple(name for name in FIVE if name != ME)


@pytest.fixture
def market(tmp_path: Path) -> Market:
    return settle(tmp_path)


@pytest.fixture
def lock_data(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, whoever looks at user data fails the test."""

    def locked(*_: object, **__: object) -> NoReturn:
        pytest.fail("user data was touched")

    def lock() -> None:
        monkeypatch.setattr(client.platform, "load_platform_data", locked)
        monkeypatch.setattr("client.data.read_interactions", locked)

    return lock


def assert_refused(answer: tuple[Reply, Arrays | None], said: str) -> None:
    reply, arrays = answer
    assert arrays is None
    assert reply.outcome == "declined"
    assert reply.reason.startswith("refused: "), reply.reason
    with pytest.raises(ValueError, match=said):
        raise ValueError(reply.reason)


def snapshot(market: Market, name: str = ME) -> dict[str, bytes]:
    """Everything on a platform's disk; what its ledger says, not how SQLite puts it."""
    folder = market.configs[name].state.folder
    ledger = {path.name for path in files_of(folder / "ledger.sqlite")}
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ledger
    }
    return {**found, "entries": json.dumps(durable_entries(market.configs[name])).encode()}


# --- What is asked for --------------------------------------------------------------------------


def other(**changes: Any) -> Callable[[SecaggTerms], SecaggTerms]:  # noqa: ANN401 - any field
    return lambda terms: replace(terms, **changes)


REFUSED_TERMS: dict[str, tuple[Callable[[SecaggTerms], SecaggTerms], str]] = {
    "unknown-name": (
        other(participants=("east", ME, "south", "west", "zeus")),
        "platform 'zeus' is not among those whose keys this platform trusts",
    ),
    "not-for-me": (
        other(participants=OTHERS, neighbours=3, max_dropped=0),
        "not one that 'north' takes part in",
    ),
    "few-in-the-sum": (
        other(participants=("east", ME), max_dropped=0, neighbours=1),
        "a sum of 2 platforms may be opened, this platform accepts at least 3",
    ),
    "many-may-drop": (
        other(participants=("east", ME, "south", "west"), max_dropped=0, neighbours=3),
        "a sum of 4 platforms may be opened, this platform accepts at least 5",
    ),
    "few-collude": (
        other(max_colluding=1),
        "secagg.max_colluding: reckons with 1, this platform with 2",
    ),
    "coarse": (
        other(lattice=Lattice(bits=32, exponent=3)),
        "lattice: a platform's noise is .* steps, expected at least 64",
    ),
    "no-room": (
        other(lattice=Lattice(bits=32, exponent=-34)),
        "lattice: 32 bits leave no room beside noise",
    ),
}
OWN_CONDITIONS: dict[str, dict[str, Any]] = {
    "many-may-drop": {"min_summed": 5},
    "few-collude": {"max_colluding": 2},
}


@pytest.mark.parametrize("kind", ["counts", "round"])
@pytest.mark.parametrize("case", REFUSED_TERMS)
def test_terms_that_it_did_not_agree_to_are_refused_for_nothing(
    tmp_path: Path, lock_data: Callable[[], None], case: str, kind: str
) -> None:
    lock_data()
    market = settle(tmp_path, secagg=OWN_CONDITIONS.get(case))
    change, said = REFUSED_TERMS[case]
    asked: SumRequest | TrainRequest = (
        market.counts_request() if kind == "counts" else market.round_request()
    )
    assert asked.secagg is not None
    terms = change(asked.secagg)
    request = replace(asked, platform=ME, secagg=terms, num_platforms=len(terms.participants))
    reply, arrays = Coordinator(market, request).ask(ME)
    assert_refused((reply, arrays), said)
    assert [entry[0] for entry in durable_entries(market.configs[ME])] == ["decline"]
    assert declined(market.configs[ME]) == [(request.request_id, reply.reason)]


@pytest.mark.parametrize("trust", ["local", "secagg-simulated"])
def test_a_platform_that_sums_securely_sends_no_release_in_the_clear(
    market: Market,
    lock_data: Callable[[], None],
    trust: Any,  # noqa: ANN401 - a literal
) -> None:
    lock_data()
    request = market.counts_request(platform=ME)
    if trust == "local":
        request = replace(request, trust=trust, secagg=None)
    else:
        request = replace(request, trust=trust)
    answer = market.platform(ME).sum_up(request, COUNTS)
    assert_refused(answer, f"trust: asked for '{trust}', this platform accepts 'secagg'")
    assert durable_rows(market.configs[ME], "reserve") == 0


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "two-local-steps": lambda asked: asked.update(local_steps=2),
    "path-as-a-name": lambda asked: asked["secagg"].update(
        participants=["../east", ME, "south", "west", "york"]
    ),
    "twice-the-same": lambda asked: asked["secagg"].update(
        participants=["east", ME, ME, "west", "york"]
    ),
    "no-order": lambda asked: asked["secagg"].update(participants=["york", *FIVE[:4]]),
    "nobody-colludes": lambda asked: asked["secagg"].update(max_colluding=0),
    "half-may-drop": lambda asked: asked["secagg"].update(max_dropped=2),
    "negative-drops": lambda asked: asked["secagg"].update(max_dropped=-1),
    "few-neighbours": lambda asked: asked["secagg"].update(neighbours=2, max_dropped=1),
    "sixteen-bits": lambda asked: asked["secagg"]["lattice"].update(bits=16),
    "another-number": lambda asked: asked.update(num_platforms=4),
    "no-terms": lambda asked: asked.update(secagg=None),
    "terms-without-trust": lambda asked: asked.update(trust="local"),
    "foreign-field": lambda asked: asked["secagg"].update(min_summed=1),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_request_that_no_honest_coordinator_makes_reaches_no_platform(
    market: Market, lock_data: Callable[[], None], case: str
) -> None:
    lock_data()
    record = encode(market.round_request(platform=ME), shared_arrays())
    message = record.config_records["message"]
    asked = json.loads(str(message["json"]))
    MALFORMED[case](asked)
    message["json"] = json.dumps(asked)
    grid = InProcessGrid([market.folder / ME / "platform.toml"])
    (reply,) = grid.send_and_receive([Message(record, 1, TRAIN)])
    assert reply.has_error()
    assert not market.configs[ME].state.folder.exists()


def test_through_flower_a_stage_is_answered_as_the_platform_does(market: Market) -> None:
    request = market.counts_request(platform=ME)
    grid = InProcessGrid([market.folder / ME / "platform.toml"])
    (reply,) = grid.send_and_receive([Message(encode(request, COUNTS), 1, SUM)])
    assert set(reply.content["arrays"]) == {"sealing_key", "mask_key", "signature"}
    stage = SecaggStage(
        run_id=request.run_id,
        platform=ME,
        round_number=0,
        request_id=request.request_id,
        stage="unmask",
        names=FIVE,
    )
    (reply,) = grid.send_and_receive([Message(encode(stage, {}), 1, SECAGG)])
    assert "not the stage" in str(reply.content.config_records["message"]["json"])
    assert "arrays" not in reply.content


# --- Stages that are refused --------------------------------------------------------------------

Attempt = tuple[Any, Any]
"""Names and arrays of a stage."""


def impostor(coordinator: Coordinator, name: str) -> Advertised:
    """Keys that the coordinator knows both halves of, signed by a key of its own."""
    private, _ = new_key_pair("impostor")
    key_file = coordinator.market.folder / "impostor.key"
    write_durably(key_file, private)
    sealing, mask = (public_key_of(new_private_key()) for _ in range(2))
    statement = keys_statement(coordinator.digest, name, sealing, mask)
    signature = sign(read_private_key(key_file), statement)
    return Advertised(sealing_key=sealing, mask_key=mask, signature=signature)


def keys_with(coordinator: Coordinator, **changed: Advertised) -> Attempt:
    found = {**coordinator.advertised, **changed}
    return tuple(sorted(found)), pack_keys(found)


def keys_of(coordinator: Coordinator, *names: str) -> Attempt:
    found = [coordinator.advertised[name] for name in names]
    return names, pack_bytes(
        sealing_keys=[keys.sealing_key for keys in found],
        mask_keys=[keys.mask_key for keys in found],
        signatures=[keys.signature for keys in found],
    )


def for_another_run(coordinator: Coordinator) -> Attempt:
    elsewhere = Coordinator(coordinator.market, replace(coordinator.request, run_id="autumn"))
    elsewhere.advertise(["south"])
    return keys_with(coordinator, south=elsewhere.advertised["south"])


def of_an_earlier_session(coordinator: Coordinator) -> Attempt:
    earlier = coordinator.advertised[ME]
    coordinator.advertise([ME])
    return keys_with(coordinator, **{ME: earlier})


def with_a_stranger(coordinator: Coordinator) -> Attempt:
    """One whose key is trusted, but who is not asked for this sum."""
    _, public = new_key_pair("zeus")
    write_durably(coordinator.market.keys / "zeus.pub", public)
    return keys_with(coordinator, zeus=coordinator.advertised["west"])


def around(coordinator: Coordinator) -> Attempt:
    """A key file that is found by way of the parent folder."""
    found = {"../platform-keys/east": coordinator.advertised["east"], **coordinator.advertised}
    del found["east"]
    return tuple(sorted(found)), pack_keys(found)


def changed(attempt: Attempt, **arrays: Any) -> Attempt:  # noqa: ANN401 - any array, or None
    names, beside = attempt
    kept = {key: array for key, array in {**beside, **arrays}.items() if array is not None}
    return names, kept


def honest_share(coordinator: Coordinator) -> Attempt:
    return keys_of(coordinator, *coordinator.session.present)


SHARE: dict[str, tuple[Callable[[Coordinator], Attempt], str]] = {
    "man-in-the-middle": (
        lambda c: keys_with(c, south=impostor(c, "south")),
        "the keys of 'south' are not signed by its registered key",
    ),
    "for-another-run": (for_another_run, "the keys of 'south' are not signed"),
    "swapped": (
        lambda c: keys_with(c, south=c.advertised["west"], west=c.advertised["south"]),
        "the keys of 'south' are not signed",
    ),
    "mask-key-changed": (
        lambda c: keys_with(
            c, south=replace(c.advertised["south"], mask_key=c.advertised["west"].mask_key)
        ),
        "the keys of 'south' are not signed",
    ),
    "own-keys-changed": (
        lambda c: keys_with(c, **{ME: impostor(c, ME)}),
        "this platform's own keys are not those that it sent",
    ),
    "own-keys-of-before": (of_an_earlier_session, "own keys are not those that it sent"),
    "without-me": (lambda c: keys_of(c, *OTHERS), "own keys are not those that it sent"),
    "too-few": (
        lambda c: keys_of(c, "east", ME, "south"),
        "who advertised keys: 3 of 5 platforms, and the noise is made for at least 4",
    ),
    "nobody": (keys_of, "who advertised keys: 0 of 5"),
    "stranger": (with_a_stranger, "who advertised keys: expected participants"),
    "path-as-a-name": (around, "who advertised keys: expected participants"),
    "unsorted": (
        lambda c: keys_of(c, ME, "east", "south", "west"),
        "who advertised keys: expected participants, increasing, each once",
    ),
    "twice": (
        lambda c: keys_of(c, "east", "east", ME, "south"),
        "who advertised keys: expected participants, increasing, each once",
    ),
    "fewer-rows": (
        lambda c: (FIVE, keys_of(c, *FIVE[:4])[1]),
        r"sealing_keys: found uint8 \(4, 32\), expected uint8 \(5, 32\)",
    ),
    "wider-rows": (
        lambda c: changed(honest_share(c), mask_keys=np.zeros((5, 33), "u1")),
        r"mask_keys: found uint8 \(5, 33\)",
    ),
    "another-type": (
        lambda c: changed(honest_share(c), signatures=np.zeros((5, 96), "i1")),
        "signatures: found int8",
    ),
    "an-array-more": (
        lambda c: changed(honest_share(c), probe=np.zeros(1)),
        r"found arrays \['mask_keys', 'probe'",
    ),
    "an-array-less": (lambda c: changed(honest_share(c), signatures=None), "expected exactly"),
}


def honest_mask(coordinator: Coordinator, *sharers: str) -> Attempt:
    names = sharers or tuple(sorted(coordinator.sealed))
    return names, coordinator.dealt_to(ME, names)


def tampered(coordinator: Coordinator) -> Attempt:
    names, arrays = honest_mask(coordinator)
    sealed = arrays["sealed"].copy()
    sealed[1, 7] ^= 1  # of south
    return names, {"sealed": sealed}


def of_another_session(coordinator: Coordinator) -> Attempt:
    """What south dealt to it in a session of the same release, with other keys."""
    other_session = Coordinator(coordinator.market, coordinator.request)
    other_session.advertised = dict(coordinator.advertised)
    other_session.advertise(["west"])
    kept = coordinator.market.kept(coordinator.request, "south")
    dealt = deal_shares(other_session.session, "south", kept.own)[ME]
    return FIVE, pack_bytes(
        sealed=[
            dealt if name == "south" else coordinator.sealed[name][ME]
            for name in coordinator.session.neighbours(ME)
        ]
    )


def for_another_receiver(coordinator: Coordinator) -> Attempt:
    dealt = [coordinator.sealed[name][ME] for name in coordinator.session.neighbours(ME)]
    dealt[1] = coordinator.sealed["south"]["west"]
    return FIVE, pack_bytes(sealed=dealt)


def without(attempt: Attempt, name: str) -> Attempt:
    names, arrays = attempt
    return tuple(n for n in names if n != name), arrays


MASK: dict[str, tuple[Callable[[Coordinator], Attempt], str]] = {
    "sharer-not-present": (
        lambda c: (FIVE, c.dealt_to(ME, FIVE)),
        "those who dealt shares are not of this session",
    ),
    "without-me": (
        lambda c: without(honest_mask(c), ME),
        "who dealt shares: 3 of 5",
    ),
    "too-few": (
        lambda c: honest_mask(c, "east", ME, "south"),
        "who dealt shares: 3 of 5 platforms, and the noise is made for at least 4",
    ),
    "unsorted": (lambda c: (("west", *FIVE[:3]), honest_mask(c)[1]), "expected participants"),
    "twice": (lambda c: (("east", *FIVE[:3]), honest_mask(c)[1]), "expected participants"),
    "stranger": (lambda c: ((*FIVE[:4], "zeus"), honest_mask(c)[1]), "expected participants"),
    "tampered": (tampered, "south: a sealed share cannot be opened"),
    "of-another-session": (of_another_session, "south: a sealed share cannot be opened"),
    "for-another-receiver": (for_another_receiver, "south: a sealed share cannot be opened"),
    "one-share-less": (
        lambda c: (honest_mask(c)[0], {"sealed": honest_mask(c)[1]["sealed"][:-1]}),
        "sealed: found uint8",
    ),
    "another-type": (
        lambda c: (honest_mask(c)[0], {"sealed": honest_mask(c)[1]["sealed"].astype("u2")}),
        "sealed: found uint16",
    ),
    "an-array-more": (lambda c: changed(honest_mask(c), probe=np.zeros(1)), "expected exactly"),
    "nothing": (lambda c: (honest_mask(c)[0], {}), "expected exactly"),
}
ALL_PRESENT = {
    "of-another-session",
    "for-another-receiver",
    "without-me-in-it",
    "present-and-not-in-the-sum",
}
"""Attempts at which all five are there; else york did not come."""

CONFIRM: dict[str, tuple[Callable[[Coordinator], Attempt], str]] = {
    "too-few": (
        lambda _: (("east", ME, "south"), {}),
        "whose releases arrived: 3 of 5 platforms, and the noise is made for at least 4",
    ),
    "nobody": (lambda _: ((), {}), "whose releases arrived: 0 of 5"),
    "dealt-no-shares": (lambda _: (FIVE, {}), "a survivor dealt no shares"),
    "without-me-in-it": (
        lambda _: (OTHERS, {}),
        "'north' is not in this sum and does not help to open it",
    ),
    "unsorted": (lambda _: (("west", *FIVE[:3]), {}), "expected participants"),
    "twice": (lambda _: (("east", *FIVE[:4]), {}), "expected participants"),
    "stranger": (lambda _: ((*FIVE[:3], "zeus"), {}), "expected participants"),
}


def signatures(coordinator: Coordinator, **forged: bytes) -> Attempt:
    """Under the list of all who sent releases; by everybody but for what is ``forged``."""
    survivors = tuple(sorted(coordinator.masked))
    statement = survivors_statement(coordinator.session, survivors)
    signed = {name: coordinator.market.sign(name, statement) for name in survivors}
    signed.update(forged)
    return survivors, pack_bytes(signatures=[signed[name] for name in survivors])


def statement_of(coordinator: Coordinator, *survivors: str, digest: str = "") -> bytes:
    session = coordinator.session
    if digest:
        session = replace(session, request_digest=digest)
    return survivors_statement(session, survivors)


def by(signer: str, coordinator: Coordinator, *survivors: str, digest: str = "") -> bytes:
    return coordinator.market.sign(signer, statement_of(coordinator, *survivors, digest=digest))


FOUR = FIVE[:4]
UNMASK: dict[str, tuple[Callable[[Coordinator], Attempt], str]] = {
    "too-few": (
        lambda c: (FOUR[:3], {"signatures": signatures(c)[1]["signatures"][:3]}),
        "who confirmed the survivors: 3 of 5 platforms, and the noise is made for at least 4",
    ),
    "nobody": (lambda _: ((), {}), "who confirmed the survivors: 0 of 5"),
    "under-another-list": (
        lambda c: signatures(c, south=by("south", c, *FOUR[:3])),
        "'south' did not sign that these are the survivors",
    ),
    "signed-in-another-session": (
        lambda c: signatures(c, south=by("south", c, *FOUR, digest="0" * 64)),
        "'south' did not sign",
    ),
    "signed-by-another": (
        lambda c: signatures(c, south=by("west", c, *FOUR)),
        "'south' did not sign",
    ),
    "garbage": (lambda c: signatures(c, south=bytes(96)), "'south' did not sign"),
    "own-signature-forged": (lambda c: signatures(c, **{ME: bytes(96)}), "'north' did not sign"),
    "one-for-many": (
        lambda c: (("east",) * 4, pack_bytes(signatures=[by("east", c, *FOUR)] * 4)),
        "expected participants, increasing, each once",
    ),
    "unsorted": (
        lambda c: (
            FOUR[::-1],
            pack_bytes(signatures=[by(name, c, *FOUR) for name in FOUR[::-1]]),
        ),
        "expected participants, increasing, each once",
    ),
    "not-present": (
        lambda c: (FIVE, pack_bytes(signatures=[by(name, c, *FOUR) for name in FIVE])),
        "those who confirmed are not in the sum",
    ),
    "present-and-not-in-the-sum": (
        lambda c: (FIVE, pack_bytes(signatures=[by(name, c, *FOUR) for name in FIVE])),
        "those who confirmed are not in the sum",
    ),
    "stranger": (
        lambda _: ((*FOUR, "zeus"), pack_bytes(signatures=[bytes(96)] * 5)),
        "expected participants",
    ),
    "wider-rows": (lambda _: (FOUR, {"signatures": np.zeros((4, 97), "u1")}), r"\(4, 97\)"),
    "another-type": (lambda _: (FOUR, {"signatures": np.zeros((4, 96), "f8")}), "float64"),
    "an-array-more": (lambda c: changed(signatures(c), probe=np.zeros(1)), "expected exactly"),
}

ATTEMPTS: dict[Stage, dict[str, tuple[Callable[[Coordinator], Attempt], str]]] = {
    "share": SHARE,
    "mask": MASK,
    "confirm": CONFIRM,
    "unmask": UNMASK,
}


CHANGING = {"for-another-run", "own-keys-of-before"}
"""Attempts that need more than questions that are refused."""


def prepared(folder: Path, stage: Stage, case: str) -> Coordinator:
    """Everything that comes before ``stage``, for one of its attempts."""
    market = settle(folder)
    coordinator = Coordinator(market, market.counts_request())
    york_is_there = stage == "share" or case in ALL_PRESENT or case == "dealt-no-shares"
    coordinator.advertise(FIVE if york_is_there else FOUR)
    if stage != "share":
        coordinator.share(None if case != "dealt-no-shares" else FOUR)
    if stage in ("confirm", "unmask"):
        coordinator.mask()
    if stage == "unmask":
        coordinator.confirm(FOUR)
    return coordinator


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Stage, str], Coordinator]:
    """:func:`prepared`, once for all attempts that leave behind what they found."""
    known: dict[tuple[str, bool, bool], Coordinator] = {}

    def prepare(stage: Stage, case: str) -> Coordinator:
        kind = (stage, case in ALL_PRESENT, case == "dealt-no-shares")
        if case in CHANGING:
            return prepared(tmp_path_factory.mktemp(case), stage, case)
        if kind not in known:
            known[kind] = prepared(tmp_path_factory.mktemp(stage), stage, case)
        return known[kind]

    return prepare


@pytest.mark.parametrize(
    ("stage", "case"), [(stage, case) for stage in STAGES for case in ATTEMPTS[stage]]
)
def test_a_stage_that_is_not_as_agreed_is_refused_and_costs_nothing(
    prepare: Callable[[Stage, str], Coordinator],
    lock_data: Callable[[], None],
    stage: Stage,
    case: str,
) -> None:
    coordinator = prepare(stage, case)
    make, said = ATTEMPTS[stage][case]
    names, arrays = make(coordinator)
    lock_data()
    before = snapshot(coordinator.market)
    assert_refused(coordinator.send(ME, stage, names, arrays), said)
    assert snapshot(coordinator.market) == before


@pytest.mark.parametrize("stage", STAGES)
def test_after_all_that_was_refused_the_right_question_is_answered(
    tmp_path: Path, stage: Stage
) -> None:
    coordinator = prepared(tmp_path, stage, "")
    for case, (make, said) in ATTEMPTS[stage].items():
        if case not in {*CHANGING, *ALL_PRESENT, "dealt-no-shares"}:
            assert_refused(coordinator.send(ME, stage, *make(coordinator)), said)
    reply, answer = take(coordinator, stage)
    assert reply.outcome != "declined", reply.reason
    assert answer is not None


def test_no_stage_is_taken_out_of_turn_or_twice(
    market: Market, lock_data: Callable[[], None]
) -> None:
    """But for the last two, which only say again what they said."""
    coordinator = Coordinator(market, market.counts_request())
    coordinator.advertise()
    lock_data()
    keys, nothing = pack_keys(coordinator.advertised), pack_bytes(sealed=[bytes(82)] * 4)
    signed = pack_bytes(signatures=[bytes(96)] * 5)
    assert_refused(coordinator.send(ME, "mask", FIVE, nothing), "not the stage at which releases")
    assert_refused(coordinator.send(ME, "confirm", FIVE), "not the stage at which survivors")
    assert_refused(coordinator.send(ME, "unmask", FIVE, signed), "not the stage at which masks")
    coordinator.share()
    rosters: tuple[tuple[str, ...], ...] = (FIVE, FOUR)
    for names in rosters:
        again = keys_of(coordinator, *names)
        assert_refused(coordinator.send(ME, "share", *again), "shares were dealt already")
    assert_refused(coordinator.send(ME, "confirm", FIVE), "not the stage at which survivors")
    assert_refused(coordinator.send(ME, "unmask", FIVE, signed), "not the stage at which masks")
    coordinator.mask()
    assert_refused(coordinator.send(ME, "share", FIVE, keys), "shares were dealt already")
    for names in rosters:
        again = (names, coordinator.dealt_to(ME, names))
        assert_refused(coordinator.send(ME, "mask", *again), "not the stage at which releases")
    assert_refused(
        coordinator.send(ME, "unmask", *signatures(coordinator)), "not the stage at which masks"
    )
    coordinator.confirm()
    for names in (FOUR, OTHERS):
        assert_refused(coordinator.send(ME, "confirm", names), "other survivors were confirmed")
    assert_refused(coordinator.ask(ME), "confirmed already; it is not begun anew")
    kinds = [kind for kind, _, _ in durable_entries(market.configs[ME])]
    assert kinds == ["grant", "reserve", "commit", "confirm", "decline"]


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_what_it_never_released_are_refused(
    market: Market, lock_data: Callable[[], None], stage: Stage
) -> None:
    lock_data()
    coordinator = Coordinator(market, market.counts_request())
    said = "this platform has no release in such a sum"
    assert_refused(coordinator.send(ME, stage, FIVE), said)
    for request_id in ("", "../../node", "spring/item-counts/south", "x" * 10_000):
        assert_refused(coordinator.send(ME, stage, FIVE, request_id=request_id), said)
    assert durable_entries(market.configs[ME]) == []
    assert not (market.configs[ME].state.folder / "secagg").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_stages_for_another_platform_are_refused(market: Market, stage: Stage) -> None:
    coordinator = Coordinator(market, market.counts_request())
    coordinator.advertise()
    before = snapshot(market)
    answer = coordinator.send(ME, stage, FIVE, platform="south")
    assert_refused(answer, "platform: the request is for 'south', this is 'north'")
    assert (answer[0].platform, answer[0].run_id, answer[0].round_number) == (ME, "spring", 0)
    assert snapshot(market) == before


@pytest.mark.parametrize("stage", STAGES)
def test_a_platform_whose_releases_go_out_one_by_one_takes_no_stage(
    tmp_path: Path, stage: Stage
) -> None:
    market = settle(tmp_path, trust="local")
    coordinator = Coordinator(market, market.counts_request())
    assert_refused(coordinator.send(ME, stage, FIVE), "takes part in no secure sums")


@pytest.mark.parametrize("stage", STAGES)
def test_a_platform_that_stopped_takes_no_stage(market: Market, stage: Stage) -> None:
    coordinator = Coordinator(market, market.counts_request())
    coordinator.up_to(stage)
    (market.configs[ME].state.folder / STOPPED_FILE).write_text("a failure\n")
    before = snapshot(market)
    assert_refused(coordinator.send(ME, stage, FIVE), "this platform stopped after a failure")
    assert snapshot(market) == before


def test_a_key_that_its_operator_takes_back_is_trusted_no_longer(market: Market) -> None:
    coordinator = Coordinator(market, market.counts_request())
    coordinator.advertise()
    (market.keys / "south.pub").unlink()
    reply, arrays = coordinator.send(ME, "share", *honest_share(coordinator))
    assert arrays is None
    assert reply.reason == "failed: the cause is in the platform's own log."
    assert_refused(coordinator.ask(ME), "'south' is not among those whose keys")


# --- What is sent -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["counts", "round"])
def test_what_leaves_is_masked_and_the_sum_is_exact(market: Market, kind: str) -> None:
    request: Any = market.counts_request() if kind == "counts" else market.round_request()
    coordinator = Coordinator(market, request)
    coordinator.advertise()
    coordinator.share()
    coordinator.mask()
    for name, masked in coordinator.masked.items():
        assert not np.any(masked == market.stored(request, name))
    signed = coordinator.confirm()
    total = coordinator.open(FIVE, coordinator.unmask(signed))
    np.testing.assert_array_equal(total, market.plain_sum(request, FIVE))
    for name in FIVE:
        rows = [durable_rows(market.configs[name], kind) for kind in ("reserve", "commit")]
        assert rows == [1, 1]
        own = market.kept(request, name).own
        sent = b"".join(
            [
                coordinator.masked[name].tobytes(),
                coordinator.commitments[name],
                *coordinator.sealed[name].values(),
                signed[name],
            ]
        )
        assert not any(part in sent for part in (own.mask_key, own.sealing_key, own.own_mask))


# --- Two sums with one release in the difference --------------------------------------------------


@dataclass(kw_only=True)
class Attack:
    """A coordinator, and platforms that tell it all they know, after the release of one other."""

    market: Market
    victim: str
    colluding: tuple[str, ...]
    max_dropped: int = 1
    put_back: str = ""
    """What becomes of session files after the first sum; see :data:`PUT_BACK`."""

    @property
    def request(self) -> SumRequest:
        terms = agreed(
            self.market.names,
            max_dropped=self.max_dropped,
            max_colluding=max(1, len(self.colluding)),
        )
        return self.market.counts_request(secagg=terms)

    @property
    def honest(self) -> tuple[str, ...]:
        return tuple(name for name in self.market.names if name not in self.colluding)

    @property
    def without(self) -> tuple[str, ...]:
        return tuple(name for name in self.market.names if name != self.victim)

    def signatures(
        self, session: Session, survivors: tuple[str, ...], honest: Mapping[str, bytes]
    ) -> dict[str, bytes]:
        """Of the honest ones as they gave them; those who collude sign anything."""
        statement = survivors_statement(session, survivors)
        return {
            **honest,
            **{name: self.market.sign(name, statement) for name in self.colluding},
        }

    def shares(
        self, coordinator: Coordinator, survivors: tuple[str, ...], honest: Mapping[str, bytes]
    ) -> dict[str, dict[str, bytes]]:
        """All that can be had of those who confirmed ``survivors``, and of those who collude."""
        signed = self.signatures(coordinator.session, survivors, honest)
        sharers = tuple(sorted(coordinator.sealed))
        found = {
            name: reveal(
                coordinator.session,
                name,
                self.market.kept(coordinator.request, name).held,
                sharers,
                survivors,
            )
            for name in self.colluding
            if name in sharers
        }
        for name in honest:
            reply, answer = coordinator.ask_to_unmask(name, signed)
            if answer is not None:
                found[name] = coordinator.shares_in(name, answer)
            else:
                assert reply.reason.startswith("refused: ")
        return found

    def sum_of(
        self, coordinator: Coordinator, survivors: tuple[str, ...], honest: Mapping[str, bytes]
    ) -> np.ndarray | None:
        """What the releases of ``survivors`` add up to, if it can be found."""
        try:
            return coordinator.open(survivors, self.shares(coordinator, survivors, honest))
        except InvalidRelease:
            return None

    def stolen(
        self,
        coordinator: Coordinator,
        with_it: Mapping[str, Mapping[str, bytes]],
        without_it: Mapping[str, Mapping[str, bytes]],
    ) -> np.ndarray | None:
        """The victim's release, from shares of its one secret and of the other."""
        session, victim = coordinator.session, self.victim
        secrets = []
        for revealed in (with_it, without_it):
            shares = {
                session.point(name): found[victim]
                for name, found in revealed.items()
                if victim in found
            }
            try:
                secrets.append(join(shares, session.needed(victim)))
            except InvalidRelease:
                return None
        own_mask, mask_key = secrets
        is_own = commitment(session, victim, own_mask) == coordinator.commitments[victim]
        if not is_own or public_key_of(mask_key) != session.advertised[victim].mask_key:
            return None
        masks = np.zeros_like(coordinator.masked[victim])
        known = Secrets(sealing_key=bytes(32), mask_key=mask_key, own_mask=own_mask)
        mask_(masks, session, victim, known, tuple(sorted(coordinator.sealed)))
        release: np.ndarray = coordinator.masked[victim] - masks
        return release


PUT_BACK = ("deleted", "advertised", "shared", "masked")
"""An operator restores this of the session files: nothing, or what a stage before left of them."""


class OlderFiles:
    """A coordinator's way up to confirming, and what each stage left of session files."""

    def __init__(self, coordinator: Coordinator, names: Sequence[str]) -> None:
        market, request = coordinator.market, coordinator.request
        self._files = {name: market.session_file(request, name) for name in names}
        self._found: dict[str, dict[str, bytes]] = {}
        steps = (coordinator.advertise, coordinator.share, coordinator.mask)
        for stage, step in zip(PUT_BACK[1:], steps, strict=True):
            step()
            self._found[stage] = {name: path.read_bytes() for name, path in self._files.items()}

    def put_back(self, which: str) -> None:
        for name, path in self._files.items():
            if which == "deleted":
                path.unlink()
            elif which:
                write_durably(path, self._found[which][name])


def confirmed(
    coordinator: Coordinator, survivors: tuple[str, ...], names: Sequence[str]
) -> dict[str, bytes]:
    """Signatures of those among ``names`` that confirm ``survivors``."""
    answers = {name: coordinator.send(name, "confirm", survivors)[1] for name in names}
    return {
        name: answer["signature"].tobytes()
        for name, answer in answers.items()
        if answer is not None
    }


def restored(attack: Attack) -> np.ndarray | None:
    """Open the sum of everybody; with files of before, have the one without the victim opened."""
    coordinator = Coordinator(attack.market, attack.request)
    older = OlderFiles(coordinator, attack.honest)
    everybody, without = attack.market.names, attack.without
    first = attack.shares(coordinator, everybody, coordinator.confirm(everybody, attack.honest))
    expected = attack.market.plain_sum(attack.request, everybody)
    np.testing.assert_array_equal(coordinator.open(everybody, first), expected)
    older.put_back(attack.put_back)
    second = attack.shares(coordinator, without, confirmed(coordinator, without, attack.honest))
    return attack.stolen(coordinator, first, second)


def two_faced(attack: Attack, first: Sequence[str]) -> np.ndarray | None:
    """Show ``first`` one list of survivors, and the other honest ones another; then swap them."""
    coordinator = Coordinator(attack.market, attack.request)
    coordinator.up_to("confirm")
    everybody, without = attack.market.names, attack.without
    asked: dict[tuple[str, ...], list[str]] = {
        everybody: list(first),
        without: [name for name in attack.honest if name not in first],
    }
    signed: dict[tuple[str, ...], dict[str, bytes]] = {everybody: {}, without: {}}
    for swap in (False, True):
        for survivors, names in asked.items():
            shown = survivors if not swap else (without if survivors == everybody else everybody)
            signed[shown].update(confirmed(coordinator, shown, names))
    shares = [attack.shares(coordinator, names, signed[names]) for names in (everybody, without)]
    stolen = attack.stolen(coordinator, *shares)
    if stolen is not None:
        return stolen
    sums = [attack.sum_of(coordinator, names, signed[names]) for names in (everybody, without)]
    if len(first) == len(attack.honest) and sums[0] is not None:
        expected = attack.market.plain_sum(attack.request, everybody)
        np.testing.assert_array_equal(sums[0], expected)
    return None if sums[0] is None or sums[1] is None else sums[0] - sums[1]


def again_without_it(attack: Attack) -> np.ndarray | None:
    """Open the sum of everybody with as few as possible; then begin anew without the victim."""
    request, market = attack.request, attack.market
    assert request.secagg is not None
    coordinator = Coordinator(market, request)
    older = OlderFiles(coordinator, attack.honest)
    least = request.secagg.min_summed - len(attack.colluding)
    helpers, free = attack.honest[:least], attack.honest[least:]
    assert attack.victim in helpers
    signed = coordinator.confirm(market.names, helpers)
    total = attack.sum_of(coordinator, market.names, signed)
    assert total is not None
    np.testing.assert_array_equal(total, market.plain_sum(request, market.names))
    older.put_back(attack.put_back)
    second = Coordinator(market, request)
    share_again(attack, coordinator, second)
    for name in attack.without:
        # With all who pretend to have dealt, and with those who did.
        for sharers in (attack.without, tuple(sorted({*free, *attack.colluding}))):
            if name in sharers and name not in second.masked:
                beside = second.dealt_to(name, sharers)
                _, answer = second.send(name, "mask", sharers, beside)
                if answer is not None:
                    second.masked[name] = answer["masked"]
    if set(second.masked) != set(attack.without):
        return None
    others = [name for name in attack.honest if name != attack.victim]
    signed = confirmed(second, attack.without, others)
    rest = attack.sum_of(second, attack.without, signed)
    return None if rest is None else total - rest


def share_again(attack: Attack, coordinator: Coordinator, second: Coordinator) -> None:
    """Without the victim; for those who do not begin anew, with what they sent before."""
    for name in attack.without:
        _, answer = second.ask(name)
        if answer is None:  # keys of before are signed all the same
            second.advertised[name] = coordinator.advertised[name]
        else:
            second.advertise([name])
    for name in attack.without:
        _, answer = second.send(name, "share", attack.without, pack_keys(second.advertised))
        neighbours = second.session.neighbours(name)
        if answer is not None:
            rows = [row.tobytes() for row in answer["sealed"]]
            second.sealed[name] = dict(zip(neighbours, rows, strict=True))
            second.commitments[name] = answer["commitment"].tobytes()
        else:
            second.sealed[name] = {other: coordinator.sealed[name][other] for other in neighbours}
            second.commitments[name] = coordinator.commitments[name]


TRUSTS = [(3, 0, 1), (5, 1, 1), (5, 1, 2), (7, 2, 2)]
"""Platforms, how many may drop out, how many collude."""
SPLITS = [(3, 0, 1, 1), (3, 0, 1, 2), (5, 1, 2, 1), (5, 1, 2, 2), (7, 2, 2, 3)]
"""The same, and how many honest ones are shown the list with everybody first."""
NUMBERED = tuple(f"p{number}" for number in range(7))


def attacking(
    folder: Path, number: int, max_dropped: int, num_colluding: int, put_back: str = ""
) -> Attack:
    names = NUMBERED[:number]
    return Attack(
        market=settle(folder, names, secagg={"min_summed": 2}),
        victim=names[0],
        colluding=names[number - num_colluding :],
        max_dropped=max_dropped,
        put_back=put_back,
    )


@pytest.mark.parametrize(("number", "max_dropped", "num_colluding", "size"), SPLITS)
def test_two_lists_of_survivors_are_never_both_opened(
    tmp_path: Path, number: int, max_dropped: int, num_colluding: int, size: int
) -> None:
    attack = attacking(tmp_path, number, max_dropped, num_colluding)
    assert two_faced(attack, attack.honest[:size]) is None


@pytest.mark.parametrize(("number", "max_dropped", "num_colluding"), TRUSTS)
def test_no_second_sum_without_the_victim_can_follow(
    tmp_path: Path, number: int, max_dropped: int, num_colluding: int
) -> None:
    assert again_without_it(attacking(tmp_path, number, max_dropped, num_colluding)) is None


@pytest.mark.parametrize("put_back", ["deleted", "advertised"])
def test_no_second_sum_follows_whatever_session_files_are_put_back(
    tmp_path: Path, put_back: str
) -> None:
    assert again_without_it(attacking(tmp_path, 5, 1, 1, put_back)) is None


def test_no_second_list_is_confirmed_by_a_session_of_before_the_first(tmp_path: Path) -> None:
    assert restored(attacking(tmp_path, 5, 1, 1, "masked")) is None


def test_two_sessions_from_the_same_keys_do_not_mix(tmp_path: Path) -> None:
    """Half of the platforms are told that the victim is there, half that it is not."""
    attack = attacking(tmp_path, 5, 1, 1)
    whole = Coordinator(attack.market, attack.request)
    whole.advertise()
    part = Coordinator(attack.market, attack.request)
    part.advertised = {name: whole.advertised[name] for name in attack.without}
    (liar,) = attack.colluding
    own = attack.market.kept(attack.request, liar).own
    for coordinator, told in ((whole, attack.honest[:2]), (part, attack.honest[2:])):
        coordinator.share(told)
        coordinator.sealed[liar] = deal_shares(coordinator.session, liar, own)
    for coordinator, rest, told in (
        (whole, part, attack.honest[:2]),
        (part, whole, attack.honest[2:]),
    ):
        honest_sharers = tuple(sorted(coordinator.sealed))
        sharers = tuple(sorted({*coordinator.sealed, *rest.sealed} & {*coordinator.advertised}))
        for name in told:
            answer = coordinator.send(
                name, "mask", honest_sharers, coordinator.dealt_to(name, honest_sharers)
            )
            assert_refused(answer, "who dealt shares: 3 of 5")
            sealed = [
                coordinator.sealed[other][name]
                if other in coordinator.sealed
                else rest.sealed[other].get(name, bytes(82))
                for other in coordinator.session.neighbours(name)
                if other in sharers
            ]
            answer = coordinator.send(name, "mask", sharers, pack_bytes(sealed=sealed))
            assert_refused(answer, "a sealed share cannot be opened")


def test_another_roster_is_another_release_with_its_own_noise_and_price(
    market: Market, lock_data: Callable[[], None]
) -> None:
    request = market.counts_request()
    Coordinator(market, request).up_to("confirm")
    before = {name: market.stored(request, name) for name in FIVE}
    smaller = agreed(FOUR)
    elsewhere = market.counts_request(secagg=smaller, run_id="autumn")
    Coordinator(market, elsewhere).advertise()
    for name in FOUR:
        assert durable_rows(market.configs[name], "reserve") == 2
        # Counts are a few steps of the lattice of 2^-14: only noise tells nearly all apart.
        values = smaller.lattice.values(market.stored(elsewhere, name) - before[name])
        assert values.std() > 3.0
    lock_data()
    answer = Coordinator(market, market.counts_request(secagg=smaller)).ask(ME)
    assert_refused(answer, "this request id was used before")
    assert durable_rows(market.configs[ME], "reserve") == 2


# The same attacks, each against a platform with one rule taken away: they are worth their name.


def assert_stolen(attack: Attack, found: np.ndarray | None) -> None:
    assert found is not None, "the attack is too weak to notice that the rule is gone"
    np.testing.assert_array_equal(found, attack.market.stored(attack.request, attack.victim))


@pytest.fixture
def forgetful_ledgers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ledger knows of any list that was confirmed."""
    monkeypatch.setattr(Ledger, "confirm", lambda *_: None)


def forget_in_sessions(monkeypatch: pytest.MonkeyPatch, attack: Attack) -> None:
    """No session knows of any list that was confirmed, and each one opens either of the two."""
    real, real_unmask = SecureSum.confirm, SecureSum.unmask

    def forgetful(self: SecureSum, request: SecaggStage) -> Arrays:
        kept = self._files.load(request.request_id)
        assert kept is not None
        self._files.save(request.request_id, replace(kept, survivors=(), signature=b""))
        return real(self, request)

    def obliging(self: SecureSum, request: SecaggStage, arrays: Arrays) -> Arrays:
        """Reveal for whichever list it is that was signed."""
        kept = self._files.load(request.request_id)
        assert kept is not None
        for survivors in (attack.market.names, attack.without):
            self._files.save(request.request_id, replace(kept, survivors=survivors))
            try:
                return real_unmask(self, request, arrays)
            except RequestRefused as error:
                refusal = error
        raise refusal

    monkeypatch.setattr(SecureSum, "confirm", forgetful)
    monkeypatch.setattr(SecureSum, "unmask", obliging)


def overlook_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins a session does not look into the ledger."""
    real = SecureSum.advertise

    class Blank:
        """In place of a ledger."""

        def account(self) -> Account:
            return Account()

        def confirm(self, *_: object) -> NoReturn:
            pytest.fail("nothing is confirmed at this stage")

    def careless(self: SecureSum, *arguments: Any) -> Arrays:  # noqa: ANN401
        return real(SecureSum(self._name, self._config, self._files, Blank()), *arguments)

    monkeypatch.setattr(SecureSum, "advertise", careless)


@pytest.mark.usefixtures("forgetful_ledgers")
@pytest.mark.parametrize("put_back", ["", "deleted", "advertised"])
def test_a_platform_that_begins_anew_after_confirming_would_be_found_out(
    tmp_path: Path, put_back: str
) -> None:
    attack = attacking(tmp_path, 5, 1, 1, put_back)
    assert_stolen(attack, again_without_it(attack))


@pytest.mark.usefixtures("forgetful_ledgers")
def test_a_platform_that_trusts_its_session_file_alone_would_be_found_out(tmp_path: Path) -> None:
    attack = attacking(tmp_path, 5, 1, 1, "masked")
    assert_stolen(attack, restored(attack))


@pytest.mark.usefixtures("forgetful_ledgers")
def test_a_platform_that_confirms_two_lists_would_be_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = attacking(tmp_path, 5, 1, 1)
    forget_in_sessions(monkeypatch, attack)
    assert_stolen(attack, two_faced(attack, attack.honest[:2]))


# One list for a release is kept in two places, and either is enough while the other one holds.


def test_a_session_that_forgets_its_list_is_held_to_it_by_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = attacking(tmp_path, 5, 1, 1)
    forget_in_sessions(monkeypatch, attack)
    assert two_faced(attack, attack.honest[:2]) is None


def test_a_session_begun_anew_against_the_rule_confirms_no_second_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlook_at_first(monkeypatch)
    assert again_without_it(attacking(tmp_path, 5, 1, 1)) is None


@pytest.mark.usefixtures("forgetful_ledgers")
def test_a_session_that_goes_on_knows_its_list_without_a_ledger(tmp_path: Path) -> None:
    attack = attacking(tmp_path, 5, 1, 1)
    assert two_faced(attack, attack.honest[:2]) is None


def test_a_platform_that_believes_any_signature_would_be_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.secure_sum, "verify", lambda *_: True)
    attack = attacking(tmp_path, 5, 1, 2)
    real = Attack.signatures

    def padded(
        self: Attack, session: Session, survivors: tuple[str, ...], honest: Mapping[str, bytes]
    ) -> dict[str, bytes]:
        in_the_sum = [name for name in attack.honest if name in survivors]
        made_up = dict.fromkeys(in_the_sum, bytes(96))
        return {**made_up, **real(self, session, survivors, honest)}

    monkeypatch.setattr(Attack, "signatures", padded)
    assert_stolen(attack, two_faced(attack, ("p1",)))


# --- Once, and on disk before it leaves ---------------------------------------------------------


@pytest.mark.parametrize("seed", [3, None], ids=["seeded", "system-randomness"])
def test_a_sum_begun_anew_has_new_keys_for_the_same_release_and_one_price(
    tmp_path: Path, lock_data: Callable[[], None], seed: int | None
) -> None:
    market = settle(tmp_path, seed=seed)
    request = market.counts_request()
    first = Coordinator(market, request)
    first.up_to("confirm")
    lock_data()
    releases = {name: market.stored(request, name).tobytes() for name in FIVE}
    second = Coordinator(market, request)
    second.up_to("confirm")
    for name in FIVE:
        one, other = first.advertised[name], second.advertised[name]
        assert not {one.sealing_key, one.mask_key} & {other.sealing_key, other.mask_key}
        assert not np.any(first.masked[name] == second.masked[name])
        assert market.stored(request, name).tobytes() == releases[name]
        rows = [durable_rows(market.configs[name], kind) for kind in ("reserve", "commit")]
        assert rows == [1, 1]
    total = second.open(FIVE, second.unmask(second.confirm()))
    np.testing.assert_array_equal(total, market.plain_sum(request, FIVE))


def test_the_last_two_stages_say_the_same_as_often_as_they_are_asked(market: Market) -> None:
    coordinator = Coordinator(market, market.counts_request())
    coordinator.up_to("confirm")
    signed = coordinator.confirm()
    revealed = coordinator.unmask(signed)
    before = snapshot(market)
    assert coordinator.confirm() == signed
    assert coordinator.unmask(signed) == revealed
    # Other signatures, as good: ECDSA draws each one anew.
    anew = {name: by(name, coordinator, *FIVE) for name in FOUR}
    assert anew != {name: signed[name] for name in FOUR}
    assert coordinator.unmask(anew, FIVE) == revealed
    assert snapshot(market) == before


def take(coordinator: Coordinator, stage: Stage | None) -> tuple[Reply, Arrays | None]:
    """Ask for one stage, as it should be; None stands for the release."""
    if stage is None:
        return coordinator.ask(ME)
    honest = {"share": honest_share, "mask": honest_mask, "unmask": signatures}
    if stage == "confirm":
        return coordinator.send(ME, "confirm", tuple(sorted(coordinator.masked)))
    return coordinator.send(ME, stage, *honest[stage](coordinator))


WRITING: tuple[Stage | None, ...] = (None, "share", "mask", "confirm")


@pytest.mark.parametrize("stage", WRITING)
def test_on_a_full_disk_nothing_is_answered_and_later_everything(
    market: Market,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: Stage | None,
) -> None:
    coordinator = Coordinator(market, market.counts_request())
    coordinator.up_to(stage or "share")
    before = snapshot(market)

    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("common.storage.os.fsync", full)
        reply, answer = take(coordinator, stage)
    assert answer is None
    assert reply.reason == "failed: the cause is in the platform's own log."
    assert "cannot be written (No space left on device)" in caplog.text
    after = snapshot(market)
    if stage == "confirm":  # the ledger comes first: from now on it holds this list
        entries, earlier = (json.loads(found.pop("entries")) for found in (after, before))
        assert entries[:-1] == earlier
        assert entries[-1][0] == "confirm"
        refused = coordinator.send(ME, "confirm", FOUR)
        assert_refused(refused, "other survivors were confirmed for this release")
        assert_refused(coordinator.ask(ME), "confirmed already")
    assert after == before
    reply, answer = take(coordinator, stage)
    assert reply.outcome != "declined", reply.reason
    assert answer is not None
    assert durable_rows(market.configs[ME], "confirm") == (stage == "confirm")


def test_a_list_that_the_ledger_did_not_take_is_not_signed_and_binds_nobody(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = Coordinator(market, market.counts_request())
    coordinator.up_to("confirm")
    before = snapshot(market)

    def full(*_: object) -> NoReturn:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("common.privacy.ledger._insert", full)
        reply, answer = take(coordinator, "confirm")
    assert answer is None
    assert reply.reason == "failed: the cause is in the platform's own log."
    assert snapshot(market) == before
    signed = coordinator.confirm(FOUR)
    total = coordinator.open(FOUR, coordinator.unmask(signed))
    np.testing.assert_array_equal(total, market.plain_sum(coordinator.request, FOUR))


class Killed(BaseException):
    """What no handler of errors catches."""


@pytest.mark.parametrize("stage", WRITING)
def test_killed_before_an_answer_leaves_it_gives_no_other_one(
    market: Market, monkeypatch: pytest.MonkeyPatch, stage: Stage | None
) -> None:
    coordinator = Coordinator(market, market.counts_request())
    coordinator.up_to(stage or "share")
    real = SessionFiles.save

    def save(self: SessionFiles, *arguments: Any) -> NoReturn:  # noqa: ANN401
        real(self, *arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SessionFiles, "save", save)
        with pytest.raises(Killed):
            take(coordinator, stage)
    kept = market.kept(coordinator.request, ME)
    if stage is None:
        earlier = coordinator.advertised[ME]
        assert kept.own_keys != earlier
        assert_refused(take(coordinator, "share"), "own keys are not those that it sent")
    elif stage == "share":
        assert_refused(take(coordinator, stage), "shares were dealt already")
    elif stage == "mask":
        assert kept.sharers == FIVE
        assert_refused(take(coordinator, stage), "not the stage at which releases")
    else:
        assert_refused(coordinator.send(ME, "confirm", FOUR), "other survivors were confirmed")
        assert_refused(coordinator.ask(ME), "confirmed already")
        reply, answer = take(coordinator, stage)
        assert answer is not None, reply.reason
        assert answer["signature"].tobytes() == kept.signature
        return
    # Begun anew, it goes through.
    coordinator = Coordinator(market, coordinator.request)
    coordinator.up_to("confirm")
    total = coordinator.open(FIVE, coordinator.unmask(coordinator.confirm()))
    np.testing.assert_array_equal(total, market.plain_sum(coordinator.request, FIVE))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[: len(content) // 2],
    "garbage": lambda _: b"\xff\x00garbage",
    "another-json": lambda _: b"[]",
    "no-fields": lambda _: b"{}",
    "no-hex": lambda content: content.replace(b'"mask_key": "', b'"mask_key": "zz', 1),
    "other-terms": lambda content: content.replace(b'"max_dropped": 1', b'"max_dropped": 4'),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Stage], Coordinator]:
    """Someone who came to a stage, once for all damage to a file that is put back."""
    known: dict[Stage, Coordinator] = {}

    def whole(stage: Stage) -> Coordinator:
        if stage not in known:
            known[stage] = prepared(tmp_path_factory.mktemp(stage), stage, "")
        return known[stage]

    return whole


def damage(coordinator: Coordinator, case: str) -> tuple[Path, bytes]:
    """The session's file, and what was in it."""
    path = coordinator.market.session_file(coordinator.request, ME)
    content = path.read_bytes()
    path.write_bytes(DAMAGE[case](content))
    assert path.read_bytes() != content
    return path, content


def assert_named(answer: tuple[Reply, Arrays | None], path: Path, log: str) -> None:
    reply, arrays = answer
    assert arrays is None
    assert reply.reason == "failed: the cause is in the platform's own log."
    assert f"{path}: is damaged" in log


@pytest.mark.parametrize("case", DAMAGE)
def test_a_session_damaged_after_confirming_is_named_and_not_begun_anew(
    whole: Callable[[Stage], Coordinator], caplog: pytest.LogCaptureFixture, case: str
) -> None:
    coordinator = whole("unmask")
    path, content = damage(coordinator, case)
    stages: tuple[Stage, ...] = ("confirm", "unmask")
    for stage in stages:
        caplog.clear()
        assert_named(take(coordinator, stage), path, caplog.text)
    assert_refused(coordinator.ask(ME), "confirmed already; it is not begun anew")
    path.write_bytes(content)
    for stage in stages:
        reply, answer = take(coordinator, stage)
        assert answer is not None, reply.reason


@pytest.mark.parametrize("case", DAMAGE)
def test_a_session_damaged_before_confirming_is_named_and_begun_anew(
    whole: Callable[[Stage], Coordinator], caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """It has signed nothing, so there is no sum with it: the release may be in the next attempt."""
    coordinator = whole("confirm")
    path, _ = damage(coordinator, case)
    stages: tuple[Stage, ...] = ("mask", "confirm")
    for stage in stages:
        caplog.clear()
        assert_named(take(coordinator, stage), path, caplog.text)
        assert "This attempt at a sum cannot go on" in caplog.text
    again = Coordinator(coordinator.market, coordinator.request)
    again.up_to("confirm")
    assert again.advertised[ME] != coordinator.advertised[ME]
    assert again.market.kept(again.request, ME).own_keys == again.advertised[ME]
    assert durable_rows(again.market.configs[ME], "confirm") == 0


@pytest.mark.parametrize("put_back", PUT_BACK)
def test_whatever_session_file_is_put_back_one_list_is_confirmed(
    market: Market, lock_data: Callable[[], None], put_back: str
) -> None:
    coordinator = Coordinator(market, market.counts_request())
    older = OlderFiles(coordinator, [ME])
    signed = coordinator.confirm()
    older.put_back(put_back)
    lock_data()
    said = {
        "deleted": "this platform has no release in such a sum",
        "masked": "other survivors were confirmed for this release",
    }.get(put_back, "not the stage at which survivors are confirmed")
    assert_refused(coordinator.send(ME, "confirm", FOUR), said)
    assert_refused(coordinator.ask(ME), "confirmed already; it is not begun anew")
    entries = [entry for entry in durable_entries(market.configs[ME]) if entry[0] == "confirm"]
    statement = statement_of(coordinator, *FIVE).hex()
    body = {"sha256": statement, "survivors": [*FIVE]}
    assert entries == [("confirm", coordinator.request.id_for(ME), body)]
    if put_back == "masked":  # it goes on as it was, with the list of before
        total = coordinator.open(FIVE, coordinator.unmask(coordinator.confirm()))
        np.testing.assert_array_equal(total, market.plain_sum(coordinator.request, FIVE))
    else:  # and the others do without it
        rest = {name: signed[name] for name in OTHERS}
        total = coordinator.open(FIVE, coordinator.unmask(rest))
        np.testing.assert_array_equal(total, market.plain_sum(coordinator.request, FIVE))


def test_what_was_confirmed_is_forgotten_only_with_its_release(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while old files are removed, a platform still knows what it confirmed."""
    request = market.counts_request()
    coordinator = Coordinator(market, request)
    coordinator.up_to("confirm")
    coordinator.confirm()
    session = market.session_file(request, ME)
    real = Path.unlink

    def unlink(self: Path, **named: Any) -> None:  # noqa: ANN401
        real(self, **named)
        if self.parent.name in ("secagg", "releases"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(Killed):  # a sum of the next run takes the place of this one's
            Coordinator(market, replace(request, run_id="autumn")).ask(ME)
    releases = session.parent.parent / "releases"
    is_kept = (releases / session.with_suffix(".safetensors").name).exists()
    assert session.exists() or not is_kept
    reply, arrays = coordinator.ask(ME)
    assert arrays is None, reply
