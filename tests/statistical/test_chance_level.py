"""A scorer that knows nothing must land at chance, wherever the held-out item stands.

Each check compares a mean over users with its expectation at 4.5 standard errors: a false alarm
in 1.5e5 draws, and the draws are seeded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from common.evaluation.metrics import evaluate, hit_rate

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_USERS, NUM_ITEMS, K = 4000, 60, 10
TOLERANCE = 4.5


def one_held_out(place: str) -> csr_matrix:
    rng = np.random.default_rng(11)
    items = {
        "lowest": np.zeros(NUM_USERS, dtype=np.int64),
        "highest": np.full(NUM_USERS, NUM_ITEMS - 1),
        "anywhere": rng.integers(NUM_ITEMS, size=NUM_USERS),
    }[place]
    ones = np.ones(NUM_USERS, dtype=np.float32)
    return csr_matrix((ones, (np.arange(NUM_USERS), items)), shape=(NUM_USERS, NUM_ITEMS))


def chance_ndcg(num_choices: int) -> float:
    return float((1 / np.log2(np.arange(K) + 2)).sum() / num_choices)


@pytest.mark.parametrize("place", ["lowest", "highest", "anywhere"])
@pytest.mark.parametrize("scorer", ["constant", "random"])
@pytest.mark.parametrize("candidates", [None, 20])
def test_no_information_lands_at_chance(place: str, scorer: str, candidates: int | None) -> None:
    noise = np.random.default_rng(12)

    def score(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if scorer == "constant":
            return np.zeros((len(rows), NUM_ITEMS), dtype=np.float32)
        return noise.standard_normal((len(rows), NUM_ITEMS)).astype(np.float32)

    result = evaluate(
        score,
        csr_matrix((NUM_USERS, NUM_ITEMS)),
        one_held_out(place),
        cutoffs=(K,),
        candidates=candidates,
        rng=np.random.default_rng(13),
    )
    num_choices = candidates or NUM_ITEMS
    for metric, expected in (("hr@10", K / num_choices), ("ndcg@10", chance_ndcg(num_choices))):
        assert abs(result.mean[metric] - expected) < TOLERANCE * result.stderr[metric]


@pytest.mark.parametrize("place", ["lowest", "highest"])
def test_the_check_rejects_ties_broken_by_index(place: str) -> None:
    """Must reject: the planted bug takes equal scores in index order."""
    by_index = np.tile(np.arange(K), (NUM_USERS, 1))
    hits = hit_rate(by_index, one_held_out(place))
    expected = K / NUM_ITEMS
    standard_error = np.sqrt(expected * (1 - expected) / NUM_USERS)
    assert abs(hits.mean() - expected) > TOLERANCE * standard_error
