from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import pytest

from client.config import PlatformConfig
from client.joining import make_platform
from common.config import load_config
from common.errors import ConfigError
from common.keys import fingerprint, read_private_key, read_public_key, sign, verify

if TYPE_CHECKING:
    from pathlib import Path


def make(folder: Path, **changes: Any) -> str:  # noqa: ANN401 - any option
    certificate = folder.parent / "authority.crt"
    certificate.write_text("certificate")
    options: dict[str, Any] = {
        "name": "shop-a",
        "server": "coordinator.example:8000",
        "root_certificate": certificate,
        "source": str(folder.parent / "orders.parquet"),
        "assortment": folder.parent / "items.csv",
        "population": 5000,
        "epsilon": 4.0,
        "delta": 1e-6,
    }
    return make_platform(folder, **{**options, **changes})


def test_the_file_says_what_was_asked_for(tmp_path: Path) -> None:
    make(tmp_path / "shop")
    config = load_config(tmp_path / "shop/platform.toml", PlatformConfig)
    assert (config.platform.name, config.platform.population) == ("shop-a", 5000)
    assert (config.privacy.epsilon, config.privacy.delta) == (4.0, 1e-6)
    assert (config.privacy.unit, config.privacy.trust) == ("user", "local")
    assert config.server is not None
    assert config.server.address == "coordinator.example:8000"
    assert config.server.root_certificate.read_text() == "certificate"
    assert config.state.folder == tmp_path / "shop/state"


def test_the_key_pair_belongs_together_and_is_the_owners(tmp_path: Path) -> None:
    shown = make(tmp_path / "shop")
    private = tmp_path / "shop/node.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key, public = read_private_key(private), read_public_key(tmp_path / "shop/node.pub")
    assert fingerprint(public) == fingerprint(key.public_key()) == shown
    assert verify(public, sign(key, b"message"), b"message")
    assert make(tmp_path / "other") != shown


def test_others_may_read_what_is_public_only(tmp_path: Path) -> None:
    make(tmp_path / "shop")
    modes = {file.name: file.stat().st_mode & 0o077 for file in (tmp_path / "shop").iterdir()}
    # The configuration may hold the password of a database.
    assert {name for name, mode in modes.items() if mode} == {"ca.crt", "node.pub"}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "shop")
    before = (tmp_path / "shop/node.key").read_bytes()
    with pytest.raises(ConfigError, match="holds a platform already"):
        make(tmp_path / "shop")
    assert (tmp_path / "shop/node.key").read_bytes() == before


def test_a_wrong_address_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected an address"):
        make(tmp_path / "shop", server="coordinator")
    assert not (tmp_path / "shop").exists()


def test_a_privacy_budget_that_exposes_users_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.delta"):
        make(tmp_path / "shop", delta=0.01)
