"""Everything that an audit recomputes: evidence in, findings, prices and compositions out. Pure.

The checks are in :mod:`simulations.audit.checks`. What cannot be told is ``unknown``, and why.

| tampering | check that finds it |
|---|---|
| an entry is changed, put in, or taken out | ``chain``; at the end ``head`` |
| the chain is computed anew after it | ``since``, ``copies``, ``server-releases`` and others; \
``requests`` and ``mechanisms`` for another noise |
| noise or epsilon are made up | ``mechanisms``, ``epsilon``, ``server-mechanisms`` |
| more is spent than was granted, or another way | ``budget``, ``sampler``, ``once`` |
| the configuration is not what was granted | ``configuration`` |
| a release is swapped | ``releases``, ``server-releases`` |
| two ledgers are kept for one platform | ``copies``, ``server-releases``, ``since`` |
| times are made up, to begin a period | ``server-times`` |
| lines of the coordinator's journal are cut out | ``journal``, ``server-spends`` |
| the coordinator reports something else | ``server-*``, ``federation-toml``, ``result`` |
| the product's accountant is mistaken | ``price-dp-accounting``, ``price-opacus``, ``epsilon`` |

Where a platform rebuilds everything, and nobody else kept anything, nothing shows.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from common.privacy.accounting import epsilon_spent
from simulations.audit.accountants import (
    by_dp_accounting,
    by_opacus_prv,
    by_opacus_rdp,
    compose_over_platforms,
    exactly,
)
from simulations.audit.books import read_book
from simulations.audit.checks.integrity import check_integrity
from simulations.audit.checks.journal import check_journal
from simulations.audit.checks.others import check_copies, check_result, check_since
from simulations.audit.checks.requests import check_requests
from simulations.audit.checks.server import check_against_server, platforms_in
from simulations.audit.checks.spending import (
    TOLERANCE,
    check_configuration,
    check_spending,
    is_less,
    together,
)
from simulations.audit.findings import Finding, Head, Prices, Verification, finding
from simulations.result import finite_or_none

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from simulations.audit.books import Book
    from simulations.audit.checks.spending import Product
    from simulations.audit.evidence import Evidence, LedgerEvidence
    from simulations.audit.findings import Composition

_LIBRARIES = ("crossrec", "dp-accounting", "opacus", "numpy", "scipy")


def verify(
    evidence: Evidence,
    since: Verification | None = None,
    *,
    product: Product = epsilon_spent,
    progress: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Check everything, and price everything.

    Args:
        evidence: from :func:`simulations.audit.evidence.gather`.
        since: an earlier audit, whose ledgers must have gone on.
        product: the accountant that is audited.
        progress: is told what is being done.
    """
    books = {id(ledger): read_book(ledger.entries) for ledger in evidence.ledgers}
    by_name: dict[str, list[LedgerEvidence]] = {}
    for ledger in evidence.ledgers:
        by_name.setdefault(ledger.platform, []).append(ledger)
    latest = {name: max(them, key=lambda one: len(one.entries)) for name, them in by_name.items()}
    findings: list[Finding] = []
    for ledger in evidence.ledgers:
        progress(f"ledger of {ledger.platform}")
        findings += _of_one_ledger(ledger, books[id(ledger)], product)
    for server in evidence.servers:
        findings += check_journal(server)
    for ledger in evidence.ledgers:
        for server in evidence.servers:
            findings += check_against_server(ledger, books[id(ledger)], server)
    findings += _without_ledger(evidence, by_name)
    findings += _results(evidence, books, product)
    findings += [check_copies(name, them) for name, them in by_name.items()]
    heads = since.heads if since else {}
    findings += [
        check_since(name, latest.get(name), heads.get(name)) for name in sorted({*latest, *heads})
    ]
    prices = {}
    for name, ledger in latest.items():
        progress(f"price of {name}")
        book = books[id(ledger)]
        delta = delta_of(ledger, book)
        if delta is None:
            unknown = "nothing was granted, so there is no delta to state a price at."
            findings.append(finding("price", name, (), ok="", unknown=unknown))
            continue
        prices[name] = price(book, delta, product)
        findings += check_prices(name, book, prices[name])
    progress("composition over platforms")
    return Verification(
        findings=tuple(findings),
        prices=prices,
        compositions=compositions({name: books[id(latest[name])] for name in prices}, prices),
        heads={
            name: Head(sequence=ledger.entries[-1].sequence, digest=ledger.entries[-1].digest)
            for name, ledger in latest.items()
            if ledger.entries
        },
        versions=_versions(),
    )


def _of_one_ledger(ledger: LedgerEvidence, book: Book, product: Product) -> list[Finding]:
    name = ledger.platform
    if not (ledger.entries or ledger.head or ledger.releases or ledger.problems):
        unknown = "there is no ledger: nothing was reserved yet, or all of it was deleted."
        return [finding("readable", name, (), ok="", unknown=unknown)]
    return [
        *check_integrity(ledger, book),
        *check_requests(name, book),
        *check_spending(name, book, product),
        check_configuration(name, book, ledger.config, product),
    ]


def _without_ledger(evidence: Evidence, ledgers: Mapping[str, object]) -> list[Finding]:
    """Platforms that journals and results name, and whose ledger nobody showed."""
    named = {name for result in evidence.results.values() for name in result.platforms}
    for server in evidence.servers:
        named |= platforms_in(server.events)
    return [
        finding("server-releases", name, (), ok="", unknown="its ledger was not given.")
        for name in sorted(named - ledgers.keys())
    ]


