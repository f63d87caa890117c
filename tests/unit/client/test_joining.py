from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import pytest

from client.config import PlatformConfig, PrivacySection, SecaggSection
from client.joining import make_platform, trust_platform, trusted_keys
from common.config import load_config
from common.errors import ConfigError
from common.keys import fingerprint, read_private_key, read_public_key, sign, verify

if TYPE_CHECKING:
    from pathlib import Path


SECAGG = PrivacySection(epsilon=4.0, delta=1e-6, trust="secagg")


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
        "privacy": PrivacySection(epsilon=4.0, delta=1e-6),
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
        make(tmp_path / "shop", privacy=PrivacySection(epsilon=4.0, delta=0.01))


def test_secure_sums_are_as_asked_for_and_off_by_default(tmp_path: Path) -> None:
    make(tmp_path / "plain")
    plain = load_config(tmp_path / "plain/platform.toml", PlatformConfig)
    assert (plain.privacy.trust, plain.secagg) == ("local", None)
    make(tmp_path / "shop", privacy=SECAGG)
    config = load_config(tmp_path / "shop/platform.toml", PlatformConfig)
    assert config.privacy.trust == "secagg"
    assert config.secagg == SecaggSection(
        private_key=tmp_path / "shop/node.key",
        platform_keys=tmp_path / "shop/platforms",
        min_summed=3,
        max_colluding=1,
    )
    own = (tmp_path / "shop/platforms/shop-a.pub").read_bytes()
    assert own == (tmp_path / "shop/node.pub").read_bytes()


@pytest.mark.parametrize("name", ["../shop", "a/b", "", ".shop", "a b", "shop\n", "x" * 65])
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="platform: found"):
        make(tmp_path / "shop", name=name, privacy=SECAGG)
    assert not (tmp_path / "shop").exists()
    make(tmp_path / "shop", privacy=SECAGG)
    make(tmp_path / "other", name="shop-b")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="platform: found"):
        trust(tmp_path / "shop", name, tmp_path / "other/node.pub")
    assert sorted(tmp_path.rglob("*")) == before


def trust(folder: Path, name: str, key: Path, *, replace: bool = False) -> str:
    file = folder / "platform.toml"
    return trust_platform(name, key, file, load_config(file, PlatformConfig), replace=replace)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Platform shop-a, and beside it shop-b and shop-c, whose keys it does not know."""
    make(tmp_path / "shop", privacy=SECAGG)
    for name in ("shop-b", "shop-c"):
        make(tmp_path / name, name=name, privacy=SECAGG)
    return tmp_path / "shop"


def known_to(shop: Path) -> dict[str, str]:
    section = load_config(shop / "platform.toml", PlatformConfig).secagg
    assert section is not None
    return {name: fingerprint(key) for name, key in trusted_keys(section).items()}


def test_a_key_that_is_trusted_is_kept_under_its_name(shop: Path, tmp_path: Path) -> None:
    key = tmp_path / "shop-b/node.pub"
    shown = trust(shop, "shop-b", key)
    assert shown == fingerprint(read_public_key(key))
    assert trust(shop, "shop-b", key) == shown  # once more changes nothing
    assert known_to(shop) == {
        "shop-a": fingerprint(read_public_key(shop / "node.pub")),
        "shop-b": shown,
    }


def test_a_known_name_keeps_its_key_unless_it_is_replaced(shop: Path, tmp_path: Path) -> None:
    first = trust(shop, "shop-b", tmp_path / "shop-b/node.pub")
    make(tmp_path / "new", name="shop-b")
    with pytest.raises(ConfigError, match=f"another key is known, fingerprint {first}.*--replace"):
        trust(shop, "shop-b", tmp_path / "new/node.pub")
    assert known_to(shop)["shop-b"] == first
    second = trust(shop, "shop-b", tmp_path / "new/node.pub", replace=True)
    assert known_to(shop)["shop-b"] == second != first


@pytest.mark.parametrize("replace", [False, True])
def test_one_key_never_counts_as_two_platforms(shop: Path, tmp_path: Path, replace: bool) -> None:
    trust(shop, "shop-b", tmp_path / "shop-b/node.pub")
    trust(shop, "shop-c", tmp_path / "shop-c/node.pub")
    before = known_to(shop)
    with pytest.raises(ConfigError, match="is the key of platform 'shop-b'"):
        trust(shop, "shop-c", tmp_path / "shop-b/node.pub", replace=replace)
    with pytest.raises(ConfigError, match="this platform's own, 'shop-a'"):
        trust(shop, "shop-c", shop / "node.pub", replace=replace)
    with pytest.raises(ConfigError, match="cannot be the key of 'shop-a'"):
        trust(shop, "shop-a", tmp_path / "shop-c/node.pub", replace=replace)
    with pytest.raises(ConfigError, match="some disks would take both names for one file"):
        trust(shop, "Shop-B", tmp_path / "shop-c/node.pub", replace=replace)
    assert known_to(shop) == before


def test_only_public_keys_are_trusted_and_only_for_secure_sums(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a public key"):
        trust(shop, "shop-b", tmp_path / "shop-b/node.key")
    assert set(known_to(shop)) == {"shop-a"}
    make(tmp_path / "plain", name="plain")
    with pytest.raises(ConfigError, match=r"\[secagg\] is missing"):
        trust(tmp_path / "plain", "shop-b", tmp_path / "shop-b/node.pub")
