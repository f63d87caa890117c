"""Platforms that agree on a catalogue end as if a file had told everybody; run after run."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from client.assortment import AgreementFiles
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
from common.config import dump_config
from common.models.ncf import NcfConfig
from common.storage import pack_arrays, read_arrays, write_durably
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
from tests.shops import NUM_ITEMS, SIZES, purchases, tune_little

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

SECRET = "c0" * 32
ITEMS = [f"i{item:02d}" for item in range(NUM_ITEMS)]
LISTED = {"north": ITEMS[:18], "south": ITEMS[3:]}
"""Both bought outside of it, too: that is left out."""


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    tune_little(monkeypatch)


def hashed(item: str) -> str:
    return hmac.new(bytes.fromhex(SECRET), item.encode(), hashlib.sha256).hexdigest()


def as_it_is(item: str) -> str:
    return item


def write_assortments(folder: Path, listed: Mapping[str, list[str]]) -> None:
    for name, items in listed.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "items.csv").write_text("\n".join(["item_id", *items]))


def settle(
    folder: Path,
    *,
    given: bool,
    rename: Callable[[str], str] = as_it_is,
    is_keyed: bool = False,
    run_id: str = "spring",
) -> None:
    """Write a federation: with a catalogue file, or one whose platforms agree."""
    catalogue = folder / "catalogue.csv"
    if given:
        folder.mkdir()
        rows = [f"{rename(item)},{name}" for name, items in LISTED.items() for item in items]
        catalogue.write_text("\n".join(["item_id,platform", *rows]))
    for name, size in SIZES.items():
        home = folder / name
        home.mkdir(exist_ok=True)
        bought = purchases(name, size)
        bought["item_id"] = bought["item_id"].map(rename)
        bought.to_csv(home / "purchases.csv", index=False)
        own = ClientCatalogue(file=catalogue)
        if not given:
            secret = home / "secret.hex"
            secret.write_text(SECRET)
            own = ClientCatalogue(
                assortment=home / "items.csv", key_file=secret if is_keyed else None
            )
        config = PlatformConfig(
            platform=PlatformSection(name=name, population=size),
            data=DataSection(source=home / "purchases.csv"),
            catalogue=own,
            privacy=PrivacySection(epsilon=8.0, min_noise_multiplier=1.0),
            state=ClientState(folder=home / "state"),
            adaptation=AdaptationSection(max_epochs=2),
            simulation=SimulationSection(seed=5),
        )
        write_durably(home / "platform.toml", dump_config(config).encode())
    federation = FederationConfig(
        federation=FederationSection(
            run_id=run_id, rounds=2, platforms=tuple(SIZES), join_timeout_seconds=5.0
        ),
        catalogue=CatalogueSection(file=catalogue) if given else CatalogueSection(agree=True),
        mechanism=MechanismSection(noise_multiplier=15.0),
        model=NcfConfig(dim=4),
        state=StateSection(folder=folder / "server"),
        sums=SumsSection(counts_noise_multiplier=15.0, pairs_noise_multiplier=15.0),
    )
    write_durably(folder / "federation.toml", dump_config(federation).encode())


def run(folder: Path) -> None:
    run_in_process(folder / "federation.toml", [folder / name / "platform.toml" for name in SIZES])


def made(folder: Path) -> dict[str, bytes]:
    """All sums, parameters, releases and models, byte for byte."""
    server = [folder / "server/spring" / f"{name}.safetensors" for name in SERVER_FILES]
    platforms = [
        path
        for name in SIZES
        for kind in ("releases", "private", "model")
        for path in sorted((folder / name / "state" / kind).iterdir())
    ]
    return {str(path.relative_to(folder)): content(path) for path in [*server, *platforms]}


def content(path: Path) -> bytes:
    """A file but for the digests of item ids by which models are recognised."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    arrays, facts = read_arrays(path)
    kept = {k: v for k, v in facts.items() if k not in {"fitted_to", "users", "beside"}}
    return pack_arrays(arrays, kept)


