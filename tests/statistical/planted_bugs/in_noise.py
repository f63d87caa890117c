"""Mistakes and cheats in the noise: how much, where, and how often the same."""

from __future__ import annotations

import hashlib
import math
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import client.platform
import client.trainer
from client.platform import Platform
from client.sums import noisy
from common.privacy.noise import add_gaussian_noise_
from common.privacy.randomness import RandomSource, SeededRandom, SystemRandom, poisson_sample
from common.rng import derive_seed
from common.secagg.lattice import noisy_lattice
from common.secagg.terms import SecaggTerms

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from client.trainer import TrainingPlan
    from common.messages import TrainRequest
    from common.secagg.lattice import Lattice

    Plant = Callable[[pytest.MonkeyPatch], None]
    Key = Callable[[Platform, str, int | str], tuple[str | int, ...]]


# --- How much -----------------------------------------------------------------------------------


def scaled_in_rounds(factor: float) -> Plant:
    plan_of = client.platform._plan

    def planned(request: TrainRequest) -> TrainingPlan:
        plan = plan_of(request)
        return replace(plan, noise_std=factor * plan.noise_std)

    return lambda patch: patch.setattr(client.platform, "_plan", planned)


def scaled_in_sums(factor: float) -> Plant:
    def scaled(total: np.ndarray, std: float, source: RandomSource) -> np.ndarray:
        return noisy(total, factor * std, source)

    return lambda patch: patch.setattr(client.platform, "noisy", scaled)


def draws_of_two_thirds(patch: pytest.MonkeyPatch) -> None:
    """The standard deviation in units of the grid is forgotten half-way."""
    right = RandomSource.gaussian

    def gaussian(self: Any, size: int, std: float, **options: Any) -> torch.Tensor:  # noqa: ANN401
        return right(self, size, std, **options).mul_(2 / 3)

    patch.setattr(RandomSource, "gaussian", gaussian)


def share_of(share: Callable[[SecaggTerms], float]) -> Plant:
    return lambda patch: patch.setattr(SecaggTerms, "noise_share", property(share))


one_kth = share_of(lambda terms: 1 / len(terms.participants))
nobody_drops_or_colludes = share_of(lambda terms: 1 / math.sqrt(len(terms.participants)))


# --- Where --------------------------------------------------------------------------------------


def spared(is_spared: Callable[[torch.Tensor], bool]) -> Plant:
    """No noise on some of the arrays."""

    def add(total: torch.Tensor, std: float, source: RandomSource) -> None:
        if not is_spared(total):
            add_gaussian_noise_(total, std, source)

    return lambda patch: patch.setattr(client.trainer, "add_gaussian_noise_", add)


biases_spared = spared(lambda total: total.ndim == 1)
last_bias_spared = spared(lambda total: total.shape == (1,))
untouched_arrays_spared = spared(lambda total: not total.any())


def untouched_rows_spared(patch: pytest.MonkeyPatch) -> None:
    """Sparse updates: what nobody touched is not sent, so it shows what somebody did touch."""

    def add(total: torch.Tensor, std: float, source: RandomSource) -> None:
        rows = total.view(len(total), -1).any(1)
        add_gaussian_noise_(total, std, source)
        total[~rows] = 0.0

    patch.setattr(client.trainer, "add_gaussian_noise_", add)


def unlisted_rows_spared(patch: pytest.MonkeyPatch) -> None:
    """Under secure aggregation others' users have to hide in these."""

    def on_own_rows(
        total: torch.Tensor, std: float, lattice: Lattice, number: int, source: RandomSource
    ) -> np.ndarray:
        is_own = total.numpy() != 0
        release: np.ndarray = noisy_lattice(total, std, lattice, number, source)
        return np.where(is_own, release, 0).astype(release.dtype)

    patch.setattr(client.platform, "noisy_lattice", on_own_rows)


def nothing_without_users(patch: pytest.MonkeyPatch) -> None:
    sizes = []

    def sample(num_users: int, rate: float, source: RandomSource) -> np.ndarray:
        found = poisson_sample(num_users, rate, source)
        sizes.append(len(found))
        return found

    def add(total: torch.Tensor, std: float, source: RandomSource) -> None:
        add_gaussian_noise_(total, std if sizes[-1] else 0.0, source)

    patch.setattr(client.trainer, "poisson_sample", sample)
    patch.setattr(client.trainer, "add_gaussian_noise_", add)


def rounded_before(patch: pytest.MonkeyPatch) -> None:
    def early(
        total: torch.Tensor, std: float, lattice: Lattice, number: int, source: RandomSource
    ) -> np.ndarray:
        whole = torch.round(total / lattice.step) * lattice.step
        return noisy_lattice(whole, std, lattice, number, source)

    patch.setattr(client.platform, "noisy_lattice", early)


# --- The same again -----------------------------------------------------------------------------


def keyed_by(key: Key, *, is_everywhere: bool = False) -> Plant:
    """Streams of a simulation that follow from less than run, platform and round."""

    def source(self: Platform, run_id: str, what: int | str) -> RandomSource:
        simulation = self._config.simulation
        if simulation is None and not is_everywhere:
            return SystemRandom()
        seed = simulation.seed if simulation else 0
        return SeededRandom(derive_seed(seed, "release", *key(self, run_id, what)))

    return lambda patch: patch.setattr(Platform, "_random_source", source)


one_stream_for_a_run = keyed_by(lambda platform, run_id, _: (run_id, platform.name))
one_stream_for_all_runs = keyed_by(lambda platform, _, what: (platform.name, what))
one_stream_for_all_platforms = keyed_by(lambda _, run_id, what: (run_id, what))
seeded_everywhere = keyed_by(
    lambda platform, run_id, what: (run_id, platform.name, what), is_everywhere=True
)


def differences(patch: pytest.MonkeyPatch) -> None:
    """Each round takes away the noise of the one before: what adds up over rounds has hardly any.

    In each release by itself there is as much as there should be.
    """
    last: dict[torch.Size, torch.Tensor] = {}

    def add(total: torch.Tensor, std: float, source: RandomSource) -> None:
        if std == 0:
            return
        fresh = source.gaussian(total.numel(), std / math.sqrt(2)).view(total.shape).clone()
        total += fresh - last.get(total.shape, source.gaussian(total.numel(), 0.0).view_as(total))
        last[total.shape] = fresh

    patch.setattr(client.trainer, "add_gaussian_noise_", add)


def drawn_once(patch: pytest.MonkeyPatch) -> None:
    """What was drawn is kept "to save time" and used for the next step, chunk and round."""
    right = RandomSource.gaussian
    first: dict[int, torch.Tensor] = {}

    def replay(self: Any, size: int, std: float, **options: Any) -> torch.Tensor:  # noqa: ANN401
        if size not in first:
            first[size] = right(self, size, std, **options).clone()
        return first[size].clone()

    patch.setattr(RandomSource, "gaussian", replay)


def system_key_of(key: Callable[[], bytes]) -> Plant:
    def start(self: SystemRandom) -> None:
        RandomSource.__init__(self, hashlib.sha256(key()).digest())

    return lambda patch: patch.setattr(SystemRandom, "__init__", start)


key_of_the_clock = system_key_of(lambda: str(time.time_ns()).encode())
key_of_few_bytes = system_key_of(lambda: os.urandom(4))
