"""The curve is that of the ranks, whatever the scale of the scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from simulations.attacks.membership.roc import roc_of


def test_the_area_is_the_chance_that_one_who_is_in_scores_higher() -> None:
    rng = np.random.default_rng(0)
    is_in = rng.random(700) < 0.4
    scores = np.round(rng.standard_normal(700) + is_in, 1)  # many are equal
    found = roc_of(scores, is_in)
    statistic = mannwhitneyu(scores[is_in], scores[~is_in]).statistic
    assert found.auc == pytest.approx(statistic / is_in.sum() / (~is_in).sum())
    false, true = np.transpose(found.curve)
    assert found.auc == pytest.approx(float(np.trapezoid(true, false)), abs=0.01)
    assert roc_of(np.exp(3 * scores), is_in).auc == pytest.approx(found.auc)


def test_a_curve_begins_and_ends_in_the_corners_and_never_falls() -> None:
    rng = np.random.default_rng(1)
    is_in = rng.random(5000) < 0.5
    curve = np.array(roc_of(rng.standard_normal(5000), is_in).curve)
    assert len(curve) <= 200
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]
    assert (np.diff(curve, axis=0) >= 0).all()


def test_rates_are_those_at_the_last_threshold_that_keeps_them() -> None:
    scores = np.arange(2000.0)
    is_in = scores % 2 == 0
    is_in[-3:] = [True, False, True]
    found = roc_of(scores, is_in).tpr_at_fpr
    assert list(found) == ["0.001", "0.01", "0.1"]
    assert found["0.001"] == pytest.approx(1 / 1001)
    assert found["0.1"] == pytest.approx(0.1, abs=0.003)


def test_equal_scores_tell_nothing() -> None:
    found = roc_of(np.zeros(10), np.arange(10) < 5)
    assert found.auc == 0.5
    assert found.curve == ((0.0, 0.0), (1.0, 1.0))
    with pytest.raises(ValueError, match="some that are out"):
        roc_of(np.zeros(3), np.ones(3, dtype=bool))
