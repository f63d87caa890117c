"""An adversary sees what its trust mode shows, to the number, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from client.sums import count_sum, on_items
from common.messages import TrainRequest
from common.models.ncf import NcfConfig
from simulations.attacks.membership.canaries import (
    Canaries,
    choose_canaries,
    is_canary,
    plant,
    users_of,
    with_test_set_aside,
)
from simulations.attacks.membership.gradients import score_handed_model, score_rounds
from simulations.attacks.membership.observed_run import ObservedRun, histories, observe
from simulations.attacks.membership.roc import roc_of
from simulations.attacks.membership.scores import score_handed_pairs, score_sums
from simulations.options import SimulationOptions

if TYPE_CHECKING:
    from pathlib import Path

    from common.data.marketplace import Marketplace
    from simulations.attacks.membership.result import Unit

TARGET = "shop-2"


def attacked(
    marketplace: Marketplace,
    folder: Path,
    *,
    unit: Unit = "user",
    number: int = 60,
    **options: Any,  # noqa: ANN401 - any field
) -> tuple[Marketplace, Canaries, ObservedRun]:
    data = with_test_set_aside(marketplace, 0)
    rng = np.random.default_rng(1)
    canaries = choose_canaries(data, unit, TARGET, number, max_items=4000, rng=rng)
    run = observe(data, [canaries], SimulationOptions(**options), folder, seed=5)
    return data, canaries, run


def exact_counts(data: Marketplace, names: tuple[str, ...], items: np.ndarray) -> np.ndarray:
    sums = []
    for name in names:
        users = users_of(data, name)
        sums.append(count_sum(on_items(users.matrix, users.listing, items)))
    total: np.ndarray = np.sum(sums, axis=0)
    return total


def test_without_noise_releases_are_the_sums_and_scores_tell_everything(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    data, canaries, run = attacked(marketplace, tmp_path / "run", trust="none")
    assert {one.platforms for one in run.seen} == {(TARGET,)}
    counts = next(one for one in run.seen if getattr(one.request, "quantity", "") == "item-counts")
    exact = exact_counts(plant(data, canaries), (TARGET,), counts.asked["items"])
    assert counts.numbers["sum"] == pytest.approx(exact, rel=1e-6)
    assert roc_of(score_sums(canaries, run.seen, run.known), canaries.is_in).auc == 1
    assert roc_of(score_handed_pairs(canaries, run.handed, run.known), canaries.is_in).auc == 1


def test_secure_aggregation_shows_sums_without_the_colluders(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    data, canaries, run = attacked(
        marketplace, tmp_path / "run", trust="secagg", epsilon=1e5, max_colluding=2
    )
    assert len(run.seen) == 2, "one sum of counts, one of pairs, and no platform's own"
    names = ("shop-1", TARGET, "shop-3")
    for one in run.seen:
        assert one.platforms == names
        assert one.noise_std == pytest.approx(one.request.noise_multiplier, rel=1e-9)
    counts = run.seen[0]
    exact = exact_counts(plant(data, canaries), names, counts.asked["items"])
    assert np.abs(counts.numbers["sum"] - exact).max() < 6 * counts.noise_std
    assert counts.noise_std < 0.1


def test_scores_do_not_know_who_is_in(marketplace: Marketplace, tmp_path: Path) -> None:
    _, canaries, run = attacked(marketplace, tmp_path / "run", plan="both", rounds=2)
    blind = canaries.all_out()
    assert not any(is_canary(u) for u in histories(run.federation)[TARGET].user_ids)
    assert not any(is_canary(user) for user in run.known.platform(TARGET).interactions["user_id"])
    known = histories(run.federation)
    pair_scores = score_handed_pairs(canaries, run.handed, run.known)
    assert (
        score_sums(canaries, run.seen, run.known) == score_sums(blind, run.seen, run.known)
    ).all()
    assert (pair_scores == score_handed_pairs(blind, run.handed, run.known)).all()
    round_scores = score_rounds(canaries, run.seen, known, seed=0)
    assert (round_scores == score_rounds(blind, run.seen, known, seed=0)).all()


@pytest.mark.parametrize("unit", ["user", "interaction"])
@pytest.mark.parametrize("trust", ["local", "secagg"])
def test_gradients_tell_who_is_in_where_there_is_next_to_no_noise(
    marketplace: Marketplace, tmp_path: Path, unit: Unit, trust: str
) -> None:
    """Users' private starts are unknown, so that the score is not perfect."""
    _, canaries, run = attacked(
        marketplace,
        tmp_path / "run",
        unit=unit,
        plan="ncf",
        rounds=6,
        epsilon=1e4,
        trust=trust,
        model=NcfConfig(dim=8),
    )
    assert all(isinstance(one.request, TrainRequest) for one in run.seen)
    assert len(run.seen) == 6
    scores = score_rounds(canaries, run.seen, histories(run.federation), seed=0)
    assert roc_of(scores, canaries.is_in).auc > (0.9 if unit == "user" else 0.85)
    listing = run.known.catalogue.listing(TARGET)
    fit = score_handed_model(canaries, run.handed, listing)
    assert fit.shape == (canaries.number,)


@pytest.mark.parametrize("kind", [pytest.param("mlp", marks=pytest.mark.slow), "neumf"])
def test_sampled_rounds_of_several_steps_and_towers_are_scored(
    marketplace: Marketplace,
    tmp_path: Path,
    kind: Any,  # noqa: ANN401 - a literal
) -> None:
    _, canaries, run = attacked(
        marketplace,
        tmp_path / "run",
        number=80,
        plan="ncf",
        rounds=4,
        epsilon=1e4,
        sampling_rate=0.5,
        local_steps=2,
        model=NcfConfig(kind=kind, dim=4, loss="sampled-softmax", num_negatives=20),
    )
    scores = score_rounds(canaries, run.seen, histories(run.federation), seed=0)
    assert roc_of(scores, canaries.is_in).auc > 0.65
