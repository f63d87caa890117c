"""What the independent checks found: ``verify.json``, strict and versioned.

Pure: written by ``crossrec audit verify``, read by ``crossrec audit report``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence  # noqa: TC003  (pydantic reads field types at run time)
from dataclasses import dataclass
from typing import Literal

from common.logs import on_one_line
from simulations.result import Checked

SCHEMA_VERSION = 1
VERIFY_FILE = "verify.json"
_MOST_NAMED = 3
_LONGEST_TEXT = 1000

Verdict = Literal["ok", "failed", "unknown"]
"""``unknown``: what it takes to tell is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding(Checked):
    """One check of one thing."""

    check: str
    """Its name, stable, e.g. ``chain``."""
    subject: str
    """What was checked: a platform, a run, or ``all``."""
    verdict: Verdict
    """How it came out."""
    detail: str
    """One sentence: what was compared, and what was found."""


def finding(
    check: str, subject: str, wrong: Sequence[str], *, ok: str, unknown: str = ""
) -> Finding:
    """Failed if anything is ``wrong``, else unknown with a reason, else ok."""
    verdict: Verdict = "failed" if wrong else "unknown" if unknown else "ok"
    detail = unknown or ok
    if wrong:
        more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        named = (_shown(one.rstrip(".")) for one in wrong[:_MOST_NAMED])
        detail = f"{'; '.join(named)}{more}."
    return Finding(check=check, subject=_shown(subject), verdict=verdict, detail=_shown(detail))


def _shown(text: str) -> str:
    """What others wrote, fit for a terminal and a file: on one line, of bounded length."""
    valid = text.encode("utf-8", "backslashreplace").decode()
    short = valid if len(valid) <= _LONGEST_TEXT else f"{valid[:_LONGEST_TEXT]}..."
    return on_one_line(short)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices(Checked):
    """Epsilon of everything one platform ever reserved, by each accountant; None: no guarantee."""

    delta: float
    """At which all are stated."""
    recorded: float | None
    """As the ledger wrote it down at its last reservation of the running period."""
    product: float | None
    """By the product's own accountant, for life."""
    opacus_prv: float | None
    """By Opacus' PRV accountant, called directly."""
    opacus_rdp: float | None
    """By Opacus' RDP accountant, called directly: looser."""
    dp_accounting: float | None
    """By Google's dp-accounting (PLD, rounded up); None as well if it is not installed."""
    dp_accounting_least: float | None
    """The same rounded down: no accountant may say less."""
    if_secagg_broken: float | None
    """By the product's accountant, if each release were seen by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition(Checked):
    """What a person with accounts at several of the platforms is charged at most."""

    num_platforms: int
    """m."""
    platforms: tuple[str, ...]
    """The m platforms that cost most together."""
    epsilon: float | None
    """Of all their releases together; None without a guarantee."""
    delta: float
    """At which it is stated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head(Checked):
    """Where a ledger ended when it was audited: a later audit checks that it went on from there."""

    sequence: int
    """Number of its last entry; 0 if it is empty."""
    digest: str
    """Digest of that entry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification(Checked):
    """Everything that was checked."""

    findings: tuple[Finding, ...]
    """Every check, also those that passed."""
    prices: Mapping[str, Prices]
    """By platform."""
    compositions: tuple[Composition, ...]
    """For m = 1, 2, ... platforms."""
    heads: Mapping[str, Head]
    """By platform."""
    versions: Mapping[str, str]
    """Of the libraries that priced."""
    schema_version: int = SCHEMA_VERSION

    @property
    def failed(self) -> tuple[Finding, ...]:
        """What has to be explained."""
        return tuple(finding for finding in self.findings if finding.verdict == "failed")
