"""Makes a report: reads what an auditor was given, and writes what it says."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import StateError
from common.privacy.ledger import utc_now
from simulations.attacks.membership.result import ATTACK_FILE, AttackResult
from simulations.attacks.membership.result import SCHEMA_VERSION as ATTACK_VERSION
from simulations.audit.evidence import gather
from simulations.audit.findings import SCHEMA_VERSION, VERIFY_FILE, Verification
from simulations.audit.report.compose import state_audit
from simulations.audit.report.rendering import write_report
from simulations.audit.verify import verify
from simulations.documents import read_document
from simulations.per_user import read_per_user
from simulations.simulate import PER_USER_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from simulations.audit.evidence import Evidence
    from simulations.audit.report.statement import AuditStatement

_LIBRARIES = ("crossrec", "numpy", "opacus", "scipy", "torch")


def make_report(
    ledgers: Sequence[Path],
    runs: Sequence[Path],
    out: Path,
    *,
    progress: Callable[[str], None] = lambda _: None,
    clock: Callable[[], str] = utc_now,
) -> AuditStatement:
    """Gather, verify if ``out`` has no findings on these very records, and write the report.

    Args:
        ledgers: as :func:`simulations.audit.evidence.gather`.
        runs: as there.
        out: folder; ``verify.json`` and ``attack.json`` there are used.
        progress: is told what is being done.
        clock: tells the time.

    Raises:
        ConfigError: if there is nothing to audit.
        StateError: if ``out`` cannot be written, or holds a file that cannot be read.
    """
    evidence = gather(ledgers, runs)
    _require_folder(out)
    verification = _verification(evidence, out / VERIFY_FILE, progress)
    attack = None
    if (out / ATTACK_FILE).exists():
        attack = read_document(out / ATTACK_FILE, AttackResult, ATTACK_VERSION)
    progress("statement and figures")
    statement = state_audit(
        evidence,
        verification,
        attack,
        tables=_tables(evidence),
        made_at=clock(),
        versions=_versions(),
        commands=_commands(ledgers, runs, out),
        show=shown_path,
    )
    write_report(out, statement)
    return statement


def _require_folder(out: Path) -> None:
    """Find out before any work is done that the report can be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{out}: cannot be made a folder ({error.strerror}). Choose another --out."
        raise StateError(msg) from error
    if not os.access(out, os.W_OK | os.X_OK):
        msg = f"{out}: cannot be written to. Fix its permissions, or choose another --out."
        raise StateError(msg)


def _verification(evidence: Evidence, path: Path, progress: Callable[[str], None]) -> Verification:
    if path.exists():
        found = read_document(path, Verification, SCHEMA_VERSION)
        if is_about(found, evidence):
            return found
        progress(f"{path} is about other records; these are checked now")
    return verify(evidence, progress=progress)


def is_about(verification: Verification, evidence: Evidence) -> bool:
    """Whether ``verification`` was made of the very entries that ``evidence`` holds."""
    ends: dict[str, set[tuple[int, str]]] = {}
    for ledger in evidence.ledgers:
        last = ledger.entries[-1] if ledger.entries else None
        end = (last.sequence, last.digest) if last else (0, "")
        ends.setdefault(ledger.platform, set()).add(end)
    heads = {
        name: (head.sequence, head.digest if head.sequence else "")
        for name, head in verification.heads.items()
    }
    return heads.keys() == ends.keys() and all(heads[name] in ends[name] for name in ends)


def _tables(evidence: Evidence) -> dict[Path, pd.DataFrame]:
    tables = {}
    for path in evidence.results:
        table = path.with_name(PER_USER_FILE)
        if table.exists():
            tables[path] = read_per_user(table)
    return tables


def _commands(ledgers: Sequence[Path], runs: Sequence[Path], out: Path) -> list[str]:
    words = [word for path in ledgers for word in ("--ledger", shown_path(path))]
    words += [word for path in runs for word in ("--runs", shown_path(path))]
    target = ("--out", shown_path(out))
    attacked = ("--runs", shown_path(runs[0])) if runs else ()
    return [
        shlex.join(["crossrec", "audit", "verify", *words, *target]),
        shlex.join(["crossrec", "audit", "attack", *attacked, *target]),
        shlex.join(["crossrec", "audit", "report", *words, *target]),
    ]


def shown_path(path: Path) -> str:
    """``path``, relative where it lies below the working folder."""
    whole = path.absolute()
    return str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else path)


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
