"""A platform's own items, what it reports of them, and the rows that it was told for them.

The assortment is a public input: no interaction is opened to report it or to agree, and nothing is
spent. Item ids, or their hashes under a secret that only the platforms share, are all that is
reported; attributes stay. What was agreed on is the platform's catalogue until the next agreement:
items that it lists or delists meanwhile change nothing, and interactions with items that the
agreement lacks are left out.

Layout in the platform's state folder::

    catalogue/reported.safetensors    item ids in the order in which their keys were reported last
    catalogue/agreed.safetensors      item ids and their catalogue rows: the platform's catalogue
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.data.agreement import pack_keys, unpack_keys
from common.data.catalogue import PlatformCatalogue, digest_of, read_catalogue
from common.errors import ConfigError, InvalidRelease, RequestRefused, StateError
from common.storage import pack_arrays, read_arrays, write_durably

if TYPE_CHECKING:
    from pathlib import Path

    from client.config import CatalogueSection
    from common.messages import Agreement
    from common.models.partition import Arrays

log = logging.getLogger(__name__)

_SECRET = re.compile(r"(?:[0-9a-fA-F]{2}){32,}")
_FACTS = ("assortment_digest", "origin", "version", "catalogue_digest", "num_items")


@dataclass(frozen=True, kw_only=True, slots=True)
class Assortment:
    """What a platform lists."""

    keys: tuple[str, ...]
    """What is reported, increasing."""
    item_ids: tuple[str, ...]
    """The item of each key; known to the platform only where keys are hashes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AgreedRows:
    """What a platform was told."""

    item_ids: tuple[str, ...]
    """In the order in which their keys were reported."""
    rows: np.ndarray
    """[n] int64, the catalogue row of each."""
    assortment_digest: str
    """SHA-256 of the keys."""
    origin: str
    """SHA-256 of the first version of the catalogue."""
    version: int
    """Version of the catalogue."""
    catalogue_digest: str
    """SHA-256 of this version."""
    num_items: int
    """Items of all platforms."""

    def catalogue(self, platform: str) -> PlatformCatalogue:
        """The platform's part of the catalogue.

        Raises:
            ValueError: if the rows are not those of different items of it.
        """
        order = np.argsort(self.rows)
        return PlatformCatalogue(
            platform=platform,
            item_ids=tuple(self.item_ids[place] for place in order),
            rows=self.rows[order],
            num_items=self.num_items,
            digest=self.catalogue_digest,
        )


def read_assortment(section: CatalogueSection, platform: str) -> Assortment:
    """Read the platform's items, and the secret if there is one; no user data is touched.

    Raises:
        ConfigError: if the secret cannot be used.
        DataError: if the file of items cannot be.
        RequestRefused: if the platform holds a whole catalogue and has no file of its own items.
    """
    if section.assortment is None:
        msg = "catalogue: this platform holds a catalogue file and reports no assortment."
        raise RequestRefused(msg)
    item_ids = read_catalogue(section.assortment, platforms=[platform]).listed_ids(platform)
    if section.key_file is None:
        return Assortment(keys=item_ids, item_ids=item_ids)
    secret = _read_secret(section.key_file)
    # In the order of the hashes: that of the ids would tell something of them.
    pairs = sorted((keyed_hash(secret, item), item) for item in item_ids)
    return Assortment(keys=tuple(k for k, _ in pairs), item_ids=tuple(i for _, i in pairs))


def keyed_hash(secret: bytes, item_id: str) -> str:
    """HMAC-SHA256 (hex) of an item id.

    Guarantee: without ``secret`` the hash tells nothing but whether two ids are equal.
    Source: RFC 2104; a pseudorandom function by Bellare 2006, "New Proofs for NMAC and HMAC".
    """
    return hmac.new(secret, item_id.encode(), hashlib.sha256).hexdigest()


