"""A secure sum survives whom it may lose, at every stage, and opens nothing where it lost more."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from flwr.app import Error, Message

from common.errors import RunFailed, StateError
from common.messages import SECAGG, SUM, TRAIN, Reply
from common.models.ncf import NcfConfig
from common.secagg.protocol import keys_statement
from common.storage import pack_arrays, sha256
from common.wire import decode, encode
from server.config import (
    CatalogueSection,
    FederationConfig,
    FederationSection,
    MechanismSection,
    NetworkSection,
    SecaggSection,
    StateSection,
    SumsSection,
)
from server.exchange import Exchange
from server.journal import Journal
from server.run import FederationRun
from server.secure_sum import PENDING_FILE, SecureSums
from server.standing import Standing
from simulations.engines.in_process import InProcessGrid
from tests.unit.client.homes import NUM_ITEMS, durable_rows
from tests.unit.secagg_homes import COUNTS, FIVE, NOISE, SIX, Market, agreed, settle
from tests.unit.server.scripted import events

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from common.messages import SumRequest
    from common.models.partition import Arrays
    from server.secure_sum import Summed
    from server.strategy import ServerState

ALL_STAGES = ("prepare", "share", "mask", "confirm", "unmask")
BEFORE_THE_SUM = ("prepare", "share", "mask")


class Crash(BaseException):
    """The coordinator's end."""


class Lossy(InProcessGrid):
    """Loses, changes or dies at what a test names: platform and stage."""

    def __init__(self, market: Market) -> None:
        super().__init__(market.files)
        self._names = dict(enumerate(market.names, start=1))
        self.nodes = {name: node for node, name in self._names.items()}
        self.lost: set[tuple[str, str]] = set()
        self.deaf = False
        """Whether what is lost is the question; else it is the answer."""
        self.changed: dict[tuple[str, str], Callable[[Arrays], Arrays]] = {}
        self.crash: tuple[str, str] | None = None
        self.asked: list[tuple[str, str]] = []

    def _execute(self, message: Message) -> Message:
        kind = message.metadata.message_type
        if kind not in (SECAGG, SUM, TRAIN):
            return super()._execute(message)
        name = self._names[message.metadata.dst_node_id]
        place = (name, message.metadata.group_id if kind == SECAGG else "prepare")
        self.asked.append(place)
        if place == self.crash:
            raise Crash
        away = Message(Error(1, "away"), reply_to=message)
        if place in self.lost and self.deaf:
            return away
        reply = super()._execute(message)
        if place in self.lost:
            return away
        if place in self.changed:
            said, arrays = decode(reply.content, Reply)
            return Message(encode(said, self.changed[place](arrays)), reply_to=message)
        return reply


def federation(
    market: Market, *, max_dropped: int = 2, rounds: int = 1, keys: bool = False
) -> FederationConfig:
    network = NetworkSection(
        address="127.0.0.1:8000",
        root_certificate=market.folder / "none",
        certificate=market.folder / "none",
        private_key=market.folder / "none",
        platform_keys=market.keys,
    )
    return FederationConfig(
        federation=FederationSection(
            run_id="spring",
            rounds=rounds,
            platforms=market.names,
            quorum=1,
            join_timeout_seconds=5.0,
        ),
        catalogue=CatalogueSection(file=market.folder / "catalogue.csv"),
        mechanism=MechanismSection(noise_multiplier=1.0, trust="secagg"),
        model=NcfConfig(dim=2),
        sums=SumsSection(counts_noise_multiplier=NOISE, pairs_noise_multiplier=NOISE),
        secagg=SecaggSection(max_dropped=max_dropped),
        state=StateSection(folder=market.folder / "coordinator"),
        network=network if keys else None,
    )


def collect(
    config: FederationConfig,
    grid: Lossy,
    request: SumRequest,
    *,
    away: Collection[str] = (),
    told: dict[str, str] | None = None,
) -> Summed:
    """One sum of counts, as a run that starts now asks for it."""
    assert request.secagg is not None
    config = replace(config, federation=replace(config.federation, run_id=request.run_id))
    journal = Journal(config.run_folder)
    exchange = Exchange(config, grid, Standing(journal, config.validation.max_failures))
    requests = {
        name: replace(request, platform=name)
        for name in request.secagg.participants
        if name not in away
    }
    messages = {
        name: Message(encode(asked, COUNTS), grid.nodes[name], SUM, group_id=asked.quantity)
        for name, asked in requests.items()
    }

    def report(name: str, outcome: str) -> None:
        assert told is None or name not in told, "once for each"
        if told is not None:
            told[name] = outcome

    try:
        return SecureSums(config, exchange, journal).collect(
            messages, requests, COUNTS, size=NUM_ITEMS, report=report
        )
    finally:
        journal.close()


