"""What one unit moves is at most what its price assumes, and comes near it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from client.sums import count_sum, pair_sum
from common.messages import SumRequest, TrainRequest
from common.models.ncf import NcfConfig
from common.models.pairs import MIN_WEIGHT
from common.privacy.account import Spend
from common.privacy.accounting import epsilon_spent
from common.privacy.mechanisms import SampledGaussian
from simulations.attacks.membership.accounted import (
    accounted_epsilon,
    mechanisms_for,
    moved_by,
    shift_of,
)
from simulations.attacks.membership.claims import claim_for
from simulations.options import SimulationOptions

DELTA = 1e-5
COMMON: dict[str, Any] = {
    "run_id": "r",
    "platform": "p",
    "catalogue_digest": "0",
    "trust": "local",
    "num_platforms": 2,
}
PAIRS = SumRequest(**COMMON, noise_multiplier=0.7, quantity="item-pairs")
COUNTS = SumRequest(**COMMON, noise_multiplier=2.0, quantity="item-counts")
ROUND = TrainRequest(
    **COMMON,
    noise_multiplier=3.0,
    round_number=1,
    model=NcfConfig(),
    clipping_norm=0.5,
    sampling_rate=0.5,
    local_steps=1,
    denominator=10.0,
    learning_rate=1.0,
    user_steps=1,
    dropout=0.0,
)


def spend(request: SumRequest | TrainRequest) -> Spend:
    return Spend(
        request_id=request.request_id,
        request_digest="",
        description="",
        mechanism=request.mechanism(),
        mechanism_if_broken=request.mechanism_if_broken(),
    )


SPENDS = tuple(spend(request) for request in (COUNTS, PAIRS, ROUND))


def rows(items: list[int]) -> csr_matrix:
    matrix = np.zeros((1, 12), np.float32)
    matrix[0, items] = 1
    return csr_matrix(matrix)


def test_an_interaction_moves_sums_by_no_more_than_is_priced() -> None:
    rng, largest = np.random.default_rng(0), {"counts": 0.0, "pairs": 0.0}
    for _ in range(2000):
        number = int(rng.integers(0, 11))
        items = rng.permutation(12)[: number + 1].tolist()
        weights = np.exp(rng.uniform(math.log(MIN_WEIGHT), 0.0, 12)).astype(np.float32)
        with_it, without = rows(items), rows(items[1:])
        for name, moved in (
            ("counts", count_sum(with_it) - count_sum(without)),
            ("pairs", pair_sum(with_it, weights) - pair_sum(without, weights)),
        ):
            largest[name] = max(largest[name], float(np.linalg.norm(moved)))
    assert largest["counts"] <= moved_by("interaction", COUNTS.request_id, 1) + 1e-9
    assert largest["pairs"] <= moved_by("interaction", PAIRS.request_id, 1) + 1e-9
    assert largest["counts"] > 0.99
    assert largest["pairs"] > 1.40, "a rare item beside two common ones comes near the bound"
    assert moved_by("interaction", ROUND.request_id, 1) == 2


def test_a_user_costs_what_the_ledger_says() -> None:
    ledger = epsilon_spent([s.mechanism for s in SPENDS], DELTA)
    assert accounted_epsilon("user", SPENDS, DELTA) == ledger


def test_other_units_have_their_noise_divided_by_what_they_move() -> None:
    interaction = mechanisms_for("interaction", SPENDS)
    assert [m.noise_multiplier for m in interaction] == pytest.approx([2.0, 0.7 / 2**0.5, 1.5])
    assert [m.sampling_rate for m in interaction] == [1.0, 1.0, 1.0]
    platform = mechanisms_for("platform", SPENDS, num_users=10)
    assert [m.noise_multiplier for m in platform] == pytest.approx([0.2, 0.07, 0.3])
    costs = [
        accounted_epsilon("user", SPENDS[:2], DELTA),
        accounted_epsilon("interaction", SPENDS[:2], DELTA),
        accounted_epsilon("platform", SPENDS[:2], DELTA, num_users=10),
    ]
    assert None not in costs
    assert costs == sorted(costs)  # type: ignore[type-var]


def test_without_noise_nothing_is_guaranteed() -> None:
    silent = replace(spend(COUNTS), mechanism=SampledGaussian(
        noise_multiplier=0.0, sampling_rate=1.0, steps=1
    ))  # fmt: skip
    assert accounted_epsilon("user", [silent], DELTA) is None
    assert shift_of([silent.mechanism]) == math.inf
    assert shift_of(s.mechanism for s in SPENDS[:2]) == pytest.approx(math.hypot(0.5, 1 / 0.7))


def test_claims_say_how_they_follow() -> None:
    options = SimulationOptions()

    def words(unit: Any, adversary: Any, **changes: Any) -> str:  # noqa: ANN401 - literals
        claim = claim_for(
            unit,
            adversary,
            SPENDS[:2],
            replace(options, **changes),
            num_platforms=5,
            num_users=10,
        )
        return claim.words

    assert words("user", "releases") == "what the platform's ledger says"
    assert "knows the parts of 2 other" in words(
        "user", "releases", trust="secagg", max_colluding=2
    )
    assert "sums of all 5 platforms" in words("user", "model")
    assert "not the ledger's epsilon" in words("interaction", "releases")
    assert "no guarantee to speak of" in words("platform", "model")
    assert "no noise is added" in words("user", "releases", trust="none")
    sampled = replace(options, plan="ncf", sampling_rate=0.5)
    assert not claim_for("user", "releases", SPENDS, sampled, num_platforms=2).is_gaussian
