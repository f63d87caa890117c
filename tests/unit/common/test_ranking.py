from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from common.evaluation import ranking
from common.evaluation.ranking import PADDING, InvalidScores, rank_top_k, sample_candidates


def generator() -> np.random.Generator:
    return np.random.default_rng(5)


def test_ranks_by_score_whatever_the_sign_or_size() -> None:
    scores = np.array([[-np.inf, -3e38, -1e-40, 0.0, 1e-40, 2.5, np.inf]], dtype=np.float32)
    shuffled = np.array([3, 6, 0, 5, 1, 4, 2])
    ranked = rank_top_k(scores[:, shuffled], None, 7, generator())
    assert shuffled[ranked[0]].tolist() == [6, 5, 4, 3, 2, 1, 0]


def test_an_infinitely_low_score_is_ranked_last_but_not_dropped() -> None:
    scores = np.array([[-np.inf, 1.0]], dtype=np.float32)
    assert rank_top_k(scores, None, 2, generator()).tolist() == [[1, 0]]


def test_excluded_items_and_non_candidates_never_appear_and_gaps_are_padded() -> None:
    scores = np.array([[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 3.0, 4.0]], dtype=np.float32)
    seen = csr_matrix(np.array([[1, 0, 0, 0], [0, 0, 0, 1]]))
    candidates = np.array([[True, True, True, False], [False, False, False, True]])
    ranked = rank_top_k(scores, seen, 3, generator(), candidates)
    assert ranked.dtype == np.int64
    assert ranked.tolist() == [[1, 2, PADDING], [PADDING] * 3]


def test_an_explicit_zero_does_not_exclude() -> None:
    stored_zero = csr_matrix((np.array([0.0]), (np.array([0]), np.array([1]))), shape=(1, 2))
    scores = np.array([[1.0, 2.0]], dtype=np.float32)
    assert rank_top_k(scores, stored_zero, 1, generator()).tolist() == [[1]]


def test_a_cutoff_beyond_the_catalogue_is_padded() -> None:
    scores = np.array([[1.0, 2.0]], dtype=np.float32)
    assert rank_top_k(scores, None, 4, generator()).tolist() == [[1, 0, PADDING, PADDING]]


def test_users_break_ties_independently_and_minus_zero_equals_zero() -> None:
    scores = np.zeros((200, 10), dtype=np.float32)
    scores[:, ::2] = -0.0
    first = rank_top_k(scores, None, 1, generator())[:, 0]
    assert set(first.tolist()) == set(range(10))


def test_ranking_in_blocks_equals_ranking_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = generator().integers(0, 3, size=(23, 7)).astype(np.float32)
    at_once = rank_top_k(scores, None, 7, generator())
    monkeypatch.setattr(ranking, "_ENTRIES_PER_BLOCK", 21)  # three users
    assert np.array_equal(rank_top_k(scores, None, 7, generator()), at_once)


def test_a_nan_is_refused_with_a_name() -> None:
    with pytest.raises(InvalidScores, match="1 of 2 scores are NaN"):
        rank_top_k(np.array([[1.0, np.nan]], dtype=np.float32), None, 1, generator())


def test_shapes_that_disagree_are_refused() -> None:
    scores = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="excluded has shape"):
        rank_top_k(scores, csr_matrix((3, 2)), 1, generator())
    with pytest.raises(ValueError, match="candidates has shape"):
        rank_top_k(scores, None, 1, generator(), np.ones((2, 2), dtype=np.bool_))
    with pytest.raises(ValueError, match="k is 0"):
        rank_top_k(scores, None, 0, generator())
    with pytest.raises(ValueError, match="num_candidates is 1"):
        sample_candidates(csr_matrix((2, 3)), None, 1, generator())


def test_candidates_are_the_held_out_items_and_enough_unseen_others() -> None:
    rng = generator()
    seen = csr_matrix(rng.random((50, 40)) < 0.2)
    held_out = csr_matrix((rng.random((50, 40)) < 0.1) & ~seen.toarray())
    candidates = sample_candidates(held_out, seen, 11, rng)
    assert not (candidates & seen.toarray()).any()
    assert candidates[held_out.toarray()].all()
    others = (candidates & ~held_out.toarray()).sum(axis=1)
    assert (others == 10).all()


def test_all_unseen_items_are_candidates_where_there_are_few() -> None:
    seen = csr_matrix(np.array([[1, 1, 0, 0]]))
    held_out = csr_matrix(np.array([[0, 0, 1, 0]]))
    candidates = sample_candidates(held_out, seen, 100, generator())
    assert candidates.tolist() == [[False, False, True, True]]


def test_a_seen_item_is_no_candidate_even_if_held_out() -> None:
    both = csr_matrix(np.array([[1, 0, 0]]))
    assert sample_candidates(both, both, 3, generator()).tolist() == [[False, True, True]]


def test_every_unseen_item_is_sampled_equally_often() -> None:
    """Chi-square over 9 items, threshold at a false-alarm rate of 1e-4; seeded."""
    held_out = csr_matrix(np.tile([1] + [0] * 9, (4000, 1)))
    counts = sample_candidates(held_out, None, 4, generator())[:, 1:].sum(axis=0)
    expected = 4000 * 3 / 9
    # Without replacement counts vary less than a multinomial's, so the threshold is conservative.
    assert ((counts - expected) ** 2 / expected).sum() < 31.8
