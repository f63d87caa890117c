from __future__ import annotations

from dataclasses import replace

import pytest

from simulations.result import Gain, PlatformResult
from simulations.verdict import CONFIDENT_STDERRS, Outcome, gain_of, headline, platform_verdict
from tests.unit.simulations.run_results import model, platform, run_result


def with_gain(mean: float | None, stderr: float | None) -> PlatformResult:
    return replace(platform(), gain={"ndcg@10": Gain(mean=mean, stderr=stderr)})


@pytest.mark.parametrize(
    ("mean", "stderr", "outcome"),
    [
        (0.021, 0.01, Outcome.BETTER),
        (-0.021, 0.01, Outcome.WORSE),
        (0.019, 0.01, Outcome.UNCLEAR),  # beyond one standard error is not yet a claim
        (-0.019, 0.01, Outcome.UNCLEAR),
        (0.02, 0.01, Outcome.UNCLEAR),
        (0.0, 0.0, Outcome.UNCLEAR),
        (0.5, None, Outcome.UNCLEAR),
        (None, None, Outcome.UNKNOWN),
    ],
)
def test_a_claim_needs_two_standard_errors(
    mean: float | None, stderr: float | None, outcome: Outcome
) -> None:
    assert CONFIDENT_STDERRS == 2
    assert platform_verdict("north", with_gain(mean, stderr)).outcome is outcome


def test_a_platform_that_stays_alone_says_who_decided_it_and_claims_no_gain() -> None:
    verdict = platform_verdict("x", replace(with_gain(0.0, 0.0), gate="alone"))
    assert verdict.outcome is Outcome.STAYED_ALONE
    assert "its validation users" in verdict.text
    assert "NDCG" not in verdict.text


def test_an_unfinished_local_model_is_no_ground_for_better() -> None:
    better = platform(0.25, 0.28)
    assert platform_verdict("x", better).outcome is Outcome.BETTER
    verdict = platform_verdict("x", replace(better, unfinished=("local",)))
    assert verdict.outcome is Outcome.UNFINISHED
    assert "--epochs" in verdict.text


def test_verdict_of_swapped_models_is_the_opposite() -> None:
    assert platform_verdict("x", platform(0.25, 0.28)).outcome is Outcome.BETTER
    assert platform_verdict("x", platform(0.28, 0.25)).outcome is Outcome.WORSE


def test_without_pairing_both_standard_errors_count() -> None:
    gain = gain_of(platform(0.25, 0.28), "ndcg@10")
    assert gain is not None
    assert gain.mean == pytest.approx(0.03)
    assert gain.stderr == pytest.approx(0.004 * 2**0.5)


def test_a_missing_side_is_not_measured() -> None:
    alone = replace(platform(), models={"local": model(0.3)})
    assert platform_verdict("x", alone).outcome is Outcome.UNKNOWN
    assert platform_verdict("x", platform(None)).outcome is Outcome.UNKNOWN
    unsure = replace(platform(), models={"local": model(0.2), "federated": model(0.3, None)})
    assert platform_verdict("x", unsure).outcome is Outcome.UNCLEAR


def test_a_gain_that_still_loses_to_popularity_says_so() -> None:
    remark = "most popular items"
    assert remark in platform_verdict("x", platform(0.1, 0.15)).text
    assert remark not in platform_verdict("x", platform(0.1, 0.21)).text


def test_the_headline_counts_every_platform_once() -> None:
    result = run_result(
        platforms={
            "a": platform(0.25, 0.28),
            "b": platform(0.28, 0.25),
            "c": platform(0.25, 0.251),
            "d": platform(0.25, 0.28),
            "e": platform(None),
        }
    )
    assert headline(result) == (
        "Joining, 5 platforms: 2 better than going alone, 1 worse than going alone, "
        "1 no clear difference, 1 not measured."
    )
    assert headline(run_result(platforms={})) == "No platform was measured."
