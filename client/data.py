"""What a platform trains on: its interactions, and what its validation users give up to judge."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from client.validation import Fold
from common.data.catalogue import Catalogue, read_catalogue
from common.data.interactions import UserItems, encode_held_out
from common.data.readers import read_interactions
from common.data.schema import Columns
from common.data.splits import leave_last_out
from common.data.sql import SqlQuery
from common.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

    from client.config import PlatformConfig

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
    """SHA-256 over the user ids in the order of rows; private vectors belong to it."""
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
    return _load_files(config, source, (_stamp(source), _stamp(config.catalogue.file)))


def load_catalogue(config: PlatformConfig) -> Catalogue:
    """Read the shared catalogue; public, no user data is touched.

    Raises:
        DataError: if it cannot be used.
    """
    return _catalogue(config.catalogue.file, config.platform.name, _stamp(config.catalogue.file))


@lru_cache(maxsize=_CACHED_PLATFORMS)
def _catalogue(file: Path, platform: str, _stamp: tuple[int, int]) -> Catalogue:
    return read_catalogue(file, platforms=[platform])


@lru_cache(maxsize=_CACHED_PLATFORMS)
def _load_files(
    config: PlatformConfig, source: Path, _stamps: tuple[tuple[int, int], ...]
) -> PlatformData:
    return _load(config, source)


def _load(config: PlatformConfig, source: Path | SqlQuery) -> PlatformData:
    catalogue = load_catalogue(config)
    columns = Columns(
        user=config.data.user_column,
        item=config.data.item_column,
        rating=config.data.rating_column,
        time=config.data.time_column,
    )
    table, _ = read_interactions(source, columns)
    name = config.platform.name
    table = table[table["item_id"].isin(catalogue.listed_ids(name))]
    users = UserItems.from_table(table, catalogue, name)
    return PlatformData(
        num_catalogue_items=catalogue.num_items,
        users_digest=hashlib.sha256("\n".join(users.user_ids).encode()).hexdigest(),
        users=users,
        folds=tuple(_folds(config, table, users, catalogue)),
    )


def _folds(
    config: PlatformConfig, table: pd.DataFrame, users: UserItems, catalogue: Catalogue
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
