"""The platform's own record of what it spent: it decides, before data is touched.

SQLite with ``synchronous=FULL``: a reservation is on disk before training starts, and it counts
as spent from then on, whether or not a release followed. Epsilon is never stored; it is computed
from the recorded mechanisms whenever it is asked for.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import BudgetExhausted, ConfigError, RequestRefused, StateError
from common.privacy.accounting import epsilon_spent
from common.privacy.mechanisms import PrivacyUnit, SampledGaussian, mechanism_from_dict
from common.storage import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

_APPLICATION_ID = 0x43526563  # "CRec"; tells a ledger from another program's SQLite file
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE spend (
    sequence INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    request_digest TEXT NOT NULL,
    description TEXT NOT NULL,
    mechanism TEXT NOT NULL,
    mechanism_if_broken TEXT NOT NULL
);
CREATE TABLE release (
    request_id TEXT PRIMARY KEY REFERENCES spend (request_id),
    sha256 TEXT NOT NULL
);
CREATE TRIGGER spend_is_append_only_i BEFORE INSERT ON spend
    WHEN EXISTS (SELECT 1 FROM spend
                 WHERE request_id = NEW.request_id OR sequence = NEW.sequence)
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER spend_is_append_only_u BEFORE UPDATE ON spend
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER spend_is_append_only_d BEFORE DELETE ON spend
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER release_is_append_only_i BEFORE INSERT ON release
    WHEN EXISTS (SELECT 1 FROM release WHERE request_id = NEW.request_id)
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER release_is_append_only_u BEFORE UPDATE ON release
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER release_is_append_only_d BEFORE DELETE ON release
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What one privacy unit may be charged for everything that ever leaves the platform."""

    epsilon: float
    """Ceiling, > 0; infinity only where a simulation runs without privacy."""
    delta: float
    """In (0, 1)."""
    unit: PrivacyUnit = "user"
    """Privacy unit that both are stated for."""

    def __post_init__(self) -> None:
        """Refuse a budget that could never bind or never be kept."""
        if not self.epsilon > 0:
            msg = f"epsilon: found {self.epsilon}, expected a positive number."
            raise ConfigError(msg)
        if not 0 < self.delta < 1:
            msg = f"delta: found {self.delta}, expected a number in (0, 1)."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spend:
    """One reservation: a request, and the mechanism it is charged for."""

    request_id: str
    """Names the request for ever; at most one spend and one release belong to it."""
    request_digest: str
    """Hash of everything the request asked for."""
    description: str
    """For people, e.g. ``run a1b2, round 3``."""
    mechanism: SampledGaussian
    """What an observer of the release (or of the sum, under secure aggregation) faces."""
    mechanism_if_broken: SampledGaussian
    """What an observer of this platform's own release faces; equal to ``mechanism`` without
    secure aggregation."""


