"""What a platform trains on: its interactions, less what its validation users gave up."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from common.data.catalogue import Catalogue, read_catalogue
from common.data.interactions import UserItems, encode_held_out
from common.data.readers import read_interactions
from common.data.schema import Columns
from common.data.splits import leave_last_out
from common.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from scipy.sparse import csr_matrix

    from client.config import PlatformConfig

_CACHED_PLATFORMS = 16
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
    """Interactions to fit; users are rows, listed items are columns."""
    validation: csr_matrix
    """Same shape: held-out items of the validation users."""


def load_platform_data(config: PlatformConfig) -> PlatformData:
    """Read a platform's data as ``platform.toml`` says; cached until a file changes.

    A user's row depends on her own interactions only: whether she is a validation user, and what
    she gives up, does not change when others join or leave.

    Raises:
        DataError: if the source or the catalogue cannot be used.
    """
    stamps = (_stamp(config.data.source), _stamp(config.catalogue.file))
    return _load(config, stamps)


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
def _load(config: PlatformConfig, _stamps: tuple[tuple[int, int], ...]) -> PlatformData:
    catalogue = load_catalogue(config)
    columns = Columns(
        user=config.data.user_column,
        item=config.data.item_column,
        rating=config.data.rating_column,
        time=config.data.time_column,
    )
    table, _ = read_interactions(config.data.source, columns)
    name = config.platform.name
    table = table[table["item_id"].isin(catalogue.listed_ids(name))]
    share = min(1.0, config.adaptation.validation_users / config.platform.population)
    fit, validation = leave_last_out(table, seed=_SPLIT_SEED, share=share, min_kept=2)
    users = UserItems.from_table(fit, catalogue, name)
    return PlatformData(
        num_catalogue_items=catalogue.num_items,
        users_digest=hashlib.sha256("\n".join(users.user_ids).encode()).hexdigest(),
        users=users,
        validation=encode_held_out(
            validation, user_ids=users.user_ids, catalogue=catalogue, platform=name
        ),
    )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(
            "cannot be read", source=path, found=error.strerror, expected="a readable file"
        ) from error
    return status.st_mtime_ns, status.st_size
