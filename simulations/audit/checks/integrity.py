"""Whether a ledger is whole: its files, its chain, its order, and the releases beside it.

Pure, and written from the documented definitions: the chain is hashed here, and not by the code
that wrote it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, get_args

from common.models.partition import SumQuantity
from simulations.audit.findings import Finding, finding

if TYPE_CHECKING:
    from common.privacy.account import Entry
    from simulations.audit.books import Book
    from simulations.audit.evidence import LedgerEvidence

_GENESIS = "0" * 64
_SUMS = get_args(SumQuantity)


def digest_after(previous: str, entry: Entry) -> str:
    """SHA-256 of the digest before, the number, and each text after its length."""
    parts = [previous, str(entry.sequence)]
    parts += [f"{len(t)}:{t}" for t in (entry.time, entry.kind, entry.request_id, entry.body)]
    return hashlib.sha256(" ".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def check_integrity(ledger: LedgerEvidence, book: Book) -> list[Finding]:
    """All of it."""
    name = ledger.platform
    return [
        finding("readable", name, ledger.problems, ok="its files were read."),
        _chain(ledger),
        _head(ledger),
        finding("entries", name, book.problems, ok="each entry holds what its kind holds."),
        _once(name, book),
        _releases(ledger, book),
    ]


def _chain(ledger: LedgerEvidence) -> Finding:
    wrong, previous, time = [], _GENESIS, ""
    for number, entry in enumerate(ledger.entries, start=1):
        if entry.sequence != number:
            wrong = [f"entry {entry.sequence} stands in the place of entry {number}"]
            break
        if _is_before(entry.time, time):
            wrong.append(f"entry {number} is dated {entry.time}, before the entry before it")
        if digest_after(previous, entry) != entry.digest:
            wrong.append(f"entry {number} ({entry.kind}) was changed after it was written")
            break
        previous, time = entry.digest, entry.time
    ok = f"{len(ledger.entries)} entries follow one from the other."
    return finding("chain", ledger.platform, wrong, ok=ok)


def _is_before(time: str, former: str) -> bool:
    try:
        return bool(former) and datetime.fromisoformat(time) < datetime.fromisoformat(former)
    except (ValueError, TypeError):  # what is no time is the business of `entries`
        return False


def _head(ledger: LedgerEvidence) -> Finding:
    wrong = []
    if ledger.head is None:
        wrong = ["the head file is missing: entries may have been cut off at the end"]
    else:
        number, digest = ledger.head
        held = {entry.sequence: entry.digest for entry in ledger.entries} | {0: _GENESIS}
        if number not in held:
            wrong = [f"it ends before entry {number}, which its head file holds the digest of"]
        elif held[number] != digest:
            wrong = [f"its head file holds another entry {number}"]
    ok = "it does not end before the entry that its head file holds."
    return finding("head", ledger.platform, wrong, ok=ok)


def _once(name: str, book: Book) -> Finding:
    """A request is charged once, released once, and in one sum; in this order."""
    wrong = [
        f"{request} was charged {times} times"
        for request, times in Counter(one.request_id for one in book.reserved).items()
        if times > 1
    ]
    charged = {one.request_id: one.sequence for one in reversed(book.reserved)}
    released: dict[str, int] = {}
    for sequence, request, _ in book.commits:
        if charged.get(request, math.inf) > sequence:
            wrong.append(f"entry {sequence}: a release of {request} that was not charged before")
        if request in released:
            wrong.append(f"entry {sequence}: a second release of {request}")
        released.setdefault(request, sequence)
    lists: dict[str, str] = {}
    for sequence, request, sha256, survivors in book.confirmed:
        if released.get(request, math.inf) > sequence:
            wrong.append(f"entry {sequence}: confirms a sum with no release of {request} before")
        if lists.setdefault(request, sha256) != sha256:
            wrong.append(f"entry {sequence}: a second list of who is in a sum with {request}")
        if request.rpartition("/")[2] not in survivors:
            wrong.append(f"entry {sequence}: confirms a sum that {request} is not in")
    ok = f"{len(charged)} requests charged once, {len(released)} released once, each after that."
    return finding("once", name, wrong, ok=ok)


def _releases(ledger: LedgerEvidence, book: Book) -> Finding:
    """Files against what was recorded of them; not all are kept."""
    recorded, wrong = book.releases, []
    committed = {sha256: request for request, sha256 in recorded.items()}
    for file, sha256 in ledger.releases.items():
        request = committed.get(sha256)
        if request is None:
            wrong.append(f"{file} was never recorded, or was changed since")
        elif recorded_file(request) != file:
            wrong.append(f"{file} holds the release of {request}, and bears another one's name")
    missing = [
        request
        for request in _kept_until_now(ledger, book)
        if request in recorded and recorded_file(request) not in ledger.releases
    ]
    return finding(
        "releases",
        ledger.platform,
        wrong,
        ok=f"{len(ledger.releases)} kept releases of {len(recorded)} are as they were recorded.",
        unknown=f"{len(missing)} of the latest releases are not there, {missing[0]} for one: "
        "deleted, or not handed to the auditor."
        if missing
        else "",
    )


def _kept_until_now(ledger: LedgerEvidence, book: Book) -> list[str]:
    """The latest rounds, and the sums of the latest run: the others are deleted."""
    if not book.reserved:
        return []
    keep = ledger.config.state.keep_releases if ledger.config else 1
    names = [one.request_id for one in book.reserved]
    sums = [name for name in names if name.split("/")[1:2] and name.split("/")[1] in _SUMS]
    rounds = [name for name in names if name not in set(sums)]
    run = names[-1].partition("/")[0]
    return [*rounds[-keep:], *(name for name in sums if name.startswith(f"{run}/"))]


def recorded_file(request_id: str) -> str:
    """The file that a release is kept in."""
    return f"{hashlib.sha256(request_id.encode()).hexdigest()[:32]}.safetensors"
