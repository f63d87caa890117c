"""The platform's own record of what it spent: it decides, before data is touched.

SQLite with ``synchronous=FULL``: a reservation is on disk before training starts, and it counts as
spent from then on, whether or not a release followed. Entries are only ever appended, each one's
digest covers all before it, and every opening checks the whole chain. A file beside the database
holds the digest of the last entry, so that an older copy put in its place is found out.

What entries mean is in :mod:`common.privacy.account`; this module is the file.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, RequestRefused, StateError
from common.privacy.account import (
    GENESIS,
    MAX_DECLINES,
    Account,
    Budget,
    Entry,
    EntryKind,
    Spend,
    account_of,
    check_chain,
    entry_digest,
    grant_body,
    reserve_body,
)
from common.privacy.mechanisms import mechanism_from_dict
from common.storage import sync_folder, write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

LEDGER_FILE = "ledger.sqlite"
"""Its name in a platform's state folder."""

_APPLICATION_ID = 0x43526563  # "CRec"; tells a ledger from another program's SQLite file
_SCHEMA_VERSION = 2
_SCHEMA = (
    """CREATE TABLE entry (
        sequence INTEGER PRIMARY KEY,
        time TEXT NOT NULL,
        kind TEXT NOT NULL,
        request_id TEXT NOT NULL,
        body TEXT NOT NULL,
        digest TEXT NOT NULL
    )""",
    """CREATE UNIQUE INDEX once_per_request ON entry (kind, request_id)
        WHERE kind IN ('reserve', 'commit')""",
    """CREATE TRIGGER append_only_i BEFORE INSERT ON entry
        WHEN NEW.sequence IS NOT (SELECT COALESCE(MAX(sequence), 0) + 1 FROM entry)
            OR EXISTS (SELECT 1 FROM entry WHERE kind = NEW.kind AND request_id = NEW.request_id
                       AND kind IN ('reserve', 'commit'))
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END""",
    """CREATE TRIGGER append_only_u BEFORE UPDATE ON entry
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END""",
    """CREATE TRIGGER append_only_d BEFORE DELETE ON entry
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END""",
)
_BEFORE_ALL = -(2**63)
_LONGEST_TEXT = 1000
_COLUMN_TYPES = (int, str, str, str, str, str)

_CLOCK_TOLERANCE = timedelta(hours=1)
"""How far the clock may go back (it is being set right); the last entry's time stands meanwhile."""


