"""Whether what was charged is what was asked for: requests and the mechanisms that follow. Pure.

Mechanisms are derived here, from the request as it is recorded and the definition of a release.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, get_args

from common.errors import ConfigError
from common.models.partition import SumQuantity
from common.privacy.mechanisms import SampledGaussian
from simulations.audit.findings import Finding, finding

if TYPE_CHECKING:
    from simulations.audit.books import Book


def check_requests(name: str, book: Book) -> list[Finding]:
    """All of it."""
    return [_requests(name, book), _mechanisms(name, book)]


def _requests(name: str, book: Book) -> Finding:
    wrong, unknown = [], 0
    for one in book.reserved:
        if not one.request:
            unknown += 1
            continue
        text = json.dumps([one.request, one.arrays_digest], sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest() != one.request_digest:
            wrong.append(f"entry {one.sequence}: the request is not the one that was digested")
        elif one.request_id != _id_of(one.request):
            wrong.append(f"entry {one.sequence}: the request is not that of {one.request_id}")
        elif one.request.get("platform") != name:
            wrong.append(f"entry {one.sequence}: the request is for another platform")
    return finding(
        "requests",
        name,
        wrong,
        ok=f"{len(book.reserved)} requests are those that were digested.",
        unknown=f"{unknown} spends of an older version do not say what was asked for."
        if unknown
        else "",
    )


def _id_of(request: Any) -> str:  # noqa: ANN401 - any JSON object
    what = request.get("quantity", request.get("round_number"))
    return f"{request.get('run_id')}/{what}/{request.get('platform')}"


def _mechanisms(name: str, book: Book) -> Finding:
    wrong, unknown = [], 0
    for one in book.reserved:
        if one.grant and one.mechanism.unit != one.grant.unit:
            wrong.append(
                f"entry {one.sequence}: charged per {one.mechanism.unit}, granted per "
                f"{one.grant.unit}"
            )
        if not one.request:
            unknown += 1
            continue
        try:
            asked, alone = _derived(one.request)
        except (KeyError, TypeError, ValueError, ArithmeticError, ConfigError) as error:
            wrong.append(f"entry {one.sequence}: no mechanism follows from the request ({error})")
            continue
        for what, derived, recorded in (
            ("an observer", asked, one.mechanism),
            ("who sees the release alone", alone, one.mechanism_if_broken),
        ):
            if not _alike(derived, recorded):
                wrong.append(
                    f"entry {one.sequence}: by the request {what} faces {told(derived)}, the "
                    f"ledger charged {told(recorded)}"
                )
    return finding(
        "mechanisms",
        name,
        wrong,
        ok=f"{len(book.reserved)} mechanisms follow from what was asked for.",
        unknown=f"{unknown} spends of an older version do not say what was asked for."
        if unknown
        else "",
    )


def _derived(request: Any) -> tuple[SampledGaussian, SampledGaussian]:  # noqa: ANN401 - JSON
    """What a request costs: seen as its trust mode says, and by itself.

    A sum takes every user once. A round samples in each of its steps. In a secure sum of K
    platforms, of which d may drop out and c collude, each adds 1/sqrt(K - d - c) of the noise.
    """
    noise, terms = float(request["noise_multiplier"]), request["secagg"]
    rate, steps = 1.0, 1
    if "quantity" not in request:
        rate, steps = float(request["sampling_rate"]), int(request["local_steps"])
    elif request["quantity"] not in get_args(SumQuantity):
        raise ValueError("an unknown sum")
    share = 1.0
    if (terms is not None) != (request["trust"] in ("secagg", "secagg-simulated")):
        raise ValueError("its terms do not go with its trust mode")
    if terms is not None:
        number = len(set(terms["participants"]))
        if number != request["num_platforms"] or steps > 1 or terms["max_colluding"] < 1:
            raise ValueError("its terms are not those of a secure sum")
        if request["platform"] not in terms["participants"]:
            raise ValueError("it is not in the sum itself")
        share = (number - terms["max_dropped"] - terms["max_colluding"]) ** -0.5
    return (
        SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps),
        SampledGaussian(noise_multiplier=noise * share, sampling_rate=rate, steps=steps),
    )


def _alike(one: SampledGaussian, other: SampledGaussian) -> bool:
    return (one.sampling_rate, one.steps, one.unit) == (
        other.sampling_rate,
        other.steps,
        other.unit,
    ) and math.isclose(one.noise_multiplier, other.noise_multiplier, rel_tol=1e-12)


def told(one: SampledGaussian) -> str:
    """A mechanism in words."""
    sampled = f" at rate {one.sampling_rate:g}" if one.sampling_rate < 1 else ""
    steps = f" in {one.steps} steps" if one.steps > 1 else ""
    return f"noise {one.noise_multiplier:.6g}{sampled}{steps}"
