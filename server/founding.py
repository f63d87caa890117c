"""Making a federation: its authority, its ``federation.toml``, and who may take part."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, cast, get_args

from common.config import load_config
from common.errors import ConfigError
from common.keys import fingerprint, parse_public_key, read_public_key
from common.privacy.plan import PLANS, PlanName, plan_noise
from common.storage import FOR_ALL, read_content, write_durably
from server.certificates import create_authority, issue_server_certificate
from server.config import FederationConfig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from server.config import SecaggSection

CONFIG_FILE = "federation.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_TEMPLATE = """\
# A CrossRec federation. Everything here is public among its platforms.
# `crossrec server run federation.toml` runs it; for another run, choose another run_id.

[federation]
run_id = "run-1"                 # platforms answer once per run
platforms = {platforms}
quorum = {quorum}                       # {quorum_means}
rounds = {rounds}                       # of training; 0: the run ends with its sums
seed = 0                         # starting values of the shared parameters
join_timeout_seconds = 600.0     # then the run begins with those who are there
round_timeout_seconds = 3600.0   # then a round closes with those who answered

[catalogue]
agree = true                     # platforms report the items that they list, and nothing else

# What a platform is asked to release, each time with noise of its own. All of it together costs
# a user epsilon {epsilon:g} at delta {delta:g} (the platform's own ledger decides).
[mechanism]
unit = "user"
{trust}clipping_norm = 0.25             # of a user's gradient in a round
{rounds_noise}{sums}{secagg}
[state]
folder = "state"                 # journal, checkpoints, catalogue, Flower's database

