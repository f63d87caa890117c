"""Noise on a grid: which values a noisy sum can take, and what decides them."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.privacy import noise, randomness
from common.privacy.noise import add_gaussian_noise_, add_noise_in_steps_, grid_step
from common.privacy.randomness import MAX_DEVIATION, SeededRandom, SystemRandom

if TYPE_CHECKING:
    from torch import Tensor

STD = 0.37


def noisy(total: Tensor, std: float = STD, seed: int = 3) -> Tensor:
    result = total.clone()
    add_gaussian_noise_(result, std, SeededRandom(seed))
    return result


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


@given(st.floats(1e-30, 1e30))
def test_the_grid_is_a_power_of_two_far_below_the_noise(std: float) -> None:
    step = grid_step(std)
    assert math.frexp(step)[0] == 0.5
    assert std / 2**17 < step <= std / 2**16


@pytest.mark.parametrize("std", [1e-6, STD, 1.0, 1.9999999, 2.0, 1e6])
def test_a_noisy_sum_lies_on_the_grid_whatever_was_summed(std: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.0, 1e-3, 1.0, 1e3):
        total = scale * std * torch.randn(1000, dtype=torch.float64, generator=generator)
        points = noisy(total, std) / grid_step(std)
        assert torch.equal(points, points.round())
        assert not torch.equal(points % 2, torch.zeros_like(points)), "no coarser grid"


def test_the_noise_is_the_same_whatever_was_summed() -> None:
    total = torch.linspace(-50.0, 50.0, 1001, dtype=torch.float64)
    moved = noisy(total) - noisy(zeros(1001))
    assert (moved - total).abs().max() <= grid_step(STD)


@pytest.mark.parametrize("source", [SystemRandom(), SeededRandom(3)], ids=["system", "seeded"])
def test_no_noise_leaves_the_sum_alone(source: SystemRandom) -> None:
    total = torch.tensor([0.1, -7.3, 1e-20], dtype=torch.float64)
    result = total.clone()
    add_gaussian_noise_(result, 0.0, source)
    assert torch.equal(result, total)


def test_no_noise_takes_nothing_from_the_source() -> None:
    source = SeededRandom(3)
    add_gaussian_noise_(zeros(100), 0.0, source)
    assert source.seed() == SeededRandom(3).seed()


def test_the_same_seed_gives_the_same_noise_and_another_does_not() -> None:
    assert torch.equal(noisy(zeros(999)), noisy(zeros(999)))
    assert (noisy(zeros(999)) != noisy(zeros(999), seed=4)).sum() > 990


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (63,), (64,), (65,), (129,), (7, 19), (2, 64)])
def test_every_coordinate_has_its_own_noise(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "CHUNK", 64)
    monkeypatch.setattr(randomness, "CHUNK", 64)
    # A value is 0, or twice there, with probability below 1e-5.
    values = noisy(zeros(*shape))
    assert values.shape == shape
    assert (values != 0).all()
    assert len(values.unique()) == values.numel()


@pytest.mark.parametrize("more", [-1, 0, 1, 3])
def test_the_real_chunk_boundary(more: int) -> None:
    size = 2 * randomness.CHUNK + more
    values = noisy(zeros(size))
    # Of 70,000 or so, less than one is rounded to 0 on average.
    assert (values == 0).sum() < 12
    assert (values[-3:] != 0).all()
    first, second = values.split(randomness.CHUNK)[:2]
    assert (first[: len(second)] == second).sum() < 12


def test_an_empty_array_has_no_noise() -> None:
    for shape in ((0,), (3, 0)):
        assert noisy(zeros(*shape)).shape == shape


def test_an_array_that_is_not_contiguous_is_refused_or_noisy_everywhere() -> None:
    """Noise on a copy would be lost in silence."""
    total = zeros(40, 30).T
    try:
        add_gaussian_noise_(total, STD, SeededRandom(3))
    except RuntimeError:
        return
    assert (total != 0).all()


@pytest.mark.parametrize(("std", "large"), product([1e-3, 1.0, 1e3], [1e3, 1e6]))
def test_large_sums_keep_their_noise(std: float, large: float) -> None:
    total = torch.full((1000,), large * std, dtype=torch.float64)
    found = noisy(total, std) - total
    assert 0.9 * std < found.std() < 1.1 * std


@pytest.mark.parametrize("step", [2.0**-20, 0.25, 1.0, 2.0**20])
def test_noise_in_steps_is_the_noise_made_whole(step: float) -> None:
    total = torch.linspace(-50.0, 50.0, 1001, dtype=torch.float64)
    found = total.clone()
    add_noise_in_steps_(found, STD, step, SeededRandom(3))
    exact = total + SeededRandom(3).gaussian(1001, STD)
    assert torch.equal(found, found.round())
    assert (found * step - exact).abs().max() <= step * (0.5 + 1e-9)


def test_a_noisy_sum_is_its_noise_in_steps_of_the_grid() -> None:
    total = torch.linspace(-50.0, 50.0, 1001, dtype=torch.float64)
    steps = total.clone()
    add_noise_in_steps_(steps, STD, grid_step(STD), SeededRandom(3))
    assert torch.equal(steps * grid_step(STD), noisy(total))


class ChosenWords(SeededRandom):
    """Draws what it is told to, again and again."""

    def __init__(self, word: int) -> None:
        super().__init__(0)
        self._word = word

    def _words(self, size: int) -> Tensor:
        return torch.full((size,), self._word, dtype=torch.int64)


@pytest.mark.parametrize("std", [1e-3, 1.0, 512.0])
def test_no_noise_is_farther_out_than_stated(std: float) -> None:
    farthest = 0.0
    for word in (0, 1, 2, -1, -2, 2**63 - 1, -(2**63), 2**62, -(2**62)):
        for size in (1, 2, 5):
            draws = ChosenWords(word).gaussian(size, std)
            assert torch.isfinite(draws).all()
            farthest = max(farthest, float(draws.abs().max()) / std)
    assert MAX_DEVIATION - 0.1 < farthest <= MAX_DEVIATION
