"""Accountants agree with closed forms, with one another, and say so where they cannot answer."""

from __future__ import annotations

import math
import sys

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from common.privacy.accounting import epsilon_spent
from common.privacy.mechanisms import SampledGaussian
from simulations.audit import accountants
from simulations.audit.accountants import (
    advantage,
    by_dp_accounting,
    by_opacus_prv,
    by_opacus_rdp,
    compose_over_platforms,
    epsilon_delta_curve,
    exactly,
    gaussian_mean,
    grouped,
    most_true_positives,
    odds,
    upper_bound,
)

DELTA = 1e-5


def gaussian(noise: float, rate: float = 1.0, steps: int = 1) -> SampledGaussian:
    return SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps)


@pytest.fixture
def _without_dp_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "dp_accounting"]:
        monkeypatch.setitem(sys.modules, name, None)
    accountants._by_pld.cache_clear()


# --- Prices -------------------------------------------------------------------------------------


def test_equal_steps_are_one_group_and_gaussians_without_sampling_one_gaussian() -> None:
    mechanisms = [gaussian(2.0), gaussian(1.5, 0.1), gaussian(2.0), gaussian(1.5, 0.1, 3)]
    sampled, plain = grouped(mechanisms)
    assert sampled == (1.5, 0.1, 4)
    assert plain[0] == pytest.approx(math.sqrt(2.0))
    assert plain[1:] == (1.0, 1)
    assert grouped([]) == ()


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_a_gaussian_costs_what_it_costs(noise: float) -> None:
    found = exactly([gaussian(noise)], DELTA).epsilon
    assert found is not None
    assert _delta_of(found, noise) == pytest.approx(DELTA, rel=1e-9)


def _delta_of(epsilon: float, noise: float) -> float:
    """By integrating the densities' difference: another way to the same number."""
    import numpy as np
    from scipy.integrate import quad
    from scipy.stats import norm

    start = noise * noise * epsilon + 0.5
    found, _ = quad(
        lambda x: norm.pdf(x, 1, noise) - np.exp(epsilon) * norm.pdf(x, 0, noise),
        start,
        start + 40 * noise,
        epsabs=0,
        epsrel=1e-12,
    )
    return float(found)


@pytest.mark.parametrize(
    "mechanisms",
    [
        [gaussian(2.3), gaussian(0.8)],
        [gaussian(1.5, 0.5, 30), gaussian(2.0)],
        [gaussian(1.0, 0.05, 1000)],
        [gaussian(0.3, 0.5, 3)],
        [gaussian(1000.0, 0.1, 100)],
    ],
    ids=["two sums", "thirty rounds", "a thousand steps", "little noise", "much noise"],
)
def test_every_accountant_brackets_the_same_truth(mechanisms: list[SampledGaussian]) -> None:
    google, prv, rdp = (
        price(mechanisms, DELTA) for price in (by_dp_accounting, by_opacus_prv, by_opacus_rdp)
    )
    assert google.least is not None
    assert google.epsilon is not None
    assert prv.least is not None
    assert prv.epsilon is not None
    assert rdp.epsilon is not None
    assert google.least <= google.epsilon
    assert google.epsilon - google.least <= 0.02 + 0.02 * google.epsilon
    # Intervals of one and the same number overlap.
    assert max(google.least, prv.least) <= min(google.epsilon, prv.epsilon) + 1e-6
    assert rdp.epsilon >= google.least
    product = epsilon_spent(mechanisms, DELTA)
    assert google.least * (1 - 1e-6) <= product <= max(prv.epsilon, google.epsilon) * (1 + 1e-6)


def test_nothing_costs_nothing() -> None:
    for price in (exactly, by_dp_accounting, by_opacus_prv, by_opacus_rdp):
        assert price([], DELTA).epsilon == 0.0


@pytest.mark.parametrize("price", [by_dp_accounting, by_opacus_prv, by_opacus_rdp])
@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-3])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_too_little_noise_has_no_price_and_a_reason(
    price: accountants.Accountant, noise: float, rate: float
) -> None:
    found = price([gaussian(noise, rate)], DELTA)
    assert found.epsilon is None
    assert "noise" in found.reason


@pytest.mark.parametrize(
    ("mechanism", "delta"), [(gaussian(0.01, 0.1), 1e-5), (gaussian(100.0, 0.1, 100_000), 1e-10)]
)
def test_prv_is_not_asked_where_it_says_less_than_the_truth(
    mechanism: SampledGaussian, delta: float
) -> None:
    found = by_opacus_prv([mechanism], delta)
    assert found.epsilon is None
    assert found.reason


