"""Neural collaborative filtering as a part: it fits, it stops in time, and it is stored whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from client import personal_ncf
from client.personal_ncf import PersonalNcf, fit_personal_ncf
from client.validation import ndcg
from common.errors import InvalidRelease, RequestRefused
from common.models.ncf import NcfConfig, SharedNcf
from common.models.partition import shared_shapes
from tests.unit.client.worlds import NUM_ITEMS, matrix, shop

GMF = NcfConfig(dim=6)
NEUMF = NcfConfig(kind="neumf", dim=3, hidden=(5,), loss="sampled-softmax", num_negatives=8)
NUM_USERS = 60
SHOP = shop(0, NUM_USERS)
FOLD = SHOP.folds[0]
NOTHING = matrix([], NUM_USERS)


def fit(config: NcfConfig = GMF, *, max_epochs: int = 8, seed: int = 0) -> PersonalNcf:
    return fit_personal_ncf(config, FOLD.history, FOLD.held_out, max_epochs=max_epochs, seed=seed)


@pytest.mark.parametrize("config", [GMF, NEUMF], ids=["gmf", "neumf"])
def test_it_has_the_parameters_of_the_shared_model_and_a_vector_for_each_user(
    config: NcfConfig,
) -> None:
    model = fit(config)
    assert {name: a.shape for name, a in model.items.items()} == shared_shapes(config, NUM_ITEMS)
    assert model.user_vectors.shape == (NUM_USERS, config.user_dim)
    users = np.array([3, 1])
    shared = SharedNcf(config, NUM_ITEMS)
    shared.load_state_dict({name: torch.from_numpy(a) for name, a in model.items.items()})
    with torch.no_grad():
        expected = shared.score_all(torch.from_numpy(model.user_vectors[users])).numpy()
    found = model.scores(users, FOLD.history)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(model.scores(users, NOTHING), found)  # it is no input


@pytest.mark.parametrize("config", [GMF, NEUMF], ids=["gmf", "neumf"])
def test_it_comes_back_from_its_arrays(config: NcfConfig) -> None:
    model = fit(config)
    found = PersonalNcf.from_arrays(**model.arrays())
    assert found.config == config
    assert found.epochs == model.epochs
    everyone = np.arange(NUM_USERS)
    np.testing.assert_array_equal(found.scores(everyone), model.scores(everyone))
    again = found.arrays()
    for name, array in model.arrays().items():
        assert again[name].tobytes() == array.tobytes()


def test_arrays_of_another_model_are_refused() -> None:
    arrays = fit().arrays()
    other = fit(NcfConfig(dim=5)).arrays()
    with pytest.raises(ValueError, match="user vectors have shape"):
        PersonalNcf.from_arrays(**{**arrays, "user_vectors": other["user_vectors"]})
    with pytest.raises(InvalidRelease, match=r"items\.weight"):
        PersonalNcf.from_arrays(**{**arrays, "items.weight": other["items.weight"]})
    with pytest.raises(RequestRefused):
        PersonalNcf.from_arrays(**{**arrays, "config": np.frombuffer(b"{}", dtype=np.uint8)})
    for name in arrays:
        with pytest.raises((KeyError, InvalidRelease), match=name.replace(".", r"\.")):
            PersonalNcf.from_arrays(**{k: v for k, v in arrays.items() if k != name})


def validated(model: PersonalNcf) -> float:
    return float(ndcg((model.scores(FOLD.users),), (FOLD,)).mean())


def test_fitting_helps_and_the_best_epoch_is_kept() -> None:
    start, short, long = (fit(max_epochs=epochs) for epochs in (0, 4, 40))
    assert start.epochs == 0
    assert short.epochs == 4
    assert validated(start) < validated(long)
    assert validated(short) <= validated(long)
    assert long.epochs % 4 == 0
    # Fitted for as many epochs and judged by nobody, it is the same model.
    blind = fit_personal_ncf(GMF, FOLD.history, NOTHING, max_epochs=long.epochs, seed=0)
    assert blind.epochs == long.epochs
    for name, array in long.items.items():
        np.testing.assert_array_equal(blind.items[name], array)
    np.testing.assert_array_equal(blind.user_vectors, long.user_vectors)


def test_it_stops_when_it_no_longer_gets_better(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []
    judge = personal_ncf._ndcg

    def counted(*arguments: Any) -> float:  # noqa: ANN401 - passed on
        found.append(judge(*arguments))
        return found[-1]

    monkeypatch.setattr(personal_ncf, "_ndcg", counted)
    model = fit(max_epochs=400)
    # Each fourth epoch, and three more times to be sure; of equal ones the first is kept.
    assert len(found) == model.epochs // 4 + 3
    assert np.argmax(found) == model.epochs // 4 - 1


def test_the_seed_decides_every_bit() -> None:
    first, second, other = fit(seed=3), fit(seed=3), fit(seed=4)
    torch.manual_seed(0)  # torch's own generator is not asked
    third = fit(seed=3)
    for again in (second, third):
        np.testing.assert_array_equal(first.user_vectors, again.user_vectors)
    assert not np.array_equal(first.user_vectors, other.user_vectors)


@pytest.mark.parametrize("num_users", [0, 1])
def test_nobody_and_nothing_can_be_fitted(num_users: int) -> None:
    nothing = matrix([], num_users)
    model = fit_personal_ncf(GMF, nothing, nothing, max_epochs=2, seed=0)
    assert model.scores(np.arange(num_users)).shape == (num_users, NUM_ITEMS)
    assert np.isfinite(model.items["items.weight"]).all()