def utc_now() -> str:
    """The time as entries hold it: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


class Ledger:
    """Append-only, hash-chained entries of one platform, in one SQLite file."""

    def __init__(
        self, path: Path, *, read_only: bool = False, clock: Callable[[], str] = utc_now
    ) -> None:
        """Open the ledger at ``path`` and check all of it; create it if it is not there.

        Args:
            path: the SQLite file; ``path`` with ``.head`` appended belongs to it.
            read_only: never create or change anything.
            clock: tells the time, see :func:`utc_now`.

        Raises:
            StateError: if the file cannot be opened, is no ledger, has another version, was
                changed, or is older than its head says.
        """
        self.path = path
        self._head = path.with_name(f"{path.name}.head")
        self._clock = clock
        self._last: Entry | None = None
        self._account = Account()
        try:
            if not path.exists() and not read_only:
                self._create()
            # mode=rw: SQLite would otherwise take a vanished or empty file for a fresh ledger.
            mode = "ro" if read_only else "rw"
            if read_only and not path.with_name(f"{path.name}-wal").exists():
                mode = "ro&immutable=1"  # nobody writes: leave no files beside it
            address = f"{path.absolute().as_uri()}?mode={mode}"
            self._db = sqlite3.connect(address, uri=True, isolation_level=None, timeout=10.0)
        except (sqlite3.Error, OSError) as error:
            raise self._broken(error) from error
        try:
            self._db.execute("PRAGMA synchronous=FULL")
            self._check_version(read_only=read_only)
            self._refresh()
            self._check_head(read_only=read_only)
        except sqlite3.Error as error:
            self.close()
            raise self._broken(error) from error
        except StateError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def entries(self) -> list[Entry]:
        """Every entry, oldest first; checked when the ledger was opened."""
        try:
            return list(self._read_after(_BEFORE_ALL))
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def account(self) -> Account:
        """What all entries add up to."""
        self._refresh()
        return self._account

    def now(self) -> str:
        """The time that the next entry will have: never before the last entry.

        Raises:
            StateError: if the clock went back by more than an hour.
        """
        now = self._clock()
        if self._last is None or now >= self._last.time:
            return now
        if datetime.fromisoformat(self._last.time) - datetime.fromisoformat(now) > _CLOCK_TOLERANCE:
            msg = (
                f"{self.path}: the clock says {now}, the last entry was written at "
                f"{self._last.time}. Nothing is released while time runs backwards: set the clock."
            )
            raise StateError(msg)
        return self._last.time

    def grant(self, budget: Budget, by: str) -> None:
        """Allow ``budget``: a new limit within the running period, or a new period after its end.

        Args:
            budget: what is allowed.
            by: who decided it.

        Raises:
            StateError: if more than epsilon would change within a running period.
        """
        with self._writing():
            now, held = self.now(), self._account.grant
            if held is not None and not self._account.has_ended(now):
                terms = [(b.delta, b.unit, b.period_days) for b in (held, budget)]
                if terms[0] != terms[1]:
                    msg = (
                        f"{self.path}: the granted period runs until "
                        f"{self._account.period_end() or 'the end of the federation'}; within it "
                        "only epsilon may change, not delta, unit or period."
                    )
                    raise StateError(msg)
            self._append("grant", "", grant_body(budget, by), now)
        self._write_head()

    def reserve(self, spend: Spend, budget: Budget) -> bool:
        """Charge ``spend`` durably, or refuse it; call this before touching data.

        The first reservation of a new ledger grants ``budget`` first. A request that was reserved
        before and never released is not charged again: nothing of it can have left, since a release
        is recorded before it is sent.

        Returns:
            True if the spend was recorded now, False if it already was.

        Raises:
            BudgetExhausted: if the composition with everything spent exceeds the budget.
            RequestRefused: if the same request id was used for a different request.
            StateError: if nothing is granted for today, or the ledger cannot be read or written;
                nothing may be released then.
        """
        with self._writing():
            now = self.now()
            earlier = self._account.find(spend.request_id)
            if earlier is not None:
                if earlier.request_digest == spend.request_digest:
                    self._check_still_open(earlier)
                    return False
                msg = (
                    f"{spend.description}: this request id was used before for a "
                    "different request; a release is made once and never changed."
                )
                raise RequestRefused(msg)
            if self._account.grant is None:
                self._append("grant", "", grant_body(budget, "platform.toml, at first use"), now)
            price = self._account.price(spend, budget, now)
            self._append("reserve", spend.request_id, reserve_body(spend, price), now)
        self._write_head()
        return True

    def _check_still_open(self, earlier: Spend) -> None:
        """A reservation without a release ends with its period: another budget would pay for it."""
        account = self._account
        is_over = earlier in account.spends[: account.spends_before_period]
        if is_over and earlier.request_id not in account.releases:
            msg = f"{earlier.description}: was reserved in a period that is over, and not released."
            raise RequestRefused(msg)

    def commit(self, request_id: str, sha256: str) -> None:
        """Record the one release of ``request_id``; call this before sending it.

        Raises:
            StateError: if nothing was reserved for it, or another release is recorded.
        """
        with self._writing():
            recorded = self._account.releases.get(request_id)
            if recorded == sha256:
                return
            if recorded is not None:
                msg = f"{self.path}: a different release is already recorded for this request."
                raise StateError(msg)
            if self._account.find(request_id) is None:
                msg = f"{self.path}: nothing was reserved for this release."
                raise StateError(msg)
            self._append("commit", request_id, {"sha256": sha256}, self.now())
        self._write_head()

    def confirm(self, request_id: str, sha256: str, survivors: Sequence[str]) -> None:
        """Record the one list of who is in a secure sum with this release; call before signing it.

        Two sums with the same release in them could be subtracted from each other.

        Args:
            request_id: of the release.
            sha256: of what is signed.
            survivors: platforms in the sum.

        Raises:
            RequestRefused: if another list is recorded.
            StateError: if no release is recorded.
        """
        with self._writing():
            recorded = self._account.confirmations.get(request_id)
            if recorded == sha256:
                return
            if recorded is not None:
                msg = "secagg: other survivors were confirmed for this release; there is one list."
                raise RequestRefused(msg)
            if request_id not in self._account.releases:
                msg = f"{self.path}: no release is recorded that could be in a sum."
                raise StateError(msg)
            body = {"sha256": sha256, "survivors": list(survivors)}
            self._append("confirm", request_id, body, self.now())
        self._write_head()

    def decline(self, request_id: str, reason: str) -> None:
        """Write down that a request was declined; floods and oversized texts are cut off."""
        request_id, reason = _storable(request_id), _storable(reason)
        with self._writing():
            if self._account.num_declined >= MAX_DECLINES:
                return
            self._append("decline", request_id, {"reason": reason}, self.now())
        self._write_head()

    def note(self, text: str) -> None:
        """Write down something for people."""
        with self._writing():
            self._append("note", "", {"text": _storable(text)}, self.now())
        self._write_head()

    def _append(self, kind: EntryKind, request_id: str, body: dict[str, Any], now: str) -> None:
        entry = _entry_after(self._last, kind, request_id, body, now)
        _insert(self._db, [entry])
        self._account = account_of([entry], self._account)
        self._last = entry

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction on top of everything written so far; memory follows the disk."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            before = self._last, self._account
            try:
                self._refresh()
                before = self._last, self._account
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._last, self._account = before
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _refresh(self) -> None:
        """Read what is new, and check that it continues what was checked before."""
        try:
            entries = list(self._read_after(self._last.sequence if self._last else _BEFORE_ALL))
            check_chain(entries, self._last)
            self._account = account_of(entries, self._account)
        except sqlite3.Error as error:
            raise self._broken(error) from error
        except StateError as error:
            msg = (
                f"{self.path}: {error}. Nothing is released on a ledger that is not whole: "
                "restore it from a copy, or keep this platform out."
            )
            raise StateError(msg) from error
        if entries:
            self._last = entries[-1]

    def _read_after(self, sequence: int) -> Iterator[Entry]:
        rows = self._db.execute(
            "SELECT sequence, time, kind, request_id, body, digest FROM entry "
            "WHERE sequence > ? ORDER BY sequence",
            (sequence,),
        )
        for found in rows:
            if tuple(map(type, found)) != _COLUMN_TYPES:
                msg = f"entry {found[0]} holds values of the wrong type"
                raise StateError(msg)
            number, time, kind, request_id, body, digest = found
            yield Entry(
                sequence=number,
                time=time,
                kind=kind,
                request_id=request_id,
                body=body,
                digest=digest,
            )

    def _check_version(self, *, read_only: bool) -> None:
        names = ("application_id", "user_version")
        found = tuple(self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        if found == (_APPLICATION_ID, 1) and not read_only:
            self._migrate()
        elif found != (_APPLICATION_ID, _SCHEMA_VERSION):
            msg = (
                f"{self.path}: found a file of type and version {found}, expected a CrossRec "
                f"ledger {(_APPLICATION_ID, _SCHEMA_VERSION)}. A damaged or foreign ledger is "
                "never replaced by an empty one: restore it, or keep this platform out."
            )
            raise StateError(msg)

    def _check_head(self, *, read_only: bool) -> None:
        """Refuse a ledger that ends before the entry that was written last.

        The database may be ahead by what was written just before a crash, never behind; then the
        head follows, before anything is answered. There is a head before there is a first entry.
        """
        if self._last is None and not self._head.exists():
            if not read_only:
                self._write_head()
            return
        try:
            sequence, _, digest = self._head.read_text(encoding="ascii").strip().partition(" ")
            row = (GENESIS,)
            if int(sequence) > 0:
                row = self._db.execute(
                    "SELECT digest FROM entry WHERE sequence = ?", (int(sequence),)
                ).fetchone()
        except (OSError, ValueError, OverflowError) as error:
            msg = (
                f"{self._head}: cannot be read ({error}). It shows that {self.path.name} is no "
                "older copy; restore both together, or keep this platform out."
            )
            raise StateError(msg) from error
        if row != (digest,):
            msg = (
                f"{self.path}: ends before entry {sequence}, or holds another one: an older copy "
                "was put in its place. Releases that left are not forgotten: restore the latest."
            )
            raise StateError(msg)
        if not read_only and self._last is not None and int(sequence) < self._last.sequence:
            self._write_head()

    def _write_head(self) -> None:
        sequence, digest = (self._last.sequence, self._last.digest) if self._last else (0, GENESIS)
        write_durably(self._head, f"{sequence} {digest}\n".encode("ascii"))

    def _create(self) -> None:
        """Make an empty ledger appear at the path, whole; one that is there by now stays."""
        if self._head.exists() and not self.path.exists():  # another process may be as quick
            msg = (
                f"{self.path} is missing, and {self._head.name} shows that it was there. Nothing "
                "is released on a forgotten budget: restore the ledger."
            )
            raise StateError(msg)
        folder = self.path.parent
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{self.path.name}.") as drafts:
            draft = Path(drafts) / self.path.name
            with closing(sqlite3.connect(draft, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
                for statement in _SCHEMA:
                    db.execute(statement)
            draft.chmod(0o600)
            with suppress(FileExistsError):
                os.link(draft, self.path)
        sync_folder(folder)

    def _migrate(self) -> None:
        """Carry the spends and releases of version 1 over; their times were never written down."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if self._db.execute("PRAGMA user_version").fetchone()[0] == _SCHEMA_VERSION:
                self._db.execute("ROLLBACK")  # another process was as quick
                return
            entries = _entries_of_version_1(self._db)
            last = entries[-1]
            head = f"{last.sequence} {last.digest}\n"
            if self._head.exists() and self._head.read_text(encoding="ascii") != head:
                msg = (
                    f"{self.path}: an older copy, of version 1, was put in the place of a ledger "
                    "that went on. Releases that left are not forgotten: restore the latest."
                )
                raise StateError(msg)  # noqa: TRY301
            for table in ("release", "spend"):
                self._db.execute(f"DROP TABLE {table}")
            for statement in _SCHEMA:
                self._db.execute(statement)
            _insert(self._db, entries)
            self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            # The head first: a crash before the commit migrates again, to the same entries.
            write_durably(self._head, head.encode("ascii"))
            self._db.execute("COMMIT")
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            self._db.execute("ROLLBACK")
            raise self._broken(error) from error
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def _broken(self, error: Exception) -> StateError:
        return StateError(
            f"{self.path}: the privacy ledger cannot be used ({error}). Nothing is released "
            "without it: check the disk, the permissions, and that no other process holds it."
        )


