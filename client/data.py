"""What a platform trains on: its interactions, and what its validation users give up to judge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from client.assortment import AgreementFiles
from client.validation import Fold
from common.data.catalogue import digest_of, read_catalogue
from common.data.interactions import UserItems, encode_held_out
from common.data.readers import read_interactions
from common.data.schema import Columns
from common.data.splits import leave_last_out
from common.data.sql import SqlQuery
from common.errors import DataError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

    from client.config import PlatformConfig
    from common.data.catalogue import ItemOrder

_CACHED_PLATFORMS = 16
_MOST_FOLDS = 5
_MIN_KEPT = 2
_SPLIT_SEED = 0
"""Which interaction a validation user gives up: no guarantee hangs on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlatformData:
    """One platform's users and items, ready to train."""

    num_catalogue_items: int
    """Items in the shared catalogue."""
    users_digest: str
    """SHA-256 over user ids in the order of rows and item ids in the order of columns, which a new
    agreement on the catalogue may change; models belong to both."""
    users: UserItems
    """All interactions; users are rows, listed items are columns."""
    folds: tuple[Fold, ...]
    """At least one; in each one the validation users give up another interaction."""


def load_platform_data(config: PlatformConfig) -> PlatformData:
    """Read a platform's data as ``platform.toml`` says, once for each request.

    Files are cached until one of them changes. What a query would return has no such sign of change
    that every database gives, so it is asked each time and never kept: a release is a function of
    the one result that its request has read.

    A user's rows depend on her own interactions only: whether she is a validation user, and what
    she gives up, does not change when others join or leave.

    Raises:
        ConfigError: if the source's address names an environment variable that is not set.
        DataError: if the source or the catalogue cannot be used.
    """
    source = config.data.interactions()
    if isinstance(source, SqlQuery):
        return _load(config, source)
    return _load_files(config, source, (_stamp(source), _stamp(_catalogue_file(config))))


def load_catalogue(config: PlatformConfig) -> ItemOrder:
    """Read the shared catalogue, or what was agreed on last; public, no user data is touched.

    Raises:
        DataError: if it cannot be used, or there is none yet.
        StateError: if what was agreed on is damaged.
    """
    if not catalogue_is_known(config):
        raise DataError(
            "no catalogue was agreed on yet",
            source=config.state.folder,
            found="an assortment only",
            expected="an agreement, which comes with the first run",
        )
    return _catalogue(config, _stamp(_catalogue_file(config)))


def catalogue_is_known(config: PlatformConfig) -> bool:
    """Whether the platform holds a catalogue: a file, or what was agreed on."""
    return config.catalogue.file is not None or _catalogue_file(config).exists()


def catalogue_digest(config: PlatformConfig) -> str:
    """Digest of :func:`load_catalogue`; empty before a catalogue was agreed on.

    Raises:
        DataError: if the catalogue cannot be used.
        StateError: if what was agreed on is damaged.
    """
    return load_catalogue(config).digest if catalogue_is_known(config) else ""


def _catalogue_file(config: PlatformConfig) -> Path:
    return config.catalogue.file or AgreementFiles(config.state.folder).agreed_file


@lru_cache(maxsize=_CACHED_PLATFORMS)
def _catalogue(config: PlatformConfig, _stamp: tuple[int, int]) -> ItemOrder:
    name = config.platform.name
    if config.catalogue.file is not None:
        return read_catalogue(config.catalogue.file, platforms=[name])
    agreed = AgreementFiles(config.state.folder).agreed()
    if agreed is None:
        msg = f"{config.state.folder}: no catalogue was agreed on."
        raise StateError(msg)
    return agreed.catalogue(name)


@lru_cache(maxsize=_CACHED_PLATFORMS)
def _load_files(
    config: PlatformConfig, source: Path, _stamps: tuple[tuple[int, int], ...]
) -> PlatformData:
    return _load(config, source)


def _load(config: PlatformConfig, source: Path | SqlQuery) -> PlatformData:
    catalogue = load_catalogue(config)
    table = read_table(config, source)
    name = config.platform.name
    table = table[table["item_id"].isin(catalogue.listed_ids(name))]
    users = UserItems.from_table(table, catalogue, name)
    return PlatformData(
        num_catalogue_items=catalogue.num_items,
        users_digest=digest_of([*users.user_ids, "", *catalogue.listed_ids(name)]),
        users=users,
        folds=tuple(_folds(config, table, users, catalogue)),
    )


def read_table(config: PlatformConfig, source: Path | SqlQuery) -> pd.DataFrame:
    """All interactions as the platform's columns are named, of listed items or not.

    Raises:
        DataError: if they cannot be read.
    """
    columns = Columns(
        user=config.data.user_column,
        item=config.data.item_column,
        rating=config.data.rating_column,
        time=config.data.time_column,
    )
    return read_interactions(source, columns)[0]


def _folds(
    config: PlatformConfig, table: pd.DataFrame, users: UserItems, catalogue: ItemOrder
) -> Iterator[Fold]:
    """As many folds as it takes for the wanted number of judgements, by the public population."""
    wanted, population = config.adaptation.validation_users, config.platform.population
    share = min(1.0, wanted / population)
    encode = partial(
        encode_held_out,
        user_ids=users.user_ids,
        catalogue=catalogue,
        platform=config.platform.name,
    )
    for place in range(min(_MOST_FOLDS, max(1, math.ceil(wanted / population)))):
        history, held_out = leave_last_out(
            table, seed=_SPLIT_SEED, share=share, min_kept=_MIN_KEPT, place=place
        )
        yield Fold(history=encode(history), held_out=encode(held_out))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(
            "cannot be read", source=path, found=error.strerror, expected="a readable file"
        ) from error
    return status.st_mtime_ns, status.st_size
