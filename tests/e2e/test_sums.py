"""Sums from two platforms' data to what each of them is handed, through Flower, by both apps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from client.config import (
    AdaptationSection,
    DataSection,
    PlatformConfig,
    PlatformSection,
    PrivacySection,
    SimulationSection,
)
from client.config import CatalogueSection as ClientCatalogue
from client.config import StateSection as ClientState
from client.data import load_platform_data
from client.platform import Platform
from client.state import PlatformState
from client.sums import on_items, pair_sum
from common.config import dump_config
from common.models.ncf import NcfConfig
from common.privacy.ledger import LEDGER_FILE, Ledger
from common.storage import read_arrays, write_durably
from server.config import (
    CatalogueSection,
    FederationConfig,
    FederationSection,
    MechanismSection,
    StateSection,
    SumsSection,
)
from server.journal import read_journal
from simulations.engines.in_process import run_in_process
from tests.shops import NUM_ITEMS, SIZES, purchases

if TYPE_CHECKING:
    from pathlib import Path

    from common.models.pairs import PairSum
    from common.privacy.mechanisms import TrustMode

NOISE = 12.0
ITEMS = [f"i{item:02d}" for item in range(NUM_ITEMS)]
CONFIGS: dict[str, PlatformConfig] = {}
"""Of the platforms of the test that runs."""


def settle(folder: Path, *, rounds: int, trust: TrustMode = "local") -> FederationConfig:
    """Two platforms and a federation of them on disk; the catalogue lists everything twice."""
    catalogue = folder / "catalogue.csv"
    noise = 0.0 if trust == "none" else NOISE
    write_durably(catalogue, "\n".join(["item_id", *ITEMS]).encode())
    for name, size in SIZES.items():
        home = folder / name
        home.mkdir()
        purchases(name, size).to_csv(home / "purchases.csv", index=False)
        config = PlatformConfig(
            platform=PlatformSection(name=name, population=size),
            data=DataSection(source=home / "purchases.csv"),
            catalogue=ClientCatalogue(file=catalogue),
            privacy=PrivacySection(
                epsilon=math.inf if trust == "none" else 8.0,
                trust=trust,
                min_noise_multiplier=noise,
            ),
            state=ClientState(folder=home / "state", keep_releases=1),
            adaptation=AdaptationSection(max_epochs=2),
            simulation=SimulationSection(seed=5),
        )
        write_durably(home / "platform.toml", dump_config(config).encode())
        CONFIGS[name] = config
    federation = FederationConfig(
        federation=FederationSection(
            run_id="spring", rounds=rounds, platforms=tuple(SIZES), join_timeout_seconds=5.0
        ),
        catalogue=CatalogueSection(file=catalogue),
        mechanism=MechanismSection(noise_multiplier=noise, trust=trust),
        model=NcfConfig(dim=4),
        state=StateSection(folder=folder / "federation-state"),
        sums=SumsSection(counts_noise_multiplier=noise, pairs_noise_multiplier=noise, max_items=15),
    )
    write_durably(folder / "federation.toml", dump_config(federation).encode())
    return federation


def run(folder: Path) -> None:
    run_in_process(folder / "federation.toml", [folder / name / "platform.toml" for name in SIZES])


@pytest.fixture
def adapted(monkeypatch: pytest.MonkeyPatch) -> dict[str, PairSum]:
    """What each platform was handed to adapt to."""
    seen: dict[str, PairSum] = {}
    real = Platform._adapt

    def watch(self: Platform, *arguments: Any) -> None:  # noqa: ANN401
        seen[self.name] = arguments[2]
        real(self, *arguments)

    monkeypatch.setattr(Platform, "_adapt", watch)
    return seen


def exact_pairs(name: str, pairs: PairSum) -> np.ndarray:
    users = load_platform_data(CONFIGS[name]).users
    return pair_sum(on_items(users.matrix, users.listing, pairs.items), pairs.weights)


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("trust", ["local", "secagg-simulated", "none"])
def test_each_platform_ends_with_what_the_other_ones_users_do(
    tmp_path: Path, adapted: dict[str, PairSum], rounds: int, trust: TrustMode
) -> None:
    federation = settle(tmp_path, rounds=rounds, trust=trust)
    run(tmp_path)
    assert adapted.keys() == SIZES.keys()
    own_std = 0.0 if trust == "none" else NOISE  # with two platforms, each adds all of it
    for name, other in (("north", "south"), ("south", "north")):
        pairs = adapted[name]
        assert pairs.noise_std == pytest.approx(own_std)
        noise = pairs.total - exact_pairs(other, pairs)
        if trust == "none":
            np.testing.assert_allclose(noise, 0.0, atol=1e-4)
        else:
            assert 0.8 * own_std < noise.std() < 1.2 * own_std
        state = PlatformState(CONFIGS[name].state.folder, keep_releases=1)
        models = state.models.load(load_platform_data(CONFIGS[name]).users_digest)
        assert state.models.served() is not None
        state.close()
        assert models is not None
        added = {"pairs", "ncf_items", "shared"} if rounds else {"pairs"}
        assert models.parts.keys() - models.alone.parts.keys() <= added
        assert ("shared" in models.parts) == (rounds > 0)
        ledger = Ledger(CONFIGS[name].state.folder / LEDGER_FILE, read_only=True)
        charged = [spend.request_id for spend in ledger.account().spends]
        ledger.close()
        assert charged == [
            f"spring/item-counts/{name}",
            f"spring/item-pairs/{name}",
            *[f"spring/{number}/{name}" for number in range(1, rounds + 1)],
        ]
    kinds = [event["event"] for _, event in read_journal(federation.run_folder)]
    assert kinds.count("sum-closed") == 2
    assert kinds[-1] == "run-finished"


def test_a_server_that_lost_its_sums_is_sent_the_same_bytes_and_charged_nothing(
    tmp_path: Path, adapted: dict[str, PairSum]
) -> None:
    del adapted
    federation = settle(tmp_path, rounds=0)
    run(tmp_path)
    files = sorted(federation.run_folder.glob("item-*.safetensors"))
    before = [path.read_bytes() for path in files]
    assert len(files) == 2
    for path in files:
        path.unlink()
    run(tmp_path)
    assert [path.read_bytes() for path in files] == before
    for config in CONFIGS.values():
        ledger = Ledger(config.state.folder / LEDGER_FILE, read_only=True)
        assert len(ledger.account().spends) == 2
        ledger.close()


def test_only_so_many_items_are_paired_and_they_are_the_most_counted(
    tmp_path: Path, adapted: dict[str, PairSum]
) -> None:
    federation = settle(tmp_path, rounds=0)
    run(tmp_path)
    counts, _ = read_arrays(federation.run_folder / "item-counts.safetensors")
    chosen = np.sort(np.argsort(-counts["sum"], kind="stable")[:15])
    for pairs in adapted.values():
        np.testing.assert_array_equal(pairs.items, counts["items"][chosen])
        assert pairs.weights.max() == 1.0
