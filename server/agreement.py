"""Agreeing on a catalogue with the platforms of a run: ask, extend, write down, tell.

What is said and who learns what stands in :mod:`common.data.agreement`. A run keeps the catalogue
of its start: it is written into the run's folder before anybody is told, and a resumed run asks
nobody again. A platform that was not there then, or whose report was refused, is left out of
this run and reports in the next one. Items that a platform lists or delists meanwhile wait for it,
too.

What was agreed on last lies beside the runs, ``agreed-catalogue.safetensors`` in the state folder,
where the next run finds it: it appends new items and moves none. A delisted item keeps its row; it
is no longer in its platform's listing. One run at a time may start from it, and without the file
the next run starts another catalogue.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message

from common.data.agreement import (
    MAX_ITEMS,
    MAX_KEY_BYTES,
    check_assortment,
    extend_catalogue,
    pack_keys,
    unpack_keys,
)
from common.data.catalogue import Catalogue, digest_of
from common.errors import InvalidRelease, RunFailed, StateError
from common.messages import AGREEMENT, ASSORTMENT, Agreement, AssortmentRequest
from common.storage import pack_arrays, read_arrays, write_durably
from common.wire import encode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from server.config import FederationConfig
    from server.exchange import Exchange
    from server.journal import Journal

log = logging.getLogger(__name__)

_LISTING = "listing/"
"""What the names of listings begin with in a file; the platform follows."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AgreedCatalogue:
    """A version of the catalogue."""

    catalogue: Catalogue
    """Keys as ids, and the listing of each platform that reported."""
    origin: str
    """SHA-256 of the first version: extending never changes it."""
    version: int
    """Counts from 1; a report without new items makes no new one."""


def next_version(
    last: AgreedCatalogue | None, reports: Mapping[str, tuple[str, ...]]
) -> AgreedCatalogue:
    """The catalogue after ``reports``: keys of each platform.

    Guarantee: no row of ``last`` moves; it does not matter in which order platforms reported.
    """
    known = () if last is None else last.catalogue.item_ids
    item_ids = extend_catalogue(known, reports.values())
    rows = {key: row for row, key in enumerate(item_ids)}
    listings = {
        name: np.sort(np.array([rows[key] for key in keys], dtype=np.int64))
        for name, keys in sorted(reports.items())
    }
    catalogue = Catalogue(item_ids=item_ids, listings=listings, derived=False)
    if last is None:
        return AgreedCatalogue(catalogue=catalogue, origin=catalogue.digest, version=1)
    version = last.version + (len(item_ids) > len(known))
    return AgreedCatalogue(catalogue=catalogue, origin=last.origin, version=version)


