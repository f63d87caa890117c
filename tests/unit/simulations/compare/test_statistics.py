from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simulations.compare.statistics import (
    NUM_FLIPS,
    SeededGain,
    seed_mean,
    seeded_gain,
    sign_flip_p_value,
)


def gain(rows: list[tuple[int, int, float]], *, test: bool = False) -> SeededGain:
    """Of rows (seed, user, difference)."""
    seeds, users, differences = (np.array(column) for column in zip(*rows, strict=True))
    return seeded_gain(seeds, users, differences.astype(float), test=test)


def test_one_seed_is_the_usual_paired_comparison() -> None:
    found = gain([(7, 0, 0.1), (7, 1, 0.3), (7, 2, 0.2), (7, 3, -0.2)])
    assert found.mean == pytest.approx(0.1)
    # Deviations 0, .2, .1, -.3: sum of squares .14, variance .14 / 3, over 4 users.
    assert found.stderr_users == pytest.approx(math.sqrt(0.14 / 3 / 4))
    assert found.stderr_seeds is None
    assert found.stderr == found.stderr_users
    assert (found.num_users, found.num_seeds) == (4, 1)


def test_the_same_users_in_two_seeds_count_once() -> None:
    found = gain([(0, 5, 0.1), (0, 9, 0.3), (1, 5, 0.3), (1, 9, 0.7)])
    # Means of seeds .2 and .5; means of users .2 and .5.
    assert found.mean == pytest.approx(0.35)
    assert found.stderr_users == pytest.approx(0.15)  # sd of (.2, .5) over root 2
    assert found.stderr_seeds == pytest.approx(0.15)
    assert found.stderr == pytest.approx(0.15 * math.sqrt(2))
    assert (found.num_users, found.num_seeds) == (2, 2)


def test_other_users_in_each_seed_are_so_many_more_users() -> None:
    found = gain([(0, 1, 0.0), (0, 2, 0.2), (1, 3, 0.0), (1, 4, 0.2)])
    # Each seed: deviations .1 with weight 1/4; sum of squares 4 (.025)^2; 4 users.
    assert found.stderr_users == pytest.approx(math.sqrt(4 / 3 * 4 * 0.025**2))
    assert found.stderr_seeds == 0.0
    assert found.num_users == 4


def test_seeds_weigh_the_same_however_many_users_they_have() -> None:
    assert gain([(0, 1, 1.0), (1, 1, 0.0), (1, 2, 0.0), (1, 3, 0.0)]).mean == pytest.approx(0.5)


def test_one_user_has_no_standard_error_and_nobody_has_no_mean() -> None:
    assert gain([(0, 1, 0.5)]).stderr is None
    assert gain([(0, 1, 0.5), (1, 1, 0.7)], test=True).stderr is None
    nobody = seeded_gain(np.array([]), np.array([]), np.array([]), test=True)
    assert (nobody.mean, nobody.stderr, nobody.p_value, nobody.num_users) == (None, None, None, 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5), st.floats(-1, 1)), min_size=2, max_size=40
    )
)
def test_swapping_the_models_changes_the_sign_and_nothing_else(
    rows: list[tuple[int, int, float]],
) -> None:
    one = gain(rows, test=True)
    other = gain([(seed, user, -value) for seed, user, value in rows], test=True)
    assert one.mean is not None
    assert other.mean == pytest.approx(-one.mean)
    assert other.stderr == (None if one.stderr is None else pytest.approx(one.stderr))
    assert other.p_value == one.p_value


def test_the_p_value_agrees_with_all_possible_flips() -> None:
    parts = np.array([0.4, 0.1, -0.2, 0.3, 0.25, 0.0, 0.15, -0.05])
    values = parts[parts != 0]
    signs = np.array(np.meshgrid(*[[1, -1]] * len(values))).reshape(len(values), -1)
    exact = (np.abs(values @ signs) >= values.sum() - 1e-12).mean()
    assert sign_flip_p_value(parts) == pytest.approx(exact, abs=0.02)
    assert sign_flip_p_value(parts) == sign_flip_p_value(parts)


def test_the_p_value_agrees_with_a_t_test_on_many_users() -> None:
    values = np.random.default_rng(0).normal(0.1, 1.0, size=400)
    found = gain([(0, user, value) for user, value in enumerate(values)], test=True).p_value
    assert found == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)


def test_what_never_differs_has_p_1_and_what_always_does_the_least() -> None:
    assert sign_flip_p_value(np.zeros(5)) == 1.0
    assert sign_flip_p_value(np.ones(50)) == 1 / (NUM_FLIPS + 1)


def test_users_that_repeat_their_luck_in_every_seed_are_no_further_evidence() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, size=40)
    one = gain([(0, user, value) for user, value in enumerate(values)], test=True)
    five = gain(
        [(seed, user, value) for seed in range(5) for user, value in enumerate(values)], test=True
    )
    assert five.p_value == one.p_value
    assert five.stderr == pytest.approx(one.stderr)


def test_a_value_per_seed() -> None:
    found = seed_mean([0.2, 0.4])
    assert found.mean == pytest.approx(0.3)
    assert found.sd == pytest.approx(math.sqrt(0.02))
    assert seed_mean([0.2]).sd is None
    assert seed_mean([]).mean is None
