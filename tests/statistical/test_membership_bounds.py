"""The lower bounds against the real pipeline: below what is accounted, but not where it is broken.

Honest runs: a bound fails once in twenty runs where the attack is as strong as any can be; ours is
not, and the seeds are fixed. Planted bugs must push a bound, or the estimate, beyond the epsilon
that the ledger still believes in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import client.platform
import client.trainer
from client.sums import noisy, pair_sum
from client.trainer import take_noisy_step_
from common.data.synthetic import MarketplaceConfig, generate_marketplace
from common.models.ncf import NcfConfig
from common.privacy.engines import clipping_engine
from simulations.attacks.membership.audits import audit_users
from simulations.options import SimulationOptions

if TYPE_CHECKING:
    from pathlib import Path

    from scipy.sparse import csr_matrix
    from torch import Tensor

    from client.trainer import TrainingPlan
    from common.data.marketplace import Marketplace
    from common.models.ncf import SharedNcf
    from common.privacy.randomness import RandomSource
    from simulations.attacks.membership.result import Audit

NUM_CANARIES = 2000


@pytest.fixture(scope="module")
def marketplace() -> Marketplace:
    return generate_marketplace(MarketplaceConfig(), seed=0).marketplace


def attack(
    marketplace: Marketplace,
    folder: Path,
    epsilon: float,
    *,
    seed: int = 0,
    number: int = NUM_CANARIES,
    **options: Any,  # noqa: ANN401 - any field
) -> Audit:
    asked = SimulationOptions(epsilon=epsilon, **options)
    found = audit_users(
        marketplace,
        asked,
        folder / f"{epsilon}-{seed}-{len(list(folder.iterdir()))}",
        seed=seed,
        num_canaries=number,
    )
    assert found.epsilon_accounted is not None
    assert found.epsilon_accounted == pytest.approx(epsilon, rel=0.01)
    return found


def tightest(audit: Audit) -> float:
    return max(audit.epsilon_lower, audit.epsilon_lower_gaussian or 0.0)


def accounted(audit: Audit) -> float:
    assert audit.epsilon_accounted is not None
    return audit.epsilon_accounted


def test_the_bound_rises_with_epsilon_and_stays_below_it(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    found = [attack(marketplace, tmp_path, epsilon) for epsilon in (1.0, 4.0, 8.0)]
    lower = [audit.epsilon_lower for audit in found]
    assert lower == sorted(lower)
    assert all(tightest(audit) < accounted(audit) for audit in found)
    assert lower[1] > 1
    assert lower[2] > 2
    gaussian = found[2].epsilon_lower_gaussian
    assert gaussian is not None
    assert gaussian > 3.5
    for audit in found[1:]:
        assert audit.epsilon_estimate == pytest.approx(accounted(audit), rel=0.2)


def test_secure_aggregation_is_bounded_alike(marketplace: Marketplace, tmp_path: Path) -> None:
    found = attack(marketplace, tmp_path, 8.0, trust="secagg")
    assert 2 < found.epsilon_lower <= tightest(found) < accounted(found)
    assert found.epsilon_estimate == pytest.approx(8, rel=0.2)


def without_noise(patch: pytest.MonkeyPatch) -> None:
    scaled_noise(patch, 0.0)


def two_thirds_of_the_noise(patch: pytest.MonkeyPatch) -> None:
    scaled_noise(patch, 2 / 3)


def scaled_noise(patch: pytest.MonkeyPatch, factor: float) -> None:
    def less(total: np.ndarray, std: float, source: RandomSource) -> np.ndarray:
        return noisy(total, factor * std, source)

    patch.setattr(client.platform, "noisy", less)


def parts_twice_as_large(patch: pytest.MonkeyPatch) -> None:
    def doubled(interactions: csr_matrix, weights: np.ndarray) -> np.ndarray:
        return 2.0 * pair_sum(interactions, weights)

    patch.setattr(client.platform, "pair_sum", doubled)


PLANTED = {
    "no noise": (without_noise, 1.0, NUM_CANARIES),
    "no noise, epsilon 8": (without_noise, 8.0, NUM_CANARIES),
    "two thirds of the noise": (two_thirds_of_the_noise, 4.0, 20_000),
    "parts twice as large": (parts_twice_as_large, 1.0, NUM_CANARIES),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_in_the_sums_is_proved(
    name: str, marketplace: Marketplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, epsilon, number = PLANTED[name]
    plant(monkeypatch)
    found = attack(marketplace, tmp_path, epsilon, number=number)
    assert tightest(found) > accounted(found)
    assert found.epsilon_estimate is not None
    assert found.epsilon_estimate > 1.25 * accounted(found)


ROUNDS: dict[str, Any] = {
    "plan": "ncf",
    "rounds": 5,
    "model": NcfConfig(dim=4),
    "number": 200,
}


def rounds_without_noise(patch: pytest.MonkeyPatch) -> None:
    def silent(
        model: SharedNcf, sums: dict[str, Tensor], plan: TrainingPlan, source: RandomSource
    ) -> None:
        take_noisy_step_(model, sums, replace(plan, noise_std=0.0), source)

    patch.setattr(client.trainer, "take_noisy_step_", silent)


def gradients_not_clipped(patch: pytest.MonkeyPatch) -> None:
    def unclipped(name: Any) -> Any:  # noqa: ANN401 - the engine's own signature
        add_ = engine(name)

        def add_all_(sums: Any, model: Any, vectors: Any, batch: Any, norm: float) -> None:  # noqa: ANN401
            add_(sums, model, vectors, batch, 1e3 * norm)

        return add_all_

    engine = clipping_engine
    patch.setattr(client.trainer, "clipping_engine", unclipped)


def test_rounds_are_bounded_from_below_and_above(marketplace: Marketplace, tmp_path: Path) -> None:
    found = attack(marketplace, tmp_path, 16.0, **ROUNDS)
    assert 0.3 < found.epsilon_lower <= tightest(found) < accounted(found)


@pytest.mark.parametrize("plant", [rounds_without_noise, gradients_not_clipped])
def test_a_planted_bug_in_the_rounds_is_proved(
    plant: Any,  # noqa: ANN401 - a function above
    marketplace: Marketplace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    found = attack(marketplace, tmp_path, 0.5, **ROUNDS)
    assert tightest(found) > accounted(found)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_twenty_seeds_never_exceed_what_is_accounted(
    marketplace: Marketplace, tmp_path: Path, epsilon: float
) -> None:
    found = [attack(marketplace, tmp_path, epsilon, seed=seed) for seed in range(20)]
    assert all(tightest(audit) < accounted(audit) for audit in found)
    estimates = [audit.epsilon_estimate for audit in found if audit.epsilon_estimate is not None]
    assert np.mean(estimates) == pytest.approx(epsilon, rel=0.1)
    if epsilon == 8:
        assert all(audit.epsilon_lower > 2 for audit in found)
