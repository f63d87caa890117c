"""Losses: formulas, and that a user's loss is a function of her own row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from common.data.batches import ROWS, UserBatch, make_batch
from common.models.losses import softmax_residuals, user_losses
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
    found = user_losses(net, users, batch(0))
    torch.testing.assert_close(found, expected)
    wanted = [users, *net.parameters()]
    weights = torch.arange(NUM_USERS) + 1.0
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), wanted, retain_graph=True),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def crowd(num_users: int, num_items: int = NUM_ITEMS) -> tuple[SharedNcf, torch.Tensor, UserBatch]:
    """Users of all kinds, more than a block holds; every fifth has nothing."""
    rng = np.random.default_rng(0)
    dense = (rng.random((num_users, num_items)) < 0.1).astype(np.float32)
    dense[::5] = 0.0
    users = np.arange(num_users)
    net = initialise(NcfConfig(dim=7), num_items, torch.Generator().manual_seed(0))
    values = torch.randn(num_users, 7, generator=torch.Generator().manual_seed(1)) * 5
    return net, values, make_batch(csr_matrix(dense), users, 0, rng)


def residuals_of(net: SharedNcf, values: torch.Tensor, drawn: UserBatch) -> torch.Tensor:
    with torch.no_grad():
        blocks = [(users, block.clone()) for users, block in softmax_residuals(net, values, drawn)]
    assert all(block.shape == (ROWS, net.num_items) for _, block in blocks)
    assert not any(block[users.stop - users.start :].any() for users, block in blocks)
    assert [u for users, _ in blocks for u in range(users.start, users.stop)] == [
        *range(len(values))
    ]
    rows = [block[: users.stop - users.start] for users, block in blocks]
    return torch.cat([torch.zeros(0, net.num_items), *rows])


@pytest.mark.parametrize("num_users", [0, 1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 2])
def test_residuals_are_the_gradient_of_the_softmax(num_users: int) -> None:
    net, values, drawn = crowd(num_users)
    scores = net.items(values).detach().double().requires_grad_()
    targets = torch.zeros_like(scores).scatter_add(
        1, drawn.items, drawn.is_positive.to(scores.dtype)
    )
    losses = -(targets * log_softmax(scores, 1)).sum(1) / targets.sum(1).clamp(min=1)
    (expected,) = torch.autograd.grad(losses.sum(), scores)
    found = residuals_of(net, values, drawn)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert not found[::5].any()


@pytest.mark.parametrize("num_items", [NUM_ITEMS, 1001])
def test_residuals_have_the_same_bits_whoever_else_is_there(num_items: int) -> None:
    net, values, drawn = crowd(ROWS + 6, num_items)
    values = values * 100  # rounding of large scores would show
    everyone = residuals_of(net, values, drawn)
    users = torch.arange(len(values))
    for rows in (users[1:], users.flip(0), users[::3], users[-1:], users.roll(17)):
        assert torch.equal(residuals_of(net, values[rows], drawn.of(rows)), everyone[rows])


def test_residuals_have_the_same_bits_with_several_threads() -> None:
    """A single user, and more items than one thread takes at a time."""
    net, values, drawn = crowd(ROWS + 1, 50_001)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        everyone = residuals_of(net, values, drawn)
        others = slice(1, None)
        assert torch.equal(residuals_of(net, values[others], drawn.of(others)), everyone[others])
    finally:
        torch.set_num_threads(threads)


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
        user_losses(net, vectors(net), drawn), torch.stack([torch.as_tensor(e) for e in expected])
    )


def test_sampled_softmax_estimates_the_full_one() -> None:
    full, sampled = model("gmf", "softmax"), model("gmf", "sampled-softmax")
    users = vectors(full)
    exact = user_losses(full, users, batch(0))
    estimate = torch.stack(
        [user_losses(sampled, users, batch(2000, seed)) for seed in range(20)]
    ).mean(0)
    # The positives leave the negatives' mass out, once each: a bias of at most their share.
    assert (estimate - exact).abs().max() < 0.15
    assert (estimate - exact).abs()[5] == 0.0


@pytest.mark.parametrize(("kind", "loss"), KINDS)
def test_a_loss_is_a_function_of_her_own_row(kind: str, loss: str) -> None:
    net, drawn = model(kind, loss), batch(0 if loss == "softmax" else 30)
    users = vectors(net)
    before = user_losses(net, users, drawn)
    changed = users.clone()
    changed[3:] += 1.0
    items = drawn.items.clone()
    items[3:] = (items[3:] + 7) % NUM_ITEMS
    after = user_losses(net, changed, replace(drawn, items=items))
    torch.testing.assert_close(before[:3], after[:3])
    assert (before[3:] != after[3:]).sum() >= NUM_USERS - 4


@pytest.mark.parametrize(("kind", "loss"), KINDS)
def test_a_user_without_interactions_has_a_finite_loss_and_gradient(kind: str, loss: str) -> None:
    net, drawn = model(kind, loss), batch(0 if loss == "softmax" else 30)
    value = user_losses(net, vectors(net), drawn)[5]
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
        user_losses(net, vectors(net), replace(drawn, items=items)).sum().backward()
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
    full = SharedNcf(replace(config, loss="softmax"), NUM_ITEMS)
    full.load_state_dict(net.state_dict())
    exact = user_losses(full, users, make_batch(single, everyone, 0, np.random.default_rng(0)))
    gaps = []
    for num_negatives in (5, 50, 20_000):
        rng = np.random.default_rng(1)
        drawn = [make_batch(single, everyone, num_negatives, rng) for _ in range(20)]
        estimate = torch.stack([user_losses(net, users, d) for d in drawn]).mean(0)
        gaps.append((estimate - exact).abs().max().item())
    # The stated bias, and 4.5 standard errors of 400,000 draws.
    assert gaps[2] < np.log(NUM_ITEMS / (NUM_ITEMS - 1)) + 0.015
    assert gaps == sorted(gaps, reverse=True)


@pytest.mark.parametrize(("kind", "loss"), KINDS)
def test_no_other_users_row_moves_her_gradient(kind: str, loss: str) -> None:
    net, drawn = model(kind, loss), batch(0 if loss == "softmax" else 30)
    users = vectors(net).requires_grad_()
    losses = user_losses(net, users, drawn)
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
        torch.autograd.grad(user_losses(net, vectors(net), d).sum(), list(net.parameters()))
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
    value = user_losses(net, vectors(net)[:1], drawn).sum()
    assert torch.isfinite(value)
    gradients = torch.autograd.grad(value, list(net.parameters()), materialize_grads=True)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
