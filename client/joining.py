"""Making a platform's folder: its key pair and its ``platform.toml``. No user data is read."""

from __future__ import annotations

import json
from pathlib import Path

from client.config import PlatformConfig
from common.config import load_config, split_address
from common.errors import ConfigError
from common.keys import fingerprint, new_key_pair, parse_public_key
from common.storage import FOR_ALL, read_content, write_durably

CONFIG_FILE, PRIVATE_KEY, PUBLIC_KEY = "platform.toml", "node.key", "node.pub"

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
trust = "local"                  # this platform adds all the noise itself

[server]
address = {address}
root_certificate = {certificate}
private_key = "{private_key}"

[state]
folder = "state"                 # ledger, releases, models: back it up, never restore half of it
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
    epsilon: float,
    delta: float,
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
    text = _TEMPLATE.format(
        name=json.dumps(name),
        population=population,
        pad=" " * max(1, 20 - len(str(population))),
        pad_epsilon=" " * max(1, 23 - len(f"{epsilon:g}")),
        source=json.dumps(source if "://" in source else str(Path(source).absolute())),
        assortment=json.dumps(str(assortment.absolute())),
        epsilon=epsilon,
        delta=delta,
        address=json.dumps(server),
        certificate=json.dumps("ca.crt"),
        private_key=PRIVATE_KEY,
    )
    private, public = new_key_pair(name)
    write_durably(folder / "ca.crt", read_content(root_certificate), mode=FOR_ALL)
    write_durably(folder / PRIVATE_KEY, private)
    write_durably(folder / PUBLIC_KEY, public, mode=FOR_ALL)
    write_durably(config_file, text.encode())
    load_config(config_file, PlatformConfig)
    return fingerprint(parse_public_key(public, PUBLIC_KEY))
