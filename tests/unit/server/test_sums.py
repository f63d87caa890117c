"""Sums are asked once, of the right items, checked, added up, written down, and handed over."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Error

from common.data.catalogue import Catalogue
from common.errors import RunFailed, StateError
from common.models.pairs import item_weights, num_pairs
from common.storage import pack_arrays, read_arrays, write_durably
from common.wire import encode
from server.checkpoint import CollectedSum, CollectedSums
from server.config import FederationConfig, SumsSection, ValidationSection
from server.run import FederationRun
from server.sums import shared_items
from tests.unit.server.scripted import (
    NUM_ITEMS,
    RUN_ID,
    Answer,
    ScriptedGrid,
    Shop,
    events,
    federation,
    honest_adoption,
    honest_sum,
    profile,
    reply,
    sum_release,
    write_catalogue_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from common.messages import SumRequest
    from common.models.partition import Arrays, SumQuantity
    from common.privacy.mechanisms import TrustMode

HONEST = ("east", "north", "west")
SUMS = SumsSection(counts_noise_multiplier=19.6, pairs_noise_multiplier=2.0)
PAIR_ITEMS = 4
FEW = replace(SUMS, max_items=PAIR_ITEMS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_catalogue_file(tmp_path)
    return tmp_path


def shops(folder: Path, names: Sequence[str] = HONEST, trust: TrustMode = "local") -> list[Shop]:
    return [Shop(profile=profile(n, folder / "catalogue.csv", trust=trust)) for n in names]


def joined_by(folder: Path, sum_up: Callable[[SumRequest, Arrays], Answer]) -> list[Shop]:
    return [*shops(folder), Shop(profile=profile("evil", folder / "catalogue.csv"), sum_up=sum_up)]


def total(quantity: SumQuantity, num_asked: int, names: Sequence[str] = HONEST) -> np.ndarray:
    found: np.ndarray = np.sum(
        [sum_release(name, quantity, num_asked)["sum"].astype(float) for name in names], axis=0
    )
    return found


def run(config: FederationConfig, members: Sequence[Shop]) -> ScriptedGrid:
    grid = ScriptedGrid(members)
    FederationRun(config, grid).run()
    return grid


def sum_outcomes(config: FederationConfig, quantity: SumQuantity) -> dict[str, str]:
    found = [event for event in events(config, "sum-reply") if event["quantity"] == quantity]
    return {event["platform"]: event["outcome"] for event in found}


# --- What is asked and handed over --------------------------------------------------------------


@pytest.mark.parametrize("rounds", [0, 2])
def test_counts_choose_the_items_and_weights_of_the_pairs_and_the_sum_is_handed_over(
    folder: Path, rounds: int
) -> None:
    config = federation(folder, HONEST, rounds=rounds, sums=FEW)
    grid = run(config, shops(folder))
    assert [(r.quantity, r.platform) for r, _ in grid.sums] == [
        (quantity, name) for quantity in ("item-counts", "item-pairs") for name in HONEST
    ]
    for request, _ in grid.sums:
        assert (request.run_id, request.trust, request.num_platforms) == (RUN_ID, "local", 3)
    noise = {(request.quantity, request.noise_multiplier) for request, _ in grid.sums}
    assert noise == {("item-counts", 19.6), ("item-pairs", 2.0)}

    counts = total("item-counts", NUM_ITEMS)
    chosen = np.sort(np.argsort(-counts)[:PAIR_ITEMS])
    weights = item_weights(counts[chosen], 19.6 * math.sqrt(3))
    assert sorted(weights == 1.0) == [False, False, True, True], "noise must matter for some"
    for _, asked in grid.sums[:3]:
        assert {n: a.tolist() for n, a in asked.items()} == {"items": list(range(NUM_ITEMS))}
    for _, asked in grid.sums[3:]:
        assert asked["items"].dtype == np.int64
        assert asked["items"].tolist() == chosen.tolist()
        np.testing.assert_allclose(asked["weights"], weights, rtol=1e-5)

    assert len(grid.requests) == 3 * rounds
    for adopted, arrays in grid.adopted:
        pairs = {name: a for name, a in arrays.items() if name.startswith("pairs.")}
        assert set(pairs) == {"pairs.items", "pairs.weights", "pairs.sum"}
        assert (set(arrays) > set(pairs)) == (rounds > 0)
        np.testing.assert_array_equal(pairs["pairs.items"], grid.sums[-1][1]["items"])
        np.testing.assert_array_equal(pairs["pairs.weights"], grid.sums[-1][1]["weights"])
        assert pairs["pairs.sum"].dtype == np.float32
        np.testing.assert_allclose(
            pairs["pairs.sum"], total("item-pairs", PAIR_ITEMS), rtol=1e-6, atol=1e-5
        )
        assert (adopted.rounds_done, adopted.num_sums) == (rounds, 3)
        assert (adopted.own_included, adopted.noise_std) == (True, 2.0)


def test_the_journal_tells_what_was_asked_and_who_released(folder: Path) -> None:
    config = federation(folder, HONEST, sums=FEW)
    run(config, shops(folder))
    assert [
        (event["quantity"], event["items"], event["platforms"])
        for event in events(config, "sum-started")
    ] == [
        ("item-counts", NUM_ITEMS, list(HONEST)),
        ("item-pairs", PAIR_ITEMS, list(HONEST)),
    ]
    assert [event["mechanism"]["noise_multiplier"] for event in events(config, "sum-started")] == [
        FEW.counts_noise_multiplier,
        FEW.pairs_noise_multiplier,
    ]
    assert events(config, "sum-closed") == [
        {"quantity": "item-counts", "releases": 3},
        {"quantity": "item-pairs", "releases": 3},
    ]
    for quantity in ("item-counts", "item-pairs"):
        assert set(sum_outcomes(config, quantity).values()) == {"released"}


def test_without_the_section_nothing_is_summed(folder: Path) -> None:
    grid = run(federation(folder, HONEST), shops(folder))
    assert grid.sums == []
    for request, arrays in grid.adopted:
        assert (request.num_sums, request.noise_std, request.own_included) == (0, 0.0, False)
        assert not any(name.startswith("pairs.") for name in arrays)


def test_under_secure_aggregation_each_adds_its_share_and_all_are_needed(folder: Path) -> None:
    config = federation(folder, HONEST, quorum=1, sums=FEW, rounds=0, trust="secagg-simulated")
    grid = run(config, shops(folder, trust="secagg-simulated"))
    for request, _ in grid.adopted:
        assert request.noise_std == pytest.approx(2.0 / math.sqrt(2))
    weights = grid.sums[-1][1]["weights"]
    counts = np.sort(total("item-counts", NUM_ITEMS))[-PAIR_ITEMS:]
    np.testing.assert_allclose(
        np.sort(weights),
        np.sort(item_weights(counts, 19.6 / math.sqrt(2) * math.sqrt(3))),
        rtol=1e-5,  # the lattice
    )
    members = shops(folder, trust="secagg-simulated")
    members[1].sum_up = declining
    other = replace(config, state=replace(config.state, folder=folder / "other"))
    with pytest.raises(RunFailed, match=r"item-counts: 2 of 3 .*made for at least 3"):
        run(other, members)


def listing(*rows: int) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def test_what_two_platforms_of_the_federation_list_is_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalogue = Catalogue(
        item_ids=tuple("abcdefg"),
        listings={
            "east": listing(0, 1, 2, 5),
            "north": listing(1, 2, 3, 5),
            "west": listing(2, 4, 5),
            "elsewhere": listing(0, 3, 4, 6),
        },
        derived=False,
    )
    assert shared_items(catalogue, HONEST).tolist() == [1, 2, 5]
    assert shared_items(catalogue, ("east", "west")).tolist() == [2, 5]
    assert shared_items(catalogue, ("east",)).tolist() == []
    monkeypatch.setattr("server.sums.MAX_COUNTED_ITEMS", 2)
    assert shared_items(catalogue, HONEST).tolist() == [2, 5]


def test_with_fewer_than_two_shared_items_the_run_ends_before_anybody_is_asked(
    folder: Path,
) -> None:
    (folder / "catalogue.csv").write_text("item_id,platform\na,east\nb,east\nb,west\n")
    config = federation(folder, ("east", "west"), sums=SUMS)
    grid = ScriptedGrid(shops(folder, ("east", "west")))
    with pytest.raises(RunFailed, match=r"1 items are listed by two platforms"):
        FederationRun(config, grid).run()
    assert grid.sums == []


# --- Bad answers --------------------------------------------------------------------------------


def answer_with(number: int = 0, **arrays: np.ndarray) -> Callable[[SumRequest, Arrays], Answer]:
    return lambda *_: encode(reply("evil", number), arrays)


def declining(request: SumRequest, _: Arrays) -> Answer:
    return encode(reply(request.platform, 0, outcome="declined", reason="budget: x"))


def poisoned(value: float) -> np.ndarray:
    array = sum_release("evil", "item-counts", NUM_ITEMS)["sum"]
    array[2] = value
    return array


GOOD = sum_release("evil", "item-counts", NUM_ITEMS)["sum"]
BAD_ANSWERS: dict[str, tuple[Callable[[SumRequest, Arrays], Answer], str]] = {
    "nothing": (lambda *_: encode(reply("evil", 0)), r"left out: .*missing \['sum'\]"),
    "another-name": (answer_with(total=GOOD), r"left out: .*missing \['sum'\]"),
    "more": (answer_with(sum=GOOD, users=GOOD), r"left out: .*not allowed \['users'\]"),
    "short": (answer_with(sum=GOOD[:-1]), r"left out: sum: .*\(5,\)"),
    "broadcastable": (answer_with(sum=GOOD[:1]), r"left out: sum: .*\(1,\)"),
    "pairs-for-counts": (
        answer_with(sum=np.zeros(num_pairs(NUM_ITEMS), "f4")),
        r"left out: sum: .*\(15,\)",
    ),
    "square": (answer_with(sum=GOOD.reshape(2, 3)), r"left out: sum: .*\(2, 3\)"),
    "float64": (answer_with(sum=GOOD.astype(float)), "left out: sum: found float64"),
    "integers": (answer_with(sum=GOOD.astype(int)), "left out: sum: found int64"),
    "nan": (answer_with(sum=poisoned(np.nan)), "left out: sum: found NaN"),
    "infinity": (answer_with(sum=poisoned(np.inf)), "left out: sum: .*infinity"),
    "huge": (answer_with(sum=poisoned(600.0)), "left out: sum: found numbers from .* to 600"),
    "negative": (answer_with(sum=poisoned(-400.0)), "left out: sum: found numbers from -400 to"),
    "much-of-everything": (
        answer_with(sum=np.full(NUM_ITEMS, 300.0, "f4")),
        "left out: norm: found 734.8; .* at most 405",
    ),
    "a-round": (answer_with(1, sum=GOOD), "left out: answers for .*round 1; expected .*, 0"),
    "another-platform": (
        lambda *_: encode(reply("north", 0), {"sum": GOOD}),
        "left out: answers for 'north'",
    ),
    "adopted": (
        lambda *_: encode(reply("evil", 0, outcome="adopted"), {"sum": GOOD}),
        "left out: outcome 'adopted'",
    ),
    "declined": (
        lambda *_: encode(reply("evil", 0, outcome="declined", reason="budget: x")),
        "declined: budget: x",
    ),
    "error": (lambda *_: Error(0, "gone"), "no answer: gone"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_a_bad_answer_is_left_out_with_its_cause_and_the_sum_goes_on(
    folder: Path, case: str
) -> None:
    answer, said = BAD_ANSWERS[case]

    def sum_up(request: SumRequest, asked: Arrays) -> Answer:
        is_counts = request.quantity == "item-counts"
        return answer(request, asked) if is_counts else honest_sum(request, asked)

    config = federation(folder, [*HONEST, "evil"], rounds=0, sums=FEW)
    grid = run(config, joined_by(folder, sum_up))
    found = sum_outcomes(config, "item-counts")
    assert {found.pop(name) for name in HONEST} == {"released"}
    assert re.match(said, found["evil"], re.DOTALL), found
    counts, _ = read_arrays(folder / "state" / RUN_ID / "item-counts.safetensors")
    np.testing.assert_allclose(counts["sum"], total("item-counts", NUM_ITEMS), rtol=1e-6)
    assert {request.num_sums for request, _ in grid.adopted} == {4}


def test_whose_pairs_were_left_out_is_told_so(folder: Path) -> None:
    config = federation(folder, [*HONEST, "evil"], rounds=0, sums=FEW)
    grid = run(config, joined_by(folder, declining))
    included = {request.platform: request.own_included for request, _ in grid.adopted}
    assert included == {"east": True, "north": True, "west": True, "evil": False}
    assert {request.num_sums for request, _ in grid.adopted} == {3}
    np.testing.assert_allclose(
        grid.adopted[0][1]["pairs.sum"], total("item-pairs", PAIR_ITEMS), rtol=1e-6
    )


def test_a_sum_below_the_quorum_ends_the_run(folder: Path) -> None:
    config = federation(folder, HONEST, quorum=3, sums=FEW)
    members = shops(folder)
    members[2].sum_up = declining
    with pytest.raises(RunFailed, match="item-counts: 2 of 3 platforms released, 3 are needed"):
        run(config, members)
    assert not (folder / "state" / RUN_ID / "item-counts.safetensors").exists()
    assert events(config, "round-started") == []
    run(config, shops(folder))


def test_a_sum_that_overflows_ends_the_run_before_it_is_written_down(folder: Path) -> None:
    huge = np.full(NUM_ITEMS, 3e38, np.float32)
    members = shops(folder)
    for place, name in ((0, "east"), (1, "north")):
        members[place].sum_up = lambda *_, name=name: encode(reply(name, 0), {"sum": huge})
    validation = ValidationSection(population_slack=1e45)
    with pytest.raises(RunFailed, match=r"item-counts: .*overflows"):
        run(federation(folder, HONEST, sums=FEW, validation=validation), members)
    assert not (folder / "state" / RUN_ID / "item-counts.safetensors").exists()


# --- Resuming -----------------------------------------------------------------------------------


def interrupted(*_: object) -> Answer:
    raise KeyboardInterrupt


def interrupted_at_pairs(request: SumRequest, asked: Arrays) -> Answer:
    return honest_sum(request, asked) if request.quantity == "item-counts" else interrupted()


@pytest.mark.parametrize(
    ("changes", "asked_again"),
    [
        ({"sum_up": interrupted}, ["item-counts"] * 3 + ["item-pairs"] * 3),
        ({"sum_up": interrupted_at_pairs}, ["item-pairs"] * 3),
        ({"train": interrupted}, []),
        ({"adopt": interrupted}, []),
    ],
)
def test_a_resumed_run_asks_only_for_what_it_has_not(
    folder: Path, changes: dict[str, Any], asked_again: list[str]
) -> None:
    config = federation(folder, HONEST, rounds=1, sums=FEW)
    members = shops(folder)
    members[1] = replace(members[1], **changes)
    with pytest.raises(KeyboardInterrupt):
        run(config, members)
    grid = run(config, shops(folder))
    assert [request.quantity for request, _ in grid.sums] == asked_again
    other = replace(config, state=replace(config.state, folder=folder / "other"))
    undisturbed = run(other, shops(folder))
    for (request, arrays), (expected, expected_arrays) in zip(
        grid.adopted, undisturbed.adopted, strict=True
    ):
        assert request == expected
        assert pack_arrays(arrays, {}) == pack_arrays(expected_arrays, {})


def test_a_finished_run_hands_over_the_same_again(folder: Path) -> None:
    config = federation(folder, HONEST, rounds=0, sums=FEW)
    first, again = run(config, shops(folder)), run(config, shops(folder))
    assert again.sums == []
    assert [request for request, _ in again.adopted] == [request for request, _ in first.adopted]


def test_what_is_on_disk_says_whose_it_is_even_if_the_configuration_changed(folder: Path) -> None:
    run(federation(folder, HONEST, rounds=0, sums=FEW), shops(folder))
    louder = replace(FEW, pairs_noise_multiplier=9.0)
    grid = run(federation(folder, HONEST, rounds=0, sums=louder), shops(folder, HONEST[:2]))
    assert {(r.num_sums, r.noise_std) for r, _ in grid.adopted} == {(3, 2.0)}


COLLECTED = CollectedSum(
    asked={"items": np.arange(3), "weights": np.ones(3, np.float32)},
    total=np.array([1e-45, -0.0, 3e38], np.float32),
    platforms=("east", 'a "strange" näme'),
    noise_std=1 / 3,
)


def test_a_sum_comes_back_bit_for_bit_and_only_for_its_run(tmp_path: Path) -> None:
    files = CollectedSums(tmp_path / "state", "spring")
    assert files.load("item-pairs") is None
    files.save("item-pairs", COLLECTED)
    back = CollectedSums(tmp_path / "state", "spring").load("item-pairs")
    assert back is not None
    assert (back.platforms, back.noise_std) == (COLLECTED.platforms, COLLECTED.noise_std)
    assert pack_arrays({**back.asked, "sum": back.total}, {}) == pack_arrays(
        {**COLLECTED.asked, "sum": COLLECTED.total}, {}
    )
    assert files.load("item-counts") is None
    with pytest.raises(StateError, match=r"'spring'.*'autumn'"):
        CollectedSums(tmp_path / "state", "autumn").load("item-pairs")


@pytest.mark.parametrize(
    "changes",
    [
        {"platforms": None},
        {"platforms": "["},
        {"platforms": "3"},
        {"platforms": "[]"},
        {"platforms": "[1]"},
        {"noise_std": None},
        {"noise_std": "much"},
        {"noise_std": "nan"},
        {"noise_std": "-1"},
        {"sum": None},
    ],
    ids=str,
)
def test_a_file_that_is_no_sum_is_an_error(tmp_path: Path, changes: dict[str, str | None]) -> None:
    metadata = {"run": "spring", "platforms": json.dumps(["east"]), "noise_std": "1.0", **changes}
    arrays = {**COLLECTED.asked, **({} if "sum" in changes else {"sum": COLLECTED.total})}
    kept = {name: text for name, text in metadata.items() if text is not None}
    kept.pop("sum", None)
    write_durably(tmp_path / "item-pairs.safetensors", pack_arrays(arrays, kept))
    with pytest.raises(StateError, match="is not a sum of a run"):
        CollectedSums(tmp_path, "spring").load("item-pairs")


def test_sums_of_another_catalogue_are_refused(folder: Path) -> None:
    config = federation(folder, HONEST, rounds=0, sums=SUMS)
    run(config, shops(folder))
    write_catalogue_file(folder, NUM_ITEMS - 1)
    with pytest.raises(StateError, match="item-pairs belongs to another catalogue"):
        run(config, shops(folder))
    assert "another catalogue" in events(config, "run-failed")[0]["reason"]


def test_a_lost_platform_of_the_counts_may_be_missing_from_the_pairs(folder: Path) -> None:
    members = shops(folder)
    members[0].sum_up = lambda request, asked: (
        honest_sum(request, asked) if request.quantity == "item-counts" else Error(0, "gone")
    )
    members[0].adopt = honest_adoption
    grid = run(federation(folder, HONEST, rounds=0, sums=FEW), members)
    assert {r.platform: r.own_included for r, _ in grid.adopted}["east"] is False