[network]
address = {address}
root_certificate = "ca.crt"
certificate = "server.crt"
private_key = "server.key"
platform_keys = "platforms"      # NAME.pub of each platform: crossrec server register
"""
_LEAST_SUMMED = 3
"""Platforms accept no smaller sum, as ``crossrec client init`` makes them."""
_SUMS = """
[sums]                           # item counts and item pairs, once each
counts_noise_multiplier = {counts:.6g}
pairs_noise_multiplier = {pairs:.6g}
max_items = 4000
"""
_TRUST_LOCAL = """\
trust = "local"                  # every platform adds all the noise: the coordinator is not trusted
"""
_TRUST_SECAGG = """\
trust = "secagg"                 # the coordinator sees sums only; platforms add parts of the noise
"""
_SECAGG = """
[secagg]                         # every sum is one of those who were there when the run began
max_dropped = {max_dropped}                  # so many may drop out of it; each one costs noise
max_colluding = {max_colluding}                # so many may tell the coordinator all they know
stage_timeout_seconds = 120.0    # for each of the four steps after a release is made
"""


def found_federation(
    folder: Path,
    *,
    hosts: Sequence[str],
    port: int,
    platforms: Sequence[str],
    epsilon: float,
    delta: float,
    plan: str,
    rounds: int,
    secagg: SecaggSection | None = None,
) -> Path:
    """Write a new federation into ``folder``; return its ``federation.toml``.

    With ``secagg``, releases are only ever seen added up.

    Raises:
        ConfigError: if there is one already, or an option is wrong.
        StateError: if the folder cannot be written.
    """
    config_file = folder / CONFIG_FILE
    if config_file.exists() or (folder / "ca.key").exists():
        msg = f"{folder}: holds a federation already, and is not overwritten."
        raise ConfigError(msg)
    if plan not in PLANS:
        msg = f"--plan: found {plan!r}, expected one of {', '.join(get_args(PlanName))}."
        raise ConfigError(msg)
    for name in platforms:
        _check_name(name)
    if len(set(platforms)) < max(2, len(platforms)):
        msg = "--platform: name at least two platforms, each once."
        raise ConfigError(msg)
    trust, secure_sums = _TRUST_LOCAL, ""
    quorum, quorum_means = 2, "a step with fewer answers ends the run, to be resumed"
    if secagg:
        _check_drops(len(platforms), secagg)
        trust = _TRUST_SECAGG
        secure_sums = _SECAGG.format(
            max_dropped=secagg.max_dropped, max_colluding=secagg.max_colluding
        )
        quorum, quorum_means = len(platforms) - secagg.max_dropped, "with fewer, no start succeeds"
    budget = plan_noise(epsilon, delta, shares=PLANS[cast("PlanName", plan)], steps=rounds)
    sums = ""
    if budget.counts and budget.pairs:
        sums = _SUMS.format(
            counts=_rounded_up(budget.counts.noise_multiplier),
            pairs=_rounded_up(budget.pairs.noise_multiplier),
        )
    rounds_noise = ""
    if budget.rounds:
        rounds_noise = f"noise_multiplier = {_rounded_up(budget.rounds.noise_multiplier):.6g}\n"
    text = _TEMPLATE.format(
        platforms=json.dumps(list(platforms)),
        quorum=quorum,
        quorum_means=quorum_means,
        trust=trust,
        secagg=secure_sums,
        rounds=rounds if budget.rounds else 0,
        epsilon=epsilon,
        delta=delta,
        rounds_noise=rounds_noise,
        sums=sums,
        address=json.dumps(f"0.0.0.0:{port}"),
    )
    authority_key, authority = create_authority(folder.name or "federation")
    key, certificate = issue_server_certificate(authority_key, authority, hosts)
    for name, content in (("ca.key", authority_key), ("server.key", key)):
        write_durably(folder / name, content)
    for name, content in (("ca.crt", authority), ("server.crt", certificate)):
        write_durably(folder / name, content, mode=FOR_ALL)
    (folder / "platforms").mkdir(exist_ok=True)
    write_durably(config_file, text.encode(), mode=FOR_ALL)
    load_config(config_file, FederationConfig)
    return config_file


def register_platform(name: str, key: Path, config_file: Path, config: FederationConfig) -> str:
    """Keep the public ``key`` of platform ``name``; return what to tell the operator.

    Raises:
        ConfigError: if the platform is not of this federation, or the file is no public key.
    """
    if config.network is None:
        msg = f"{config_file}: [network] is missing; `crossrec server init` writes one."
        raise ConfigError(msg)
    if name not in config.federation.platforms:
        msg = (
            f"platform {name!r} is not among federation.platforms of {config_file} "
            f"({', '.join(config.federation.platforms)}). Add it there first."
        )
        raise ConfigError(msg)
    content = read_content(key)
    found = parse_public_key(content, key)
    for other in config.federation.platforms:
        path = config.network.platform_keys / f"{other}.pub"
        if other != name and path.exists() and read_public_key(path) == found:
            msg = f"{key}: is the key of platform {other!r}; every platform needs its own."
            raise ConfigError(msg)
    place = config.network.platform_keys / f"{name}.pub"
    replaced = place.exists() and read_public_key(place) != found
    write_durably(place, content, mode=FOR_ALL)
    return (
        f"{name}: {'its key was replaced' if replaced else 'registered'}, fingerprint "
        f"{fingerprint(found)}. Counts from the next `crossrec server run` or `resume` on."
    )


def _rounded_up(noise: float) -> float:
    """Six digits of ``noise`` that are not less: rounding must not raise epsilon."""
    return float(f"{noise * (1 + 1e-5):.6g}")


def _check_drops(number: int, secagg: SecaggSection) -> None:
    """Refuse sums that could be opened twice, see :mod:`common.secagg.terms`, in words for here."""
    max_dropped, max_colluding = secagg.max_dropped, secagg.max_colluding
    if number < _LEAST_SUMMED:
        msg = (
            f"--platform: found {number}, secure aggregation takes at least {_LEAST_SUMMED}: of "
            "two, each knows the other's release as soon as it knows the sum."
        )
        raise ConfigError(msg)
    if max_dropped < 0 or max_colluding < 1:
        msg = (
            f"--max-dropped: found {max_dropped}, expected at least 0; --max-colluding: found "
            f"{max_colluding}, expected at least 1 (a curious platform)."
        )
        raise ConfigError(msg)
    most = (number - max_colluding - 1) // 2
    if most < 0:
        msg = (
            f"--max-colluding: found {max_colluding} of {number} platforms, expected at most "
            f"{number - 1}: somebody has to be left to hide among."
        )
        raise ConfigError(msg)
    if max_dropped > most:
        msg = (
            f"--max-dropped: found {max_dropped}, expected at most {most} of {number} platforms "
            f"where {max_colluding} may collude: more than half of {number} + {max_colluding} "
            "have to stay, or there could be two sums. Name more platforms, or let fewer drop out."
        )
        raise ConfigError(msg)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        msg = f"--platform: found {name!r}, expected letters, digits, dots, dashes, underscores."
        raise ConfigError(msg)
