from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import client.config
from client.adaptation import Adapted
from client.data import load_platform_data
from client.parts import Blend, Factors, ItemScores
from client.state import PlatformState
from common.config import load_config
from common.data.readers import read_marketplace
from simulations.federation import lay_out
from simulations.measure import REPORTED_PARTS, measure_platform
from tests.shops import options, purchases

if TYPE_CHECKING:
    from pathlib import Path

    from client.config import PlatformConfig
    from client.model_files import ServedName
    from client.parts import Part
    from simulations.federation import SimulatedPlatform


@pytest.fixture
def measured(tmp_path: Path) -> tuple[SimulatedPlatform, PlatformConfig]:
    """Platform ``north`` with a held-out file that also names a user without any purchase."""
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        table = purchases(name, 12)
        table.to_csv(tmp_path / name / "train.csv", index=False)
        bought = table[table["user_id"] == f"{name}-u00"]["item_id"].tolist()
        sold = table["item_id"].value_counts()
        other = next(item for item in sold.index if item not in bought)
        held_out = pd.DataFrame(
            {"user_id": [f"{name}-u00", f"{name}-new"], "item_id": [other, other]}
        )
        held_out.to_csv(tmp_path / name / "test.csv", index=False)
    federation = lay_out(read_marketplace(tmp_path), options(tmp_path), tmp_path / "run")
    platform = federation.platforms[0]
    return platform, load_config(platform.config_file, client.config.PlatformConfig)


def measure(measured: tuple[SimulatedPlatform, PlatformConfig]) -> Any:  # noqa: ANN401
    platform, config = measured
    return measure_platform(platform, config, candidates=None, seed=0)


def first(config: PlatformConfig, rank_first: int | None, bias: float = 9.0) -> ItemScores:
    """Ranks one item first for everyone (last with a negative bias), or all alike."""
    values = np.zeros(load_platform_data(config).users.num_items, np.float32)
    if rank_first is not None:
        values[rank_first] = bias
    return ItemScores(values=values)


def save(
    config: PlatformConfig,
    alone: ItemScores,
    joined: ItemScores | None = None,
    serve: ServedName = "alone",
) -> None:
    """Models as a hand-over leaves them; without ``joined``, as one that was cut short does."""
    data = load_platform_data(config)
    nobody = Factors(
        users=np.zeros((data.users.num_users, 1), np.float32),
        items=np.zeros((data.users.num_items, 1), np.float32),
    )
    parts: dict[str, Part] = {**dict.fromkeys(REPORTED_PARTS, nobody), "own": alone}
    shared = parts.pop("shared")
    blend = Blend(parts=parts, weights={"own": 1.0})
    state = PlatformState(config.state.folder, keep_releases=3)
    state.models.save_alone(Adapted(blend=blend, scores=()), "digest", data.users_digest)
    if joined is not None:
        both = Blend(parts={**parts, "shared": shared, "pairs": joined}, weights={"pairs": 1.0})
        state.models.save_joined(both, serve)
    state.close()


def test_models_that_a_run_has_not_reached_are_absent(
    measured: tuple[SimulatedPlatform, PlatformConfig],
) -> None:
    assert set(measure(measured).models) == {"popularity"}
    assert measure(measured).gain == {}
    save(measured[1], first(measured[1], None))
    own = {"item_knn", "ease", "als", "ncf"}
    assert set(measure(measured).models) == {"popularity", "local"} | own
    assert measure(measured).gain == {}


def test_a_model_for_other_users_is_not_measured(
    measured: tuple[SimulatedPlatform, PlatformConfig],
) -> None:
    platform, config = measured
    save(config, first(config, None))
    table = pd.read_parquet(config.data.source)
    table[table["user_id"] != "north-u01"].to_parquet(config.data.source)
    assert set(measure((platform, config)).models) == {"popularity"}


@pytest.mark.parametrize("bias", [9.0, -9.0])
def test_the_held_out_item_is_where_the_model_puts_it_and_a_new_user_gets_popularity(
    measured: tuple[SimulatedPlatform, PlatformConfig], bias: float
) -> None:
    platform, config = measured
    row = platform.train.user_ids.index("north-u00")
    (target,) = platform.test[row].indices
    save(config, first(config, int(target), bias))
    found = measure(measured).models["local"]
    # The item is the bestseller, so by popularity the new user is a hit; the model is not asked.
    assert found.num_test_users == 2
    assert found.metrics["hr@10"] == ((bias > 0) + 1) / 2
    if bias > 0:
        assert found.metrics["ndcg@10"] == pytest.approx((1 + _popularity_ndcg(platform)) / 2)


def _popularity_ndcg(platform: SimulatedPlatform) -> float:
    counts = np.asarray(platform.train.matrix.sum(axis=0)).ravel()
    (target,) = platform.test[platform.train.user_ids.index("north-new")].indices
    assert (counts == counts[target]).sum() == 1
    return float(1 / np.log2((counts > counts[target]).sum() + 2))


@pytest.mark.parametrize("candidates", [None, 5])
def test_all_models_face_the_same_candidates_and_ties(
    measured: tuple[SimulatedPlatform, PlatformConfig], candidates: int | None
) -> None:
    platform, config = measured
    save(config, first(config, None), first(config, None))
    found = measure_platform(platform, config, candidates=candidates, seed=3).models
    assert all(found[name] == found["local"] for name in (*REPORTED_PARTS, "federated"))


@pytest.mark.parametrize("served", ["alone", "joined"])
def test_federated_is_what_the_platform_serves_and_its_gain_is_over_going_alone(
    measured: tuple[SimulatedPlatform, PlatformConfig], served: ServedName
) -> None:
    platform, config = measured
    row = platform.train.user_ids.index("north-u00")
    (target,) = platform.test[row].indices
    save(config, first(config, None))
    assert measure(measured).gate is None
    assert "federated" not in measure(measured).models
    save(config, first(config, None), first(config, int(target)), served)
    found = measure(measured)
    assert found.gate == served
    assert set(found.models) == {"popularity", "local", "federated", *REPORTED_PARTS}
    assert (found.models["federated"] == found.models["local"]) == (served == "alone")
    gain = found.models["federated"].metrics["ndcg@10"] - found.models["local"].metrics["ndcg@10"]
    assert found.gain["ndcg@10"].mean == pytest.approx(gain)
    assert (gain > 0) == (served == "joined")


def test_a_served_model_of_other_users_is_not_measured(
    measured: tuple[SimulatedPlatform, PlatformConfig],
) -> None:
    platform, config = measured
    save(config, first(config, None), first(config, None), "joined")
    table = pd.read_parquet(config.data.source)
    table[table["user_id"] != "north-u01"].to_parquet(config.data.source)
    found = measure((platform, config))
    assert set(found.models) == {"popularity"}
    assert found.gain == {}
