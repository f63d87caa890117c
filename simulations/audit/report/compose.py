"""From evidence, checks and attacks to the statement of a report. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulations.audit.report import limits, outcomes, points
from simulations.audit.report.conclusion import conclude
from simulations.audit.report.first_page import first_page
from simulations.audit.report.likeness import likeness
from simulations.audit.report.platforms import believe, platform_part
from simulations.audit.report.points import Audited
from simulations.audit.report.statement import AuditStatement
from simulations.audit.report.utility import groups_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from simulations.attacks.membership.result import AttackResult
    from simulations.audit.evidence import Evidence, LedgerEvidence
    from simulations.audit.findings import Verification


def state_audit(
    evidence: Evidence,
    verification: Verification,
    attack: AttackResult | None,
    *,
    tables: Mapping[Path, pd.DataFrame],
    made_at: str,
    versions: Mapping[str, str],
    commands: Sequence[str],
    show: Callable[[Path], str],
) -> AuditStatement:
    """Everything that a report says.

    Args:
        evidence: what was given.
        verification: what the independent checks found in it.
        attack: what was tried; None: nothing.
        tables: of test users, by the ``result.json`` that they belong to.
        made_at: the time, UTC.
        versions: of crossrec and the libraries that numbers depend on.
        commands: repeat it.
        show: what to call a file.
    """
    platforms = _audited(evidence.ledgers, show)
    parts = {platform.name: platform.part for platform in platforms}
    results = list(evidence.results.values())
    mechanisms = points.mechanisms_point(platforms)
    lower_bound = outcomes.lower_bound_point(
        attack, likeness(attack, parts, mechanisms.uses, results)
    )
    tuning = limits.tuning_point(platforms, results)
    cannot_know = limits.cannot_know_point(evidence, platforms)
    groups = [
        group
        for path, result in evidence.results.items()
        for group in groups_of(show(path.parent), result, tables.get(path))
    ]
    return AuditStatement(
        made_at=made_at,
        versions=versions,
        inputs=tuple(_inputs(evidence, show)),
        commands=tuple(commands),
        conclusion=conclude(
            parts, verification, lower_bound, catalogue_derived=tuning.catalogue_derived
        ),
        summary=first_page(parts, verification, lower_bound, cannot_know.text),
        platforms=parts,
        privacy_unit=points.unit_point(platforms),
        neighbouring=points.neighbouring_point(),
        guarantee=points.guarantee_point(platforms),
        mechanisms=mechanisms,
        sampling=points.sampling_point(mechanisms.uses),
        microbatching=points.microbatching_point(),
        accounting=points.accounting_point(verification, versions),
        composition=points.composition_point(platforms, evidence.servers, verification),
        contribution=points.contribution_point(mechanisms.uses),
        released=points.released_point(platforms, mechanisms.uses),
        trust=limits.trust_point(platforms),
        randomness=limits.randomness_point(platforms),
        tuning=tuning,
        post_processing=limits.post_processing_point(),
        lower_bound=lower_bound,
        utility=outcomes.utility_point(groups, has_runs=bool(results)),
        retention=limits.retention_point(platforms),
        cannot_know=cannot_know,
        verification=verification,
    )


def _audited(ledgers: Sequence[LedgerEvidence], show: Callable[[Path], str]) -> list[Audited]:
    """One for each platform; of several copies the longest that is whole."""
    best: dict[str, Audited] = {}
    for found in ledgers:
        believed = believe(found)
        part = platform_part(found, believed, show(found.path))
        candidate = Audited(name=found.platform, found=found, believed=believed, part=part)
        held = best.get(found.platform)
        if held is None or _rank(candidate) > _rank(held):
            best[found.platform] = candidate
    return [best[name] for name in sorted(best)]


def _rank(platform: Audited) -> tuple[bool, int]:
    return platform.part.is_whole, platform.part.num_believed


def _inputs(evidence: Evidence, show: Callable[[Path], str]) -> list[str]:
    paths = [
        *(found.path for found in evidence.ledgers),
        *(server.folder / "journal.jsonl" for server in evidence.servers),
        *evidence.results,
    ]
    return list(dict.fromkeys(show(path) for path in paths))