def asking(market: Market, run_id: str = "spring") -> SumRequest:
    max_dropped = 2 if len(market.names) == len(SIX) else 1
    return market.counts_request(
        secagg=agreed(market.names, max_dropped=max_dropped), run_id=run_id
    )


def assert_sum(market: Market, request: SumRequest, found: Summed, names: Collection[str]) -> None:
    """Exactly what the releases on the platforms' disks add up to."""
    assert request.secagg is not None
    assert found.platforms == tuple(sorted(names))
    expected = request.secagg.lattice.values(market.plain_sum(request, names))
    np.testing.assert_array_equal(found.numbers, expected)
    for config in market.configs.values():
        for kind in ("reserve", "commit"):
            assert durable_rows(config, kind) <= 1


@pytest.fixture
def market(tmp_path: Path) -> Market:
    return settle(tmp_path, SIX)


# --- Who may be lost ----------------------------------------------------------------------------

PATTERNS = [(), *((stage,) for stage in ALL_STAGES)]
PATTERNS += list(itertools.combinations_with_replacement(ALL_STAGES, 2))


@pytest.mark.parametrize("pattern", PATTERNS, ids="+".join)
def test_the_sum_is_that_of_the_survivors_whoever_is_lost_at_whatever_stage(
    market: Market, pattern: tuple[str, ...]
) -> None:
    """Up to two of six: one in the middle, the other first by name."""
    grid, request = Lossy(market), asking(market)
    lost = dict(zip(("south", "east"), pattern, strict=False))
    grid.lost = set(lost.items())
    grid.deaf = len(pattern) == 2 and pattern[0] != pattern[1]
    told: dict[str, str] = {}
    found = collect(federation(market), grid, request, told=told)
    out = {name for name, stage in lost.items() if stage in BEFORE_THE_SUM}
    assert_sum(market, request, found, set(SIX) - out)
    assert {name for name, outcome in told.items() if outcome == "released"} == set(SIX) - out
    for name in out:
        assert told[name].startswith("no answer: away")
        assert lost[name] == "prepare" or f"stage {lost[name]!r}" in told[name]


def test_a_sparse_graph_survives_as_much(market: Market) -> None:
    terms = agreed(SIX, max_dropped=1, neighbours=4)
    request = market.counts_request(secagg=terms)
    grid = Lossy(market)
    grid.lost = {("east", "mask")}
    config = federation(market)
    found = collect(config, grid, request)
    assert_sum(market, request, found, set(SIX) - {"east"})


SAID = {
    "prepare": "3 of 6 platforms advertised keys",
    "share": "3 of 6 platforms dealt shares",
    "mask": "3 of 6 platforms sent masked releases",
    "confirm": "3 of 6 platforms confirmed who is in the sum",
    "unmask": "3 of 6 platforms helped to open the sum",
}


@pytest.mark.parametrize("deaf", [True, False])
@pytest.mark.parametrize("stage", ALL_STAGES)
def test_with_one_too_many_nothing_is_opened_and_the_next_start_finishes(
    market: Market, stage: str, deaf: bool
) -> None:
    grid, request, config = Lossy(market), asking(market), federation(market)
    away = ("east", "south", "zeal")
    grid.lost, grid.deaf = {(name, stage) for name in away}, deaf
    with pytest.raises(RunFailed, match=rf"item-counts: {SAID[stage]}.*without: east, south, zeal"):
        collect(config, grid, request)
    assert (config.run_folder / PENDING_FILE).exists() == (stage in ("confirm", "unmask"))
    grid.lost, grid.asked = set(), []
    # Meanwhile another one is gone.
    found = collect(config, grid, request, away=["west"])
    begun = {name for name, asked in grid.asked if asked == "prepare"}
    if stage in BEFORE_THE_SUM:
        assert begun == set(SIX) - {"west"}
        assert_sum(market, request, found, begun)
    else:
        assert begun == set()
        assert_sum(market, request, found, SIX)


