"""The attack is as strong as it says: what it adds has the norm of so many lying users."""

from __future__ import annotations

import numpy as np
import pytest

from common.messages import TrainRequest
from common.models.ncf import NcfConfig
from common.models.pairs import num_pairs, symmetric
from common.models.partition import shared_shapes
from simulations.attacks.promotion.false_releases import Promotion, false_pairs, false_update

ITEMS = 12
ATTACK = Promotion(target=5, popular=np.array([1, 4, 8, 10]), population=300, strength=0.5)


def test_false_pairs_are_of_the_target_and_popular_items_only() -> None:
    items = np.array([0, 1, 4, 5, 8, 11])  # 10 is not asked for
    honest = {"sum": np.arange(num_pairs(6), dtype=np.float32)}
    found = false_pairs(honest, items, ATTACK)["sum"]
    added = symmetric(found - honest["sum"], 6)
    assert np.linalg.norm(found - honest["sum"]) == pytest.approx(150, rel=1e-5)
    assert sorted(items[np.flatnonzero(added[3])]) == [1, 4, 8]
    added[3] = added[:, 3] = 0.0
    assert not added.any()
    assert honest["sum"].tolist() == list(range(num_pairs(6)))


def test_without_the_target_among_the_items_nothing_is_added() -> None:
    honest = {"sum": np.zeros(num_pairs(2), np.float32)}
    assert false_pairs(honest, np.array([1, 4]), ATTACK) is honest


@pytest.mark.parametrize("kind", ["gmf", "neumf"])
def test_a_false_update_moves_the_target_alone_and_towards_what_is_popular(kind: str) -> None:
    model = NcfConfig(kind=kind, dim=4, loss="sampled-softmax")  # type: ignore[arg-type]
    request = TrainRequest(
        run_id="r",
        platform="evil",
        catalogue_digest="0",
        trust="local",
        num_platforms=2,
        noise_multiplier=1.0,
        round_number=1,
        model=model,
        clipping_norm=0.25,
        sampling_rate=1.0,
        local_steps=2,
        denominator=600.0,
        learning_rate=1.0,
        user_steps=1,
        dropout=0.0,
    )
    rng = np.random.default_rng(0)
    shapes = shared_shapes(model, ITEMS)
    shared = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    honest = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    found = false_update(honest, shared, request, ATTACK)
    norm = np.sqrt(sum(np.square(array).sum() for array in found.values()))
    assert norm == pytest.approx(0.5 * 300 / 600 * 2 * 0.25, rel=1e-5)
    assert found["items.bias"][5] > 0
    for name, array in found.items():
        if array.shape[:1] == (ITEMS,):
            assert set(np.nonzero(array)[0]) == {5}
            if array.ndim == 2:
                towards = shared[name][ATTACK.popular].mean(axis=0) - shared[name][5]
                cosine = towards @ array[5] / np.linalg.norm(towards) / np.linalg.norm(array[5])
                assert cosine == pytest.approx(1.0, abs=1e-5)
        else:
            assert not array.any()
    assert not any(array.any() for array in honest.values())
