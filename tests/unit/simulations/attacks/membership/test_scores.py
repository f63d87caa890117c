"""Scores are likelihood ratios, and shadows are never the run that is attacked."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from common.messages import SumRequest
from simulations.attacks.membership.canaries import Canaries
from simulations.attacks.membership.gradients import _disjoint_groups
from simulations.attacks.membership.lira import likelihood_ratios
from simulations.attacks.membership.observer import Seen
from simulations.attacks.membership.roc import roc_of
from simulations.attacks.membership.scores import _score_counts, _score_pairs, log_ratio

ITEMS = np.array([3, 5, 9, 20])
CANARIES = Canaries(
    unit="user",
    platform="p",
    items=np.array([[3, 9], [5, 20], [3, 8]]),
    is_in=np.array([True, False, True]),
)


def test_a_score_is_the_logarithm_of_a_ratio_of_densities() -> None:
    found = np.linspace(-3, 4, 9)
    exact = norm.logpdf(found, 0.8, 1.3) - norm.logpdf(found, 0.0, 1.3)
    assert log_ratio(found, 0.8, 1.3**2) == pytest.approx(exact)
    assert np.abs(log_ratio(np.array([0.0, 1.0]), 1.0, 0.0)).min() > 1e5


def test_each_canary_is_looked_for_at_its_own_pair() -> None:
    # Pairs of four items: 3-5, 3-9, 3-20, 5-9, 5-20, 9-20.
    score = _score_pairs(CANARIES, ITEMS, np.array([9.0, 1.0, 9.0, 9.0, 0.25, 9.0]), std=2.0)
    assert score == pytest.approx([0.5 / 4, -0.25 / 4, 0.0])  # 8 is not asked for


def test_coins_of_canaries_with_the_same_item_count_as_noise() -> None:
    both = 0.5**0.5
    alone = Canaries(unit="user", platform="p", items=ITEMS[None, :2], is_in=np.array([True]))
    numbers = np.array([1.0, 0.5, 0.0, 0.0])
    score = _score_counts(alone, ITEMS, numbers, std=1.0)
    assert score == pytest.approx([both * 1.5 - 0.5])
    two = Canaries(
        unit="user", platform="p", items=ITEMS[[[0, 1], [0, 2]]], is_in=np.array([True, False])
    )
    shared = norm.logpdf(1.0 - both / 2, both, (1 + 1 / 8) ** 0.5)
    shared -= norm.logpdf(1.0 - both / 2, 0, (1 + 1 / 8) ** 0.5)
    own = norm.logpdf(0.5, both, 1) - norm.logpdf(0.5, 0, 1)
    assert _score_counts(two, ITEMS, numbers, std=1.0)[0] == pytest.approx(shared + own)


def test_noise_of_a_sum_is_that_of_all_who_are_in_it() -> None:
    request = SumRequest(
        run_id="r",
        platform="p",
        catalogue_digest="0",
        trust="local",
        num_platforms=4,
        noise_multiplier=1.5,
        quantity="item-counts",
    )
    seen = Seen(request=request, asked={}, numbers={}, platforms=("p", "q", "r", "s"))
    assert seen.noise_std == 3.0


def test_groups_have_no_item_in_common_and_hold_everybody_once() -> None:
    places = np.random.default_rng(0).integers(0, 30, (200, 2))
    groups = _disjoint_groups(places)
    assert sorted(np.concatenate(groups)) == list(range(200))
    for group in groups:
        items = [set(places[member]) for member in group]
        assert sum(map(len, items)) == len(set.union(*items))


def shadow_scores(runs: int, records: int, *, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Records differ in their scores by much more than being in does."""
    rng = np.random.default_rng(0)
    is_in = rng.random((runs, records)) < 0.5
    scores = 20 * rng.standard_normal(records) + rng.standard_normal((runs, records))
    return scores + shift * is_in, is_in


@pytest.mark.parametrize(("runs", "least"), [(8, 0.78), (64, 0.86)])
def test_lira_calibrates_each_record(runs: int, least: float) -> None:
    scores, is_in = shadow_scores(runs, 300, shift=1.7)  # the best possible area is .885
    assert roc_of(scores.ravel(), is_in.ravel()).auc < 0.56
    found = roc_of(likelihood_ratios(scores, is_in).ravel(), is_in.ravel()).auc
    assert least < found < 0.89


def test_lira_finds_nothing_where_there_is_nothing() -> None:
    scores, is_in = shadow_scores(16, 600, shift=0.0)
    found = roc_of(likelihood_ratios(scores, is_in).ravel(), is_in.ravel()).auc
    assert found == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("runs", [6, 40])
def test_who_is_in_a_run_does_not_change_the_guess_about_that_run(runs: int) -> None:
    scores, is_in = shadow_scores(runs, 50, shift=1.0)
    other = is_in.copy()
    other[3] = ~other[3]
    found, again = likelihood_ratios(scores, is_in), likelihood_ratios(scores, other)
    assert again[3] == pytest.approx(found[3])
    assert not np.allclose(again[0], found[0])


def test_a_record_that_is_always_in_is_not_guessed() -> None:
    scores, is_in = shadow_scores(6, 4, shift=1.0)
    is_in[:, 2] = True
    assert (likelihood_ratios(scores, is_in)[:, 2] == 0).all()
    with pytest.raises(ValueError, match="at least 4"):
        likelihood_ratios(scores[:3], is_in[:3])