def test_who_cannot_be_enough_is_not_asked_at_all(market: Market) -> None:
    grid = Lossy(market)
    with pytest.raises(RunFailed, match=r"3 of 6 platforms are there.*without: east, south, west"):
        collect(federation(market), grid, asking(market), away=["east", "south", "west"])
    assert grid.asked == []


def test_a_damaged_file_of_a_pending_sum_is_named(market: Market) -> None:
    grid, request, config = Lossy(market), asking(market), federation(market)
    grid.crash = ("north", "confirm")
    with pytest.raises(Crash):
        collect(config, grid, request)
    path = config.run_folder / PENDING_FILE
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole.replace(b"sharers", b"sharerz")):
        path.write_bytes(content)
        with pytest.raises(StateError, match=PENDING_FILE):
            collect(config, grid, request)


# --- Who lies -----------------------------------------------------------------------------------


def set_to(**arrays: np.ndarray) -> Callable[[Arrays], Arrays]:
    return lambda found: {**found, **arrays}


def as_type(name: str, dtype: str) -> Callable[[Arrays], Arrays]:
    return lambda found: {**found, name: found[name].astype(dtype)}


def cut(name: str) -> Callable[[Arrays], Arrays]:
    return lambda found: {**found, name: found[name][:-1]}


LEFT_OUT: dict[str, tuple[str, Callable[[Arrays], Arrays], str]] = {
    "keys-too-short": ("prepare", cut("mask_key"), r"left out: mask_key: found uint8 \(31,\)"),
    "keys-missing": ("prepare", lambda _: {}, r"left out: found arrays \[\]"),
    "a-release-instead": (
        "prepare",
        lambda _: {"lattice": np.zeros(NUM_ITEMS, "u4")},
        r"left out: found arrays \['lattice'\]",
    ),
    "signature-forged": (
        "prepare",
        set_to(signature=np.zeros(96, "u1")),
        "left out: its keys are not signed by its registered key",
    ),
    "shares-too-few": ("share", cut("sealed"), "left out: sealed: found uint8"),
    "shares-of-another-type": ("share", as_type("sealed", "f4"), "left out: sealed: found float32"),
    "no-commitment": (
        "share",
        lambda found: {"sealed": found["sealed"]},
        "left out: found arrays",
    ),
    "masked-too-short": (
        "mask",
        cut("masked"),
        r"left out: lattice: found uint32 of shape \(13,\)",
    ),
    "masked-floats": ("mask", as_type("masked", "f4"), "left out: lattice: found float32"),
    "masked-signed": ("mask", as_type("masked", "i4"), "left out: lattice: found int32"),
    "masked-big-endian": ("mask", as_type("masked", ">u4"), "left out: lattice: found >u4"),
    "nothing-masked": ("mask", lambda _: {}, "left out: lattice: found"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_bad_answer_is_left_out_by_name_and_the_sum_goes_on(market: Market, case: str) -> None:
    stage, change, said = LEFT_OUT[case]
    grid, request = Lossy(market), asking(market)
    grid.changed = {("south", stage): change}
    told: dict[str, str] = {}
    found = collect(federation(market, keys=True), grid, request, told=told)
    assert_sum(market, request, found, set(SIX) - {"south"})
    with pytest.raises(ValueError, match=said):
        raise ValueError(told["south"])


NO_HELP: dict[str, tuple[str, Callable[[Arrays], Arrays]]] = {
    "signature-forged": ("confirm", set_to(signature=np.zeros(96, "u1"))),
    "signature-missing": ("confirm", lambda _: {}),
    "shares-too-few": ("unmask", cut("shares")),
    "shares-of-another-type": ("unmask", as_type("shares", "i8")),
}


@pytest.mark.parametrize("case", NO_HELP)
def test_who_only_helps_badly_is_in_the_sum_all_the_same(market: Market, case: str) -> None:
    stage, change = NO_HELP[case]
    grid, request = Lossy(market), asking(market)
    grid.changed = {("south", stage): change}
    found = collect(federation(market, keys=True), grid, request)
    assert_sum(market, request, found, SIX)


WRONG_SHARES = {("east", "unmask"): lambda f: {"shares": f["shares"] ^ np.uint8(1)}}


def test_wrong_shares_of_one_are_left_out_while_the_others_are_enough(market: Market) -> None:
    grid, request = Lossy(market), asking(market)
    grid.changed = dict(WRONG_SHARES)
    assert_sum(market, request, collect(federation(market), grid, request), SIX)


@pytest.mark.parametrize("case", ["wrong-shares", "wrong-commitment"])
def test_a_lie_that_only_shows_at_the_end_opens_nothing_and_is_named(
    market: Market, case: str
) -> None:
    grid, request, config = Lossy(market), asking(market), federation(market)
    honest = dict(grid.changed)
    if case == "wrong-shares":
        grid.changed, grid.lost = dict(WRONG_SHARES), {("south", "unmask"), ("west", "unmask")}
        said = r"the mask of '\w+' cannot be taken away.*Shares came from \['east'"
    else:
        grid.changed = {("south", "share"): set_to(commitment=np.zeros(32, "u1"))}
        said = "the mask of 'south' cannot be taken away: .* another seed than it committed to"
    with pytest.raises(RunFailed, match=rf"item-counts: {said}"):
        collect(config, grid, request)
    if case == "wrong-shares":  # who lied once may be honest at the next start
        grid.changed, grid.lost = honest, set()
        assert_sum(market, request, collect(config, grid, request), SIX)


def test_who_deals_bad_shares_is_named_by_everybody(market: Market) -> None:
    grid, request = Lossy(market), asking(market)
    grid.changed = {("south", "share"): lambda f: {**f, "sealed": f["sealed"] ^ np.uint8(1)}}
    told: dict[str, str] = {}
    with pytest.raises(RunFailed, match="1 of 6 platforms sent masked releases"):
        collect(federation(market), grid, request, told=told)
    assert told.keys() == set(SIX) - {"south"}
    for outcome in told.values():
        assert outcome.startswith("declined: refused: south: a sealed share cannot be opened")


@pytest.mark.parametrize("part", ["sealing_key", "mask_key"])
def test_a_key_that_everybody_could_agree_on_leaves_out_only_who_sent_it(
    market: Market, part: str
) -> None:
    """Of low order: signed as it should be, and fatal for whoever computes with it."""
    grid, request = Lossy(market), asking(market)
    digest = request.common_digest(sha256(pack_arrays(COUNTS, {})))

    def poison(found: Arrays) -> Arrays:
        keys = {**found, part: np.zeros(32, "u1")}
        statement = keys_statement(
            digest, "south", keys["sealing_key"].tobytes(), keys["mask_key"].tobytes()
        )
        signature = np.frombuffer(market.sign("south", statement), dtype="u1")
        return {**keys, "signature": signature}

    grid.changed = {("south", "prepare"): poison}
    told: dict[str, str] = {}
    found = collect(federation(market, keys=True), grid, request, told=told)
    assert_sum(market, request, found, set(SIX) - {"south"})
    assert told["south"].startswith("left out: a public key is not valid")


# --- Whole runs ---------------------------------------------------------------------------------


def undisturbed(folder: Path) -> ServerState:
    folder.mkdir()
    market = settle(folder, FIVE)
    return FederationRun(federation(market, max_dropped=1), Lossy(market)).run()


def assert_same(found: ServerState, expected: ServerState) -> None:
    for name, array in expected.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], array)


