"""Laws that private training must obey, as checks that say no, and small cases to hold them on.

Each check takes the function under test as an argument, so that a planted bug can be put in its
place: a check that accepts a planted bug is worth nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol, get_args

import numpy as np
import torch
from scipy import stats

from common.data.batches import UserBatch
from common.models.losses import user_losses
from common.models.ncf import NcfConfig, SharedNcf, initialise
from common.privacy.clipping import zero_sums
from common.privacy.engines import ClippingEngine, clipping_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

FALSE_ALARM = 1e-6
"""Chance that one statistical check rejects right code, where the draws are not seeded."""

NUM_ITEMS = 12

_SMALL = NcfConfig(dim=4, hidden=(6, 3), num_negatives=6)

MODELS = (
    replace(_SMALL, kind="gmf", loss="softmax"),
    replace(_SMALL, kind="gmf", loss="sampled-softmax"),
    replace(_SMALL, kind="gmf", loss="bce"),
    replace(_SMALL, kind="mlp", loss="sampled-softmax"),
    replace(_SMALL, kind="mlp", loss="bce"),
    replace(_SMALL, kind="neumf", loss="sampled-softmax"),
    replace(_SMALL, kind="neumf", loss="bce"),
)
"""Every kind with every loss that it admits."""


def model_id(config: NcfConfig) -> str:
    return f"{config.kind}-{config.loss}"


ENGINES: tuple[ClippingEngine, ...] = get_args(ClippingEngine)


def clipped_sum(
    model: SharedNcf,
    user_vectors: Tensor,
    batch: UserBatch,
    clipping_norm: float,
    engine: ClippingEngine = "fast",
) -> dict[str, Tensor]:
    """What an engine adds to zeros."""
    sums = zero_sums(model)
    clipping_engine(engine)(sums, model, user_vectors, batch, clipping_norm)
    return sums


class ClippedSum(Protocol):
    """:func:`clipped_sum` with one of the engines, or something put in its place."""

    def __call__(
        self, model: SharedNcf, user_vectors: Tensor, batch: UserBatch, clipping_norm: float
    ) -> dict[str, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, and users whose gradients of it are to be clipped."""

    model: SharedNcf
    user_vectors: Tensor
    batch: UserBatch
    clipping_norm: float

    def of(self, rows: Iterable[int]) -> Case:
        """The same case with some of its users."""
        kept = torch.tensor(list(rows), dtype=torch.int64)
        return replace(
            self,
            user_vectors=self.user_vectors[kept],
            batch=self.batch.of(kept),
        )

    def sum_by(self, clipped_sum: ClippedSum) -> dict[str, Tensor]:
        return clipped_sum(self.model, self.user_vectors, self.batch, self.clipping_norm)


def random_model(
    config: NcfConfig, seed: int, *, scale: float = 1.0, num_items: int = NUM_ITEMS
) -> SharedNcf:
    """Random parameters, biases included; ``scale`` 1 gives scores near 1."""
    generator = torch.Generator().manual_seed(seed)
    model = initialise(config, num_items, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator)).mul_(scale)
    return model


