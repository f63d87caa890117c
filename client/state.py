"""A platform's state on disk: ledger, releases kept for replay, private vectors, models.

Layout of the folder::

    ledger.sqlite                   grants, spends and releases
    ledger.sqlite.head              digest of its last entry: shows an older copy put in its place
    lock                            held by the one process that works for the platform
    training.txt                    there from the first touch of data to the recorded release
    stopped.txt                     why the platform stopped answering; delete it to go on
    releases/<hash>.safetensors     latest releases, and the latest run's sums, byte for byte
    secagg/<hash>.json              secrets of the secure sum that the release of that name is in
    private/<hash>.safetensors      user vectors after the round of the same name
    model/                          what the platform scores with, see :mod:`client.model_files`
    catalogue/                      what was agreed on, if anything: :mod:`client.assortment`

Private vectors of a round become current only when the ledger has recorded its release, so a
crash at any point leaves the state of the round before or of the round after.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, get_args

import torch

from client.assortment import AgreementFiles
from client.model_files import ModelFiles
from client.secure_sum import SessionFiles
from common.errors import RequestRefused, StateError
from common.locks import FileLock
from common.models.partition import SumQuantity
from common.privacy.ledger import LEDGER_FILE, Ledger, utc_now
from common.storage import (
    pack_arrays,
    read_arrays,
    read_content,
    sha256,
    unpack_arrays,
    write_durably,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from client.user_vectors import UserVectors
    from common.models.partition import Arrays

STOPPED_FILE = "stopped.txt"
_TRAINING_FILE = "training.txt"
_HANDOVERS_FILE = "handovers.txt"
MOST_HANDOVERS_A_DAY = 20
_KILLS_FILE = "kills.txt"
_MOST_KILLS = 10
_TRACES = ("releases", "private", "model")
_VECTORS = ("values", "first_moment", "second_moment", "num_steps")


class PlatformState:
    """Reads and writes the folder; one instance per request."""

    def __init__(self, folder: Path, keep_releases: int) -> None:
        """Open ``folder``, creating it and its ledger if needed.

        Raises:
            StateError: if it cannot be used.
        """
        self._folder = folder
        self._keep_releases = keep_releases
        self.models = ModelFiles(folder / "model")
        self.catalogue = AgreementFiles(folder)
        self.sessions = SessionFiles(folder / "secagg")
        ledger = folder / LEDGER_FILE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            msg = f"{folder}: cannot be used ({error.strerror})."
            raise StateError(msg) from error
        busy = "another process works for this platform; stop one of the two."
        self._lock = FileLock(folder / "lock", busy=busy)
        try:
            if not ledger.exists() and any((folder / name).exists() for name in _TRACES):
                msg = (
                    f"{ledger} is missing, and {folder} shows that releases were made. Nothing is "
                    "released on a forgotten budget: restore the ledger."
                )
                raise StateError(msg)  # noqa: TRY301
            self._remove_drafts()
            self.ledger = Ledger(ledger)
        except OSError as error:
            self._lock.close()
            msg = f"{folder}: cannot be used ({error.strerror})."
            raise StateError(msg) from error
        except BaseException:
            self._lock.close()
            raise

    def _remove_drafts(self) -> None:
        """Files that a killed process left half written; they may hold users' vectors."""
        for draft in (*self._folder.glob("*.part"), *self._folder.glob("*/*.part")):
            with suppress(OSError):
                draft.unlink()
        for draft in self._folder.glob(f".{LEDGER_FILE}.*"):
            shutil.rmtree(draft, ignore_errors=True)

    def close(self) -> None:
        """Close the ledger and let the next process in."""
        self.ledger.close()
        self._lock.close()

    def store_release(
        self,
        request_id: str,
        release: Arrays,
        vectors: UserVectors | None = None,
        user_ids: Sequence[str] = (),
    ) -> None:
        """Put a release, and a round's private vectors, on disk; then record it."""
        if vectors is not None:
            private = {name: getattr(vectors, name).numpy() for name in _VECTORS}
            content = pack_arrays(private, {"users": json.dumps(user_ids)})
            write_durably(self._file("private", request_id), content)
        content = pack_arrays(release, {"request": request_id})
        write_durably(self._file("releases", request_id), content)
        self.ledger.commit(request_id, sha256(content))
        self._forget_old()
        self.finish_training()

    def load_release(self, request_id: str) -> Arrays | None:
        """The release recorded for ``request_id``, or None if none was made.

        Raises:
            StateError: if it is no longer kept, or the file is not what was recorded.
        """
        digest = self.ledger.account().releases.get(request_id)
        if digest is None:
            return None
        path = self._file("releases", request_id)
        if not path.exists():
            msg = f"{path}: this release was made and is no longer kept; it is not made again."
            raise StateError(msg)
        content = read_content(path)
        arrays, _ = unpack_arrays(content, path)
        if sha256(content) != digest:
            msg = f"{path}: differs from the release that the ledger recorded; it is not sent."
            raise StateError(msg)
        return arrays

    def load_vectors(self, run_id: str, user_ids: Sequence[str], fresh: UserVectors) -> UserVectors:
        """Private vectors after the run's last recorded release, one row for each of ``user_ids``.

        A user who was not there before gets her row of ``fresh``, and everyone else keeps hers:
        who joins or leaves changes nothing for the others.

        Raises:
            StateError: if the file is damaged.
        """
        account = self.ledger.account()
        for spend in reversed(account.spends):
            if not spend.request_id.startswith(run_id + "/"):
                continue
            path = self._file("private", spend.request_id)
            if spend.request_id not in account.releases or not path.exists():
                continue
            arrays, metadata = read_arrays(path)
            if arrays["values"].shape[1:] != fresh.values.shape[1:]:
                return fresh
            rows = {user: row for row, user in enumerate(json.loads(metadata["users"]))}
            known = [row for row, user in enumerate(user_ids) if user in rows]
            stored = [rows[user_ids[row]] for row in known]
            vectors = fresh.copy()
            for name in _VECTORS:
                getattr(vectors, name)[known] = torch.from_numpy(arrays[name])[stored]
            return vectors
        return fresh

    def start_training(self) -> None:
        """Leave a mark before data are touched, that :meth:`stop` can use on a full disk, too.

        A mark that is there already was left by a process that was killed. Whether it is killed can
        depend on the data (memory), so a server must not see it again and again.

        Raises:
            RequestRefused: after ten kills, however much went well in between; the platform stops,
                and its operator begins the count anew.
        """
        mark, kills_file = self._folder / _TRAINING_FILE, self._folder / _KILLS_FILE
        if mark.exists():
            kills = read_content(kills_file) if kills_file.exists() else b""
            kills += b"killed while it worked on data: the log has the cause\n"
            write_durably(kills_file, kills)
            if (count := len(kills.splitlines())) >= _MOST_KILLS:
                self.stop(StateError(f"killed {count} times while it worked on data"))
                self.check_running()
        write_durably(mark, b"at work on data\n")

    def begin_handover(self) -> None:
        """Count a hand-over, durably, before data are touched.

        A hand-over costs no budget, but how long it takes, or that it is killed, may tell of the
        data, and whoever sends it chooses what is fitted: there are only so many in a day.

        Raises:
            RequestRefused: if there were that many today (UTC).
            StateError: if the count cannot be written.
        """
        today = utc_now()[:10]
        path = self._folder / _HANDOVERS_FILE
        times = read_content(path).decode(errors="replace").splitlines() if path.exists() else []
        times = [time for time in times if time == today]
        if len(times) >= MOST_HANDOVERS_A_DAY:
            msg = f"{len(times)} hand-overs were taken today; the next ones are taken tomorrow."
            raise RequestRefused(msg)
        write_durably(path, "".join(f"{time}\n" for time in (*times, today)).encode())

    def finish_training(self) -> None:
        """Take the mark away: what was begun is done, and recorded where it had to be."""
        (self._folder / _TRAINING_FILE).unlink(missing_ok=True)

    def stop(self, cause: Exception) -> None:
        """Refuse every later request until a person has looked: see :meth:`check_running`."""
        stopped = self._folder / STOPPED_FILE
        (self._folder / _TRAINING_FILE).replace(stopped)  # needs no space on the disk
        (self._folder / _KILLS_FILE).unlink(missing_ok=True)
        with suppress(StateError):
            write_durably(stopped, f"{type(cause).__name__}: {cause}\n".encode())

    def check_running(self) -> None:
        """Refuse to go on after a failure that may have depended on the data.

        Without this a server could ask again and again, and learn from which requests fail.

        Raises:
            RequestRefused: if a failure was recorded; the operator deletes the file to go on.
        """
        if (self._folder / STOPPED_FILE).exists():
            msg = f"this platform stopped after a failure; its operator finds it in {STOPPED_FILE}."
            raise RequestRefused(msg)

    def _file(self, kind: str, request_id: str) -> Path:
        name = hashlib.sha256(request_id.encode()).hexdigest()[:32]
        return self._folder / kind / f"{name}.safetensors"

    def _forget_old(self) -> None:
        """Keep the latest rounds, and the sums of the latest run to its end: it subtracts them."""
        spends = self.ledger.account().spends
        rounds = [spend for spend in spends if not _is_sum(spend.request_id)]
        run = spends[-1].request_id.partition("/")[0]
        sums = [s for s in spends if _is_sum(s.request_id) and s.request_id.startswith(run + "/")]
        latest = {spend.request_id for spend in (*rounds[-self._keep_releases :], *sums)}
        for kind in ("releases", "private"):
            kept = {self._file(kind, request_id) for request_id in latest}
            for path in (self._folder / kind).glob("*.safetensors"):
                if path not in kept:
                    path.unlink(missing_ok=True)
        # After the releases: one that is there must know in which sum it was confirmed.
        self.sessions.forget_all_but(latest)


def _is_sum(request_id: str) -> bool:
    return request_id.partition("/")[2].partition("/")[0] in get_args(SumQuantity)
