from __future__ import annotations

import math
from dataclasses import astuple

import pytest

from common.errors import ConfigError
from common.privacy.accounting import calibrate_noise_multiplier, epsilon_spent
from common.privacy.plan import COUNTS_SHARE, Shares, plan_noise

PAIRS_ONLY = Shares(counts=COUNTS_SHARE, pairs=1 - COUNTS_SHARE)


@pytest.mark.parametrize(
    ("shares", "steps", "rate"),
    [
        (PAIRS_ONLY, 1, 1.0),
        (Shares(pairs=1.0), 1, 1.0),
        (Shares(rounds=1.0), 30, 1.0),
        (Shares(counts=0.05, pairs=0.45, rounds=0.5), 30, 1.0),
        (Shares(counts=1.0, pairs=9.0, rounds=10.0), 20, 0.2),
    ],
)
@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_a_plan_spends_the_budget_and_hardly_less(
    shares: Shares, steps: int, rate: float, epsilon: float
) -> None:
    plan = plan_noise(epsilon, 1e-5, shares=shares, steps=steps, sampling_rate=rate)
    assert len(plan.mechanisms) == sum(share > 0 for share in astuple(shares))
    assert plan.epsilon(1e-5) == epsilon_spent(plan.mechanisms, 1e-5)
    assert 0.98 * epsilon < plan.epsilon(1e-5) <= epsilon


def test_squared_signal_to_noise_is_divided_as_the_shares_say() -> None:
    plan = plan_noise(2.0, 1e-5, shares=Shares(counts=1.0, pairs=9.0, rounds=30.0), steps=15)
    assert plan.counts is not None
    assert plan.pairs is not None
    assert plan.rounds is not None
    ratios = [m.steps / m.noise_multiplier**2 for m in plan.mechanisms]
    assert ratios[1] == pytest.approx(9 * ratios[0])
    assert ratios[2] == pytest.approx(30 * ratios[0])
    assert (plan.rounds.steps, plan.rounds.sampling_rate) == (15, 1.0)
    assert [m.sampling_rate for m in plan.mechanisms] == [1.0, 1.0, 1.0]


def test_only_the_ratio_of_shares_matters() -> None:
    one = plan_noise(2.0, 1e-5, shares=Shares(counts=0.1, pairs=0.9))
    assert plan_noise(2.0, 1e-5, shares=Shares(counts=10.0, pairs=90.0)) == one


def test_with_one_kind_it_is_the_calibration() -> None:
    plan = plan_noise(3.0, 1e-6, shares=Shares(rounds=1.0), steps=10)
    calibrated = calibrate_noise_multiplier(epsilon=3.0, delta=1e-6, sampling_rate=1.0, steps=10)
    assert plan.rounds is not None
    assert plan.rounds.noise_multiplier == pytest.approx(calibrated, rel=2e-3)
    assert (plan.counts, plan.pairs) == (None, None)


@pytest.mark.parametrize("shares", [{}, {"pairs": -1.0}, {"pairs": math.nan}, {"counts": math.inf}])
def test_shares_that_cannot_be_divided_by_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="shares"):
        Shares(**shares)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_an_epsilon_that_cannot_be_planned_for_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match="epsilon"):
        plan_noise(epsilon, 1e-5, shares=PAIRS_ONLY)
