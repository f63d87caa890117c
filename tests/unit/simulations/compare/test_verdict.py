from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from simulations.compare.tables import epsilon_table, quality_table
from simulations.compare.verdict import headline, setting_outcome, verdicts
from simulations.verdict import Outcome
from tests.unit.simulations.compare.comparisons import compare_result, model, seeded, setting

if TYPE_CHECKING:
    from simulations.compare.result import CompareResult


@pytest.mark.parametrize(
    ("gain", "changes", "outcome"),
    [
        (seeded(0.021, 0.01), {}, Outcome.BETTER),
        (seeded(0.019, 0.01), {}, Outcome.UNCLEAR),
        (seeded(-0.021, 0.01), {}, Outcome.WORSE),
        (seeded(0.5, None), {}, Outcome.UNCLEAR),
        (seeded(None, None), {}, Outcome.UNKNOWN),
        (seeded(0.021, 0.01), {"unfinished": ("local",)}, Outcome.UNFINISHED),
        (seeded(0.021, 0.01), {"unfinished": ("ncf",)}, Outcome.BETTER),
        (seeded(0.0, 0.0), {"times_joined": 0}, Outcome.STAYED_ALONE),
        (seeded(0.021, 0.01), {"times_joined": 1}, Outcome.BETTER),
    ],
)
def test_a_claim_needs_two_standard_errors(
    gain: Any,  # noqa: ANN401
    changes: dict[str, Any],
    outcome: Outcome,
) -> None:
    assert setting_outcome(setting(gain, **changes)) is outcome


def test_a_model_that_is_absent_is_not_measured() -> None:
    bare = setting(models={"popularity": model(0.3)})
    assert setting_outcome(bare) is Outcome.UNKNOWN
    (verdict, _) = verdicts(compare_result(bare))
    assert verdict.text == (
        "Joining was not measured for s1. Simply the most popular items: 0.3000."
    )


def test_a_gain_is_said_with_its_numbers_trust_and_popularity() -> None:
    _, newcomer = verdicts(compare_result())
    assert newcomer.text == (
        "Joining pays for t1 with 10 % of its users: NDCG@10 0.4180 -> 0.4470 (+0.0290, standard "
        "error 0.0040) at epsilon 8 with secure aggregation. Simply the most popular items: "
        "0.3510. It pays at epsilon 8 of those tried."
    )


def test_a_loss_and_one_seed_are_said() -> None:
    worse, _ = verdicts(compare_result(setting(seeded(-0.1, num_seeds=1))))
    assert worse.text.startswith("Joining harms s1: NDCG@10 0.4180 -> 0.3180 (-0.1000")
    assert worse.text.endswith("another draw of the noise may give another result.")
    beaten = setting(models={**setting().models, "popularity": model(0.5)})
    assert "which nothing beats" in verdicts(compare_result(beaten))[0].text


def test_who_stays_alone_hears_what_it_keeps() -> None:
    models = {"local": model(0.418), "federated": model(0.418, seeded(0.0, 0.0))}
    (verdict, _) = verdicts(compare_result(setting(times_joined=0, models=models)))
    assert verdict.text == (
        "Joining does not pay for s1, which keeps the model of its own, NDCG@10 0.4180, at epsilon "
        "8 with secure aggregation."
    )


def test_the_headline_names_everyone_once_per_trust() -> None:
    assert headline(compare_result()) == (
        "At epsilon 8 with secure aggregation: joining pays for s1, t1:0.1."
    )
    assert headline(compare_result(scenarios=())) == "Nothing was compared yet."


def _printed(result: CompareResult) -> list[str]:
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(quality_table(result))
        console.print(epsilon_table(result))
    return capture.get().splitlines()


def test_tables_fit_a_hundred_columns_and_show_what_is_there() -> None:
    pooled = {"pooled": model(0.5), "federated": model(0.45, seeded(0.032))}
    result = compare_result(
        setting(trust="none", epsilon=None, models=pooled),
        setting(seeded(0.001), epsilon=2.0),
        setting(),
    )
    lines = _printed(result)
    assert max(map(len, lines)) <= 100
    (row,) = [line for line in lines[:5] if line.startswith("t1:0.1")]
    assert row.split() == [
        *("t1:0.1", "secagg", "0.3510", "0.4180", "0.4470", "0.5000"),
        *("+0.0290", "0.0040", "<.001", "2/2"),
    ]
    by_epsilon = [line for line in lines[5:] if line.startswith("t1:0.1")]
    assert by_epsilon[0].split() == ["t1:0.1", "secagg", "+0.0010", "+0.0290*", "+0.0320*"]
