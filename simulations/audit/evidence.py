"""What an auditor was given: platforms' ledgers and releases, the coordinator's journal, results.

Read by this module's own code and not by the product's ledger: a mistake there must not hide itself
here. Read-only; nothing is created beside the files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from client.config import PlatformConfig
from common.config import load_config
from common.errors import ConfigError, StateError
from common.privacy.account import Entry, EntryKind
from server.config import FederationConfig
from simulations.result import read_result

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from simulations.result import RunResult

LEDGER_FILE, JOURNAL_FILE, RESULT_FILE = "ledger.sqlite", "journal.jsonl", "result.json"
_COLUMNS = {
    "sequence": "integer",
    "time": "text",
    "kind": "text",
    "request_id": "text",
    "body": "text",
    "digest": "text",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEvidence:
    """One platform's ledger and what lies beside it, as found; nothing of it is believed yet."""

    platform: str
    """Its name: from ``platform.toml``, else from its request ids, else the folder's."""
    path: Path
    """The SQLite file."""
    entries: tuple[Entry, ...]
    """As stored, oldest first; their chain is for the checks to judge."""
    head: tuple[int, str] | None
    """Number and digest in the head file; None if it is missing or unreadable."""
    releases: Mapping[str, str]
    """SHA-256 of each release that is kept, by file name."""
    problems: tuple[str, ...]
    """What could not be read, one sentence each."""
    config: PlatformConfig | None
    """Its ``platform.toml``, where it was found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerEvidence:
    """What the coordinator wrote down of one run."""

    run_id: str
    """The run."""
    folder: Path
    """Its folder."""
    events: tuple[Mapping[str, Any], ...]
    """Its journal, oldest first."""
    config: FederationConfig | None
    """Its ``federation.toml``, where it was found."""
    problems: tuple[str, ...] = ()
    """What could not be read, one sentence each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything that an audit looks at."""

    ledgers: tuple[LedgerEvidence, ...]
    """By platform; several of one name are copies that have to agree."""
    servers: tuple[ServerEvidence, ...]
    """By run."""
    results: Mapping[Path, RunResult]
    """``result.json`` of simulated runs, by file."""
    problems: Mapping[Path, str] = field(default_factory=dict)
    """Results that could not be read, and why."""


def gather(ledgers: Sequence[Path], runs: Sequence[Path]) -> Evidence:
    """Find and read everything.

    Args:
        ledgers: each a ``platform.toml``, a state folder or a ``ledger.sqlite``.
        runs: each a simulated run's folder (its platforms' ledgers are read as well), a
            ``federation.toml``, or a folder with a journal.

    Raises:
        ConfigError: if one of them is none of these, there is nothing to audit, or two simulations
            have platforms of the same names.
    """
    found = _Found({}, {}, {}, {}, {})
    for place in ledgers:
        _gather_ledger(place, found)
    for place in runs:
        _gather_run(place, found)
    if not found.ledgers and not found.servers:
        msg = (
            "there is nothing to audit: name a platform's ledger (--ledger platform.toml) or a run "
            "(--runs runs/NAME, or --runs federation.toml)."
        )
        raise ConfigError(msg)
    return Evidence(
        ledgers=tuple(sorted(found.ledgers.values(), key=lambda one: (one.platform, one.path))),
        servers=tuple(sorted(found.servers.values(), key=lambda one: (one.run_id, one.folder))),
        results=found.results,
        problems=found.problems,
    )


@dataclass(frozen=True)
class _Found:
    """What was read so far, by where it really lies: a file that is named twice counts once."""

    ledgers: dict[Path, LedgerEvidence]
    servers: dict[Path, ServerEvidence]
    results: dict[Path, RunResult]
    problems: dict[Path, str]
    simulations: dict[Path, tuple[set[str], set[str]]]
    """Platforms and runs in the folder of each simulation."""


def _gather_ledger(place: Path, found: _Found) -> None:
    if (place / "platform.toml").is_file():
        place = place / "platform.toml"
    if place.suffix == ".toml":
        named = load_config(place, PlatformConfig)
        config: PlatformConfig | None = named
        path = named.state.folder / LEDGER_FILE
        beside = place.absolute().parent / "state" / LEDGER_FILE
        if not path.parent.exists() and beside.exists():  # the platform's folder was copied
            path = beside
    else:
        path = place / LEDGER_FILE if place.is_dir() else place
        config = _config_beside(path)
    if not path.exists() and not _head_of(path).exists():
        msg = (
            f"{path}: there is no ledger. Name a platform.toml, a state folder or a "
            "ledger.sqlite; the platform's first release makes one."
        )
        raise ConfigError(msg)
    if path.is_file() and path.name != LEDGER_FILE and not _has_header(path):
        msg = (
            f"{path}: is no ledger. Name a platform.toml, the folder that holds it, a state folder "
            "or a ledger.sqlite."
        )
        raise ConfigError(msg)
    found.ledgers[path.resolve()] = _read_ledger(path, config)


def _has_header(path: Path) -> bool:
    """Whether it begins as every SQLite file does."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"
    return True  # what cannot be read is a finding


