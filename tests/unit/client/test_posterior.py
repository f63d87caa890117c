"""Noisy sums are worth what the model of them says, and pure noise is worth nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import integrate
from scipy.sparse import csr_matrix
from scipy.stats import norm

from client import posterior
from client.posterior import posterior_means
from client.similarity import similarity

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_PAIRS = 100_000
STD = 3.0


def exponential(rng: np.random.Generator) -> np.ndarray:
    return rng.exponential(4.0, NUM_PAIRS)


def heavy(rng: np.random.Generator) -> np.ndarray:
    return 2.0 * rng.pareto(1.5, NUM_PAIRS)


def drawn(
    seed: int, sums: Callable[[np.random.Generator], np.ndarray] = exponential, share: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    """True sums, of which a share is something, and noisy ones."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(NUM_PAIRS) < share, STD * sums(rng), 0.0)
    return truth, (truth + STD * rng.normal(size=NUM_PAIRS)).astype(np.float32)


def error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.square(found - truth).mean())


@pytest.mark.parametrize("sums", [exponential, heavy])
@pytest.mark.parametrize("seed", range(3))
def test_it_errs_less_than_a_threshold_or_the_sums_themselves(
    sums: Callable[[np.random.Generator], np.ndarray], seed: int
) -> None:
    truth, noisy = drawn(seed, sums)
    found = error(posterior_means(noisy, STD), truth)
    thresholds = [error(np.where(noisy > t * STD, noisy, 0.0), truth) for t in (3.0, 4.0, 5.0)]
    assert found < 0.9 * min(thresholds)
    assert found < 0.1 * error(noisy, truth)
    assert found < 0.9 * error(np.zeros(NUM_PAIRS), truth)


def test_the_prior_is_found() -> None:
    _, noisy = drawn(0)
    share, rate = posterior._fit_prior(noisy, STD)
    assert share == pytest.approx(0.02, rel=0.1)
    assert rate == pytest.approx(0.25, rel=0.1)


def test_a_posterior_mean_is_the_integral(monkeypatch: pytest.MonkeyPatch) -> None:
    share, rate = 0.03, 0.3
    monkeypatch.setattr(posterior, "_fit_prior", lambda *_: (share, rate))
    monkeypatch.setattr(posterior, "_MIN_PROBABILITY", 0.0)
    for value in (-4.0, -1.0, 0.0, 0.7, 2.0, 3.0, 4.5, 9.0, 30.0):

        def part(true: float, power: int, value: float = value) -> float:
            density = rate * np.exp(-rate * true) * norm.pdf(value - true)
            return float(true**power * density)

        ends = (max(0.0, value - 12.0), max(0.0, value) + 12.0)
        first, mass = (integrate.quad(part, *ends, args=(power,))[0] for power in (1, 0))
        expected = share * first / (share * mass + (1.0 - share) * norm.pdf(value))
        found = posterior_means(np.array([STD * value]), STD)
        np.testing.assert_allclose(found, STD * expected, rtol=1e-6)


def test_pure_noise_is_worth_nothing() -> None:
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(scale=STD, size=NUM_PAIRS)
        found = posterior_means(noise, STD)
        assert (found < 0.05 * STD).mean() >= 0.999
        assert error(found, np.zeros(NUM_PAIRS)) < 1e-3 * STD**2


def test_means_grow_with_the_sums_and_lie_between_nothing_and_them() -> None:
    truth, noisy = drawn(1)
    noisy = np.sort(noisy)
    found = posterior_means(noisy, STD)
    assert (np.diff(found) >= 0).all()
    assert (found >= 0).all()
    high = noisy > 2 * STD
    assert (found[high] <= noisy[high]).all()
    assert (found[noisy < STD] == 0).all()
    # What is plainly there keeps nearly all of its size: the prior's rate is 0.25.
    plain = noisy > 10 * STD
    np.testing.assert_allclose(found[plain], noisy[plain] - 0.25 * STD, atol=0.05 * STD)
    assert truth.max() > 20 * STD


@pytest.mark.parametrize("far", [1e3, 1e4, 1e6, -1e6])
def test_one_sum_far_out_does_not_make_noise_of_the_others_or_something_of_noise(
    far: float,
) -> None:
    # It does count in the prior's mean: with one sum of 10^6 the others weigh less.
    truth, noisy = drawn(2)
    found = posterior_means(np.append(noisy, np.float32(far * STD)), STD)
    others = found[:-1]
    assert (others[truth == 0] > 0.1 * STD).mean() < 0.03
    assert error(others, truth) < 0.8 * error(np.zeros(NUM_PAIRS), truth)
    plain = noisy > 6 * STD
    np.testing.assert_allclose(others[plain], noisy[plain], atol=0.5 * STD)
    assert found[-1] == pytest.approx(max(far, 0.0) * STD, rel=1e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values",
    [
        [],
        [0.0],
        [5.0],
        [-5.0],
        [1e6],
        [-1e6],
        [1e6, -1e6],
        [-1e6] * 3,
        np.linspace(-1e6, 1e6, 1001).tolist(),
        [2.5] * 10,
        [0.0] * 10,
        [0.1, -2.0, 1.0, 0.0, 0.3, 7.0, -0.4, 0.2, 1.1, -1.3],
    ],
)
@pytest.mark.parametrize("std", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_every_array_has_finite_means(values: list[float], std: float, kind: type) -> None:
    noisy: np.ndarray = (np.array(values) * std).astype(kind)
    given = noisy.copy()
    found = posterior_means(noisy, std)
    assert found.shape == noisy.shape
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (found <= np.abs(noisy) + 3 * std).all()
    np.testing.assert_array_equal(noisy, given)


def test_the_unit_of_the_sums_does_not_matter() -> None:
    _, noisy = drawn(3)
    exact = noisy.astype(np.float64)
    np.testing.assert_allclose(
        posterior_means(1024 * exact, 1024 * STD), 1024 * posterior_means(exact, STD), rtol=1e-12
    )


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    _, noisy = drawn(4)
    whole = posterior_means(noisy, STD)
    monkeypatch.setattr(posterior, "_CHUNK", 7919)
    np.testing.assert_array_equal(posterior_means(noisy, STD), whole)


def test_similarity_divides_by_what_both_items_have() -> None:
    sums = np.array([[0, 3, 0, 0], [3, 0, 5, 0], [0, 5, 0, 0], [0, 0, 0, 0]], dtype=float)
    found = similarity(csr_matrix(sums))
    assert isinstance(found, csr_matrix)
    assert found.dtype == np.float32
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 3 / (4 * 9) ** 0.5
    expected[1, 2] = expected[2, 1] = 5 / (9 * 6) ** 0.5
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-6)
    assert not similarity(csr_matrix((3, 3))).nnz


def test_sums_far_above_the_noise_are_worth_themselves_without_a_warning() -> None:
    noisy = np.linspace(30.0, 45.0, 10_000)  # a warning of ours is an error in tests
    np.testing.assert_allclose(posterior_means(noisy, 1.0), noisy, rtol=0.01)
