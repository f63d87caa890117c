"""What is laid out on disk: all that server and platforms need, and no test pair."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import client.config
import server.config
from common.config import load_config
from common.data.readers import read_marketplace
from common.errors import ConfigError
from common.privacy.accounting import epsilon_spent
from common.privacy.ledger import Ledger
from common.privacy.mechanisms import SampledGaussian
from common.privacy.plan import PLANS, BudgetPlan
from simulations.federation import lay_out, plan_budget, public_population
from simulations.simulate import SimulationRun
from tests.shops import NUM_ITEMS, SIZES, options, purchases, run_all, write_shops

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scipy.sparse import csr_matrix

    from common.privacy.plan import PlanName
    from simulations.federation import SimulatedFederation
    from simulations.options import SimulationOptions


@pytest.fixture
def shops(tmp_path: Path) -> Path:
    return write_shops(tmp_path / "shops")


def laid_out(
    shops: Path, folder: Path, asked: SimulationOptions | None = None
) -> SimulatedFederation:
    return lay_out(read_marketplace(shops), asked or options(shops), folder)


def pairs(frame: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(frame["user_id"], frame["item_id"], strict=True))


def held_out_pairs(federation: SimulatedFederation, shops: Path) -> dict[str, set[tuple[str, str]]]:
    catalogue = read_marketplace(shops).catalogue
    found = {}
    for platform in federation.platforms:
        test: csr_matrix = platform.test
        rows, columns = test.nonzero()
        ids = np.asarray(catalogue.item_ids)[platform.train.listing]
        found[platform.name] = {
            (platform.train.user_ids[row], str(ids[column]))
            for row, column in zip(rows, columns, strict=True)
        }
    return found


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_exactly_the_documented_files_are_written(shops: Path, tmp_path: Path) -> None:
    laid_out(shops, tmp_path / "run")
    assert files(tmp_path / "run") == {
        "catalogue.csv",
        "federation.toml",
        *(f"platforms/{name}/{file}" for name in SIZES for file in ("platform.toml",)),
        *(f"platforms/{name}/train.parquet" for name in SIZES),
    }


def test_no_held_out_pair_is_on_any_platforms_disk_after_a_whole_run(
    shops: Path, tmp_path: Path
) -> None:
    run_all(options(shops), tmp_path / "run")
    held_out = held_out_pairs(laid_out(shops, tmp_path / "again"), shops)
    for name, num_users in SIZES.items():
        assert len(held_out[name]) == num_users
        everything = pairs(purchases(name, num_users))
        # The only tables with users of a run are the platforms' training files ...
        train = pairs(pd.read_parquet(tmp_path / "run/platforms" / name / "train.parquet"))
        assert train == everything - held_out[name]
    tables = {path for path in files(tmp_path / "run") if path.endswith((".parquet", ".csv"))}
    expected = {f"platforms/{name}/train.parquet" for name in SIZES}
    assert tables == {"catalogue.csv", "per_user.parquet", *expected}
    # ... and but for the index of their private vectors, no other file names a user at all.
    for path in files(tmp_path / "run") - expected:
        if path.split("/")[2:4] == ["state", "private"]:
            continue
        content = (tmp_path / "run" / path).read_bytes()
        assert b"north-u" not in content, path
        assert b"south-u" not in content, path


def write_held_out(folder: Path, shift: int) -> None:
    """A held-out file for each platform; another ``shift`` gives other items."""
    for name, num_users in SIZES.items():
        bought = pairs(purchases(name, num_users))
        lines = ["user_id,item_id"]
        for row in range(num_users):
            user = f"{name}-u{row:02d}"
            free = [k for k in range(NUM_ITEMS) if (user, f"i{k:02d}") not in bought]
            lines.append(f"{user},i{free[shift + row % 3]:02d}")
        (folder / name / "test_qrel.csv").write_text("\n".join(lines) + "\n")


def simulated(data: Path, folder: Path) -> set[str]:
    """Sums and rounds; the names of what platforms and server must have written."""
    run_all(options(data), folder)
    sums = {"item-counts.safetensors", "item-pairs.safetensors"}
    return {"checkpoint.safetensors", "per_user.parquet", *sums}


def compared(data: Path, folder: Path) -> set[str]:
    """Both cells of a group: a newcomer without noise, then a warm start with it."""
    cell = options(data, newcomer="north:0.5", adapting=("north",))
    cold = SimulationRun.open(replace(cell, trust="none"), folder / "none")
    cold.execute(in_comparison=True, pooled=True)
    warm = SimulationRun.open(cell, folder / "local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("client.platform.fit_alone", lambda *_, **__: pytest.fail("not warm"))
        warm.execute(warm_from=cold.folder, in_comparison=True)
    return {"checkpoint.safetensors", "item-pairs.safetensors", "per_user.parquet"}


@pytest.mark.parametrize("run", [simulated, compared])
def test_other_test_pairs_change_no_byte_that_server_or_platforms_read_or_wrote(
    tmp_path: Path, run: Callable[[Path, Path], set[str]]
) -> None:
    data, one, other = (tmp_path / name for name in ("data", "one", "other"))
    for name, num_users in SIZES.items():
        (data / name).mkdir(parents=True)
        purchases(name, num_users).to_csv(data / name / "train.csv", index=False)
    write_held_out(data, shift=0)
    run(data, one)
    write_held_out(data, shift=4)
    expected = run(data, other)
    assert files(one) == files(other)
    kinds = (".safetensors", ".parquet", ".csv", ".txt")
    written = {path for path in files(one) if path.endswith(kinds)}
    assert {path.split("/")[-1] for path in written} >= {
        *expected,
        *("catalogue.csv", "train.parquet"),
        *("local.safetensors", "federated.safetensors", "served.txt"),
    }
    # What is measured is written where no platform looks, and it does differ.
    measured = {path for path in files(one) if path.endswith(("result.json", "per_user.parquet"))}
    for path in written | measured:
        is_same = (one / path).read_bytes() == (other / path).read_bytes()
        assert is_same == (path not in measured), path


def test_laying_out_again_writes_the_same_files(shops: Path, tmp_path: Path) -> None:
    laid_out(shops, tmp_path / "run")
    first = {path: (tmp_path / "run" / path).read_bytes() for path in files(tmp_path / "run")}
    laid_out(shops, tmp_path / "run")
    assert first == {
        path: (tmp_path / "run" / path).read_bytes() for path in files(tmp_path / "run")
    }


def test_configurations_ask_for_what_the_options_say(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of_the_accountant: list[tuple[tuple[float, ...], dict[str, Any]]] = []
    step = SampledGaussian(noise_multiplier=2.5, sampling_rate=0.5, steps=6)

    def plan_noise(*numbers: float, **more: Any) -> BudgetPlan:  # noqa: ANN401
        asked_of_the_accountant.append((numbers, more))
        return BudgetPlan(counts=None, pairs=None, rounds=step)

    monkeypatch.setattr("simulations.federation.plan_noise", plan_noise)
    asked = options(
        shops, plan="ncf", epsilon=5.0, delta=1e-4, rounds=3, sampling_rate=0.5, local_steps=2,
        clipping_norm=0.3, strategy="fedavg", server_learning_rate=0.7, seed=9, epochs=4,
    )  # fmt: skip
    federation = laid_out(shops, tmp_path / "run", asked)
    config = load_config(federation.config_file, server.config.FederationConfig)
    mechanism = config.mechanism
    assert asked_of_the_accountant == [
        ((5.0, 1e-4), {"shares": PLANS["ncf"], "sampling_rate": 0.5, "steps": 6})
    ]
    assert mechanism.noise_multiplier == 2.5
    assert config.sums is None
    assert config.federation.platforms == ("north", "south")
    assert (config.federation.rounds, config.federation.seed) == (3, 9)
    assert (mechanism.sampling_rate, mechanism.local_steps, mechanism.clipping_norm) == (
        0.5,
        2,
        0.3,
    )
    assert (config.training.strategy, config.training.server_learning_rate) == ("fedavg", 0.7)
    assert config.model == asked.model
    for platform in federation.platforms:
        own = load_config(platform.config_file, client.config.PlatformConfig)
        assert own.privacy.budget().epsilon == 5.0
        assert own.privacy.delta == 1e-4
        assert (own.privacy.min_noise_multiplier, own.privacy.max_rounds) == (2.5, 3)
        assert own.simulation == client.config.SimulationSection(seed=9)
        assert own.adaptation.max_epochs == 4
        assert own.data.source == tmp_path / "run/platforms" / platform.name / "train.parquet"
    # A slow machine must not close a round early, and with it change a result.
    assert config.federation.round_timeout_seconds == math.inf


@pytest.mark.parametrize(("plan", "num_rounds"), [("pairs", 0), ("both", 3)])
def test_a_plan_with_sums_asks_for_them_with_the_noise_that_it_has_for_them(
    shops: Path, tmp_path: Path, plan: PlanName, num_rounds: int
) -> None:
    asked = options(shops, plan=plan, rounds=3)
    federation = laid_out(shops, tmp_path / "run", asked)
    config = load_config(federation.config_file, server.config.FederationConfig)
    budget = plan_budget(asked)
    assert budget.counts is not None
    assert budget.pairs is not None
    assert config.sums is not None
    assert config.sums.counts_noise_multiplier == budget.counts.noise_multiplier
    assert config.sums.pairs_noise_multiplier == budget.pairs.noise_multiplier
    assert config.federation.rounds == num_rounds
    rounds = None if budget.rounds is None else budget.rounds.noise_multiplier
    assert config.mechanism.noise_multiplier == rounds
    for platform in federation.platforms:
        own = load_config(platform.config_file, client.config.PlatformConfig)
        least = min(mechanism.noise_multiplier for mechanism in budget.mechanisms)
        assert own.privacy.min_noise_multiplier == least


@pytest.mark.parametrize(
    ("rounds", "local_steps", "sampling_rate"),
    [(1, 1, 1.0), (30, 1, 1.0), (5, 4, 1.0), (5, 2, 0.2)],
)
def test_planned_noise_spends_the_budget_and_hardly_less(
    rounds: int, local_steps: int, sampling_rate: float
) -> None:
    asked = options(
        None,
        plan="ncf",
        rounds=rounds,
        local_steps=local_steps,
        sampling_rate=sampling_rate,
        epsilon=4.0,
    )
    budget = plan_budget(asked)
    assert budget.rounds is not None
    noise = budget.rounds.noise_multiplier
    round_ = SampledGaussian(noise_multiplier=noise, sampling_rate=sampling_rate, steps=local_steps)
    spent = epsilon_spent([round_] * rounds, asked.delta)
    assert 0.98 * 4.0 < spent <= 4.0


def test_without_privacy_there_is_no_noise(shops: Path) -> None:
    for plan in PLANS:
        noise = plan_budget(options(shops, trust="none", plan=plan)).mechanisms
        assert [mechanism.noise_multiplier for mechanism in noise] == [0.0] * len(noise)


@pytest.mark.parametrize(
    ("num_users", "declared"),
    [(1, 1), (9, 9), (99, 99), (104, 100), (1234, 1200), (95_501, 96_000)],
)
def test_a_declared_size_has_two_digits(num_users: int, declared: int) -> None:
    assert public_population(num_users) == declared


@pytest.mark.parametrize("name", ["..", ".", " ", "a\nb", "a/b", "a\\b"])
def test_a_name_that_cannot_be_a_folder_is_refused_before_anything_of_it_is_written(
    shops: Path, tmp_path: Path, name: str
) -> None:
    marketplace = read_marketplace(shops)
    north, south = marketplace.platforms
    catalogue = marketplace.catalogue
    listings = {name: catalogue.listings["north"], "south": catalogue.listings["south"]}
    renamed = replace(
        marketplace,
        platforms=(replace(north, name=name), south),
        catalogue=replace(catalogue, listings=listings),
    )
    with pytest.raises(ConfigError, match="cannot be the name of a folder"):
        lay_out(renamed, options(shops), tmp_path / "run")
    assert not (tmp_path / "train.parquet").exists()
    assert not (tmp_path / "run" / "train.parquet").exists()


@pytest.mark.parametrize(("plan", "num_sums", "num_rounds"), [("pairs", 2, 0), ("both", 2, 3)])
def test_each_release_is_in_each_ledger_and_costs_what_was_planned(
    shops: Path, tmp_path: Path, plan: PlanName, num_sums: int, num_rounds: int
) -> None:
    asked = options(shops, plan=plan, rounds=3, epsilon=6.0)
    document = run_all(asked, tmp_path / "run")
    budget = plan_budget(asked)
    for name in SIZES:
        ledger = Ledger(tmp_path / "run/platforms" / name / "state/ledger.sqlite")
        spends = ledger.account().spends
        ledger.close()
        said = [spend.description.rpartition(", ")[2] for spend in spends]
        assert said[:num_sums] == ["item-counts", "item-pairs"]
        assert said[num_sums:] == [f"round {number}" for number in range(1, num_rounds + 1)]
        sums = [spend.mechanism for spend in spends[:num_sums]]
        assert sums == [budget.counts, budget.pairs]
        spent = epsilon_spent([spend.mechanism for spend in spends], 1e-5)
        assert document["platforms"][name]["epsilon"] == spent
        assert document["privacy"]["planned_epsilon"] == pytest.approx(spent, rel=1e-9)
        assert 0.98 * 6.0 < spent <= 6.0