def random_batch(
    config: NcfConfig, num_users: int, seed: int, *, num_items: int = NUM_ITEMS
) -> UserBatch:
    """Users of very different activity: the first has nothing, the second nearly everything.

    Negatives are drawn with repeats, and padding is row 0, which somebody owns.
    """
    rng = np.random.default_rng(seed)
    num_negatives = 0 if config.loss == "softmax" else config.num_negatives
    counts = [0, num_items - 1, *rng.integers(1, num_items // 2, size=max(0, num_users - 2))]
    counts = counts[:num_users]
    width = max([1, *counts])
    items = np.zeros((num_users, width + num_negatives), dtype=np.int64)
    is_positive, is_negative = np.zeros((2, *items.shape), dtype=bool)
    for user, count in enumerate(counts):
        own = rng.permutation(num_items)[:count]
        items[user, :count], is_positive[user, :count] = own, True
        drawn = rng.integers(num_items, size=num_negatives)
        items[user, width:], is_negative[user, width:] = drawn, ~np.isin(drawn, own)
    return UserBatch(
        items=torch.from_numpy(items),
        is_positive=torch.from_numpy(is_positive),
        is_negative=torch.from_numpy(is_negative),
    )


def wild_batch(config: NcfConfig, num_users: int, seed: int) -> UserBatch:
    """Any item at any place: repeated positives, and negatives that are positives too.

    Who has anything has two items that differ, so that her gradient is not zero but for rounding.
    """
    rng = np.random.default_rng(seed)
    items = rng.integers(NUM_ITEMS, size=(num_users, int(rng.integers(2, NUM_ITEMS))))
    items[:, 1] = (items[:, 0] + 1) % NUM_ITEMS
    num_kinds = 2 if config.loss == "softmax" else 3  # padding, positive, negative
    kind = rng.integers(num_kinds, size=items.shape)
    kind[:, :2] = 1, num_kinds - 1
    kind[rng.random(num_users) < 0.2] = 0  # some have nothing at all
    return UserBatch(
        items=torch.from_numpy(items),
        is_positive=torch.from_numpy(kind == 1),
        is_negative=torch.from_numpy(kind == 2),
    )


def random_case(
    config: NcfConfig,
    num_users: int,
    seed: int,
    *,
    num_items: int = NUM_ITEMS,
    **changes: Any,  # noqa: ANN401
) -> Case:
    """A case whose clipping norm lies amid the users' norms."""
    generator = torch.Generator().manual_seed(seed)
    case = Case(
        model=random_model(config, seed, num_items=num_items),
        user_vectors=torch.randn(num_users, config.user_dim, generator=generator),
        batch=random_batch(config, num_users, seed, num_items=num_items),
        clipping_norm=0.5,
    )
    return replace(case, **changes)


def adversarial_cases(config: NcfConfig) -> list[Case]:
    """Vectors up to norm 1e3, items that share a large part (their gradients cancel), tiny C."""
    cases = []
    for seed, (norm, scale) in enumerate(product((1.0, 30.0, 1e3), (1.0, 30.0))):
        case = random_case(config, 5, seed, model=random_model(config, seed, scale=scale))
        with torch.no_grad():
            if case.model.tower_items is not None:
                case.model.tower_items.weight.add_(scale)
        vectors = torch.nn.functional.normalize(case.user_vectors) * norm
        cases.append(replace(case, user_vectors=vectors, clipping_norm=1e-3))
    return [random_case(config, 5, 100), *cases]


def crowded_cases(config: NcfConfig, num_users: int = 150) -> list[Case]:
    """More users than one block holds: all different, and all pulling the same way with tiny C."""
    several = random_case(config, num_users, 7, num_items=50)
    same = random_case(config, 2, 8).of([1] * num_users)
    return [several, replace(same, clipping_norm=1e-3)]


def naive_clipped_sum(
    model: SharedNcf,
    user_vectors: Tensor,
    batch: UserBatch,
    clipping_norm: float,
    *,
    size_of: Callable[[dict[str, Tensor]], float] | None = None,
) -> dict[str, Tensor]:
    """One user after the other by plain autograd in float64: slow and obvious.

    ``size_of`` replaces the L2 norm by a wrong one.
    """
    exact = SharedNcf(model.config, model.num_items).double()
    exact.load_state_dict(model.state_dict())
    total = {name: torch.zeros_like(p) for name, p in exact.named_parameters()}
    everyone = Case(
        model=exact,
        user_vectors=user_vectors.double(),
        batch=batch,
        clipping_norm=clipping_norm,
    )
    for row in range(len(user_vectors)):
        user = everyone.of([row])
        loss = user_losses(exact, user.user_vectors, user.batch).sum()
        gradients = dict(
            zip(total, torch.autograd.grad(loss, list(exact.parameters())), strict=True)
        )
        size = (size_of or norm)(gradients)
        for name, gradient in gradients.items():
            total[name] += gradient * min(1.0, clipping_norm / max(size, 1e-300))
    return total


def norm(arrays: dict[str, Any]) -> float:
    """L2 norm over all arrays together."""
    return float(np.sqrt(sum(np.square(np.asarray(a, dtype=np.float64)).sum() for a in _n(arrays))))


def difference(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    assert left.keys() == right.keys()
    pairs = zip(left, _n(left), _n(right), strict=True)
    return {name: a.astype(np.float64) - b.astype(np.float64) for name, a, b in pairs}


def _n(arrays: dict[str, Any]) -> list[np.ndarray]:
    return [
        a.detach().numpy() if isinstance(a, torch.Tensor) else np.asarray(a)
        for a in arrays.values()
    ]


def check_sensitivity(
    clipped_sum: ClippedSum, cases: Iterable[Case], *, rounding: float = 1e-4
) -> None:
    """Removing one user moves the sum by her own part, which is at most C; somebody's is C.

    Of a large case, every tenth or so is removed.

    Args:
        clipped_sum: what is checked.
        cases: where.
        rounding: how far, in units of C, computed numbers may be from exact ones.

    Raises:
        AssertionError: if the sum is more sensitive than C, or depends on who else is there.
    """
    largest = 0.0
    for case in cases:
        bound = case.clipping_norm
        users = range(len(case.user_vectors))
        everyone = case.sum_by(clipped_sum)
        for user in users[:: max(1, len(users) // 10)]:
            without = case.of(u for u in users if u != user).sum_by(clipped_sum)
            moved = difference(everyone, without)
            assert norm(moved) <= bound * (1 + rounding), "a user moves the sum by more than C"
            alone = case.of([user]).sum_by(clipped_sum)
            gap = norm(difference(moved, alone))
            assert gap <= rounding * bound, "her part depends on others"
            largest = max(largest, norm(moved) / bound)
    assert largest > 0.999, "nobody was clipped: the check could not have failed"


def check_equals_naive(
    clipped_sum: ClippedSum, cases: Iterable[Case], *, rounding: float = 1e-5
) -> None:
    """The sum is that of the naive loop, up to ``rounding`` times what its users add.

    Raises:
        AssertionError: if it is not, or is not finite.
    """
    for case in cases:
        found = case.sum_by(clipped_sum)
        assert list(found) == list(case.model.state_dict())
        users = range(len(case.user_vectors))
        parts = sum(norm(case.of([user]).sum_by(naive_clipped_sum)) for user in users)
        gap = norm(difference(found, case.sum_by(naive_clipped_sum)))
        assert gap <= rounding * parts, f"off by {gap / max(parts, 1e-300):.1e}"


def check_gaussian(draws: np.ndarray, std: float, *, false_alarm: float = FALSE_ALARM) -> None:
    """Independent N(0, ``std``^2) draws, by Kolmogorov and Smirnov and by their variance.

    Raises:
        AssertionError: for right draws with a probability below twice ``false_alarm``.
    """
    p_value = stats.kstest(np.ravel(draws) / std, "norm").pvalue
    assert p_value > false_alarm, f"not N(0, {std}^2): p = {p_value:.1e}"
    ratio = float(np.square(draws / std, dtype=np.float64).sum())
    law = stats.chi2(draws.size)
    p_value = 2 * min(law.cdf(ratio), law.sf(ratio))
    assert p_value > false_alarm, f"not N(0, {std}^2): its variance has p = {p_value:.1e}"


def check_uncorrelated(left: np.ndarray, right: np.ndarray) -> None:
    """Sample correlation of independent draws, two-sided.

    Raises:
        AssertionError: for independent draws with probability ``FALSE_ALARM``.
    """
    bound = stats.norm.isf(FALSE_ALARM / 2) / np.sqrt(left.size)
    found = np.corrcoef(np.ravel(left), np.ravel(right))[0, 1]
    assert abs(found) < bound, f"correlation {found:.3f}"


def check_coins(coins: np.ndarray, rate: float) -> None:
    """Each user in each step: independent coins that show 1 with probability ``rate``.

    Args:
        coins: [num_steps, num_users], 0 or 1.
        rate: in (0, 1).

    Raises:
        AssertionError: for such coins with a probability below four times ``FALSE_ALARM``, where
            there are thousands of steps.
    """
    (num_steps, num_users), variance = coins.shape, rate * (1 - rate)
    included, bound = coins.sum(0), stats.norm.isf(FALSE_ALARM / 2)
    total = (included.sum() - coins.size * rate) / np.sqrt(coins.size * variance)
    assert abs(total) < bound, "overall rate"
    spread = ((included - num_steps * rate) ** 2).sum() / (num_steps * variance)
    assert stats.chi2.sf(spread, num_users) > FALSE_ALARM, "inclusion rates"
    centred = (coins - rate) / np.sqrt(variance)
    # Sums over pairs of users: the variance of the sample's size is that of independent coins.
    sizes = centred.sum(1) ** 2 / num_users
    excess = (sizes.mean() - 1) / np.sqrt(2 / num_steps)
    assert abs(excess) < bound, "variance of the sample's size"
    steps = (centred[1:] * centred[:-1]).mean() * np.sqrt(centred[1:].size)
    assert abs(steps) < bound, "one step after the other"
