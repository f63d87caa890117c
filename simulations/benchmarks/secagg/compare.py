"""All rounds of one case, each in fresh processes, beside each other in time."""

from __future__ import annotations

import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.benchmarks.secagg.costs import RoundCost, SecaggCase, StageCost, Subject
from simulations.benchmarks.secagg.rounds import run_round

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def compare(
    case: SecaggCase,
    *,
    repeats: int,
    begin: Callable[[Subject], None] = lambda _: None,
    done: Callable[[Subject], None] = lambda _: None,
) -> list[RoundCost]:
    """Measure all of the case's subjects in each repeat; return each one's medians.

    Ratios are medians of the ratios within each repeat.

    Args:
        case: the workload.
        repeats: of all subjects, one after the other.
        begin: is told what is measured next.
        done: is told what was measured.
    """
    rounds: list[dict[Subject, RoundCost]] = []
    for _ in range(repeats):
        found: dict[Subject, RoundCost] = {}
        for subject in case.subjects:
            begin(subject)
            found[subject] = _beside(measure(case, subject), found.get("plain"))
            done(subject)
        rounds.append(found)
    return [_medians([found[subject] for found in rounds]) for subject in case.subjects]


def measure(case: SecaggCase, subject: Subject) -> RoundCost:
    """One round in fresh processes.

    Raises:
        RunFailed: if its sum is not the sum of what the platforms released.
    """
    context = get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="crossrec-secagg-") as folder,
        ProcessPoolExecutor(max_workers=1, mp_context=context) as pool,
    ):
        return pool.submit(run_round, case.for_subject(subject), subject, Path(folder)).result()


def _beside(cost: RoundCost, plain: RoundCost | None) -> RoundCost:
    plain = plain or cost
    if plain.case != cost.case:
        return cost

    def seconds(of: RoundCost) -> float:
        return of.platform_seconds + of.server_seconds

    def cpu_seconds(of: RoundCost) -> float:
        return of.platform_cpu_seconds + of.server_cpu_seconds

    def size(of: RoundCost) -> float:
        return of.sent_bytes + of.received_bytes

    return replace(
        cost,
        ratio_to_plain=seconds(cost) / seconds(plain),
        cpu_ratio_to_plain=cpu_seconds(cost) / cpu_seconds(plain),
        platform_ratio_to_plain=cost.platform_seconds / plain.platform_seconds,
        bytes_ratio_to_plain=size(cost) / size(plain),
        sent_ratio_to_plain=cost.sent_bytes / plain.sent_bytes,
    )


def _medians(costs: Sequence[RoundCost]) -> RoundCost:
    def ratio(values: list[float | None]) -> float | None:
        found = [value for value in values if value is not None]
        return statistics.median(found) if found else None

    return replace(
        costs[0],
        stages=tuple(
            StageCost(
                stage=stages[0].stage,
                seconds=statistics.median(s.seconds for s in stages),
                cpu_seconds=statistics.median(s.cpu_seconds for s in stages),
                sent_bytes=statistics.median(s.sent_bytes for s in stages),
                received_bytes=statistics.median(s.received_bytes for s in stages),
            )
            for stages in zip(*(cost.stages for cost in costs), strict=True)
        ),
        server_seconds=statistics.median(c.server_seconds for c in costs),
        server_cpu_seconds=statistics.median(c.server_cpu_seconds for c in costs),
        platform_mebibytes=statistics.median(c.platform_mebibytes for c in costs),
        server_mebibytes=statistics.median(c.server_mebibytes for c in costs),
        ratio_to_plain=ratio([c.ratio_to_plain for c in costs]),
        cpu_ratio_to_plain=ratio([c.cpu_ratio_to_plain for c in costs]),
        platform_ratio_to_plain=ratio([c.platform_ratio_to_plain for c in costs]),
        bytes_ratio_to_plain=ratio([c.bytes_ratio_to_plain for c in costs]),
        sent_ratio_to_plain=ratio([c.sent_ratio_to_plain for c in costs]),
    )