class CatalogueAgreement:
    """Agrees with platforms on the catalogue of one run."""

    def __init__(self, config: FederationConfig, exchange: Exchange, journal: Journal) -> None:
        """Name the places; nothing is read or asked yet."""
        self._run_id = config.federation.run_id
        self._quorum = config.federation.quorum
        self._max_items = config.catalogue.max_items
        self._own = config.run_folder / "catalogue.safetensors"
        self._last = config.state.folder / "agreed-catalogue.safetensors"
        self._exchange = exchange
        self._journal = journal

    def settle(self, nodes: Mapping[str, int]) -> tuple[Catalogue, list[str]]:
        """The run's catalogue, and the platforms that confirmed that they hold it, sorted.

        Args:
            nodes: address of each platform that is there.

        Raises:
            RunFailed: if fewer platforms than the quorum report, or confirm.
            StateError: if a file is damaged, of another run, or cannot be written.
        """
        agreed = self._load_own() or self._ask(nodes)
        for name in sorted(nodes.keys() - agreed.catalogue.listings.keys()):
            log.warning("%s did not report its items when the run began; it is left out", name)
        return agreed.catalogue, self._tell(agreed, nodes)

    def _load_own(self) -> AgreedCatalogue | None:
        if not self._own.exists():
            made = sorted(path.name for path in self._own.parent.glob("*.safetensors"))
            if made:
                msg = f"{self._own} is missing beside {made}, whose rows it says; restore it."
                raise StateError(msg)
            return None
        agreed, run_id = _load(self._own)
        if run_id != self._run_id:
            msg = f"{self._own}: belongs to run {run_id!r}, expected {self._run_id!r}."
            raise StateError(msg)
        return agreed

    def _ask(self, nodes: Mapping[str, int]) -> AgreedCatalogue:
        messages: dict[str, Message] = {}
        for name, node in nodes.items():
            request = AssortmentRequest(
                run_id=self._run_id, platform=name, max_items=self._max_items
            )
            messages[name] = Message(encode(request), node, ASSORTMENT)
        reports: dict[str, tuple[str, ...]] = {}
        for name, keys, outcome in self._exchange.ask(
            messages,
            number=0,
            wanted="listed",
            check=lambda _, arrays: check_assortment(arrays, max_items=self._max_items),
            max_bytes=self._max_items * (MAX_KEY_BYTES + 8),
        ):
            if keys is not None:
                reports[name] = unpack_keys(keys)
            size = len(reports.get(name, ()))
            self._journal.write("assortment", platform=name, outcome=outcome, items=size)
        self._check_quorum("reported their items", reports)
        last = _load(self._last)[0] if self._last.exists() else None
        agreed = next_version(last, reports)
        if agreed.catalogue.num_items > MAX_ITEMS:
            msg = f"the catalogue has {agreed.catalogue.num_items} items, at most {MAX_ITEMS} fit."
            raise RunFailed(msg)
        content = _pack(agreed, self._run_id)
        # First where the next run looks: a crash in between asks again and extends the same.
        write_durably(self._last, content)
        write_durably(self._own, content)
        known = 0 if last is None else last.catalogue.num_items
        self._journal.write(
            "catalogue-agreed",
            version=agreed.version,
            digest=agreed.catalogue.digest,
            items=agreed.catalogue.num_items,
            new_items=agreed.catalogue.num_items - known,
        )
        return agreed

    def _tell(self, agreed: AgreedCatalogue, nodes: Mapping[str, int]) -> list[str]:
        catalogue, digest = agreed.catalogue, agreed.catalogue.digest
        messages: dict[str, Message] = {}
        for name in sorted(nodes.keys() & catalogue.listings.keys()):
            keys = sorted(catalogue.listed_ids(name))  # as they were reported
            request = Agreement(
                run_id=self._run_id,
                platform=name,
                assortment_digest=digest_of(keys),
                origin=agreed.origin,
                version=agreed.version,
                catalogue_digest=digest,
                num_items=catalogue.num_items,
            )
            rows = {"rows": catalogue.index_of(keys)}
            messages[name] = Message(encode(request, rows), nodes[name], AGREEMENT)
        held_by: list[str] = []
        for name, _, outcome in self._exchange.ask(messages, number=0, wanted="agreed"):
            self._journal.write("catalogue-told", platform=name, outcome=outcome)
            if outcome == "agreed":
                held_by.append(name)
        self._check_quorum("hold the catalogue", held_by)
        return sorted(held_by)

    def _check_quorum(self, what: str, names: Mapping[str, object] | list[str]) -> None:
        if len(names) < self._quorum:
            msg = (
                f"{len(names)} platforms {what}, the quorum is {self._quorum}; see the journal for "
                "each platform's reason, then start the same run again."
            )
            raise RunFailed(msg)


def _pack(agreed: AgreedCatalogue, run_id: str) -> bytes:
    catalogue = agreed.catalogue
    arrays = {f"{_LISTING}{name}": rows for name, rows in catalogue.listings.items()}
    facts = {
        "run": run_id,
        "origin": agreed.origin,
        "version": str(agreed.version),
        "digest": catalogue.digest,
    }
    return pack_arrays({**pack_keys(catalogue.item_ids), **arrays}, facts)


def _load(path: Path) -> tuple[AgreedCatalogue, str]:
    """What was agreed on, and the run that wrote it.

    Raises:
        StateError: if the file is damaged, or its items are not those that were agreed on.
    """
    arrays, facts = read_arrays(path)
    listings = {k.removeprefix(_LISTING): v for k, v in arrays.items() if k.startswith(_LISTING)}
    try:
        keys = unpack_keys({k: v for k, v in arrays.items() if not k.startswith(_LISTING)})
        catalogue = Catalogue(item_ids=keys, listings=listings, derived=False)
        if catalogue.digest != facts["digest"]:
            raise ValueError("its items are not those of its digest")  # noqa: TRY301
        agreed = AgreedCatalogue(
            catalogue=catalogue, origin=facts["origin"], version=int(facts["version"])
        )
        return agreed, facts["run"]
    except (InvalidRelease, KeyError, ValueError) as error:
        msg = f"{path}: is no catalogue that was agreed on ({error})."
        raise StateError(msg) from error
