"""What requests say is fixed at a run's first start; whom a round asks follows from names."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from common.errors import ConfigError, RunFailed, StateError
from server.config import FederationSection, SecaggSection, SumsSection, ValidationSection
from server.membership import MEMBERS_FILE, sample_platforms, settle_membership
from server.run import FederationRun
from tests.unit.server.scripted import (
    RUN_ID,
    Answer,
    ScriptedGrid,
    Shop,
    events,
    federation,
    profile,
    write_catalogue_file,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from common.messages import ReleaseRequest
    from server.config import FederationConfig

NAMES = ("east", "north", "south", "west")
POPULATIONS = {"east": 100, "north": 200, "south": 300, "west": 600}
SLACK = ValidationSection(population_slack=50.0)  # scripted releases are all of one size
SUMS = SumsSection(counts_noise_multiplier=19.6, pairs_noise_multiplier=2.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_catalogue_file(tmp_path)
    return tmp_path


def shops(folder: Path, names: Sequence[str] = NAMES) -> list[Shop]:
    catalogue = folder / "catalogue.csv"
    return [Shop(profile=profile(n, catalogue, population=POPULATIONS[n])) for n in names]


def interrupted(*_: object) -> Answer:
    raise KeyboardInterrupt


def asked(grid: ScriptedGrid) -> dict[str, ReleaseRequest]:
    """Request id -> what was asked."""
    requests = [*grid.requests, *(request for request, _ in grid.sums)]
    return {request.request_id: request for request in requests}


@pytest.mark.parametrize(
    "later",
    [("north", "east", "south"), ("east", "north", "south", "west"), ("west", "east")],
    ids=["one-fewer", "one-more", "others"],
)
@pytest.mark.parametrize("what", ["sum_up", "train"])
def test_after_a_resume_platforms_are_asked_word_for_word_the_same(
    folder: Path, what: str, later: tuple[str, ...]
) -> None:
    config = federation(folder, NAMES, rounds=2, sums=SUMS, validation=SLACK)
    first = shops(folder, ["east", "north", "south"])
    setattr(first[2], what, interrupted)
    before = ScriptedGrid(first)
    with pytest.raises(KeyboardInterrupt):
        FederationRun(config, before).run()
    after = ScriptedGrid(shops(folder, later))
    FederationRun(config, after).run()
    repeated = asked(before).keys() & asked(after).keys()
    assert repeated
    for request_id in repeated:
        assert asked(before)[request_id] == asked(after)[request_id]
    assert {request.num_platforms for request in asked(after).values()} == {3}
    assert {request.denominator for request in after.requests} == {200.0}
    assert {request.platform for request in after.requests} == set(later)


def test_members_are_of_one_run_and_read_strictly(tmp_path: Path) -> None:
    members = settle_membership(tmp_path, "a", {"x": 100, "y": 300})
    assert members.founders == ("x", "y")
    assert members.mean_population == 200
    again = settle_membership(tmp_path, "a", {"y": 5, "z": 7})
    assert again.founders == ("x", "y")
    assert again.populations == {"x": 100, "y": 300, "z": 7}
    assert again.mean_population == 200
    with pytest.raises(StateError, match="belongs to run 'a'"):
        settle_membership(tmp_path, "b", {"x": 1})
    for damaged in ("", "[]", '{"run": "a"}', '{"run": "a", "populations": {"x": "many"}}'):
        (tmp_path / MEMBERS_FILE).write_text(damaged)
        with pytest.raises(StateError, match="is damaged"):
            settle_membership(tmp_path, "a", {"x": 1})


def test_a_run_that_could_open_no_secure_sum_settles_nothing(tmp_path: Path) -> None:
    few = {"x": 100, "y": 300}
    with pytest.raises(RunFailed, match=r"2 platforms are there \(x, y\), and .* take 3"):
        settle_membership(tmp_path, "a", few, at_least=3)
    assert not (tmp_path / MEMBERS_FILE).exists()
    members = settle_membership(tmp_path, "a", {**few, "z": 7}, at_least=3)
    assert members.founders == ("x", "y", "z")
    # Who is gone at a later start is one of those who may drop out.
    assert settle_membership(tmp_path, "a", few, at_least=3) == members


@pytest.mark.parametrize(
    ("max_dropped", "max_colluding", "least"), [(0, 1, 2), (1, 1, 4), (2, 1, 6), (1, 3, 6)]
)
def test_a_secure_sum_takes_so_many_platforms_and_no_fewer(
    max_dropped: int, max_colluding: int, least: int
) -> None:
    section = SecaggSection(max_dropped=max_dropped, max_colluding=max_colluding)
    names = tuple(f"p{k}" for k in range(least))
    assert section.least_participants == least
    assert section.terms(names, noise_std=1.0, largest_sum=1e4).participants == names
    with pytest.raises(ConfigError):
        section.terms(names[1:], noise_std=1.0, largest_sum=1e4)


# --- Sampling -----------------------------------------------------------------------------------


def sampled(config: FederationConfig, number: int = 2) -> FederationConfig:
    return replace(config, federation=replace(config.federation, platforms_per_round=number))


def cohorts(config: FederationConfig) -> list[list[str]]:
    return [event["platforms"] for event in events(config, "round-started")]


def test_a_round_asks_some_platforms_by_name_whatever_their_nodes(tmp_path: Path) -> None:
    found = []
    for number, order in enumerate((NAMES, NAMES[::-1])):
        (folder := tmp_path / str(number)).mkdir()
        write_catalogue_file(folder)
        config = sampled(federation(folder, NAMES, rounds=5, validation=SLACK))
        grid = ScriptedGrid(shops(folder, order))
        FederationRun(config, grid).run()
        found.append(cohorts(config))
        assert {request.num_platforms for request in grid.requests} == {2}
        assert {request.denominator for request in grid.requests} == {300.0}
    assert found[0] == found[1]
    assert all(len(cohort) == 2 for cohort in found[0])
    assert len({tuple(cohort) for cohort in found[0]}) > 1


def test_a_resumed_run_asks_the_same_platforms(folder: Path) -> None:
    config = sampled(federation(folder, NAMES, rounds=4, validation=SLACK))
    members = shops(folder)
    for member in members:
        member.train = interrupted
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            FederationRun(config, ScriptedGrid(members)).run()
    FederationRun(config, ScriptedGrid(shops(folder))).run()
    first, second, third, *_ = cohorts(config)
    assert first == second == third


def test_each_platform_is_drawn_equally_often_and_who_is_missing_moves_nobody() -> None:
    names = [f"shop-{k}" for k in range(10)]
    drawn = [sample_platforms(names, 3, seed=5, round_number=r) for r in range(4000)]
    counts = Counter(name for cohort in drawn for name in cohort)
    # Binomial(4000, 0.3): five standard deviations, false alarm about 6e-6 for ten platforms.
    assert all(abs(counts[name] - 1200) < 5 * 29 for name in names)
    for number, cohort in enumerate(drawn[:200]):
        absent = names[number % 10]
        others = sample_platforms([n for n in names if n != absent], 3, seed=5, round_number=number)
        assert set(cohort) - {absent} <= set(others)


def test_more_than_there_are_takes_all() -> None:
    assert sample_platforms(["b", "a"], 5, seed=0, round_number=1) == ["a", "b"]


@pytest.mark.parametrize("number", [1, 5])
def test_a_number_outside_quorum_and_platforms_is_refused(number: int) -> None:
    with pytest.raises(ConfigError, match="platforms_per_round"):
        FederationSection(run_id=RUN_ID, rounds=1, platforms=NAMES, platforms_per_round=number)
