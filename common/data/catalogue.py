"""The shared catalogue: which items exist, in which order, and which platform lists them.

The catalogue is a public input (an assortment feed). Its order is the index order of every
shared parameter, so platforms and server compare its digest before they exchange anything.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Catalogue:
    """Items in their shared order, and the listing of each platform.

    Attributes:
        item_ids: sorted by code point, unique; position = catalogue index.
        listings: platform name -> sorted catalogue indices of the items that it lists.
        derived: True if it was collected from interactions, which is no public input: fit
            for a simulation, and to be said in its report.
        attributes: one row per item in the order of ``item_ids`` (index ``item_id``), or None.

    Raises:
        ValueError: if ids or a listing are not sorted and unique, a listing is empty or out
            of range, or the attributes belong to other items.
    """

    item_ids: tuple[str, ...]
    listings: Mapping[str, NDArray[np.int64]]
    derived: bool
    attributes: pd.DataFrame | None = None
    _index: pd.Index[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ids = np.asarray(self.item_ids, dtype=object)
        if not len(ids) or (len(ids) > 1 and not (ids[:-1] < ids[1:]).all()):
            raise ValueError("item_ids must hold at least one id, be sorted and hold no id twice")
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
        object.__setattr__(self, "_index", pd.Index(ids))

    @property
    def num_items(self) -> int:
        """Number of items of all platforms together."""
        return len(self.item_ids)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the ordered item ids: equal digests mean equal indices."""
        text = json.dumps(self.item_ids, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def index_of(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """Return the catalogue index of each id, shape (len(item_ids),).

        Raises:
            DataError: if an id is not in the catalogue.
        """
        wanted = pd.Index(np.asarray(list(item_ids), dtype=object))
        indices = self._index.get_indexer(wanted).astype(np.int64)
        num_unknown = int((indices < 0).sum())
        if num_unknown:
            raise DataError(
                "an item is not in the catalogue",
                source="catalogue",
                found=f"{num_unknown} unknown of {len(indices)} ids",
                expected=f"ids among its {self.num_items} items",
            )
        return indices

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
            raise DataError(
                f"the catalogue lists nothing for platform {platform!r}",
                source="catalogue",
                found=f"listings of {', '.join(self.listings) or 'nobody'}",
                expected=f"rows with platform {platform}",
            )
        return self.listings[platform]


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
    """
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
