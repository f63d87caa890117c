from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from common.config import load_config
from common.errors import ConfigError
from common.privacy.accounting import epsilon_spent
from common.privacy.mechanisms import SampledGaussian
from server.config import FederationConfig, SecaggSection
from server.founding import register_platform

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("plan", ["pairs", "ncf", "both"])
def test_the_file_costs_what_was_asked_for(plan: str, found: Callable[..., Path]) -> None:
    config = load_config(found(plan=plan), FederationConfig)
    mechanisms = []
    if config.sums:
        noises = (config.sums.counts_noise_multiplier, config.sums.pairs_noise_multiplier)
        mechanisms += [
            SampledGaussian(noise_multiplier=noise, sampling_rate=1, steps=1) for noise in noises
        ]
    if config.federation.rounds:
        per_step = config.mechanism.noise_multiplier
        assert per_step is not None
        mechanisms.append(SampledGaussian(noise_multiplier=per_step, sampling_rate=1, steps=7))
    assert {"pairs": 2, "ncf": 1, "both": 3}[plan] == len(mechanisms)
    assert 3.95 < epsilon_spent(mechanisms, 1e-6) <= 4.0


def test_secrets_are_for_the_owner_and_paths_follow_the_folder(
    tmp_path: Path, found: Callable[..., Path]
) -> None:
    config = load_config(found(), FederationConfig)
    assert config.network is not None
    assert config.network.address == "0.0.0.0:8000"
    for path in (config.network.certificate, config.network.root_certificate):
        assert path.parent == tmp_path / "market"
        assert path.is_file()
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((tmp_path / "market" / name).stat().st_mode) == 0o600


def test_nothing_is_overwritten(tmp_path: Path, found: Callable[..., Path]) -> None:
    found()
    before = (tmp_path / "market/ca.key").read_bytes()
    with pytest.raises(ConfigError, match="holds a federation already"):
        found()
    assert (tmp_path / "market/ca.key").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": "magic"}, "expected one of pairs, ncf, both"),
        ({"platforms": ["a"]}, "at least two"),
        ({"platforms": ["a", "a"]}, "each once"),
        ({"platforms": ["a", "../b"]}, "found '../b'"),
        ({"epsilon": -1.0}, "epsilon"),
    ],
)
def test_wrong_options_leave_no_trace(
    tmp_path: Path, changes: dict[str, Any], message: str, found: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        found(**changes)
    assert not (tmp_path / "market").exists()


FIVE = ["a", "b", "c", "d", "e"]


def test_secure_sums_are_as_asked_for_and_off_by_default(
    tmp_path: Path, found: Callable[..., Path]
) -> None:
    plain = found()
    assert "secagg" not in plain.read_text()
    assert load_config(plain, FederationConfig).mechanism.trust == "local"
    (tmp_path / "market").rename(tmp_path / "plain")
    secagg = SecaggSection(max_dropped=1, max_colluding=2)
    config = load_config(found(platforms=FIVE, secagg=secagg), FederationConfig)
    assert (config.mechanism.trust, config.secagg) == ("secagg", secagg)
    # One of them may be gone when the run is started again.
    assert config.federation.quorum == 4


@pytest.mark.parametrize(
    ("number", "secagg", "message"),
    [
        (4, SecaggSection(max_dropped=2), "found 2, expected at most 1 of 4 .* 1 may collude"),
        (5, SecaggSection(max_dropped=2), "found 2, expected at most 1 of 5"),
        (5, SecaggSection(max_dropped=1, max_colluding=3), "found 1, expected at most 0 of 5"),
        (3, SecaggSection(max_colluding=3), "--max-colluding: found 3 of 3 .* at most 2"),
        (2, SecaggSection(), "takes at least 3"),
        (3, SecaggSection(max_dropped=-1), "--max-dropped: found -1"),
        (3, SecaggSection(max_colluding=0), "--max-colluding: found 0"),
    ],
)
def test_sums_that_could_not_be_secure_leave_no_trace(
    tmp_path: Path, number: int, secagg: SecaggSection, message: str, found: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        found(platforms=FIVE[:number], secagg=secagg)
    assert not (tmp_path / "market").exists()


@pytest.mark.parametrize(("number", "max_dropped"), [(3, 0), (4, 1), (5, 1), (6, 2), (9, 3)])
def test_as_many_may_drop_out_as_the_protocol_bears(
    number: int, max_dropped: int, found: Callable[..., Path]
) -> None:
    names = tuple(f"p{k}" for k in range(number))
    with pytest.raises(ConfigError, match=f"at most {max_dropped} of {number}"):
        found(platforms=names, secagg=SecaggSection(max_dropped=max_dropped + 1))
    config = load_config(
        found(platforms=names, secagg=SecaggSection(max_dropped=max_dropped)), FederationConfig
    )
    terms = config.secagg.terms(names, noise_std=1.0, largest_sum=1e4)
    assert terms.min_summed == number - max_dropped >= 3


def test_a_platforms_key_is_kept_and_replaced(
    tmp_path: Path, found: Callable[..., Path], public_key: Callable[..., Path]
) -> None:
    path = found()
    config = load_config(path, FederationConfig)
    first, second = public_key("1.pub"), public_key("2.pub")
    assert "a: registered, fingerprint" in register_platform("a", first, path, config)
    assert "a: registered" in register_platform("a", first, path, config)
    assert "its key was replaced" in register_platform("a", second, path, config)
    assert (tmp_path / "market/platforms/a.pub").read_bytes() == second.read_bytes()


def test_wrong_keys_are_refused(
    tmp_path: Path, found: Callable[..., Path], public_key: Callable[..., Path]
) -> None:
    path = found()
    config = load_config(path, FederationConfig)
    key = public_key("1.pub")
    register_platform("a", key, path, config)
    with pytest.raises(ConfigError, match="is the key of platform 'a'"):
        register_platform("b", key, path, config)
    with pytest.raises(ConfigError, match="not among federation"):
        register_platform("c", key, path, config)
    other = public_key("2.pub", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(ConfigError, match="not an elliptic-curve key"):
        register_platform("b", other, path, config)
    (tmp_path / "3.pub").write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    with pytest.raises(ConfigError, match="is not a public key"):
        register_platform("b", tmp_path / "3.pub", path, config)
    assert not (tmp_path / "market/platforms/b.pub").exists()