class AgreementFiles:
    """Reads and writes the folder; the platform's state guards that one process writes."""

    def __init__(self, state_folder: Path) -> None:
        """Name the folder; nothing is read yet."""
        self._reported = state_folder / "catalogue/reported.safetensors"
        self._agreed = state_folder / "catalogue/agreed.safetensors"

    @property
    def agreed_file(self) -> Path:
        """What :meth:`agreed` reads; missing before the first agreement."""
        return self._agreed

    def keep_report(self, assortment: Assortment) -> None:
        """Remember whose keys are reported, for rows come back in their order.

        Raises:
            StateError: if it cannot be written.
        """
        facts = {"assortment_digest": digest_of(assortment.keys)}
        write_durably(self._reported, pack_arrays(pack_keys(assortment.item_ids), facts))

    def agreed(self) -> AgreedRows | None:
        """What was agreed on last, or None.

        Raises:
            StateError: if the file is damaged.
        """
        if not self._agreed.exists():
            return None
        arrays, facts = read_arrays(self._agreed)
        try:
            rows = arrays.pop("rows")
            item_ids = unpack_keys(arrays)
            return AgreedRows(
                item_ids=item_ids,
                rows=rows,
                assortment_digest=facts["assortment_digest"],
                origin=facts["origin"],
                version=int(facts["version"]),
                catalogue_digest=facts["catalogue_digest"],
                num_items=int(facts["num_items"]),
            )
        except (InvalidRelease, KeyError, TypeError, ValueError) as error:
            msg = f"{self._agreed}: is no agreement on a catalogue ({error})."
            raise StateError(msg) from error

    def agree(self, request: Agreement, arrays: Arrays) -> None:
        """Make rows that the server sent the platform's catalogue; the same again changes nothing.

        Raises:
            RequestRefused: if they are not one row of the catalogue for each key that this platform
                reported, or one of its items has had another row in a catalogue of this origin.
            StateError: if a file is damaged, or cannot be written.
        """
        before = self.agreed()
        item_ids = self._items_of(request.assortment_digest, before)
        rows = _check_rows(arrays, len(item_ids), request.num_items)
        if before is not None and before.origin != request.origin:
            log.warning("the server started another catalogue; rows of version 1 on may differ")
        elif before is not None:
            known = dict(zip(before.item_ids, before.rows.tolist(), strict=True))
            rows_of = zip(item_ids, rows.tolist(), strict=True)
            num_moved = sum(known.get(item, row) != row for item, row in rows_of)
            if num_moved:
                msg = (
                    f"catalogue: {num_moved} items have other rows than in version "
                    f"{before.version} of the same catalogue; rows never move."
                )
                raise RequestRefused(msg)
        facts = {name: str(getattr(request, name)) for name in _FACTS}
        write_durably(self._agreed, pack_arrays({**pack_keys(item_ids), "rows": rows}, facts))

    def _items_of(self, assortment_digest: str, before: AgreedRows | None) -> tuple[str, ...]:
        if before is not None and before.assortment_digest == assortment_digest:
            return before.item_ids
        if self._reported.exists():
            arrays, facts = read_arrays(self._reported)
            if facts.get("assortment_digest") == assortment_digest:
                try:
                    return unpack_keys(arrays)
                except InvalidRelease as error:
                    msg = f"{self._reported}: is no report ({error})."
                    raise StateError(msg) from error
        msg = "catalogue: the rows belong to items that this platform did not report last."
        raise RequestRefused(msg)


def _check_rows(arrays: Arrays, num_keys: int, num_items: int) -> np.ndarray:
    rows = arrays.get("rows")
    if set(arrays) != {"rows"} or rows is None or rows.dtype != np.int64:
        msg = f"catalogue: found arrays {sorted(arrays)}, expected int64 rows."
        raise RequestRefused(msg)
    if rows.shape != (num_keys,) or len(np.unique(rows)) < num_keys:
        msg = f"catalogue: expected one row for each of {num_keys} items, none twice."
        raise RequestRefused(msg)
    if rows.min() < 0 or rows.max() >= num_items:
        msg = f"catalogue: expected rows of {num_items} items."
        raise RequestRefused(msg)
    return rows


def _read_secret(path: Path) -> bytes:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"catalogue.key_file: {path} cannot be read ({type(error).__name__})."
        raise ConfigError(msg) from error
    if not _SECRET.fullmatch(text):
        msg = f"catalogue.key_file: {path} must hold 64 or more hexadecimal digits, and only these."
        raise ConfigError(msg)
    return bytes.fromhex(text)
