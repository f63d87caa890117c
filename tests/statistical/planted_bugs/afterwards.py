"""Cheats with what a platform kept: before anybody audits, when the run hands over."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from client.state import PlatformState
from common.privacy.account import GENESIS, Entry, entry_digest
from common.privacy.accounting import epsilon_spent
from common.privacy.mechanisms import SampledGaussian, mechanism_from_dict
from common.storage import pack_arrays, read_content, unpack_arrays, write_durably
from tests.harm import head_of, unguarded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    Plant = Callable[[pytest.MonkeyPatch], None]

_COLUMNS = "sequence, time, kind, request_id, body, digest"


def when_handing_over(act: Callable[[PlatformState], None]) -> Plant:
    right = PlatformState.begin_handover

    def begin(self: PlatformState) -> None:
        right(self)
        act(self)

    return lambda patch: patch.setattr(PlatformState, "begin_handover", begin)


def _swap(state: PlatformState) -> None:
    for path in state._folder.glob("releases/*.safetensors"):
        arrays, metadata = unpack_arrays(read_content(path), path)
        others = {name: array + 1 for name, array in arrays.items()}
        write_durably(path, pack_arrays(others, metadata))


releases_swapped = when_handing_over(_swap)


def _edit(state: PlatformState) -> None:
    """One number in one entry."""
    with unguarded(state.ledger.path) as db:
        db.execute(
            "UPDATE entry SET body = replace(body, '\"noise_multiplier\": ', "
            "'\"noise_multiplier\": 1') WHERE kind = 'reserve'"
        )


sigma_edited = when_handing_over(_edit)


def rewritten(change: Callable[[list[dict[str, Any]]], None]) -> Plant:
    """Entries are changed and every digest, and the head, computed anew: a whole chain."""

    def act(state: PlatformState) -> None:
        path = state.ledger.path
        with unguarded(path) as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM entry ORDER BY sequence").fetchall()  # noqa: S608
            found = [dict(zip(_COLUMNS.split(", "), row, strict=True)) for row in rows]
            for row in found:
                row["body"] = json.loads(row["body"])
            change(found)
            db.execute("DELETE FROM entry")
            last = _chained(found, db.execute)
        write_durably(head_of(path), f"{last.sequence} {last.digest}\n".encode())

    return when_handing_over(act)


def _chained(rows: list[dict[str, Any]], execute: Callable[..., Any]) -> Entry:
    digest = GENESIS
    for number, row in enumerate(rows, start=1):
        fields = {**row, "sequence": number, "body": json.dumps(row["body"]), "digest": ""}
        entry = Entry(**fields)
        digest = entry_digest(digest, entry)
        entry = replace(entry, digest=digest)
        values = [getattr(entry, column) for column in _COLUMNS.split(", ")]
        execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)", values)
    return entry


def _more_noise(rows: list[dict[str, Any]]) -> None:
    """All that an entry says fits together: request, mechanism, digest and price."""
    mechanisms: list[SampledGaussian] = []
    for row in rows:
        body = row["body"]
        if row["kind"] != "reserve":
            continue
        for part in ("request", "mechanism", "mechanism_if_broken"):
            body[part]["noise_multiplier"] *= 1.5
        content = json.dumps([body["request"], body["arrays_digest"]], sort_keys=True)
        body["request_digest"] = hashlib.sha256(content.encode()).hexdigest()
        body["epsilon_before"] = epsilon_spent(mechanisms, 1e-5, body["accountant"])
        mechanisms.append(mechanism_from_dict(body["mechanism"]))
        body["epsilon_after"] = epsilon_spent(mechanisms, 1e-5, body["accountant"])


ledger_rewritten = rewritten(_more_noise)


def _without_rounds(rows: list[dict[str, Any]]) -> None:
    rows[:] = [row for row in rows if "/1/" not in row["request_id"]]


ledger_shortened = rewritten(_without_rounds)


def _older_copy(patch: pytest.MonkeyPatch) -> None:
    """The ledger of before the run is put back, head and all."""
    kept: dict[Path, dict[Path, bytes]] = {}
    right = PlatformState.start_training

    def start(self: PlatformState) -> None:
        folder = self.ledger.path.parent
        if folder not in kept:
            self.ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            files = (self.ledger.path, head_of(self.ledger.path))
            kept[folder] = {file: file.read_bytes() for file in files}
        right(self)

    def put_back(state: PlatformState) -> None:
        state.ledger.close()
        for file, content in kept.get(state.ledger.path.parent, {}).items():
            file.write_bytes(content)

    patch.setattr(PlatformState, "start_training", start)
    when_handing_over(put_back)(patch)


older_ledger = _older_copy
