"""Losses: formulas, and that a user's loss is a function of her own row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from common.data.batches import UserBatch, make_batch
from common.models.losses import LOSSES
from common.models.ncf import ItemLayer, NcfConfig, SharedNcf, initialise

NUM_USERS, NUM_ITEMS = 12, 40


def matrix() -> csr_matrix:
    dense = (np.random.default_rng(3).random((NUM_USERS, NUM_ITEMS)) < 0.15).astype(np.float32)
    dense[5] = 0.0  # a user without any interaction
    return csr_matrix(dense)


def model(kind: str, loss: str, num_negatives: int = 30) -> SharedNcf:
    config = NcfConfig(kind=kind, loss=loss, dim=6, hidden=(5,), num_negatives=num_negatives)  # type: ignore[arg-type]
    return initialise(config, NUM_ITEMS, torch.Generator().manual_seed(0))


def vectors(of: SharedNcf) -> torch.Tensor:
    return torch.randn(NUM_USERS, of.config.user_dim, generator=torch.Generator().manual_seed(1))


def batch(num_negatives: int, seed: int = 0) -> UserBatch:
    return make_batch(matrix(), np.arange(NUM_USERS), num_negatives, np.random.default_rng(seed))


SAMPLED = [(k, v) for k in ("gmf", "mlp", "neumf") for v in ("bce", "sampled-softmax")]
KINDS = [("gmf", "softmax"), *SAMPLED]


@pytest.mark.parametrize("kind", ["gmf", "mlp", "neumf"])
def test_scoring_all_items_is_scoring_each(kind: str) -> None:
    net = model(kind, "bce")
    every = torch.arange(NUM_ITEMS).expand(NUM_USERS, -1)
    torch.testing.assert_close(net.score_all(vectors(net)), net(vectors(net), every))


def test_softmax_equals_torch_in_value_and_gradient() -> None:
    net = model("gmf", "softmax")
    users = vectors(net).requires_grad_()
    targets = torch.from_numpy(matrix().toarray())
    expected = -(targets * log_softmax(net.items(users), 1)).sum(1)
    expected = expected / targets.sum(1).clamp(min=1)
    found = LOSSES["softmax"](net, users, batch(0))
    torch.testing.assert_close(found, expected)
    wanted = [users, *net.parameters()]
    weights = torch.arange(NUM_USERS) + 1.0
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), wanted, retain_graph=True),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_bce_equals_torch() -> None:
    net, drawn = model("neumf", "bce"), batch(30)
    scores = net(vectors(net), drawn.items)
    labels = drawn.is_positive.float()
    each = binary_cross_entropy_with_logits(scores, labels, reduction="none")
    expected = [
        (row[p].mean() if p.any() else 0.0) + 4.0 * row[n].mean()
        for row, p, n in zip(each, drawn.is_positive, drawn.is_negative, strict=True)
    ]
    torch.testing.assert_close(
        LOSSES["bce"](net, vectors(net), drawn), torch.stack([torch.as_tensor(e) for e in expected])
    )


def test_sampled_softmax_estimates_the_full_one() -> None:
    full, sampled = model("gmf", "softmax"), model("gmf", "sampled-softmax")
    users = vectors(full)
    exact = LOSSES["softmax"](full, users, batch(0))
    estimate = torch.stack(
        [LOSSES["sampled-softmax"](sampled, users, batch(2000, seed)) for seed in range(20)]
    ).mean(0)
    # The positives leave the negatives' mass out, once each: a bias of at most their share.
    assert (estimate - exact).abs().max() < 0.15
    assert (estimate - exact).abs()[5] == 0.0


@pytest.mark.parametrize(("kind", "loss"), KINDS)
def test_a_loss_is_a_function_of_her_own_row(kind: str, loss: str) -> None:
    net, drawn = model(kind, loss), batch(0 if loss == "softmax" else 30)
    users = vectors(net)
    before = LOSSES[loss](net, users, drawn)
    changed = users.clone()
    changed[3:] += 1.0
    items = drawn.items.clone()
    items[3:] = (items[3:] + 7) % NUM_ITEMS
    after = LOSSES[loss](net, changed, replace(drawn, items=items))
    torch.testing.assert_close(before[:3], after[:3])
    assert (before[3:] != after[3:]).sum() >= NUM_USERS - 4


@pytest.mark.parametrize(("kind", "loss"), KINDS)
def test_a_user_without_interactions_has_a_finite_loss_and_gradient(kind: str, loss: str) -> None:
    net, drawn = model(kind, loss), batch(0 if loss == "softmax" else 30)
    value = LOSSES[loss](net, vectors(net), drawn)[5]
    assert torch.isfinite(value)
    if value.requires_grad:
        value.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


def test_padding_has_no_gradient() -> None:
    net, drawn = model("gmf", "bce"), batch(30)
    moved = drawn.items.clone()
    moved[~(drawn.is_positive | drawn.is_negative)] = NUM_ITEMS - 1
    for items in (drawn.items, moved):
        net.zero_grad()
        LOSSES["bce"](net, vectors(net), replace(drawn, items=items)).sum().backward()
        if items is drawn.items:
            assert isinstance(net.items, ItemLayer)
            expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    found = [p.grad for p in net.parameters() if p.grad is not None]
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_negatives_are_uniform_and_never_her_own() -> None:
    drawn = make_batch(matrix(), np.arange(NUM_USERS), 5000, np.random.default_rng(0))
    dense = matrix().toarray()
    width = drawn.items.shape[1] - 5000
    for user in range(NUM_USERS):
        negatives = drawn.items[user][drawn.is_negative[user]].numpy()
        assert not dense[user, negatives].any()
    counts = np.bincount(drawn.items[:, width:].numpy().ravel(), minlength=NUM_ITEMS)
    # 60,000 draws over 40 items: 1,500 +- 38 each; 6 standard deviations, false alarms 1e-7.
    assert (np.abs(counts - 1500) < 6 * 38.3).all()


def test_sampled_softmax_of_a_single_purchase_reaches_the_full_one() -> None:
    """With one positive the limit is known: the negatives stand for N items instead of N - 1."""
    config = NcfConfig(loss="sampled-softmax", dim=6)
    net = initialise(config, NUM_ITEMS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.items.bias.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(2))
    single = csr_matrix(np.eye(NUM_USERS, NUM_ITEMS, dtype=np.float32))
    users, everyone = vectors(net), np.arange(NUM_USERS)
    exact = LOSSES["softmax"](net, users, make_batch(single, everyone, 0, np.random.default_rng(0)))
    gaps = []
    for num_negatives in (5, 50, 20_000):
        rng = np.random.default_rng(1)
        drawn = [make_batch(single, everyone, num_negatives, rng) for _ in range(20)]
        estimate = torch.stack([LOSSES["sampled-softmax"](net, users, d) for d in drawn]).mean(0)
        gaps.append((estimate - exact).abs().max().item())
    # The stated bias, and 4.5 standard errors of 400,000 draws.
    assert gaps[2] < np.log(NUM_ITEMS / (NUM_ITEMS - 1)) + 0.015
    assert gaps == sorted(gaps, reverse=True)


@pytest.mark.parametrize(("kind", "loss"), KINDS)
def test_no_other_users_row_moves_her_gradient(kind: str, loss: str) -> None:
    net, drawn = model(kind, loss), batch(0 if loss == "softmax" else 30)
    users = vectors(net).requires_grad_()
    losses = LOSSES[loss](net, users, drawn)
    for row in (0, 5, 11):
        (gradient,) = torch.autograd.grad(losses[row], users, retain_graph=True)
        others = torch.arange(NUM_USERS) != row
        assert not gradient[others].any()
        assert bool(gradient[row].any()) == (row != 5 or loss == "bce")


@pytest.mark.parametrize(("kind", "loss"), KINDS)
def test_entries_that_are_neither_positive_nor_negative_have_no_gradient(
    kind: str, loss: str
) -> None:
    net, drawn = model(kind, loss), batch(0 if loss == "softmax" else 30)
    unmarked = ~(drawn.is_positive | drawn.is_negative)
    assert unmarked.any()
    elsewhere = replace(drawn, items=drawn.items.masked_fill(unmarked, NUM_ITEMS - 1))
    found = [
        torch.autograd.grad(LOSSES[loss](net, vectors(net), d).sum(), list(net.parameters()))
        for d in (drawn, elsewhere)
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("kind", "loss"), KINDS)
def test_a_user_who_owns_everything_has_a_finite_loss_and_gradient(kind: str, loss: str) -> None:
    """Every one of her negatives is her own, so there is none."""
    net = model(kind, loss)
    owner = csr_matrix(np.ones((1, NUM_ITEMS), dtype=np.float32))
    num_negatives = 0 if loss == "softmax" else 30
    drawn = make_batch(owner, np.array([0]), num_negatives, np.random.default_rng(0))
    value = LOSSES[loss](net, vectors(net)[:1], drawn).sum()
    assert torch.isfinite(value)
    gradients = torch.autograd.grad(value, list(net.parameters()), materialize_grads=True)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