def _config_beside(path: Path) -> PlatformConfig | None:
    """The ``platform.toml`` above a state folder, if it is the one that names it."""
    file = path.absolute().parent.parent / "platform.toml"
    with suppress(ConfigError):
        config = load_config(file, PlatformConfig)
        if (config.state.folder / LEDGER_FILE).resolve() == path.resolve():
            return config
    return None


def _gather_run(place: Path, found: _Found) -> None:
    if (place / "federation.toml").is_file() and not (place / "platforms").is_dir():
        place = place / "federation.toml"
    if place.suffix == ".toml":
        config = load_config(place, FederationConfig)
        state = config.state.folder
        if not state.exists():  # the run's folder was copied
            state = place.absolute().parent / "federation-state"
        journals = _journals(state)
        if not journals:
            msg = (
                f"{place}: {state} holds no run's journal. Name the federation.toml of a run that "
                "was started: crossrec server run writes it."
            )
            raise ConfigError(msg)
        _gather_servers(journals, config, found)
    elif (place / JOURNAL_FILE).is_file():
        _gather_servers([place / JOURNAL_FILE], None, found)
    else:
        _gather_simulated(place, found)


def _gather_simulated(folder: Path, found: _Found) -> None:
    """Everything in a simulated run's folder, wherever it was copied to."""
    homes = sorted(folder.glob("platforms/*/platform.toml"))
    journals = _journals(folder / "federation-state")
    if not homes and not journals:
        msg = (
            f"{folder}: is no run. Name the folder of a simulated run (it holds platforms/), a "
            "federation.toml, or a folder with a journal.jsonl."
        )
        raise ConfigError(msg)
    names, run_ids = {home.parent.name for home in homes}, {one.parent.name for one in journals}
    for other, (their_names, their_runs) in found.simulations.items():
        if names & their_names and run_ids.isdisjoint(their_runs):
            msg = (
                f"{other} and {folder} are two simulations with platforms of the same names, whose "
                "ledgers have nothing to do with each other: audit each by itself."
            )
            raise ConfigError(msg)
    found.simulations[folder.resolve()] = names, run_ids
    for home in homes:
        path = home.parent / "state" / LEDGER_FILE
        config, problems = None, []
        try:
            config = load_config(home, PlatformConfig)
        except ConfigError as error:
            problems.append(str(error))
        found.ledgers[path.resolve()] = _read_ledger(
            path, config, name=home.parent.name, problems=problems
        )
    federation = None
    with suppress(ConfigError):
        federation = load_config(folder / "federation.toml", FederationConfig)
    _gather_servers(journals, federation, found)
    result = folder / RESULT_FILE
    if result.exists():
        try:
            found.results[result.resolve()] = read_result(result)
        except StateError as error:
            found.problems[result.resolve()] = str(error)


def _journals(state: Path) -> list[Path]:
    return sorted(state.glob(f"*/{JOURNAL_FILE}"))


def _gather_servers(
    journals: Iterable[Path], config: FederationConfig | None, found: _Found
) -> None:
    for journal in journals:
        folder = journal.parent
        run_id = folder.absolute().name
        events, problems = _read_journal(journal)
        found.servers[folder.resolve()] = ServerEvidence(
            run_id=run_id,
            folder=folder,
            events=events,
            config=config if config and config.federation.run_id == run_id else None,
            problems=problems,
        )