def charged_once(market: Market) -> None:
    for config in market.configs.values():
        assert durable_rows(config, "reserve") == durable_rows(config, "commit") == 3


def test_a_run_that_is_cut_off_anywhere_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path / "undisturbed")
    folder = tmp_path / "cut-off"
    folder.mkdir()
    market = settle(folder, FIVE)
    config = federation(market, max_dropped=1)
    for stage in ALL_STAGES:  # one after the other; each start gets a stage further
        grid = Lossy(market)
        grid.crash = ("south", stage)
        with pytest.raises(Crash):
            FederationRun(config, grid).run()
    assert_same(FederationRun(config, Lossy(market)).run(), expected)
    charged_once(market)


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_a_run_that_lost_too_many_says_so_and_is_finished_by_the_next_start(
    tmp_path: Path, stage: str
) -> None:
    market = settle(tmp_path, FIVE)
    config = federation(market, max_dropped=1)
    grid = Lossy(market)
    grid.lost = {("east", stage), ("west", stage)}
    with pytest.raises(RunFailed, match=r"item-counts: 3 of 5 platforms .*without: east, west"):
        FederationRun(config, grid).run()
    assert len(events(config, "run-failed")) == 1
    state = FederationRun(config, Lossy(market)).run()
    assert state.rounds_done == 1
    charged_once(market)
