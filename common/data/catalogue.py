"""The shared catalogue: which items exist, in which order, and which platform lists them.

The catalogue is a public input (an assortment feed). Its order is the index order of every
shared parameter, so platforms and server compare its digest before they exchange anything.
Everybody reads it from the same file, or it is agreed on (:mod:`common.data.agreement`): then a
platform holds a :class:`PlatformCatalogue`, its own part.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import pandas as pd

from common.data.schema import SPELLINGS, plain_name
from common.data.tables import check_header, read_raw
from common.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from common.data.schema import PlatformTable

_PLATFORM_SPELLINGS: Final = ("platform", "platformid", "shop", "shopid", "market", "marketid")


class ItemOrder(Protocol):
    """What reading a platform's data needs of a catalogue: the rows of its items."""

    @property
    def num_items(self) -> int:
        """Number of items of all platforms together."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the ordered items: equal digests mean equal indices."""

    def index_of(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """The catalogue index of each id."""

    def listed_ids(self, platform: str) -> tuple[str, ...]:
        """The ids that ``platform`` lists, in the order of its listing."""

    def listing(self, platform: str) -> NDArray[np.int64]:
        """The sorted catalogue indices that ``platform`` lists."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Catalogue:
    """Items in their shared order, and the listing of each platform.

    Attributes:
        item_ids: unique; position = catalogue index. A catalogue from a file is sorted by code
            point, one that was agreed on grows at its end.
        listings: platform name -> sorted catalogue indices of the items that it lists.
        derived: True if it was collected from interactions, which is no public input: fit
            for a simulation, and to be said in its report.
        attributes: one row per item in the order of ``item_ids`` (index ``item_id``), or None.

    Raises:
        ValueError: if an id is there twice, a listing is not sorted, empty or out of range, or the
            attributes belong to other items.
    """

    item_ids: tuple[str, ...]
    listings: Mapping[str, NDArray[np.int64]]
    derived: bool
    attributes: pd.DataFrame | None = None
    _index: pd.Index[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ids = pd.Index(np.asarray(self.item_ids, dtype=object))
        if not len(ids) or not ids.is_unique:
            raise ValueError("item_ids must hold at least one id, and no id twice")
        listings: dict[str, NDArray[np.int64]] = {}
        for platform, listing in self.listings.items():
            indices = np.array(listing, dtype=np.int64)
            is_sorted = (np.diff(indices) > 0).all()
            if not len(indices) or not is_sorted or indices[0] < 0 or indices[-1] >= len(ids):
                raise ValueError(
                    f"the listing of {platform!r} must be sorted indices into item_ids, not empty"
                )
            indices.flags.writeable = False
            listings[platform] = indices
        if self.attributes is not None and tuple(self.attributes.index) != self.item_ids:
            raise ValueError("attributes must have item_ids as their index")
        object.__setattr__(self, "listings", listings)
        object.__setattr__(self, "_index", ids)

    @property
    def num_items(self) -> int:
        """Number of items of all platforms together."""
        return len(self.item_ids)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the ordered item ids: equal digests mean equal indices."""
        return digest_of(self.item_ids)

    def index_of(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """Return the catalogue index of each id, shape (len(item_ids),).

        Raises:
            DataError: if an id is not in the catalogue.
        """
        return _places_in(self._index, item_ids)

    def listed_ids(self, platform: str) -> tuple[str, ...]:
        """The ids that ``platform`` lists, in the order of its local item indices.

        Raises:
            DataError: if the catalogue does not know the platform.
        """
        return tuple(self.item_ids[k] for k in self.listing(platform))

    def listing(self, platform: str) -> NDArray[np.int64]:
        """The sorted catalogue indices that ``platform`` lists.

        Raises:
            DataError: if the catalogue does not know the platform.
        """
        if platform not in self.listings:
            raise _unlisted(platform, self.listings)
        return self.listings[platform]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlatformCatalogue:
    """One platform's part of a catalogue whose other items it does not know.

    Attributes:
        platform: whose part.
        item_ids: its items, unique.
        rows: shape (len(item_ids),), increasing: their catalogue indices.
        num_items: size of the whole catalogue.
        digest: of the whole catalogue, as the server gave it.

    Raises:
        ValueError: if the rows are not one for each item, increasing and in range.
    """

    platform: str
    item_ids: tuple[str, ...]
    rows: NDArray[np.int64]
    num_items: int
    digest: str
    _index: pd.Index[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = np.array(self.rows, dtype=np.int64)
        ids = pd.Index(np.asarray(self.item_ids, dtype=object))
        is_rising = rows.shape == (len(ids),) and (np.diff(rows) > 0).all()
        if not len(ids) or not ids.is_unique or not is_rising:
            raise ValueError("rows must increase, one for each of at least one item")
        if rows[0] < 0 or rows[-1] >= self.num_items:
            raise ValueError(f"rows must be those of a catalogue of {self.num_items} items")
        rows.flags.writeable = False
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "_index", ids)

    def index_of(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """Return the catalogue index of each of the platform's ids, shape (len(item_ids),).

        Raises:
            DataError: if an id is not one of the platform's.
        """
        return self.rows[_places_in(self._index, item_ids)]

    def listed_ids(self, platform: str) -> tuple[str, ...]:
        """The platform's ids, in the order of its local item indices.

        Raises:
            DataError: if it is another platform's part.
        """
        self.listing(platform)
        return self.item_ids

    def listing(self, platform: str) -> NDArray[np.int64]:
        """The sorted catalogue indices that the platform lists.

        Raises:
            DataError: if it is another platform's part.
        """
        if platform != self.platform:
            raise _unlisted(platform, [self.platform])
        return self.rows


def digest_of(item_ids: Sequence[str]) -> str:
    """SHA-256 (hex) of ordered ids, borders included."""
    text = json.dumps(list(item_ids), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def derive_catalogue(tables: Sequence[PlatformTable]) -> Catalogue:
    """Collect a catalogue from what was interacted with or held out (``derived=True``).

    A platform lists the items of its own interactions and of its own held-out pairs.
    """
    listed = {
        table.name: pd.unique(
            pd.concat(
                [
                    table.interactions["item_id"],
                    *([] if table.held_out is None else [table.held_out["item_id"]]),
                ]
            )
        )
        for table in tables
    }
    item_ids = tuple(sorted({item for items in listed.values() for item in items}))
    index = pd.Index(np.asarray(item_ids, dtype=object))
    listings = {
        name: np.sort(index.get_indexer(pd.Index(np.asarray(items, dtype=object))))
        for name, items in listed.items()
    }
    return Catalogue(
        item_ids=item_ids,
        listings={name: listing.astype(np.int64) for name, listing in listings.items()},
        derived=True,
    )


def read_catalogue(path: Path, *, platforms: Sequence[str]) -> Catalogue:
    """Read a public catalogue: one row per listing.

    Columns: ``item_id`` (or a usual spelling), ``platform`` where platforms list different
    items (without it all of ``platforms`` list everything; a blank cell means that nobody
    lists the item yet), and any attributes. An item's attributes are those of its first row.

    Args:
        path: CSV, TSV or Parquet, plain or gzipped.
        platforms: the platforms that need a listing; others in the file are kept as well.

    Raises:
        DataError: if the file is unreadable, an item id is missing, or a platform lists
            nothing.
    """
    raw = read_raw(path, num_recognised=lambda names: sum(k is not None for k in _places(names)))
    item_at, platform_at = _places(raw.names)
    if item_at is None:
        check_header(raw)
        raise DataError(
            "the item column is missing",
            source=path,
            found=f"columns {', '.join(raw.names)}",
            expected="a column item_id (and optionally platform and attributes)",
        )
    ids = raw.ids(item_at, "item")
    item_ids = tuple(sorted(pd.unique(ids)))
    indices = pd.Index(np.asarray(item_ids, dtype=object)).get_indexer(ids.astype(object))
    listings: dict[str, NDArray[np.int64]]
    if platform_at is None:
        listings = {name: np.arange(len(item_ids), dtype=np.int64) for name in platforms}
    else:
        names = raw.text(platform_at).fillna("").str.strip()
        listings = {
            str(name): np.unique(indices[(names == name).to_numpy()]).astype(np.int64)
            for name in sorted(pd.unique(names))
            if name
        }
    for name in platforms:
        if name not in listings:
            raise DataError(
                f"the catalogue lists nothing for platform {name!r}",
                source=path,
                found=f"listings of {', '.join(listings) or 'nobody'}",
                expected=f"rows with platform {name}",
                column=None if platform_at is None else raw.names[platform_at],
            )
    kept = [k for k in range(len(raw.names)) if k not in (item_at, platform_at)]
    attributes = None
    if kept:
        attributes = pd.DataFrame({raw.names[k]: _typed(raw.column(k)) for k in kept}).set_axis(
            pd.Index(ids.to_numpy(dtype=object), name="item_id"), axis=0
        )
        attributes = attributes.loc[~attributes.index.duplicated()].loc[list(item_ids)]
    return Catalogue(item_ids=item_ids, listings=listings, derived=False, attributes=attributes)


def write_catalogue(catalogue: Catalogue, path: Path) -> None:
    """Write ``catalogue`` as CSV, one row per listing, so that reading it gives it back.

    ``derived`` is not part of the file: what is read from a file is a given catalogue.

    Raises:
        ValueError: if the items are not sorted: reading would sort them.
    """
    if list(catalogue.item_ids) != sorted(catalogue.item_ids):
        raise ValueError("a catalogue whose items are not sorted would be read in another order")
    rows = [
        pd.DataFrame({"index": listing, "platform": name})
        for name, listing in catalogue.listings.items()
    ]
    listed = np.unique(np.concatenate(list(catalogue.listings.values()) or [np.empty(0, int)]))
    nobody = np.setdiff1d(np.arange(catalogue.num_items), listed)
    table = pd.concat([*rows, pd.DataFrame({"index": nobody, "platform": ""})])
    table = table.sort_values(["index", "platform"], ignore_index=True)
    ids = np.asarray(catalogue.item_ids, dtype=object)
    table.insert(0, "item_id", ids[table["index"].to_numpy(dtype=np.int64)])
    if catalogue.attributes is not None:
        rows_of = catalogue.attributes.iloc[table["index"].to_numpy(dtype=np.int64)]
        table = pd.concat([table, rows_of.reset_index(drop=True)], axis=1)
    table.drop(columns="index").to_csv(path, index=False, lineterminator="\n")


def _places_in(index: pd.Index[str], item_ids: Iterable[str]) -> NDArray[np.int64]:
    wanted = pd.Index(np.asarray(list(item_ids), dtype=object))
    places = index.get_indexer(wanted).astype(np.int64)
    num_unknown = int((places < 0).sum())
    if num_unknown:
        raise DataError(
            "an item is not in the catalogue",
            source="catalogue",
            found=f"{num_unknown} unknown of {len(places)} ids",
            expected=f"ids among its {len(index)} items",
        )
    return places


def _unlisted(platform: str, listed: Iterable[str]) -> DataError:
    return DataError(
        f"the catalogue lists nothing for platform {platform!r}",
        source="catalogue",
        found=f"listings of {', '.join(listed) or 'nobody'}",
        expected=f"rows with platform {platform}",
    )


def _places(names: Sequence[str]) -> tuple[int | None, int | None]:
    """Positions of the item and the platform column."""
    plain = [plain_name(name) for name in names]
    item = next((plain.index(s) for s in SPELLINGS["item"] if s in plain), None)
    platform = next((plain.index(s) for s in _PLATFORM_SPELLINGS if s in plain), None)
    return item, platform


def _typed(values: pd.Series) -> pd.Series:
    """An attribute as numbers or booleans where every cell that is filled is one."""
    if not isinstance(values.dtype, pd.StringDtype):
        return values
    text = values.str.strip()
    is_blank = text == ""
    if is_blank.all():
        return values
    if text.str.lower().isin(["true", "false"]).all():
        return text.str.lower() == "true"
    numbers = pd.to_numeric(text.mask(is_blank), errors="coerce")
    return numbers if numbers.notna().eq(~is_blank).all() else values
