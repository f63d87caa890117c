from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_matrix

from common.evaluation.metrics import RankingMetrics, evaluate
from common.evaluation.ranking import PADDING, rank_top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Case:
    scores: NDArray[np.float32]
    seen: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    k: int
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


@st.composite
def cases(draw: st.DrawFn, *, ties: bool = True) -> Case:
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 12)))
    if ties:
        elements = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, 1.0])
        scores = draw(arrays(np.float32, shape, elements=elements))
    else:
        order = draw(st.permutations(range(shape[0] * shape[1])))
        scores = np.array(order, dtype=np.float32).reshape(shape)
    return Case(
        scores=scores,
        seen=draw(arrays(np.bool_, shape)),
        held_out=draw(arrays(np.bool_, shape)),
        k=draw(st.integers(1, 14)),
        seed=draw(st.integers(0, 2**32)),
    )


@given(cases())
def test_a_ranking_is_the_best_unseen_items_once_each_in_order(case: Case) -> None:
    ranked = rank_top_k(case.scores, csr_matrix(case.seen), case.k, case.rng)
    for row, scores, seen in zip(ranked, case.scores, case.seen, strict=True):
        real = row[row != PADDING]
        assert (row[len(real) :] == PADDING).all()
        assert len(real) == min(case.k, int((~seen).sum()))
        assert len(set(real.tolist())) == len(real)
        assert not seen[real].any()
        assert scores[real].tolist() == sorted(scores[~seen].tolist(), reverse=True)[: len(real)]


@given(cases())
def test_metrics_lie_in_the_unit_interval_and_grow_with_the_cutoff(case: Case) -> None:
    result = evaluate(
        lambda rows: case.scores[rows],
        csr_matrix(case.seen),
        csr_matrix(case.held_out),
        cutoffs=(case.k, case.k + 1),
        rng=case.rng,
    )
    for values in result.per_user.values():
        assert ((values >= 0) & (values <= 1)).all()
    for name in ("hr", "recall", "mrr"):
        shorter, longer = (result.per_user[f"{name}@{k}"] for k in (case.k, case.k + 1))
        assert (shorter <= longer).all()
    # A hit is worth at most itself: NDCG of a ranking without hits is 0, with hits above 0.
    hit = result.per_user[f"hr@{case.k}"] > 0
    assert np.array_equal(result.per_user[f"ndcg@{case.k}"] > 0, hit)


@given(cases(ties=False), st.integers(0, 2**32))
def test_renaming_items_changes_nothing_when_scores_are_distinct(case: Case, seed: int) -> None:
    def measure(items: NDArray[np.int64]) -> RankingMetrics:
        return evaluate(
            lambda rows: case.scores[rows][:, items],
            csr_matrix(case.seen[:, items]),
            csr_matrix(case.held_out[:, items]),
            cutoffs=(case.k,),
            rng=case.rng,
        )

    num_items = case.scores.shape[1]
    plain = measure(np.arange(num_items))
    renamed = measure(np.random.default_rng(seed).permutation(num_items))
    for name, values in plain.per_user.items():
        assert np.array_equal(values, renamed.per_user[name])
    if plain.num_test_users:
        assert plain.mean == renamed.mean
