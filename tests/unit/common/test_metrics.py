from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from common.evaluation import metrics
from common.evaluation.metrics import evaluate, paired_difference
from common.evaluation.ranking import InvalidScores, rank_top_k

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

NUM_USERS, NUM_ITEMS = 60, 50


def generator(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def several_relevant() -> tuple[NDArray[np.float32], csr_matrix, csr_matrix]:
    """Scores, seen and held out; the latter disjoint, some users with none held out."""
    rng = generator()
    scores = rng.standard_normal((NUM_USERS, NUM_ITEMS)).astype(np.float32)
    seen = rng.random((NUM_USERS, NUM_ITEMS)) < 0.15
    held_out = (rng.random((NUM_USERS, NUM_ITEMS)) < 0.06) & ~seen
    held_out[::7] = False
    return scores, csr_matrix(seen), csr_matrix(held_out)


def rows_of(scores: NDArray[np.float32]) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    return lambda rows: scores[rows]


def test_agrees_with_ranx_for_several_relevant_items_and_cutoffs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes a minute, this data does not
    ranx = pytest.importorskip("ranx")
    scores, seen, held_out = several_relevant()
    cutoffs = (1, 5, 10, 20)
    ours = evaluate(rows_of(scores), seen, held_out, cutoffs=cutoffs, rng=generator())

    relevant, hidden = held_out.toarray(), seen.toarray()
    qrels = {
        f"u{u}": {f"i{i}": 1 for i in np.flatnonzero(relevant[u])}
        for u in range(NUM_USERS)
        if relevant[u].any()
    }
    run = {
        name: {f"i{i}": float(scores[int(name[1:]), i]) for i in np.flatnonzero(~hidden[u])}
        for name in qrels
        for u in [int(name[1:])]
    }
    names = {"ndcg": "ndcg", "hr": "hit_rate", "recall": "recall", "mrr": "mrr"}
    theirs = ranx.evaluate(
        ranx.Qrels(qrels),
        ranx.Run(run),
        [f"{name}@{k}" for name in names.values() for k in cutoffs],
        make_comparable=True,
    )
    assert ours.num_test_users == len(qrels)
    assert max(held_out.sum(axis=1)) > 5  # the ideal ranking is cut off for somebody
    for our_name, name in names.items():
        for k in cutoffs:
            assert ours.mean[f"{our_name}@{k}"] == pytest.approx(theirs[f"{name}@{k}"], abs=1e-6)


def test_values_worked_out_by_hand() -> None:
    ranked = np.array([[4, 0, 2, -1]])
    held_out = csr_matrix(np.array([[1, 1, 1, 0, 0]]))
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert metrics.ndcg(ranked, held_out)[0] == pytest.approx((1 / math.log2(3) + 0.5) / ideal)
    assert metrics.hit_rate(ranked, held_out)[0] == 1
    assert metrics.recall(ranked, held_out)[0] == pytest.approx(2 / 3)
    assert metrics.reciprocal_rank(ranked, held_out)[0] == 0.5
    assert metrics.catalogue_coverage(ranked, 5) == 0.6


def test_a_perfect_scorer_gets_one_and_an_inverted_one_nothing() -> None:
    _, seen, held_out = several_relevant()
    perfect = held_out.toarray().astype(np.float32)
    best = evaluate(rows_of(perfect), seen, held_out, rng=generator())
    for name in ("ndcg@10", "hr@10", "recall@10", "mrr@10"):
        assert best.mean[name] == pytest.approx(1)
        assert best.stderr[name] == pytest.approx(0)
    worst = evaluate(rows_of(-perfect), seen, held_out, rng=generator())
    assert worst.mean["hr@10"] == 0


def test_only_test_users_are_scored_and_counted() -> None:
    scores, seen, held_out = several_relevant()
    asked: list[int] = []

    def spy(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        asked.extend(rows.tolist())
        return scores[rows]

    result = evaluate(spy, seen, held_out, rng=generator(), block=7)
    expected = np.flatnonzero(held_out.toarray().any(axis=1))
    assert asked == result.user_rows.tolist() == expected.tolist()
    assert result.num_test_users == len(expected) < NUM_USERS
    assert all(len(values) == len(expected) for values in result.per_user.values())


@pytest.mark.parametrize("candidates", [None, 15])
def test_the_size_of_a_block_changes_nothing(candidates: int | None) -> None:
    _, seen, held_out = several_relevant()
    tied = generator().integers(0, 3, size=held_out.shape).astype(np.float32)
    small, large = (
        evaluate(rows_of(tied), seen, held_out, candidates=candidates, rng=generator(), block=block)
        for block in (7, 1000)
    )
    assert small.mean == large.mean


def test_a_pair_both_seen_and_held_out_is_a_miss_and_is_counted() -> None:
    seen = csr_matrix(np.array([[1, 0, 0], [0, 0, 1]]))
    held_out = csr_matrix(np.array([[1, 0, 0], [1, 0, 0]]))
    scores = np.array([[9, 1, 0], [9, 1, 0]], dtype=np.float32)
    for candidates in (None, 3):
        result = evaluate(
            rows_of(scores), seen, held_out, cutoffs=(3,), candidates=candidates, rng=generator()
        )
        assert result.per_user["hr@3"].tolist() == [0, 1]
        assert result.num_unreachable == 1


def test_standard_error_is_that_of_a_mean_over_users() -> None:
    scores, seen, held_out = several_relevant()
    result = evaluate(rows_of(scores), seen, held_out, rng=generator())
    values = result.per_user["ndcg@10"]
    assert result.mean["ndcg@10"] == pytest.approx(values.mean())
    assert result.stderr["ndcg@10"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5)
    assert "coverage@10" not in result.stderr


def test_undefined_is_nan_never_zero() -> None:
    scores = np.ones((2, 3), dtype=np.float32)
    empty = csr_matrix((2, 3))
    nobody = evaluate(rows_of(scores), empty, empty, rng=generator())
    assert nobody.num_test_users == 0
    assert all(math.isnan(value) for value in nobody.mean.values())
    one = csr_matrix(np.array([[1, 0, 0], [0, 0, 0]]))
    result = evaluate(rows_of(scores), empty, one, rng=generator())
    assert result.mean["hr@10"] == 1
    assert math.isnan(result.stderr["hr@10"])


def test_a_paired_difference_knows_what_two_models_share() -> None:
    scores, seen, held_out = several_relevant()
    first = evaluate(rows_of(scores), seen, held_out, rng=generator())
    same = paired_difference(first, first, "ndcg@10")
    assert (same.mean, same.stderr) == (0, 0)
    other = evaluate(rows_of(-scores), seen, held_out, rng=generator())
    difference = paired_difference(first, other, "ndcg@10")
    assert difference.mean == pytest.approx(first.mean["ndcg@10"] - other.mean["ndcg@10"])
    fewer = held_out.toarray()
    fewer[first.user_rows[0]] = False
    third = evaluate(rows_of(scores), seen, csr_matrix(fewer), rng=generator())
    with pytest.raises(ValueError, match="different test users"):
        paired_difference(first, third, "ndcg@10")


def test_what_cannot_be_measured_is_refused() -> None:
    held_out = csr_matrix(np.array([[1, 0, 0]]))
    with pytest.raises(ValueError, match="repeats an item"):
        metrics.recall(np.array([[0, 0]]), held_out)
    with pytest.raises(ValueError, match="outside 0 to 2"):
        metrics.recall(np.array([[3]]), held_out)
    with pytest.raises(ValueError, match="no held-out item"):
        metrics.recall(np.array([[0]]), csr_matrix((1, 3)))
    with pytest.raises(ValueError, match="ranked_ids has shape"):
        metrics.recall(np.array([[0], [1]]), held_out)
    nan = np.full((1, 3), np.nan, dtype=np.float32)
    with pytest.raises(InvalidScores):
        evaluate(rows_of(nan), csr_matrix((1, 3)), held_out, rng=generator())
    with pytest.raises(ValueError, match="scores have shape"):
        evaluate(lambda _: nan[:, :2], csr_matrix((1, 3)), held_out, rng=generator())
    with pytest.raises(ValueError, match="cutoffs"):
        evaluate(rows_of(nan), csr_matrix((1, 3)), held_out, cutoffs=(), rng=generator())


def test_seen_items_are_never_recommended() -> None:
    scores, seen, _ = several_relevant()
    ranked = rank_top_k(scores + 100 * seen.toarray(), seen, 10, generator())
    assert not np.take_along_axis(seen.toarray(), ranked, axis=1).any()