@pytest.mark.usefixtures("_without_dp_accounting")
def test_without_dp_accounting_its_price_is_missing_and_the_command_is_named() -> None:
    found = by_dp_accounting([gaussian(1.1, 0.5)], DELTA)
    assert found.epsilon is None
    assert "pip install -c constraints.txt -e '.[audit]'" in found.reason
    rdp = by_opacus_rdp([gaussian(1.1, 0.5)], DELTA).epsilon
    assert upper_bound([gaussian(1.1, 0.5)], DELTA) == rdp
    assert epsilon_delta_curve([gaussian(1.1, 0.5)], [DELTA]) == (rdp,)
    accountants._by_pld.cache_clear()


# --- For people ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanisms", [[gaussian(1.0)], [gaussian(1.0, 0.2, 20)]])
def test_a_curve_falls_and_passes_through_the_price(mechanisms: list[SampledGaussian]) -> None:
    curve = epsilon_delta_curve(mechanisms, [1e-8, 1e-6, DELTA, 1e-3])
    values = [value for value in curve if value is not None]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)
    assert values[2] == pytest.approx(upper_bound(mechanisms, DELTA))
    assert epsilon_delta_curve([gaussian(0.0, 0.5)], [DELTA]) == (None,)


def test_odds_grow_by_no_more_than_e_to_the_epsilon() -> None:
    assert odds(0.5, 0.0) == pytest.approx(0.5)
    assert odds(0.5, math.log(3)) == pytest.approx(0.75)
    assert odds(0.01, 1.0) == pytest.approx(math.e * 0.01 / (0.99 + math.e * 0.01))
    assert (odds(0.0, 9.0), odds(1.0, 9.0)) == (0.0, 1.0)
    assert odds(1e-6, 800.0) == 1.0


def test_a_gaussian_gives_an_attacker_its_mean() -> None:
    assert gaussian_mean([gaussian(2.0), gaussian(2.0)]) == pytest.approx(math.sqrt(0.5))
    assert gaussian_mean([]) == 0.0
    assert gaussian_mean([gaussian(1.0, 0.5)]) is None
    assert gaussian_mean([gaussian(0.0)]) is None
    assert advantage(0.0) == 0.0
    assert most_true_positives(0.0, 0.1) == pytest.approx(0.1)
    # The best test of N(0, 1) against N(1, 1) has its threshold in the middle.
    assert advantage(1.0) == pytest.approx(most_true_positives(1.0, 0.3085375) - 0.3085375)


# --- Several platforms --------------------------------------------------------------------------


def test_releases_of_several_platforms_compose_dearest_first() -> None:
    found = compose_over_platforms(
        {"a": [gaussian(3.0)], "b": [gaussian(1.0), gaussian(2.0)], "c": [gaussian(2.0)]}, DELTA
    )
    assert [one.platforms for one in found] == [("b",), ("b", "c"), ("a", "b", "c")]
    weights = [1.25, 1.5, 1.5 + 1 / 9]
    for one, weight in zip(found, weights, strict=True):
        assert one.epsilon == pytest.approx(exactly([gaussian(weight**-0.5)], DELTA).epsilon)
        assert one.delta == DELTA


def test_parts_of_one_person_in_one_secure_sum_add_up_before_the_noise() -> None:
    mechanisms = {"a": [gaussian(2.0)], "b": [gaussian(2.0)], "c": [gaussian(2.0)]}
    apart = compose_over_platforms(mechanisms, DELTA)
    summed = compose_over_platforms(mechanisms, DELTA, {name: ["run/1"] for name in mechanisms})
    assert summed[0].epsilon == apart[0].epsilon
    for number in (2, 3):
        worst = exactly([gaussian(2.0 / number)], DELTA).epsilon
        assert worst is not None
        assert summed[number - 1].epsilon == pytest.approx(worst)
        assert worst > (apart[number - 1].epsilon or math.inf)


def test_sampled_parts_in_one_secure_sum_are_bounded() -> None:
    """The truth is a mixture of how many of her accounts are drawn; ours is never below it."""
    rate, noise = 0.3, 2.0
    found = compose_over_platforms(
        {name: [gaussian(noise, rate)] for name in "ab"}, DELTA, {name: ["run/1"] for name in "ab"}
    )
    truth = pld.from_mixture_gaussian_mechanism(
        noise,
        sensitivities=[0.0, 1.0, 2.0],
        sampling_probs=[(1 - rate) ** 2, 2 * rate * (1 - rate), rate**2],
        pessimistic_estimate=False,
        value_discretization_interval=1e-2,
        use_connect_dots=False,
    ).get_epsilon_for_delta(DELTA)
    one, two = (composition.epsilon for composition in found)
    assert one is not None
    assert two is not None
    assert one < truth <= two


def test_a_platform_without_a_guarantee_takes_everybodys_away() -> None:
    found = compose_over_platforms({"a": [gaussian(1.0)], "b": [gaussian(0.0)]}, DELTA)
    assert [(one.platforms, one.epsilon) for one in found] == [(("b",), None), (("a", "b"), None)]


def test_no_platforms_have_no_composition() -> None:
    assert compose_over_platforms({}, DELTA) == ()