def _read_journal(path: Path) -> tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]:
    """Its events, and which lines are none; half a line at the end is a crash, and no problem."""
    events: list[Mapping[str, Any]] = []
    problems = []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        return (), (f"{path}: cannot be read ({error.strerror}).",)
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
        else:
            problems.append(f"{path}: line {number} is damaged.")
    return tuple(events), tuple(problems)


def _read_ledger(
    path: Path, config: PlatformConfig | None, *, name: str = "", problems: Iterable[str] = ()
) -> LedgerEvidence:
    rows, wrong = _read_rows(path) if path.exists() else ([], [])
    head, unclear = _read_head(_head_of(path))
    releases: dict[str, str] = {}
    for release in sorted((path.parent / "releases").glob("*.safetensors")):
        try:
            releases[release.name] = hashlib.sha256(release.read_bytes()).hexdigest()
        except OSError as error:
            wrong.append(f"{release}: cannot be read ({error.strerror}).")
    if not path.exists() and (releases or _head_of(path).exists()):
        wrong.append(f"{path}: is missing, and what lies beside it shows that it was there.")
    entries = tuple(rows)
    return LedgerEvidence(
        platform=config.platform.name if config else name or _platform_of(entries, path),
        path=path,
        entries=entries,
        head=head,
        releases=releases,
        problems=(*problems, *wrong, *unclear),
        config=config,
    )


def _platform_of(entries: Iterable[Entry], path: Path) -> str:
    for entry in entries:
        name = entry.request_id.split("/", 2)[2:]
        if entry.kind == "reserve" and name:
            return name[0]
    folder = path.absolute().parent
    return folder.parent.name if folder.name == "state" else folder.name


def _head_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def _read_head(path: Path) -> tuple[tuple[int, str] | None, tuple[str, ...]]:
    try:
        sequence, _, digest = path.read_text(encoding="ascii").strip().partition(" ")
        return (int(sequence), digest), ()
    except FileNotFoundError:
        return None, ()
    except (OSError, ValueError) as error:
        return None, (f"{path}: cannot be read ({error}).",)


def _read_rows(path: Path) -> tuple[list[Entry], list[str]]:
    """Every row of the ledger's table that is one, oldest first, and what is wrong with others."""
    try:
        if not _wal_of(path).exists():
            found = _select(path, "mode=ro&immutable=1")
            if not _wal_of(path).exists():  # else the platform came to work meanwhile
                return found
        if path.with_name(f"{path.name}-shm").exists():
            with suppress(sqlite3.Error):
                return _select(path, "mode=ro")
        with tempfile.TemporaryDirectory(prefix="crossrec-audit-") as folder:
            for file in (path, _wal_of(path)):  # SQLite would make a third file beside these two
                shutil.copyfile(file, Path(folder) / file.name)
            return _select(Path(folder) / path.name, "mode=rw")
    except (sqlite3.Error, OSError) as error:
        return [], [f"{path}: cannot be read as a ledger ({error})."]


def _wal_of(path: Path) -> Path:
    """What SQLite wrote and did not carry over yet: a platform is at work, or was killed."""
    return path.with_name(f"{path.name}-wal")


def _select(path: Path, mode: str) -> tuple[list[Entry], list[str]]:
    address = f"{path.absolute().as_uri()}?{mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=10.0)) as db:
        # Text that is no UTF-8 still makes an entry, whose digest then differs.
        db.text_factory = lambda content: content.decode("utf-8", "replace")
        types = ", ".join(f"typeof({column})" for column in _COLUMNS)
        rows = db.execute(
            f"SELECT {', '.join(_COLUMNS)}, {types} FROM entry ORDER BY sequence"  # noqa: S608 - constants
        ).fetchall()
    entries, wrong = [], []
    for row in rows:
        values, found = row[: len(_COLUMNS)], row[len(_COLUMNS) :]
        if found == tuple(_COLUMNS.values()):
            sequence, time, kind, request_id, body, digest = values
            entries.append(
                Entry(
                    sequence=sequence,
                    time=time,
                    kind=cast("EntryKind", kind),
                    request_id=request_id,
                    body=body,
                    digest=digest,
                )
            )
        else:
            wrong.append(f"{path}: entry {values[0]!r} holds values of the wrong type.")
    return entries, wrong
