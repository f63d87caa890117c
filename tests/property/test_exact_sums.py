"""A streaming sum is the same in whatever order releases come, to the last bit, and it is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import ExactSum, StreamingSum

LARGEST = float(np.finfo(np.float32).max)
finite = st.floats(-LARGEST, LARGEST, width=32, allow_subnormal=True)


def bits(arrays: list[np.ndarray]) -> bytes:
    added = ExactSum(arrays[0].shape)
    for array in arrays:
        added.add(array)
    return added.total().tobytes()


@given(
    numbers=st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=12),
    random=st.randoms(use_true_random=False),
)
def test_order_changes_no_bit_and_the_sum_is_the_exact_one(
    numbers: list[tuple[float, float, float]], random: object
) -> None:
    arrays = [np.array(row, dtype=np.float32) for row in numbers]
    shuffled = list(arrays)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert bits(arrays) == bits(shuffled)
    found = np.frombuffer(bits(arrays))
    for column, value in enumerate(found):
        exact = math.fsum(float(array[column]) for array in arrays)  # correctly rounded
        assert math.isclose(value, exact, rel_tol=2**-50, abs_tol=0.0)


@given(st.permutations(range(7)))
def test_what_cancels_leaves_what_is_small(order: list[int]) -> None:
    # In float64, 3e38 + 1 is 3e38: a running sum loses some of these in most orders.
    numbers = [3e38, 1.0, 1e-44, -3e38, 2.0**100, -(2.0**100), 1e-20]
    arrays = [np.full(2, number, dtype=np.float32) for number in numbers]
    found = np.frombuffer(bits([arrays[k] for k in order]))
    small = [float(arrays[k][0]) for k in (1, 2, 6)]
    assert found.tolist() == [math.fsum(small)] * 2
    assert (
        bits([array for k, array in enumerate(arrays) if k != 1])
        == np.full(2, math.fsum(small[1:])).tobytes()
    )


def test_a_running_sum_in_float64_does_depend_on_the_order() -> None:
    # Must-reject case: without the bins, the law above would not hold.
    assert (3e38 + 1.0) - 3e38 != (3e38 - 3e38) + 1.0


def test_memory_is_that_of_what_the_numbers_need_however_many_come() -> None:
    rng = np.random.default_rng(0)
    added = StreamingSum()
    for _ in range(200):
        added.add({"a": rng.normal(20, 5, 1000).astype(np.float32)})
    assert len(added._sums["a"]._bins) <= 3


def test_large_arrays_are_added_chunk_by_chunk() -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((300, 500)).astype(np.float32) for _ in range(3)]
    added = ExactSum((300, 500))
    for array in arrays:
        added.add(array)
    np.testing.assert_array_equal(
        added.total(), np.sum([a.astype(np.longdouble) for a in arrays], axis=0).astype(float)
    )


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros(2)])
def test_another_shape_or_type_is_an_error(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected float32"):
        ExactSum((2,)).add(wrong)
