"""What is laid out on disk: all that server and platforms need, and no test pair."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

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
from simulations.federation import lay_out, plan_noise_multiplier, public_population
from tests.shops import NUM_ITEMS, SIZES, options, purchases, run_all, write_shops

if TYPE_CHECKING:
    from pathlib import Path

    from scipy.sparse import csr_matrix

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
        # The only tables of a run are the platforms' training files ...
        train = pairs(pd.read_parquet(tmp_path / "run/platforms" / name / "train.parquet"))
        assert train == everything - held_out[name]
    tables = {path for path in files(tmp_path / "run") if path.endswith((".parquet", ".csv"))}
    expected = {f"platforms/{name}/train.parquet" for name in SIZES}
    assert tables == {"catalogue.csv", *expected}
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


def test_other_test_pairs_change_no_byte_that_server_or_platforms_read_or_wrote(
    tmp_path: Path,
) -> None:
    data, one, other = (tmp_path / name for name in ("data", "one", "other"))
    for name, num_users in SIZES.items():
        (data / name).mkdir(parents=True)
        purchases(name, num_users).to_csv(data / name / "train.csv", index=False)
    write_held_out(data, shift=0)
    first = run_all(options(data), one)
    write_held_out(data, shift=4)
    second = run_all(options(data), other)
    assert first["platforms"] != second["platforms"]
    assert files(one) == files(other)
    arrays = {path for path in files(one) if path.endswith((".safetensors", ".parquet", ".csv"))}
    assert {path.split("/")[-1] for path in arrays} >= {
        *("catalogue.csv", "train.parquet", "checkpoint.safetensors"),
        *("shared.safetensors", "alone.safetensors", "joined.safetensors"),
    }
    for path in arrays:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path


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
    asked_of_the_accountant: list[dict[str, float]] = []

    def calibrate(**numbers: float) -> float:
        asked_of_the_accountant.append(numbers)
        return 2.5

    monkeypatch.setattr("simulations.federation.calibrate_noise_multiplier", calibrate)
    asked = options(
        shops, epsilon=5.0, delta=1e-4, rounds=3, sampling_rate=0.5, local_steps=2,
        clipping_norm=0.3, strategy="fedavg", server_learning_rate=0.7, seed=9, epochs=4,
    )  # fmt: skip
    federation = laid_out(shops, tmp_path / "run", asked)
    config = load_config(federation.config_file, server.config.FederationConfig)
    mechanism = config.mechanism
    assert asked_of_the_accountant == [
        {"epsilon": 5.0, "delta": 1e-4, "sampling_rate": 0.5, "steps": 6}
    ]
    assert mechanism.noise_multiplier == 2.5
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
        assert own.simulation == client.config.SimulationSection(seed=9)
        assert own.adaptation.max_epochs == 4
        assert own.data.source == tmp_path / "run/platforms" / platform.name / "train.parquet"
    # A slow machine must not close a round early, and with it change a result.
    assert config.federation.round_timeout_seconds == math.inf


@pytest.mark.parametrize(
    ("rounds", "local_steps", "sampling_rate"),
    [(1, 1, 1.0), (30, 1, 1.0), (5, 4, 1.0), (5, 2, 0.2)],
)
def test_planned_noise_spends_the_budget_and_hardly_less(
    rounds: int, local_steps: int, sampling_rate: float
) -> None:
    asked = options(
        None, rounds=rounds, local_steps=local_steps, sampling_rate=sampling_rate, epsilon=4.0
    )
    noise = plan_noise_multiplier(asked)
    round_ = SampledGaussian(noise_multiplier=noise, sampling_rate=sampling_rate, steps=local_steps)
    spent = epsilon_spent([round_] * rounds, asked.delta)
    assert 0.98 * 4.0 < spent <= 4.0


def test_without_privacy_there_is_no_noise(shops: Path) -> None:
    assert plan_noise_multiplier(options(shops, trust="none")) == 0.0


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


def test_each_round_is_in_each_ledger_and_costs_what_was_planned(
    shops: Path, tmp_path: Path
) -> None:
    document = run_all(options(shops, rounds=3, epsilon=6.0), tmp_path / "run")
    for name in SIZES:
        ledger = Ledger(tmp_path / "run/platforms" / name / "state/ledger.sqlite")
        spends = ledger.account().spends
        ledger.close()
        assert len(spends) == 3
        spent = epsilon_spent([spend.mechanism for spend in spends], 1e-5)
        assert document["platforms"][name]["epsilon"] == spent
        assert document["privacy"]["planned_epsilon"] == spent
        assert 0.98 * 6.0 < spent <= 6.0
