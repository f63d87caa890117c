"""Making a platform's folder, and whom it trusts to be who they say. No user data is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from client.config import PlatformConfig
from common.config import load_config, split_address
from common.errors import ConfigError
from common.keys import (
    fingerprint,
    new_key_pair,
    parse_public_key,
    read_private_key,
    read_public_key,
)
from common.storage import FOR_ALL, read_content, write_durably

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from client.config import PrivacySection, SecaggSection

CONFIG_FILE, PRIVATE_KEY, PUBLIC_KEY = "platform.toml", "node.key", "node.pub"
PLATFORM_KEYS = "platforms"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_TEMPLATE = """\
# A platform of a CrossRec federation. Of this file, its name and population leave the platform.

[platform]
name = {name}
population = {population}{pad}# about how many users, a public number; not a count of the data

[data]
source = {source}
# user_column, item_column, rating_column, time_column: where names are not recognised

[catalogue]
assortment = {assortment}
# The items that the platform lists (column item_id): the coordinator is told their ids. With
# key_file = "...", a secret that the platforms share, it is told only their keyed hashes.

[privacy]
epsilon = {epsilon:g}{pad_epsilon}# the whole budget of a user, for the federation's life
delta = {delta:g}
unit = "user"                    # a user with all of her interactions
{trust}
{secagg}
[server]
address = {address}
root_certificate = {certificate}
private_key = "{private_key}"

[state]
folder = "state"                 # ledger, releases, models: back it up, never restore half of it
"""


_TRUST = {
    "local": 'trust = "local"                  # this platform adds all the noise itself',
    "secagg": (
        'trust = "secagg"                 '
        "# the coordinator sees sums only, of platforms that share out the noise"
    ),
}
_SECAGG = """
[secagg]
private_key = "node.key"         # signs what the other platforms must believe
platform_keys = "platforms"      # NAME.pub of each, not from the coordinator: crossrec client trust
min_summed = 3                   # sums of fewer platforms are refused
max_colluding = 1                # so many may tell the coordinator all they know
"""


def make_platform(
    folder: Path,
    *,
    name: str,
    server: str,
    root_certificate: Path,
    source: str,
    assortment: Path,
    population: int,
    privacy: PrivacySection,
) -> str:
    """Write a platform's files into ``folder``; return the fingerprint of its key.

    Raises:
        ConfigError: if there is a platform already, or an option is wrong.
        StateError: if the folder cannot be written.
    """
    config_file = folder / CONFIG_FILE
    if config_file.exists() or (folder / PRIVATE_KEY).exists():
        msg = f"{folder}: holds a platform already, and is not overwritten."
        raise ConfigError(msg)
    split_address(server)
    is_summed = privacy.trust == "secagg"
    if is_summed:
        _check_name(name)
    text = _TEMPLATE.format(
        name=json.dumps(name),
        population=population,
        pad=" " * max(1, 20 - len(str(population))),
        pad_epsilon=" " * max(1, 23 - len(f"{privacy.epsilon:g}")),
        source=json.dumps(source if "://" in source else str(Path(source).absolute())),
        assortment=json.dumps(str(assortment.absolute())),
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        trust=_TRUST[privacy.trust],
        secagg=_SECAGG if is_summed else "",
        address=json.dumps(server),
        certificate=json.dumps("ca.crt"),
        private_key=PRIVATE_KEY,
    )
    private, public = new_key_pair(name)
    write_durably(folder / "ca.crt", read_content(root_certificate), mode=FOR_ALL)
    write_durably(folder / PRIVATE_KEY, private)
    write_durably(folder / PUBLIC_KEY, public, mode=FOR_ALL)
    if is_summed:
        write_durably(folder / PLATFORM_KEYS / f"{name}.pub", public, mode=FOR_ALL)
    write_durably(config_file, text.encode())
    load_config(config_file, PlatformConfig)
    return fingerprint(parse_public_key(public, PUBLIC_KEY))


def trust_platform(
    name: str, key: Path, config_file: Path, config: PlatformConfig, *, replace: bool = False
) -> str:
    """Believe from now on that the holder of ``key`` is platform ``name``; return its fingerprint.

    Args:
        name: of a platform, in the federation.
        key: its public key: the ``node.pub`` that it sent.
        config_file: named in messages.
        config: of the platform that trusts.
        replace: a key that is known for ``name`` may be another one.

    Raises:
        ConfigError: if the name or the key cannot be one, it is another platform's, or ``name`` has
            another key already.
        StateError: if a file cannot be read or written.
    """
    _check_name(name)
    section = config.secagg
    if section is None:
        msg = f"{config_file}: [secagg] is missing; `crossrec client init --trust secagg` shows it."
        raise ConfigError(msg)
    content = read_content(key)
    found = parse_public_key(content, key)
    is_own = found == read_private_key(section.private_key).public_key()
    if is_own != (name == config.platform.name):
        whose = f"this platform's own, {config.platform.name!r}" if is_own else "another's"
        msg = f"{key}: cannot be the key of {name!r}, it is {whose}."
        raise ConfigError(msg)
    known = trusted_keys(section)
    for other, held in known.items():
        if other != name and other.casefold() == name.casefold():
            msg = f"{name}: {other!r} is known, and some disks would take both names for one file."
            raise ConfigError(msg)
        if other != name and held == found:
            msg = f"{key}: is the key of platform {other!r}; every platform needs its own."
            raise ConfigError(msg)
    if known.get(name, found) != found and not replace:
        msg = (
            f"{name}: another key is known, fingerprint {fingerprint(known[name])}. If {name} "
            "itself tells you, not through the coordinator, that it has a new one, add --replace."
        )
        raise ConfigError(msg)
    write_durably(section.platform_keys / f"{name}.pub", content, mode=FOR_ALL)
    return fingerprint(found)


def trusted_keys(section: SecaggSection) -> dict[str, ec.EllipticCurvePublicKey]:
    """Name -> key of every platform that may take part in a sum with this one, itself included.

    Raises:
        ConfigError: naming a file that is no such key.
    """
    files = sorted(section.platform_keys.glob("*.pub"))
    return {file.name.removesuffix(".pub"): read_public_key(file) for file in files}


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        msg = (
            f"platform: found {name!r}, expected at most 64 letters, digits, dots, dashes and "
            "underscores, beginning with a letter or digit."
        )
        raise ConfigError(msg)
