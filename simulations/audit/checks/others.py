"""What others hold of a ledger: a result that was reported, copies, an earlier audit. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from simulations.audit.checks.spending import (
    TOLERANCE,
    evenly,
    is_less,
    least_possible,
    most_recomputed,
    prefixes,
)
from simulations.audit.findings import Finding, finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.privacy.mechanisms import SampledGaussian
    from simulations.audit.books import Book
    from simulations.audit.checks.spending import Product
    from simulations.audit.evidence import LedgerEvidence
    from simulations.audit.findings import Head
    from simulations.result import PlatformResult, RunResult


def check_result(
    name: str, book: Book, result: RunResult, reported: PlatformResult, product: Product
) -> Finding:
    """What ``result.json`` reports of one platform against its ledger."""
    wrong: list[str] = []
    delta, spends = reported.delta, book.reserved
    history, places = reported.epsilon_history, evenly(len(spends), most_recomputed(spends))
    if len(history) != len(spends):
        wrong.append(f"it reports {len(history)} releases, the ledger charged {len(spends)}")
    else:
        for place, mechanisms in zip(places, prefixes_for_life(book, places), strict=True):
            wrong += _misreported(
                f"after release {place + 1}", history[place], mechanisms, delta, product
            )
    everything = [one.mechanism for one in spends]
    wrong += _misreported("in all", reported.epsilon, everything, delta, product)
    if reported.trust.startswith("secagg"):
        alone = [one.mechanism_if_broken for one in spends]
        broken = reported.epsilon_if_secagg_broken
        wrong += _misreported("if aggregation broke", broken, alone, delta, product)
    stated = {(reported.delta, reported.privacy_unit), (result.privacy.delta, result.privacy.unit)}
    granted = {(grant.delta, grant.unit) for grant in book.grants}
    if granted and stated != granted:
        wrong.append(f"it reports delta and unit {sorted(stated)}, granted were {sorted(granted)}")
    trusts = {str(one.request["trust"]) for one in spends if "trust" in one.request}
    if trusts and trusts != {reported.trust}:
        wrong.append(f"it reports trust {reported.trust!r}, asked was {sorted(trusts)}")
    ok = f"epsilon {_shown(reported.epsilon)} and what led to it are what the ledger says."
    return finding("result", name, wrong, ok=ok)


def prefixes_for_life(book: Book, places: Sequence[int]) -> list[list[SampledGaussian]]:
    """All mechanisms up to each place, whatever period they are of."""
    return prefixes([replace(one, period=0) for one in book.reserved], places)


def _misreported(
    when: str,
    epsilon: float | None,
    mechanisms: Sequence[SampledGaussian],
    delta: float,
    product: Product,
) -> list[str]:
    expected = product(mechanisms, delta, "prv")
    found = math.inf if epsilon is None else epsilon
    if math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=1e-9) and not is_less(
        found, least_possible(mechanisms, delta) if when == "in all" else None
    ):
        return []
    return [f"it reports epsilon {_shown(epsilon)} {when}, the ledger says {expected:.6g}"]


def _shown(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"{epsilon:.6g}"


def check_copies(name: str, ledgers: Sequence[LedgerEvidence]) -> Finding:
    """Copies of one ledger are of different age, and nothing else."""
    longest = max(ledgers, key=lambda one: len(one.entries))
    wrong = []
    for other in ledgers:
        pairs = zip(longest.entries, other.entries, strict=False)
        fork = next(((a, b) for a, b in pairs if a != b), None)
        if fork is not None:
            wrong.append(
                f"{longest.path} and {other.path} hold another entry {fork[0].sequence} "
                f"({fork[0].kind}): forked"
            )
    return finding(
        "copies",
        name,
        wrong,
        ok=f"{len(ledgers)} copies agree.",
        unknown="only one copy was given: a fork is seen by what others hold of it, or not at all."
        if len(ledgers) == 1
        else "",
    )


def check_since(name: str, ledger: LedgerEvidence | None, head: Head | None) -> Finding:
    """Where an earlier audit left off, the ledger has to go on."""
    wrong, unknown = [], ""
    if head is None:
        unknown = "there is no earlier audit of it (--since): it may have been rebuilt before."
    elif ledger is None:
        unknown = "an earlier audit saw its ledger, and this one was not given it."
    elif head.sequence > len(ledger.entries):
        wrong = [f"rolled back: entry {head.sequence} was there at an earlier audit"]
    elif head.sequence and ledger.entries[head.sequence - 1].digest != head.digest:
        wrong = [
            f"entry {head.sequence} is another one than at an earlier audit: rebuilt, or forked"
        ]
    ok = f"it goes on from entry {head.sequence if head else 0} of an earlier audit."
    return finding("since", name, wrong, ok=ok, unknown=unknown)