def _results(evidence: Evidence, books: Mapping[int, Book], product: Product) -> list[Finding]:
    """``result.json`` against the ledgers of the same folder."""
    findings = [
        Finding(check="result", subject=str(path), verdict="failed", detail=problem)
        for path, problem in evidence.problems.items()
    ]
    for path, result in evidence.results.items():
        home = path.parent
        for ledger in evidence.ledgers:
            reported = result.platforms.get(ledger.platform)
            if home in ledger.path.resolve().parents:
                book = books[id(ledger)]
                if reported is None:
                    wrong = [f"{path} does not report this platform"] if book.reserved else []
                    findings.append(finding("result", ledger.platform, wrong, ok="spent nothing."))
                else:
                    findings.append(check_result(ledger.platform, book, result, reported, product))
    return findings


def delta_of(ledger: LedgerEvidence, book: Book) -> float | None:
    """At which a ledger's prices are stated: that of its last grant, else of its configuration."""
    if book.grants:
        return book.grants[-1].delta
    return ledger.config.privacy.delta if ledger.config else None


def price(book: Book, delta: float, product: Product = epsilon_spent) -> Prices:
    """Everything that a platform ever reserved, by each accountant."""
    mechanisms = together(book.reserved)
    alone = [one.mechanism_if_broken for one in book.reserved]
    pld = by_dp_accounting(mechanisms, delta)
    running = book.running_period()
    return Prices(
        delta=delta,
        recorded=finite_or_none(running[-1].epsilon_after) if running else 0.0,
        product=finite_or_none(product(mechanisms, delta, "prv")),
        opacus_prv=by_opacus_prv(mechanisms, delta).epsilon,
        opacus_rdp=by_opacus_rdp(mechanisms, delta).epsilon,
        dp_accounting=pld.epsilon,
        dp_accounting_least=pld.least,
        if_secagg_broken=finite_or_none(product(alone, delta, "prv")),
    )


def check_prices(name: str, book: Book, prices: Prices) -> list[Finding]:
    """The product's price against what others say; it may not be below any lower bound."""
    mechanisms, delta = together(book.reserved), prices.delta
    if any(one.noise_multiplier == 0 for one in mechanisms):
        wrong = [] if prices.product is None else ["a price is put on releases without noise"]
        ok = "releases without noise have no price, and none is stated."
        return [finding("price-dp-accounting", name, wrong, ok=ok)]
    truth, pld = exactly(mechanisms, delta).epsilon, by_dp_accounting(mechanisms, delta)
    prv, rdp = by_opacus_prv(mechanisms, delta), by_opacus_rdp(mechanisms, delta)
    found = prices.product
    by_google = _compared(
        found, truth if truth is not None else pld.least, pld.epsilon, rdp.epsilon
    )
    by_opacus = _compared(found, prv.least, prv.epsilon, rdp.epsilon)
    if prv.least is not None and rdp.epsilon is not None and is_less(rdp.epsilon, prv.least):
        by_opacus.append(f"RDP says {rdp.epsilon:.6g}, which is below PRV's {prv.least:.6g}")
    return [
        finding(
            "price-dp-accounting",
            name,
            by_google,
            ok=f"epsilon {_shown(found)}; dp-accounting: between {_shown(pld.least)} and "
            f"{_shown(pld.epsilon)}.",
            unknown=f"{pld.reason}." if pld.reason else "",
        ),
        finding(
            "price-opacus",
            name,
            by_opacus,
            ok=f"epsilon {_shown(found)}; PRV: at most {_shown(prv.epsilon)}, RDP: "
            f"{_shown(rdp.epsilon)}.",
            unknown=f"{prv.reason}." if prv.reason else "",
        ),
    ]


def _compared(
    found: float | None, least: float | None, most: float | None, rdp: float | None
) -> list[str]:
    """Too little is a broken promise; far too much is a price that nobody should believe."""
    if found is None:
        stated = [value for value in (most,) if value is not None and value < _FAR_TOO_MUCH]
        return [f"the product states no price, others say {stated[0]:.6g}"] if stated else []
    if is_less(found, least):
        return [f"the product says epsilon {found:.6g}, which is below {least:.6g}: too little"]
    bounds = [value for value in (most, rdp) if value is not None]
    if most is not None and found > max(bounds) * (1 + _SLACK) + _SLACK + TOLERANCE:
        return [f"the product says epsilon {found:.6g}, others {max(bounds):.6g}: far too much"]
    return []


_SLACK = 0.1
"""What a price may be above others': the product's coarsest grid, and its own choice of orders."""
_FAR_TOO_MUCH = 100.0


def compositions(
    books: Mapping[str, Book], prices: Mapping[str, Prices]
) -> tuple[Composition, ...]:
    """Over m platforms, at the smallest delta of any of them."""
    if not prices:
        return ()
    return compose_over_platforms(
        {name: [one.mechanism for one in book.reserved] for name, book in books.items()},
        min(one.delta for one in prices.values()),
        {
            name: [one.what if one.is_summed else "" for one in book.reserved]
            for name, book in books.items()
        },
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _shown(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"{epsilon:.6g}"