def _storable(text: str) -> str:
    """``text`` as the ledger takes it: of bounded length, and valid Unicode."""
    return text[:_LONGEST_TEXT].encode("utf-8", "backslashreplace").decode()


def _entry_after(
    last: Entry | None, kind: EntryKind, request_id: str, body: dict[str, Any], time: str
) -> Entry:
    entry = Entry(
        sequence=last.sequence + 1 if last else 1,
        time=time,
        kind=kind,
        request_id=request_id,
        body=json.dumps(body),
        digest="",
    )
    digest = entry_digest(last.digest if last else GENESIS, entry)
    return replace(entry, digest=digest)


def _insert(db: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    db.executemany(
        "INSERT INTO entry (sequence, time, kind, request_id, body, digest) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        [(e.sequence, e.time, e.kind, e.request_id, e.body, e.digest) for e in entries],
    )


def _entries_of_version_1(db: sqlite3.Connection) -> list[Entry]:
    unknown_time = "1970-01-01T00:00:00+00:00"
    lines: list[tuple[EntryKind, str, dict[str, Any]]] = [
        ("note", "", {"text": "migrated from version 1, which wrote down no times"})
    ]
    released = dict(db.execute("SELECT request_id, sha256 FROM release").fetchall())
    rows = db.execute(
        "SELECT request_id, request_digest, description, mechanism, mechanism_if_broken "
        "FROM spend ORDER BY sequence"
    )
    for request_id, digest, description, mechanism, if_broken in rows.fetchall():
        body = {
            "request_digest": digest,
            "description": description,
            "mechanism": mechanism_from_dict(json.loads(mechanism)).to_dict(),
            "mechanism_if_broken": mechanism_from_dict(json.loads(if_broken)).to_dict(),
        }
        lines.append(("reserve", request_id, body))
        if request_id in released:
            lines.append(("commit", request_id, {"sha256": released[request_id]}))
    entries: list[Entry] = []
    for kind, request_id, body in lines:
        last = entries[-1] if entries else None
        entries.append(_entry_after(last, kind, request_id, body, unknown_time))
    return entries
