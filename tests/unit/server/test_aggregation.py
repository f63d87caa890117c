from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from server.aggregation import StreamingSum


def mean_of(releases: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    added = StreamingSum()
    for release in releases:
        added.add(release)
    assert added.count == len(releases)
    return added.mean()


def drawn(num: int, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [
        {"a": (scale * rng.standard_normal((4, 3))).astype(np.float32), "b": rng.random(5, "f4")}
        for _ in range(num)
    ]


def test_it_is_the_mean_in_float32() -> None:
    releases = drawn(7)
    for name, array in mean_of(releases).items():
        assert array.dtype == np.float32
        exact = np.mean([release[name].astype(np.float64) for release in releases], axis=0)
        np.testing.assert_array_equal(array, exact.astype(np.float32))


def test_order_of_arrival_changes_nothing_beyond_rounding() -> None:
    releases = drawn(4, scale=1e4)
    first = mean_of(releases)
    for order in itertools.permutations(releases):
        for name, array in mean_of(list(order)).items():
            # One unit in the last place: the sums differ in float64 only.
            np.testing.assert_array_max_ulp(array, first[name], maxulp=1)


def test_a_platform_counts_as_much_as_any_other() -> None:
    # Uniform weights: adding a copy of the mean must leave the mean where it is.
    releases = drawn(3)
    mean = mean_of(releases)
    for name, array in mean_of([*releases, mean]).items():
        np.testing.assert_allclose(array, mean[name], rtol=1e-6, atol=1e-7)


def test_releases_stay_as_they_came_and_are_not_kept() -> None:
    releases = drawn(2)
    copies = [{name: array.copy() for name, array in release.items()} for release in releases]
    before = [sys.getrefcount(array) for release in releases for array in release.values()]
    added = StreamingSum()
    for release in releases:
        added.add(release)
    after = [sys.getrefcount(array) for release in releases for array in release.values()]
    assert after == before  # memory does not grow with the number of platforms
    added.mean()["a"][:] = 0.0
    for release, copy in zip(releases, copies, strict=True):
        for name, array in release.items():
            np.testing.assert_array_equal(array, copy[name])


def test_many_small_updates_do_not_drown_in_a_large_one() -> None:
    # In float32, 1e8 + 1 = 1e8: the sum would forget all of them.
    large = {"a": np.full(1, 1e8, np.float32)}
    small = [{"a": np.ones(1, np.float32)} for _ in range(1000)]
    undone = {"a": np.full(1, -1e8, np.float32)}
    assert mean_of([large, *small, undone])["a"] == pytest.approx(1000 / 1002)


def test_the_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no releases"):
        StreamingSum().mean()


def test_a_sum_is_the_sum_and_not_the_mean() -> None:
    releases, added = drawn(5), StreamingSum()
    for release in releases:
        added.add(release)
    for name, array in added.total().items():
        assert array.dtype == np.float32
        exact = np.sum([release[name].astype(np.float64) for release in releases], axis=0)
        np.testing.assert_array_equal(array, exact.astype(np.float32))
