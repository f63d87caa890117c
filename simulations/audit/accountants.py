"""Epsilon of what a ledger says was reserved, by code that the product does not price with.

Pure: mechanisms in, numbers out. Nothing here calls :mod:`common.privacy.accounting`:

- Gaussians without sampling exactly (Balle and Wang 2018, arXiv:1805.06530, theorem 8);
- anything by Google's dp-accounting, rounded up and down: the truth is between the two;
- anything by Opacus' PRV and RDP accountants, called directly. Where PRV is known to say less than
  the truth it is not asked.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.prv.domain import compute_safe_domain_size
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from common.privacy.mechanisms import SampledGaussian
from simulations.audit.findings import Composition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Accountant = Callable[[Iterable[SampledGaussian], float], "Priced"]
    """Mechanisms and delta in, a price out."""

INSTALL = "pip install -c constraints.txt -e '.[audit]'"
"""What brings dp-accounting."""

Groups = tuple[tuple[float, float, int], ...]
"""Noise multiplier, sampling rate and number of equal steps; those without sampling as one."""

_TOO_LITTLE_NOISE = 1e-2
_TOO_LARGE_EPSILON = 300.0  # exp(loss) is near float64's end beyond twice as much
_CELLS_OF_A_STEP, _CELLS_IN_ALL = 1e5, 4e5
_LARGEST_INTERVAL = 1e-3
_MANY_NOISE = 100.0  # beyond, Opacus sums ever longer series for each fractional order
_PRV_CELLS = 1 << 21
_MOST_STEPS = 10**7


@dataclass(frozen=True, kw_only=True, slots=True)
class Priced:
    """An accountant's answer."""

    epsilon: float | None
    """An upper bound; None if there is no guarantee, or ``reason`` says why it cannot be had."""
    least: float | None = None
    """A lower bound on what any accountant can say, where this one gives it."""
    reason: str = ""
    """Why there is no answer; empty if there is one."""


def grouped(mechanisms: Iterable[SampledGaussian]) -> Groups:
    """Equal steps together; Gaussians without sampling are one, whose 1/noise^2 is their sum."""
    sampled: Counter[tuple[float, float]] = Counter()
    weights: list[float] = []
    for one in mechanisms:
        if one.sampling_rate < 1:
            sampled[one.noise_multiplier, one.sampling_rate] += one.steps
        else:
            weights.append(
                one.steps / one.noise_multiplier**2 if one.noise_multiplier > 1e-150 else math.inf
            )
    groups = [(*key, steps) for key, steps in sorted(sampled.items())]
    if weights:
        weight = math.fsum(weights)
        groups.append((weight**-0.5 if weight > 0 else 1e150, 1.0, 1))
    return tuple(groups)


def exactly(mechanisms: Iterable[SampledGaussian], delta: float) -> Priced:
    """The truth, where nothing was sampled."""
    groups = grouped(mechanisms)
    if any(rate < 1 for _, rate, _ in groups):
        return Priced(epsilon=None, reason="with sampling there is no closed form")
    return Priced(epsilon=_exact(groups[0][0], delta) if groups else 0.0)


@lru_cache(maxsize=4096)
def _exact(noise: float, delta: float) -> float | None:
    if noise < 1e-3:  # beyond an epsilon of 500,000 nothing is promised
        return None
    mean = 1 / noise

    def gap(epsilon: float) -> float:
        # log delta(epsilon): Phi(mean/2 - epsilon/mean) - e^epsilon Phi(-mean/2 - epsilon/mean)
        first = float(log_ndtr(mean / 2 - epsilon / mean))
        second = epsilon + float(log_ndtr(-mean / 2 - epsilon / mean))
        ratio = -math.expm1(min(second - first, -1e-300))
        return first + math.log(max(ratio, 1e-300)) - math.log(delta)

    if gap(0.0) <= 0:
        return 0.0
    high = 1.0
    while gap(high) > 0:
        high *= 2
    return float(brentq(gap, 0.0, high, xtol=1e-13, rtol=1e-13))


def by_dp_accounting(mechanisms: Iterable[SampledGaussian], delta: float) -> Priced:
    """By Google's dp-accounting: privacy loss distributions, rounded up and rounded down.

    Source: Doroshenko et al. 2022, arXiv:2207.04380 (up); Koskela et al. 2020, arXiv:1906.03049.
    """
    return _by_pld(grouped(mechanisms), delta)


@lru_cache(maxsize=256)
def _by_pld(groups: Groups, delta: float) -> Priced:
    if not groups:
        return Priced(epsilon=0.0, least=0.0)
    refused = _refused(groups)
    if refused is not None:
        return refused
    try:
        bounds = [_composed(groups, up=up).get_epsilon_for_delta(delta) for up in (True, False)]
    except ImportError:
        return Priced(epsilon=None, reason=f"dp-accounting is not installed: {INSTALL}")
    except (ArithmeticError, ValueError, MemoryError) as error:
        return Priced(epsilon=None, reason=f"dp-accounting cannot price it ({error})")
    most, least = (float(bound) for bound in bounds)
    if not math.isfinite(most):
        reason = f"dp-accounting cuts off more than delta {delta:g}"
        return Priced(epsilon=None, least=least if math.isfinite(least) else None, reason=reason)
    return Priced(epsilon=most, least=least)


