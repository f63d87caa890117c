"""Random sources: shapes, chunks, streams. Their distributions are in tests/statistical."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.privacy import randomness
from common.privacy.randomness import SeededRandom, SystemRandom, poisson_sample

MANY = 200_000
SOURCES = {"system": SystemRandom, "seeded": lambda: SeededRandom(11)}
each_source = pytest.mark.parametrize("new_source", SOURCES.values(), ids=SOURCES.keys())


def num_repeated(*draws: np.ndarray) -> int:
    values = np.concatenate([np.ravel(d) for d in draws])
    return len(values) - len(np.unique(values))


@each_source
@pytest.mark.parametrize("size", [0, 1, 2, 7, 30])
def test_gaussians_are_as_many_as_asked_for(new_source: type[SystemRandom], size: int) -> None:
    draws = new_source().gaussian(size, 2.0)
    assert draws.shape == (size,)
    assert draws.dtype == torch.float64
    assert torch.isfinite(draws).all()


@each_source
def test_gaussians_go_where_they_are_asked_to(new_source: type[SystemRandom]) -> None:
    room = torch.zeros(10, dtype=torch.float64)
    draws = new_source().gaussian(7, 2.0, out=room)
    assert draws.data_ptr() == room.data_ptr()
    assert (room != 0).tolist() == [True] * 7 + [False] * 3


@pytest.mark.parametrize("size", [63, 64, 65, 127, 128, 129, 191, 640, 1001])
def test_chunks_of_any_size_are_filled_and_never_repeat(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(randomness, "CHUNK", 64)
    draws = SystemRandom().gaussian(size, 1.0)
    assert draws.shape == (size,)
    assert torch.isfinite(draws).all()
    assert (draws != 0).all()
    # 53-bit draws: two of a thousand coincide once in 1e10 runs.
    assert num_repeated(draws.numpy()) == 0


def test_the_real_chunk_boundary() -> None:
    draws = SystemRandom().gaussian(randomness.CHUNK + 3, 1.0)
    assert draws.shape == (randomness.CHUNK + 3,)
    assert torch.isfinite(draws).all()
    # A repeated chunk would repeat at least three values; chance repeats one in 10,000 runs.
    assert num_repeated(draws.numpy()) < 3


@each_source
def test_a_source_does_not_repeat_itself(new_source: type[SystemRandom]) -> None:
    source = new_source()
    draws = [*(source.gaussian(MANY, 1.0).numpy() for _ in range(2)), source.uniform(MANY)]
    assert num_repeated(*draws) < 3


def test_every_instance_has_its_own_stream() -> None:
    draws = [SystemRandom().uniform(1000) for _ in range(4)]
    assert num_repeated(*draws) == 0
    assert len({SystemRandom().seed() for _ in range(100)}) == 100
    assert num_repeated(SeededRandom(1).uniform(1000), SeededRandom(2).uniform(1000)) == 0


def test_a_seeded_source_repeats_itself_and_says_so() -> None:
    assert torch.equal(SeededRandom(5).gaussian(9, 1.0), SeededRandom(5).gaussian(9, 1.0))
    assert SeededRandom(5).seed() == SeededRandom(5).seed()
    assert SeededRandom.is_simulation
    assert not SystemRandom.is_simulation


@each_source
def test_no_noise_is_exactly_none(new_source: type[SystemRandom]) -> None:
    assert not new_source().gaussian(100, 0.0).any()


@each_source
def test_uniforms_stay_below_one_and_use_53_bits(new_source: type[SystemRandom]) -> None:
    draws = new_source().uniform(MANY)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.array_equal(np.floor(draws * 2.0**53), draws * 2.0**53)
    assert (draws * 2.0**40 % 1 != 0).mean() > 0.99


@each_source
def test_seeds_have_128_bits(new_source: type[SystemRandom]) -> None:
    source = new_source()
    seeds = [source.seed() for _ in range(200)]
    assert all(0 <= seed < 2**128 for seed in seeds)
    assert max(seeds) > 2**126
    assert len({seed & (2**64 - 1) for seed in seeds}) == len(set(seeds)) == 200


@each_source
def test_a_split_stream_moves_nothing_in_the_first(new_source: type[SystemRandom]) -> None:
    source = new_source()
    child = source.split()
    assert child.is_simulation == source.is_simulation
    assert not np.isin(child.uniform(1000), source.uniform(1000)).any()


def test_what_is_drawn_from_a_split_stream_does_not_shift_the_first() -> None:
    following = []
    for num_draws in (0, 12_345):
        source = SeededRandom(1)
        source.split().uniform(num_draws)
        following.append(source.uniform(10))
    np.testing.assert_array_equal(following[0], following[1])


def test_the_key_of_the_operating_system_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    monkeypatch.setattr("os.urandom", urandom)
    first, second = SystemRandom().uniform(4), SystemRandom().uniform(4)
    assert asked == [32, 32]
    assert np.array_equal(first, second), "nothing but the operating system's bytes goes in"


def test_everybody_takes_part_at_rate_one_without_a_coin() -> None:
    source = SeededRandom(3)
    assert poisson_sample(6, 1.0, source).tolist() == list(range(6))
    assert source.seed() == SeededRandom(3).seed()


@each_source
def test_a_sample_is_sorted_row_numbers(new_source: type[SystemRandom]) -> None:
    sample = poisson_sample(1000, 0.5, new_source())
    assert sample.dtype == np.int64
    assert (np.diff(sample) > 0).all()
    assert set(sample) <= set(range(1000))
