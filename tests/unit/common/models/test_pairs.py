from __future__ import annotations

import numpy as np
import pytest

from common.models.pairs import (
    MIN_WEIGHT,
    item_weights,
    most_counted,
    num_pairs,
    pair_starts,
    symmetric,
)


@pytest.mark.parametrize("num_items", [0, 1, 2, 5, 30])
def test_a_triangle_and_its_matrix_say_the_same(num_items: int) -> None:
    places = np.triu_indices(num_items, 1)
    upper = np.arange(1, num_pairs(num_items) + 1, dtype=np.float32)
    assert len(places[0]) == num_pairs(num_items)
    matrix = symmetric(upper, num_items)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix[places], upper)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert not np.diag(matrix).any()
    for row, start in enumerate(pair_starts(num_items)[:-1]):
        assert matrix[row, row + 1] == upper[start]


def test_rare_items_weigh_more_and_the_rarest_1() -> None:
    weights = item_weights(np.array([1000.0, 10.0, 100.0]), noise_std=1.0)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [0.01**0.4, 1.0, 0.1**0.4], rtol=1e-6)


def test_noise_makes_no_item_look_rare() -> None:
    counts = np.array([-300.0, 0.0, 3.0, 20.0, 80.0])
    np.testing.assert_allclose(
        item_weights(counts, noise_std=10.0), [1.0, 1.0, 1.0, 1.0, 0.25**0.4], rtol=1e-6
    )
    # Without noise, what fewer than one user has is as rare as what one has.
    np.testing.assert_allclose(
        item_weights(np.array([0.0, 0.5, 1.0, 10.0]), 0.0), [1.0, 1.0, 1.0, 0.1**0.4], rtol=1e-6
    )


def test_weights_stay_where_platforms_accept_them() -> None:
    counts = 10.0 ** np.linspace(-3, 20, 60)
    weights = item_weights(counts, noise_std=1e-9)
    assert weights.max() == 1.0
    assert weights.min() == MIN_WEIGHT


def test_the_most_counted_come_in_the_order_of_the_catalogue_and_ties_go_to_the_first() -> None:
    counts = np.array([5.0, 7.0, 5.0, 9.0, 5.0])
    assert most_counted(counts, 3).tolist() == [0, 1, 3]
    assert most_counted(counts, 9).tolist() == [0, 1, 2, 3, 4]