SERVER_FILES = ("item-counts", "item-pairs", "checkpoint")


@pytest.mark.parametrize("is_keyed", [False, True])
def test_what_is_made_is_what_a_file_in_the_same_order_would_have_made(
    tmp_path: Path, *, is_keyed: bool
) -> None:
    rename = hashed if is_keyed else as_it_is
    settle(tmp_path / "given", given=True, rename=rename)
    run(tmp_path / "given")
    write_assortments(tmp_path / "agreed", LISTED)
    settle(tmp_path / "agreed", given=False, is_keyed=is_keyed)
    run(tmp_path / "agreed")
    expected, found = made(tmp_path / "given"), made(tmp_path / "agreed")
    assert len(expected) >= len(SERVER_FILES) + 2 * 7
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    agreed, _ = read_arrays(tmp_path / "agreed/server/spring/catalogue.safetensors")
    at_server = b"".join(
        path.read_bytes() for path in (tmp_path / "agreed/server").rglob("*") if path.is_file()
    )
    assert len(agreed["lengths"]) == NUM_ITEMS
    assert (b"i05" in at_server) == (not is_keyed)
    for name, other in (("north", "south"), ("south", "north")):
        at_platform = b"".join(
            path.read_bytes() for path in (tmp_path / "agreed" / name / "state").rglob("*.s*")
        )
        for item in set(LISTED[other]) - set(LISTED[name]):
            assert item.encode() not in at_platform
            assert hashed(item).encode() not in at_platform


def rows(folder: Path, name: str) -> dict[str, int]:
    agreed = AgreementFiles(folder / name / "state").agreed()
    assert agreed is not None
    return dict(zip(agreed.item_ids, agreed.rows.tolist(), strict=True))


def events(folder: Path, run_id: str, kind: str) -> list[dict[str, Any]]:
    return [e for _, e in read_journal(folder / "server" / run_id) if e["event"] == kind]


@pytest.mark.parametrize("is_keyed", [False, True])
def test_a_second_run_keeps_every_row_and_appends_what_is_new(
    tmp_path: Path, *, is_keyed: bool
) -> None:
    folder = tmp_path / "shops"
    write_assortments(folder, LISTED)
    settle(folder, given=False, is_keyed=is_keyed)
    run(folder)
    before = {name: rows(folder, name) for name in SIZES}
    # North no longer has one item, has two new ones, and one that south had before.
    now = {**LISTED, "north": [*LISTED["north"][1:], "a-new", "z-new", ITEMS[-1]]}
    write_assortments(folder, now)
    settle(folder, given=False, is_keyed=is_keyed, run_id="summer")
    run(folder)
    after = {name: rows(folder, name) for name in SIZES}
    for name, listed in now.items():
        assert set(after[name]) == set(listed)
        assert {i: r for i, r in after[name].items() if i in before[name]} == {
            i: r for i, r in before[name].items() if i in listed
        }
    assert after["north"][ITEMS[-1]] == before["south"][ITEMS[-1]]
    key = hashed if is_keyed else as_it_is
    new = sorted(("a-new", "z-new"), key=key)
    assert [after["north"][item] for item in new] == [NUM_ITEMS, NUM_ITEMS + 1]
    (agreed,) = events(folder, "summer", "catalogue-agreed")
    assert (agreed["version"], agreed["items"], agreed["new_items"]) == (2, NUM_ITEMS + 2, 2)
    counts, _ = read_arrays(folder / "server/summer/item-counts.safetensors")
    shared = sorted(after["south"][item] for item in set(now["north"]) & set(now["south"]))
    assert counts["items"].tolist() == shared
    assert events(folder, "summer", "run-finished")
    parameters, _ = read_arrays(folder / "server/summer/checkpoint.safetensors")
    assert parameters["parameters/items.bias"].shape == (NUM_ITEMS + 2,)
    assert np.isfinite(parameters["parameters/items.bias"]).all()
