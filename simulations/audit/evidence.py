"""What an auditor was given: platforms' ledgers and releases, the coordinator's journal, results.

Read by this module's own code and not by the product's ledger: a mistake there must not hide itself
here. Read-only; nothing is created beside the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from client.config import PlatformConfig
    from common.privacy.account import Entry
    from server.config import FederationConfig
    from simulations.result import RunResult


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything that an audit looks at."""

    ledgers: tuple[LedgerEvidence, ...]
    """By platform; several of one name are copies that have to agree."""
    servers: tuple[ServerEvidence, ...]
    """By run."""
    results: Mapping[Path, RunResult]
    """``result.json`` of simulated runs, by file."""


def gather(ledgers: Sequence[Path], runs: Sequence[Path]) -> Evidence:
    """Find and read everything.

    Args:
        ledgers: each a ``platform.toml``, a state folder or a ``ledger.sqlite``.
        runs: each a simulated run's folder (its platforms' ledgers are read as well), a
            ``federation.toml``, or a folder with a journal.

    Raises:
        ConfigError: if one of them is none of these, or there is nothing to audit.
    """
    raise NotImplementedError