def _composed(groups: Groups, *, up: bool) -> Any:  # noqa: ANN401 - the library has no types
    from dp_accounting.pld import privacy_loss_distribution as pld  # noqa: PLC0415 - optional, slow

    interval = _interval(groups)
    parts = [
        pld.from_gaussian_mechanism(
            noise,
            sampling_prob=rate,
            value_discretization_interval=interval,
            pessimistic_estimate=up,
            use_connect_dots=up,
        ).self_compose(steps)
        for noise, rate, steps in groups
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return total


def _interval(groups: Groups) -> float:
    """Losses are rounded to multiples of it: fine enough to tell, coarse enough for a second."""
    steps = sum(count for *_, count in groups)
    losses = max(1 / noise**2 + 20 / noise for noise, *_ in groups)
    all_losses = 4 * (_opacus_rdp(groups, 1e-9) or 1.0)
    finest = max(losses / _CELLS_OF_A_STEP, all_losses / _CELLS_IN_ALL)
    return max(finest, min(_LARGEST_INTERVAL, all_losses * 5e-4 / steps))


def by_opacus_rdp(mechanisms: Iterable[SampledGaussian], delta: float) -> Priced:
    """By Opacus' RDP accountant (Mironov et al. 2019, arXiv:1908.10530): a looser bound."""
    groups = grouped(mechanisms)
    refused = _refused(groups)
    return refused or Priced(epsilon=_opacus_rdp(groups, delta) if groups else 0.0)


def by_opacus_prv(mechanisms: Iterable[SampledGaussian], delta: float) -> Priced:
    """By Opacus' PRV accountant (Gopi et al. 2021, arXiv:2106.02848), upper end of its interval."""
    return _opacus_prv(grouped(mechanisms), delta)


@lru_cache(maxsize=256)
def _opacus_rdp(groups: Groups, delta: float) -> float:
    accountant = RDPAccountant()
    accountant.history = list(groups)
    orders: list[float] = [*RDPAccountant.DEFAULT_ALPHAS, 80, 128, 192, 256, 512]
    if max(noise for noise, *_ in groups) > _MANY_NOISE:
        orders = [order for order in orders if order == int(order)]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "optimal order is the largest alpha": still a bound
        return max(0.0, float(accountant.get_epsilon(delta, alphas=orders)))


@lru_cache(maxsize=256)
def _opacus_prv(groups: Groups, delta: float) -> Priced:
    refused = _refused(groups)
    if refused is not None or not groups:
        return refused or Priced(epsilon=0.0, least=0.0)
    steps, delta_error = sum(count for *_, count in groups), delta / 1000
    accountant = PRVAccountant()
    accountant.history = list(groups)
    reason = "PRV's grid would be too large"
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about quadrature; PRV checks its mean itself
        try:
            for error in (0.01, 0.1):
                domain = _prv_domain(groups, error, delta_error)
                mesh = error / math.sqrt(steps * math.log(12 / delta_error) / 2)
                if steps * 2.0**-52 > delta_error or domain > _TOO_LARGE_EPSILON:
                    reason = "PRV's float64 says less than the truth here, so it is not asked"
                elif 2 * domain / mesh * len(groups) <= _PRV_CELLS:
                    # Not get_epsilon: it gives the upper end alone.
                    found = accountant._get_dprv(eps_error=error, delta_error=delta_error)  # noqa: SLF001
                    low, _, high = found.compute_epsilon(delta, delta_error, error)
                    return Priced(epsilon=max(0.0, float(high)), least=max(0.0, float(low)))
        except (ArithmeticError, RuntimeError, ValueError, MemoryError) as error:
            reason = f"PRV cannot price it ({error})"
    return Priced(epsilon=None, reason=reason)


def _prv_domain(groups: Groups, error: float, delta_error: float) -> float:
    """Losses that PRV cuts off at, as Opacus chooses them."""
    parts = [_Part(noise_multiplier=noise, sample_rate=rate) for noise, rate, _ in groups]
    return float(compute_safe_domain_size(parts, [c for *_, c in groups], error, delta_error))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    noise_multiplier: float
    sample_rate: float


def _refused(groups: Groups) -> Priced | None:
    """What libraries fail at, or take for ever."""
    if any(noise == 0 for noise, *_ in groups):
        return Priced(epsilon=None, reason="without noise there is no guarantee")
    if any(noise < _TOO_LITTLE_NOISE for noise, *_ in groups):
        return Priced(epsilon=None, reason="with so little noise losses overflow")
    if sum(count for *_, count in groups) > _MOST_STEPS:
        return Priced(epsilon=None, reason="no run has so many steps")
    if groups and _opacus_rdp(groups, 1e-9) > 4 * _TOO_LARGE_EPSILON:
        return Priced(epsilon=None, reason="with so little noise losses overflow")
    return None


def upper_bound(mechanisms: Sequence[SampledGaussian], delta: float) -> float | None:
    """The best bound that can be had: exact, by dp-accounting, or by Opacus' RDP; else None."""
    for price in (exactly, by_dp_accounting, by_opacus_rdp):
        found = price(mechanisms, delta).epsilon
        if found is not None:
            return found
    return None


def epsilon_delta_curve(
    mechanisms: Sequence[SampledGaussian], deltas: Sequence[float]
) -> tuple[float | None, ...]:
    """Epsilon at each of ``deltas``, of one and the same composition; None where there is none."""
    groups = grouped(mechanisms)
    if all(rate == 1 for _, rate, _ in groups):
        return tuple(exactly(mechanisms, delta).epsilon for delta in deltas)
    if _refused(groups) is not None:
        return (None,) * len(deltas)
    try:
        composed = _composed(groups, up=True)
    except ImportError:
        return tuple(by_opacus_rdp(mechanisms, delta).epsilon for delta in deltas)
    found = (float(composed.get_epsilon_for_delta(delta)) for delta in deltas)
    return tuple(value if math.isfinite(value) else None for value in found)


def compose_over_platforms(
    mechanisms: Mapping[str, Sequence[SampledGaussian]],
    delta: float,
    sums: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Composition, ...]:
    """What a person with accounts at m of the platforms is charged, for m = 1, 2, ...

    Releases of different platforms compose. Her parts in one *secure sum* do worse: they add up
    before the noise does, so m of them count as one with noise / m (and, with sampling, as often
    as any of them is drawn); that bounds the mixture of how many are.

    The m platforms are those that cost most by themselves. Without sampling and with no or the
    same secure sums everywhere these are exactly those that cost most together.

    Args:
        mechanisms: everything that each platform reserved.
        delta: at which epsilon is stated.
        sums: by platform, for each of its mechanisms the name of the secure sum that it is in, or
            an empty text; left out: none is in any.
    """
    names = sums or {}
    charges = {
        platform: list(zip(all_of, names.get(platform) or [""] * len(all_of), strict=True))
        for platform, all_of in mechanisms.items()
    }
    costs = {platform: _cost(all_of, delta) for platform, all_of in mechanisms.items()}
    order = sorted(mechanisms, key=lambda platform: (-costs[platform], platform))
    found = []
    for number in range(1, len(order) + 1):
        chosen = order[:number]
        together = _together([charge for platform in chosen for charge in charges[platform]])
        found.append(
            Composition(
                num_platforms=number,
                platforms=tuple(sorted(chosen)),
                epsilon=upper_bound(together, delta),
                delta=delta,
            )
        )
    return tuple(found)


def _cost(mechanisms: Sequence[SampledGaussian], delta: float) -> float:
    """What platforms are ordered by: epsilon, which without sampling grows as 1/noise^2 does."""
    found = upper_bound(mechanisms, delta)
    return math.inf if found is None else found


def _together(charges: Sequence[tuple[SampledGaussian, str]]) -> list[SampledGaussian]:
    apart = [mechanism for mechanism, name in charges if not name]
    shared: dict[str, list[SampledGaussian]] = {}
    for mechanism, name in charges:
        if name:
            shared.setdefault(name, []).append(mechanism)
    for parts in shared.values():
        missed = math.prod(1 - part.sampling_rate for part in parts)
        apart.append(
            SampledGaussian(
                noise_multiplier=min(part.noise_multiplier for part in parts) / len(parts),
                sampling_rate=1 - missed,
                steps=max(part.steps for part in parts),
            )
        )
    return apart


def odds(prior: float, epsilon: float) -> float:
    """The most that somebody who gave a fact the probability ``prior`` can believe it afterwards.

    By Bayes, odds grow by e^epsilon at most; with delta > 0, but for a chance of about delta.
    """
    if prior in (0, 1):
        return prior
    return float(1 / (1 + math.exp(math.log((1 - prior) / prior) - epsilon)))


def gaussian_mean(mechanisms: Iterable[SampledGaussian]) -> float | None:
    """Mu of the composition if nothing was sampled: telling N(0, 1) from N(mu, 1).

    Source: Dong, Roth and Su 2019, arXiv:1905.02383 (Gaussian differential privacy).
    """
    groups = grouped(mechanisms)
    if not groups:
        return 0.0
    noise, rate, _ = groups[0]
    return 1 / noise if rate == 1 and noise > 0 and len(groups) == 1 else None


def most_true_positives(mean: float, false_positives: float) -> float:
    """Share of members that any test finds at a share of false alarms, with mu = ``mean``."""
    return float(ndtr(ndtri(false_positives) + mean))


def advantage(mean: float) -> float:
    """True positives minus false positives, of the best test there is."""
    return float(2 * ndtr(mean / 2) - 1)
