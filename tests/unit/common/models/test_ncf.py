"""The scoring function of He et al. 2017, written out once more by hand, and its configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import ConfigError
from common.models.ncf import MAX_LAYERS, MAX_NEGATIVES, MAX_WIDTH, NcfConfig, SharedNcf, initialise
from tests.laws.training import NUM_ITEMS, random_model

GMF = NcfConfig(dim=4)
MLP = NcfConfig(kind="mlp", dim=4, hidden=(6, 3), loss="bce")
NEUMF = replace(MLP, kind="neumf")
every_kind = pytest.mark.parametrize("config", [GMF, MLP, NEUMF], ids=lambda c: c.kind)


def by_hand(model: SharedNcf, user_vector: np.ndarray) -> np.ndarray:
    """Scores of one user for all items, item by item."""
    arrays = {name: p.numpy().astype(np.float64) for name, p in model.state_dict().items()}
    dim = model.config.dim
    scores: np.ndarray = arrays["items.bias"].copy()
    if model.config.kind != "mlp":
        scores += arrays["items.weight"] @ user_vector[:dim]
    if model.config.kind != "gmf":
        for item, item_vector in enumerate(arrays["tower_items.weight"]):
            hidden = np.concatenate([user_vector[-dim:], item_vector])
            for layer in (0, 2):
                weight, bias = arrays[f"tower.{layer}.weight"], arrays[f"tower.{layer}.bias"]
                hidden = np.maximum(weight @ hidden + bias, 0.0)
            scores[item] += arrays["tower.4.weight"][0] @ hidden + arrays["tower.4.bias"][0]
    return scores


@every_kind
def test_both_ways_of_scoring_are_the_formula(config: NcfConfig) -> None:
    model = random_model(config, 3)
    user_vectors = torch.randn(5, config.user_dim, generator=torch.Generator().manual_seed(1))
    expected = np.stack([by_hand(model, vector) for vector in user_vectors.double().numpy()])
    with torch.no_grad():
        every_item = torch.arange(NUM_ITEMS).expand(5, -1)
        np.testing.assert_allclose(model.score_all(user_vectors).numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(model(user_vectors, every_item).numpy(), expected, atol=1e-5)


@every_kind
def test_any_choice_of_items_can_be_scored(config: NcfConfig) -> None:
    model = random_model(config, 3)
    user_vectors = torch.randn(2, config.user_dim, generator=torch.Generator().manual_seed(1))
    items = torch.tensor([[7, 7, 0], [1, 11, 4]])
    with torch.no_grad():
        every = model.score_all(user_vectors)
        found = model(user_vectors, items)
        assert model(user_vectors, items[:, :0]).shape == (2, 0)
        assert model(user_vectors[:0], items[:0]).shape == (0, 3)
    torch.testing.assert_close(found, every.gather(1, items), atol=1e-5, rtol=1e-5)


@every_kind
def test_there_is_a_user_vector_for_each_part(config: NcfConfig) -> None:
    assert config.user_dim == {"gmf": 4, "mlp": 4, "neumf": 8}[config.kind]


@every_kind
def test_initialisation_follows_from_the_generator_alone(config: NcfConfig) -> None:
    first, again, other = (
        initialise(config, 50, torch.Generator().manual_seed(seed)).state_dict()
        for seed in (1, 1, 2)
    )
    torch.manual_seed(99)  # what the global generator holds must not matter
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name, array in first.items():
        assert not array.any() if name.endswith("bias") else not torch.equal(array, other[name])
    for name in ("items.weight", "tower_items.weight"):
        if name in first:
            assert float(first[name].std()) == pytest.approx(0.1, rel=0.3)


@every_kind
def test_nothing_but_parameters_is_kept(config: NcfConfig) -> None:
    """No buffers and no hidden state: what is not a parameter could not be clipped."""
    model = SharedNcf(config, NUM_ITEMS)
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    assert list(model.buffers()) == []
    leaves = {type(layer) for layer in model.modules() if not list(layer.children())}
    assert leaves <= {type(model.items), nn.Embedding, nn.Linear, nn.ReLU}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "transformer"},
        {"kind": ""},
        {"loss": "hinge"},
        {"dim": 0},
        {"dim": -4},
        {"dim": MAX_WIDTH + 1},
        {"num_negatives": 0},
        {"num_negatives": MAX_NEGATIVES + 1},
        {"kind": "mlp", "hidden": ()},
        {"kind": "neumf", "hidden": (8, 0)},
        {"kind": "neumf", "hidden": (8, MAX_WIDTH + 1)},
        {"kind": "neumf", "hidden": (8,) * (MAX_LAYERS + 1)},
        {"kind": "mlp", "loss": "softmax"},
        {"kind": "neumf", "loss": "softmax"},
    ],
    ids=str,
)
def test_a_model_that_cannot_be_trained_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(NcfConfig(loss="bce"), **change)


def test_gmf_needs_no_hidden_layer() -> None:
    assert SharedNcf(NcfConfig(hidden=()), 3).tower is None
