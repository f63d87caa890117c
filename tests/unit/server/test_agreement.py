"""The server's side of an agreement: who is asked, left out and told, and what is kept."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Error
from hypothesis import given
from hypothesis import strategies as st

from common.data.agreement import pack_keys
from common.data.catalogue import digest_of
from common.errors import RunFailed, StateError
from common.messages import Profile
from common.storage import pack_arrays, read_arrays, write_durably
from common.wire import encode
from server.agreement import next_version
from server.config import CatalogueSection, SumsSection
from server.run import FederationRun
from tests.unit.server.scripted import (
    NUM_ITEMS,
    RUN_ID,
    ScriptedGrid,
    Shop,
    events,
    federation,
    listing,
    outcomes,
    reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from common.messages import Agreement, AssortmentRequest
    from common.models.partition import Arrays
    from server.config import FederationConfig
    from tests.unit.server.scripted import Answer

OWN = {"east": ("i1", "i2", "i3"), "north": ("i0", "i2", "i4"), "west": ("i3", "i5")}
"""Together the items that scripted releases are of."""

reports = st.dictionaries(
    st.sampled_from("nsw"), st.sets(st.sampled_from("abcdef"), min_size=1), min_size=1
)


def shop(name: str, *keys: str, **changes: Any) -> Shop:  # noqa: ANN401 - any field
    profile = Profile(
        platform=name,
        population=100,
        catalogue_digest="",
        trust="local",
        unit="user",
        delta=1e-5,
    )
    return Shop(**{"profile": profile, "report": listing(*(keys or OWN[name])), **changes})


def agreeing(folder: Path, **changes: Any) -> FederationConfig:  # noqa: ANN401 - any field
    config = federation(folder, [*OWN, "evil"], **changes)
    return replace(config, catalogue=CatalogueSection(agree=True))


def run(config: FederationConfig, *members: Shop) -> ScriptedGrid:
    grid = ScriptedGrid(members or [shop(name) for name in OWN])
    FederationRun(config, grid).run()
    return grid


def later(config: FederationConfig) -> FederationConfig:
    """Another run of the same federation, as an operator starts it."""
    return replace(config, federation=replace(config.federation, run_id="summer"))


def told(grid: ScriptedGrid) -> dict[str, tuple[Agreement, list[int]]]:
    return {request.platform: (request, arrays["rows"].tolist()) for request, arrays in grid.agreed}


# --- What is agreed on --------------------------------------------------------------------------


@given(st.lists(reports, min_size=1, max_size=4))
def test_from_version_to_version_no_row_moves(history: list[dict[str, set[str]]]) -> None:
    last, rows = None, dict[str, int]()
    for reported in history:
        agreed = next_version(last, {name: tuple(keys) for name, keys in reported.items()})
        catalogue = agreed.catalogue
        for key, row in rows.items():
            assert catalogue.item_ids[row] == key
        for name, keys in reported.items():
            assert set(catalogue.listed_ids(name)) == keys
        assert catalogue.listings.keys() == reported.keys()
        grew = catalogue.num_items > len(rows)
        if last is None:
            assert (agreed.version, agreed.origin) == (1, catalogue.digest)
            assert list(catalogue.item_ids) == sorted(catalogue.item_ids)
        else:
            assert agreed.version == last.version + grew
            assert agreed.origin == last.origin
        rows = {key: row for row, key in enumerate(catalogue.item_ids)}
        last = agreed


def test_every_platform_is_told_the_rows_of_its_own_items_and_no_more(tmp_path: Path) -> None:
    config = agreeing(tmp_path)
    grid = run(config)
    assert {request.platform for request in grid.reported} == set(OWN)
    assert {name: rows for name, (_, rows) in told(grid).items()} == {
        "east": [1, 2, 3],
        "north": [0, 2, 4],
        "west": [3, 5],
    }
    digest = digest_of([f"i{k}" for k in range(NUM_ITEMS)])
    for name, (request, _) in told(grid).items():
        assert request.assortment_digest == digest_of(OWN[name])
        assert request.catalogue_digest == request.origin == digest
        assert (request.version, request.num_items) == (1, NUM_ITEMS)
    assert {request.catalogue_digest for request in grid.requests} == {digest}
    assert all(arrays.keys() == {"rows"} for _, arrays in grid.agreed)


def test_sums_are_of_what_two_platforms_reported(tmp_path: Path) -> None:
    sums = SumsSection(counts_noise_multiplier=1.0, pairs_noise_multiplier=1.0)
    grid = run(agreeing(tmp_path, sums=sums, rounds=0))
    for request, arrays in grid.sums:
        if request.quantity == "item-counts":
            assert arrays["items"].tolist() == [2, 3]


def test_without_common_items_sums_end_the_run(tmp_path: Path) -> None:
    sums = SumsSection(counts_noise_multiplier=1.0, pairs_noise_multiplier=1.0)
    with pytest.raises(RunFailed, match=r"0 items are listed by two.*secrets"):
        run(agreeing(tmp_path, sums=sums), shop("east", "a", "b"), shop("north", "c", "d"))


# --- Hostile platforms --------------------------------------------------------------------------


def reporting(arrays: Arrays, **changes: Any) -> Callable[[AssortmentRequest], Answer]:  # noqa: ANN401
    return lambda _: encode(reply("evil", 0, **{"outcome": "listed", **changes}), arrays)


HOSTILE: dict[str, tuple[Callable[[AssortmentRequest], Answer], str]] = {
    "silent": (lambda _: None, "no answer: the round closed"),
    "raising": (lambda _: Error(2, "no"), "no answer: no"),
    "declining": (
        lambda _: encode(reply("evil", 0, outcome="declined", reason="refused: no")),
        "declined: refused: no",
    ),
    "no-keys": (reporting({}), "left out: item keys"),
    "unsorted": (reporting(pack_keys(["b", "a"])), "left out: item keys: expected increasing"),
    "twice": (reporting(pack_keys(["a", "a"])), "left out: item keys: .*twice"),
    "too-many": (reporting(pack_keys("abcdefghi")), "left out: item keys: found 9, .* 1 to 8"),
    "objects": (
        reporting({"text": np.zeros(1, "f4"), "lengths": np.ones(1, "i8")}),
        "left out: item keys",
    ),
    "another-run": (reporting(pack_keys("a"), run_id="autumn"), "left out: answers for"),
    "another-platform": (reporting(pack_keys("a"), platform="north"), "left out: answers for"),
    "another-outcome": (reporting(pack_keys("a"), outcome="released"), "left out: outcome"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_report_is_left_out_with_its_cause_and_the_run_goes_on(
    tmp_path: Path, case: str
) -> None:
    report, cause = HOSTILE[case]
    config = agreeing(tmp_path)
    config = replace(config, catalogue=replace(config.catalogue, max_items=8))
    grid = run(config, *(shop(name) for name in OWN), shop("evil", "i0", report=report))
    (entry,) = [e for e in events(config, "assortment") if e["platform"] == "evil"]
    assert re.match(cause, entry["outcome"]), entry["outcome"]
    assert entry["items"] == 0
    assert outcomes(config) == dict.fromkeys(OWN, "released")
    assert set(told(grid)) == set(OWN)
    assert all(request.num_items == NUM_ITEMS for request, _ in told(grid).values())


@pytest.mark.parametrize("num_honest", [1, 2])
def test_who_does_not_confirm_is_left_out_and_the_quorum_holds(
    tmp_path: Path, num_honest: int
) -> None:
    def refuse(request: Agreement, _: Arrays) -> Answer:
        return encode(reply(request.platform, 0, outcome="declined", reason="refused: moved"))

    config = agreeing(tmp_path)
    honest = [shop(name) for name in list(OWN)[:num_honest]]
    others = [shop(name, agree=refuse) for name in list(OWN)[num_honest:]]
    if num_honest < 2:
        with pytest.raises(RunFailed, match="1 platforms hold the catalogue, the quorum is 2"):
            run(config, *honest, *others)
    else:
        run(config, *honest, *others)
        assert outcomes(config) == {"east": "released", "north": "released"}
    causes = {e["platform"]: e["outcome"] for e in events(config, "catalogue-told")}
    assert causes["west"] == "declined: refused: moved"


def test_below_the_quorum_nothing_is_written_down(tmp_path: Path) -> None:
    config = agreeing(tmp_path)
    with pytest.raises(RunFailed, match="1 platforms reported their items"):
        run(config, shop("east"), shop("north", report=reporting({})))
    assert not list(tmp_path.rglob("*catalogue.safetensors"))


# --- Runs that follow each other ----------------------------------------------------------------


def interrupted(*_: object) -> Answer:
    raise KeyboardInterrupt


def test_a_resumed_run_keeps_its_catalogue_and_asks_nobody_again(tmp_path: Path) -> None:
    config = agreeing(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(
            config, *(shop(name) for name in OWN if name != "west"), shop("west", train=interrupted)
        )
    # Meanwhile one has another item, and one is there for the first time.
    members = [shop("east", "i1", "new"), *(shop(n) for n in ("north", "west")), shop("evil", "z")]
    grid = run(config, *members)
    assert grid.reported == []
    assert {name: rows for name, (_, rows) in told(grid).items()} == {
        "east": [1, 2, 3],
        "north": [0, 2, 4],
        "west": [3, 5],
    }
    assert outcomes(config) == dict.fromkeys(OWN, "released")


@pytest.mark.parametrize("num_written", [0, 1, 2])
def test_a_crash_while_agreeing_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_written: int
) -> None:
    sums = SumsSection(counts_noise_multiplier=1.0, pairs_noise_multiplier=1.0)
    config = agreeing(tmp_path, rounds=0, sums=sums)
    written: list[Path] = []

    def write(path: Path, content: bytes) -> None:
        if len(written) == num_written:
            raise KeyboardInterrupt
        written.append(path)
        write_durably(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("server.agreement.write_durably", write)
        with pytest.raises(KeyboardInterrupt):
            run(config, *(shop(name, agree=interrupted) for name in OWN))
    (first,) = {(request.origin, request.version) for request, _ in told(run(config)).values()}
    grid = run(later(config), shop("east", "a", "i2"), shop("west", "a", "i2"))
    (second,) = {(request.origin, request.version) for request, _ in told(grid).values()}
    assert (first[1], second) == (1, (first[0], 2))


def test_the_next_run_appends_and_moves_nothing(tmp_path: Path) -> None:
    sums = SumsSection(counts_noise_multiplier=1.0, pairs_noise_multiplier=1.0)
    first = agreeing(tmp_path, rounds=0, sums=sums)
    origin = told(run(first))["east"][0].origin
    second = later(first)
    grid = run(
        second,
        shop("east", "a", "i1", "i3"),  # one new, one delisted
        shop("north", "i0", "i1", "i4", "z"),
        shop("evil", "i5", "z"),  # one that another platform listed before
    )
    rows = {"east": [6, 1, 3], "north": [0, 1, 4, 7], "evil": [5, 7]}
    assert {name: rows for name, (_, rows) in told(grid).items()} == rows
    for request, _ in told(grid).values():
        assert (request.version, request.num_items, request.origin) == (2, 8, origin)
    (agreed,) = events(second, "catalogue-agreed")
    assert (agreed["items"], agreed["new_items"], agreed["version"]) == (8, 2, 2)
    counted = [arrays["items"].tolist() for r, arrays in grid.sums if r.quantity == "item-counts"]
    assert counted == [[1, 7]] * 3  # what two list now; the delisted are in no listing
    # The first run, started again, keeps its own version.
    assert {request.version for request, _ in told(run(first)).values()} == {1}


def test_what_a_run_made_is_worth_nothing_without_its_catalogue(tmp_path: Path) -> None:
    config = agreeing(tmp_path)
    run(config)
    (config.run_folder / "catalogue.safetensors").unlink()
    with pytest.raises(StateError, match=r"catalogue\.safetensors is missing.*checkpoint"):
        run(config)


def test_another_runs_catalogue_is_refused(tmp_path: Path) -> None:
    config = agreeing(tmp_path)
    run(config)
    other = later(config)
    (config.run_folder / "checkpoint.safetensors").unlink()
    config.run_folder.rename(other.run_folder)
    with pytest.raises(StateError, match=f"belongs to run '{RUN_ID}', expected 'summer'"):
        run(other)


@pytest.mark.parametrize("file", ["catalogue.safetensors", "agreed-catalogue.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "other-items", "no-version", "foreign"])
def test_a_damaged_catalogue_ends_the_run_before_anybody_is_told(
    tmp_path: Path, file: str, damage: str
) -> None:
    config = agreeing(tmp_path)
    run(config)
    path = (config.run_folder if file == "catalogue.safetensors" else config.state.folder) / file
    arrays, facts = read_arrays(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "other-items":
        path.write_bytes(pack_arrays({**arrays, **pack_keys("abcdef")}, facts))
    elif damage == "no-version":
        path.write_bytes(pack_arrays(arrays, {k: v for k, v in facts.items() if k != "version"}))
    else:
        path.write_bytes(pack_arrays({"sum": np.ones(3)}, facts))
    if file != "catalogue.safetensors":
        config = later(config)
    grid = ScriptedGrid(shop(name) for name in OWN)
    with pytest.raises(StateError, match=path.name):
        FederationRun(config, grid).run()
    assert grid.agreed == []


def test_a_platform_that_waits_for_an_agreement_does_not_fit_a_run_with_a_file(
    tmp_path: Path,
) -> None:
    (tmp_path / "catalogue.csv").write_text("item_id\ni1\n")
    config = federation(tmp_path, OWN)
    with pytest.raises(RunFailed, match="0 of 3 platforms joined"):
        run(config)
    causes = {event["reason"] for event in events(config, "platform-refused")}
    assert any("'east' holds another version of the catalogue" in cause for cause in causes)