class Ledger:
    """Append-only spends and releases of one platform, in one SQLite file."""

    def __init__(self, path: Path) -> None:
        """Open the ledger at ``path``, or create it.

        Raises:
            StateError: if the file cannot be opened, is no ledger, or has another version.
        """
        self._path = path
        try:
            if not path.exists():
                _create(path)
            # mode=rw: SQLite would otherwise take a vanished or empty file for a fresh ledger.
            address = f"{path.absolute().as_uri()}?mode=rw"
            self._db = sqlite3.connect(address, uri=True, isolation_level=None, timeout=10.0)
        except (sqlite3.Error, OSError) as error:
            raise self._broken(error) from error
        try:
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
            found = tuple(
                self._db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("application_id", "user_version")
            )
        except sqlite3.Error as error:
            self.close()
            raise self._broken(error) from error
        if found != (_APPLICATION_ID, _SCHEMA_VERSION):
            self.close()
            msg = (
                f"{path}: found a file of type and version {found}, expected a CrossRec ledger "
                f"{(_APPLICATION_ID, _SCHEMA_VERSION)}. A damaged or foreign ledger is never "
                "replaced by an empty one: restore it, or keep this platform out."
            )
            raise StateError(msg)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def spends(self) -> list[Spend]:
        """Every spend, oldest first."""
        rows = self._query(
            "SELECT request_id, request_digest, description, mechanism, mechanism_if_broken "
            "FROM spend ORDER BY sequence"
        )
        try:
            return [
                Spend(
                    request_id=row[0],
                    request_digest=row[1],
                    description=row[2],
                    mechanism=mechanism_from_dict(json.loads(row[3])),
                    mechanism_if_broken=mechanism_from_dict(json.loads(row[4])),
                )
                for row in rows
            ]
        except (TypeError, ValueError, ConfigError) as error:
            raise self._broken(error) from error

    def release_digest(self, request_id: str) -> str | None:
        """SHA-256 of the release made for ``request_id``, or None if there is none."""
        rows = self._query("SELECT sha256 FROM release WHERE request_id = ?", request_id)
        return rows[0][0] if rows else None

    def reserve(self, spend: Spend, budget: Budget) -> bool:
        """Charge ``spend`` durably, or refuse it; call this before touching data.

        A request that was reserved before and never released is not charged again: nothing of it
        can have left, since a release is recorded before it is sent.

        Returns:
            True if the spend was recorded now, False if it already was.

        Raises:
            BudgetExhausted: if the composition with everything spent exceeds ``budget``.
            RequestRefused: if the same request id was used for a different request.
            StateError: if the ledger cannot be read or written; nothing may be released then.
        """
        if spend.mechanism.unit != budget.unit:
            msg = f"privacy unit: request says {spend.mechanism.unit!r}, budget {budget.unit!r}."
            raise RequestRefused(msg)
        try:
            with self._transaction():
                past = self.spends()
                for earlier in past:
                    if earlier.request_id == spend.request_id:
                        if earlier.request_digest == spend.request_digest:
                            return False
                        msg = (
                            f"{spend.description}: this request id was used before for a "
                            "different request; a release is made once and never changed."
                        )
                        raise RequestRefused(msg)
                everything = [*(s.mechanism for s in past), spend.mechanism]
                total = epsilon_spent(everything, budget.delta, "rdp")
                if not total <= budget.epsilon:  # RDP is quick, and looser; PRV decides
                    total = epsilon_spent(everything, budget.delta)
                if not total <= budget.epsilon:  # NaN would be refused as well
                    raise BudgetExhausted(
                        would_spend=total,
                        budget=budget.epsilon,
                        delta=budget.delta,
                        unit=budget.unit,
                        request=spend.description,
                    )
                self._db.execute(
                    "INSERT INTO spend (request_id, request_digest, description, mechanism, "
                    "mechanism_if_broken) VALUES (?, ?, ?, ?, ?)",
                    (
                        spend.request_id,
                        spend.request_digest,
                        spend.description,
                        json.dumps(spend.mechanism.to_dict()),
                        json.dumps(spend.mechanism_if_broken.to_dict()),
                    ),
                )
        except sqlite3.Error as error:
            raise self._broken(error) from error
        return True

    def commit(self, request_id: str, sha256: str) -> None:
        """Record the one release of ``request_id``; call this before sending it.

        Raises:
            StateError: if nothing was reserved for it, or another release is recorded.
        """
        recorded = self.release_digest(request_id)
        if recorded is not None:
            if recorded == sha256:
                return
            msg = f"{self._path}: a different release is already recorded for this request."
            raise StateError(msg)
        try:
            with self._transaction():
                self._db.execute(
                    "INSERT INTO release (request_id, sha256) VALUES (?, ?)", (request_id, sha256)
                )
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _query(self, sql: str, *values: str) -> list[tuple[str, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._broken(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _broken(self, error: Exception) -> StateError:
        return StateError(
            f"{self._path}: the privacy ledger cannot be used ({error}). Nothing is released "
            "without it: check the disk, the permissions, and that no other process holds it."
        )


def _create(path: Path) -> None:
    """Make an empty ledger appear at ``path``, whole; one that is there by now stays."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        with closing(sqlite3.connect(draft, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            db.executescript(_SCHEMA)
        with suppress(FileExistsError):
            os.link(draft, path)
    sync_folder(path.parent)
