"""Finished runs to audit, and hands that tamper with what they left on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from common.privacy.account import GENESIS, Entry, entry_digest
from simulations.audit.evidence import gather
from simulations.audit.verify import verify
from tests.harm import head_of, unguarded
from tests.shops import SIZES, options, run_all, write_shops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from simulations.audit.findings import Verification

KINDS: dict[str, dict[str, Any]] = {
    "local": {},
    "secagg": {"trust": "secagg"},
    "sampled": {"plan": "ncf", "rounds": 3, "sampling_rate": 0.5},
    "none": {"trust": "none", "plan": "pairs"},
}
"""Options of runs that differ in what an audit has to understand."""


def finished_run(kind: str, folder: Path) -> Path:
    """A run in ``folder``, as it ended."""
    data = write_shops(folder / "data", {"east": 12, **SIZES})
    run_all(options(data, **KINDS[kind]), folder / kind)
    return folder / kind


def copy_of(run: Path, folder: Path) -> Path:
    """A copy of everything that a run left."""
    return shutil.copytree(run, folder / run.name)


def ledger_of(run: Path, platform: str = "north") -> Path:
    return run / "platforms" / platform / "state" / "ledger.sqlite"


def journal_of(run: Path) -> Path:
    return next(run.glob("federation-state/*/journal.jsonl"))


def audited(*runs: Path, ledgers: Sequence[Path] = (), **options: Any) -> Verification:  # noqa: ANN401
    return verify(gather(ledgers, runs), **options)


def failures(found: Verification, platform: str | None = None) -> set[str]:
    """Names of the checks that failed, of one platform or of all."""
    return {one.check for one in found.failed if platform in (None, one.subject)}


def entries_of(path: Path) -> list[Entry]:
    columns = "sequence, time, kind, request_id, body, digest"
    with unguarded(path) as db:
        rows = db.execute(f"SELECT {columns} FROM entry ORDER BY sequence").fetchall()  # noqa: S608
    return [Entry(**dict(zip(columns.split(", "), row, strict=True))) for row in rows]


def chained(entries: Sequence[Entry]) -> list[Entry]:
    """The same texts as a whole chain: numbered and hashed anew from the first."""
    found: list[Entry] = []
    for number, entry in enumerate(entries, start=1):
        numbered = replace(entry, sequence=number)
        previous = found[-1].digest if found else GENESIS
        found.append(replace(numbered, digest=entry_digest(previous, numbered)))
    return found


def write_ledger(path: Path, entries: Sequence[Entry], *, head: bool = True) -> None:
    """Put ``entries`` in the place of all there were, and the head to them."""
    with unguarded(path) as db:
        db.execute("DELETE FROM entry")
        db.executemany(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)",
            [(e.sequence, e.time, e.kind, e.request_id, e.body, e.digest) for e in entries],
        )
    if head:
        head_of(path).write_text(f"{entries[-1].sequence} {entries[-1].digest}\n")


def rebuild(path: Path, change: Callable[[list[Entry]], list[Entry]]) -> None:
    """Change a ledger as its owner can: the chain and the head are whole again afterwards."""
    write_ledger(path, chained(change(entries_of(path))))


def with_body(entry: Entry, **changes: Any) -> Entry:  # noqa: ANN401 - any JSON value
    return replace(entry, body=json.dumps({**json.loads(entry.body), **changes}))


def change_journal(run: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Change each event of the coordinator's journal; None leaves it out."""
    path = journal_of(run)
    events = [change(json.loads(line)) for line in path.read_bytes().splitlines()]
    kept = [event for event in events if event is not None]
    path.write_text("".join(f"{json.dumps(event, sort_keys=True)}\n" for event in kept))


def change_result(run: Path, platform: str = "north", **changes: Any) -> None:  # noqa: ANN401
    """Change what ``result.json`` says of a platform."""
    path = run / "result.json"
    document = json.loads(path.read_bytes())
    document["platforms"][platform].update(changes)
    path.write_text(json.dumps(document))
