"""What a hostile minority sends cannot move a robust mean; with too few releases there is none."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from common.errors import ConfigError, RunFailed
from server.config import MechanismSection
from server.robust import RobustMean, releases_needed
from server.run import FederationRun
from tests.unit.server.scripted import (
    AVERAGING,
    ScriptedGrid,
    Shop,
    federation,
    profile,
    release,
    write_catalogue_file,
)

if TYPE_CHECKING:
    from pathlib import Path

    from common.models.partition import Arrays

Name = Literal["median", "trimmed-mean", "krum"]
NAMES: tuple[Name, ...] = ("median", "trimmed-mean", "krum")
SHOPS = ("east", "north", "south", "west", "evil")


def releases(evil: float = 1e6) -> list[Arrays]:
    rng = np.random.default_rng(3)
    honest: list[Arrays] = [
        {"a": rng.standard_normal((2, 3)).astype(np.float32), "b": np.ones(2, np.float32)}
        for _ in range(4)
    ]
    return [*honest, {name: np.full_like(array, evil) for name, array in honest[0].items()}]


def combined(name: Name, found: list[Arrays]) -> Arrays:
    mean = RobustMean(name, 1)
    for one in found:
        mean.add(one)
    return mean.mean()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("evil", [1e6, -1e6])
def test_one_of_five_moves_nothing_beyond_what_the_honest_span(name: Name, evil: float) -> None:
    found = combined(name, releases(evil))
    for key, array in found.items():
        honest = np.stack([r[key] for r in releases()[:4]])
        assert array.dtype == np.float32
        assert (array >= honest.min(axis=0)).all()
        assert (array <= honest.max(axis=0)).all()


@pytest.mark.parametrize("name", NAMES)
def test_order_of_arrival_changes_no_bit(name: Name) -> None:
    first = combined(name, releases())
    for order in itertools.permutations(releases()):
        for key, array in combined(name, list(order)).items():
            np.testing.assert_array_equal(array, first[key])


def test_what_each_of_them_is() -> None:
    numbers = [1.0, 2.0, 3.0, 4.0, 100.0]
    found = [{"a": np.full(1, number, np.float32)} for number in numbers]
    assert combined("median", found)["a"] == 3.0
    assert combined("trimmed-mean", found)["a"] == 3.0
    assert combined("krum", found)["a"] in (2.0, 3.0)
    shifted = [{"a": np.full(1, number, np.float32)} for number in (0.0, 2.0, 4.0, 9.0, 100.0)]
    assert combined("trimmed-mean", shifted)["a"] == 5.0


@pytest.mark.parametrize(("name", "needed"), [("median", 3), ("trimmed-mean", 3), ("krum", 5)])
def test_with_fewer_releases_there_is_no_answer(name: Name, needed: int, tmp_path: Path) -> None:
    assert releases_needed(name, 1) == needed
    combined(name, releases()[:needed])
    with pytest.raises(ValueError, match="releases with 1 hostile"):
        combined(name, releases()[: needed - 1])
    write_catalogue_file(tmp_path)
    few = SHOPS[: needed - 1]
    training = replace(AVERAGING, aggregation=name)
    config = federation(tmp_path, few, training=training)
    shops = [Shop(profile=profile(n, tmp_path / "catalogue.csv")) for n in few]
    with pytest.raises(RunFailed, match=f"{needed} are needed"):
        FederationRun(config, ScriptedGrid(shops)).run()


def test_a_run_takes_the_median_of_its_releases(tmp_path: Path) -> None:
    write_catalogue_file(tmp_path)
    config = federation(tmp_path, SHOPS, training=replace(AVERAGING, aggregation="median"))
    grid = ScriptedGrid([Shop(profile=profile(n, tmp_path / "catalogue.csv")) for n in SHOPS])
    state = FederationRun(config, grid).run()
    for key, array in state.parameters.items():
        median = np.median([release(name, 1)[key] for name in SHOPS], axis=0)
        np.testing.assert_allclose(array - grid.shared[0][key], median, rtol=1e-4, atol=1e-7)


def test_secure_aggregation_and_robust_aggregation_exclude_each_other(tmp_path: Path) -> None:
    config = federation(tmp_path, SHOPS, training=replace(AVERAGING, aggregation="krum"))
    mechanism = MechanismSection(noise_multiplier=1.0, trust="secagg-simulated")
    with pytest.raises(ConfigError, match="secure aggregation shows only their sum"):
        replace(config, mechanism=mechanism)
