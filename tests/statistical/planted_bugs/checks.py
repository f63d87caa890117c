"""The checks that planted bugs have to get past, by name; each of them passes on right code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from common.privacy.randomness import SeededRandom, SystemRandom
from tests.laws import platforms, promises, rounds, training, users
from tests.statistical.planted_bugs import attacked
from tests.statistical.planted_bugs.audited import check_records_hold_together

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from common.models.ncf import NcfConfig

Level = Literal["unit", "ledger", "attack"]
"""``unit``: a law of tests/laws, held on the real component or on whole platforms; ``ledger``:
the platform's own ledger refuses, or `crossrec audit verify` fails; ``attack``: the lower bound of
`crossrec audit attack` exceeds what is accounted."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One way to say no."""

    level: Level
    law: str
    """What must hold, in words."""
    run: Callable[[Path], None]
    """Works in a folder of its own; raises AssertionError."""
    is_slow: bool = False
    """Takes more than a few seconds."""


def of_rounds(law: str, check: Callable[[NcfConfig, rounds.NewSource], None]) -> Check:
    """Held on the trainer with a tower, with noise of the system and of a seed."""

    def run(_: Path) -> None:
        for new_source in (SystemRandom, SeededRandom):
            check(rounds.NEUMF, new_source)

    return Check(level="unit", law=law, run=run)


def of_platforms(law: str, check: Callable[[Path], None], level: Level = "unit") -> Check:
    return Check(level=level, law=law, run=check)


def alone(law: str, check: Callable[[], None]) -> Check:
    return Check(level="unit", law=law, run=lambda _: check())


def a_gradient_is_bounded() -> None:
    for config in training.MODELS:
        training.check_sensitivity(training.clipped_sum, training.adversarial_cases(config))


def a_user_moves_a_round_by_her_part() -> None:
    rounds.check_one_user_moves_it_by_her_bounded_part(rounds.GMF, SeededRandom)


CHECKS: dict[str, Check] = {
    # --- Noise ---
    "noise of rounds": of_platforms(
        "each array and row of a round has the noise that the ledger charges",
        platforms.check_rounds_have_the_noise_that_is_charged,
    ),
    "noise of sums": of_platforms(
        "each number of both sums has the noise that the ledger charges",
        platforms.check_sums_have_the_noise_that_is_charged,
    ),
    "noise of shares": of_platforms(
        "each platform of a secure sum adds its share, on rows that it does not list as well",
        platforms.check_a_platforms_share_of_noise_is_on_every_row,
    ),
    "noise of secure sums": of_platforms(
        "the fewest honest platforms of a secure sum add all noise that is charged",
        platforms.check_secure_sums_have_the_noise_that_is_charged,
    ),
    "noise of the trainer": of_rounds(
        "every array of an update has the plan's noise, tower included",
        rounds.check_noise_is_as_accounted,
    ),
    "noise of nobody": of_rounds(
        "an empty sample releases noise on every array",
        rounds.check_an_empty_sample_releases_noise,
    ),
    "noise of steps": of_rounds("local steps have noise of their own", rounds.check_steps_add_up),
    "noise of chunks": of_rounds(
        "places of an array have noise of their own", rounds.check_chunks_are_independent
    ),
    "fresh noise": of_rounds(
        "one round's noise says nothing of the next one's", rounds.check_noise_is_fresh
    ),
    "separate noise": of_platforms(
        "rounds, runs, platforms and quantities have unrelated noise",
        platforms.check_no_two_releases_share_noise,
    ),
    "separate streams": of_platforms(
        "a simulated platform's streams are unrelated by platform, run and release",
        platforms.check_streams_are_unrelated,
    ),
    "system noise": of_platforms(
        "a deployed platform's noise is all in 32 bytes of the operating system",
        platforms.check_deployed_noise_is_the_operating_systems,
    ),
    "rounding": alone(
        "a secure sum is rounded after its noise",
        platforms.check_rounding_comes_after_the_noise,
    ),
    # --- One user's part ---
    "clipped gradient": alone(
        "a user's gradient over all parameters together is at most C", a_gradient_is_bounded
    ),
    "part of a round": alone(
        "a user moves an update by at most C, and by what she brings alone",
        a_user_moves_a_round_by_her_part,
    ),
    "part of a sum": of_platforms(
        "a user moves a sum by at most 1, and by what she brings alone",
        users.check_one_user_moves_a_sum_by_her_bounded_part,
    ),
    "exact part": alone(
        "both sums move by a user's part to the last bit, of norm 1 at most",
        users.check_a_part_of_a_sum_is_exact,
    ),
    "public negatives": alone(
        "negatives are uniform over the listing, whatever others bought",
        rounds.check_negatives_are_public,
    ),
    "sampling": of_platforms(
        "users take part by independent coins of the rate that the ledger charges",
        users.check_users_take_part_by_the_coins_that_are_charged,
    ),
    "sampler": alone(
        "the trainer's sampler tosses independent coins of the rate it is given",
        users.check_the_sampler_is_poisson,
    ),
    # --- Promises ---
    "order": of_platforms(
        "a spend is on disk before data are read, a release recorded before it is sent",
        promises.check_spent_before_data_are_read_and_recorded_before_sent,
    ),
    "replay": of_platforms(
        "a request asked again gets the same bytes for nothing",
        promises.check_a_repeated_request_gets_the_same_bytes,
    ),
    "silent reply": of_platforms(
        "all but a release's numbers is the same whatever the data",
        promises.check_what_is_beside_a_release_does_not_depend_on_data,
    ),
    "silent clock": alone(
        "nobody is told how long work on users' data took",
        promises.check_durations_are_not_told,
    ),
    "masks": of_platforms(
        "what leaves for a secure sum is not the release",
        promises.check_a_masked_release_shows_nothing,
    ),
    # --- The platform's own ledger ---
    "budget": of_platforms(
        "what the composition of everything would bring over budget is declined",
        promises.check_what_is_over_budget_is_declined,
        "ledger",
    ),
    "one request": of_platforms(
        "another request under an old name is declined",
        promises.check_a_request_asked_again_otherwise_is_refused,
        "ledger",
    ),
    "one release": of_platforms(
        "a kept release that is not the recorded one is not sent",
        promises.check_a_changed_release_is_not_sent,
        "ledger",
    ),
    "one list": of_platforms(
        "survivors of a secure sum are confirmed once, whatever becomes of the session",
        promises.check_survivors_are_confirmed_once,
        "ledger",
    ),
    "price": of_platforms(
        "the ledger's epsilon is that of all releases of all runs, by hand",
        promises.check_every_release_is_charged,
        "ledger",
    ),
    # --- The auditor ---
    "audit verify": of_platforms(
        "ledgers, releases on disk, journal and independent prices of three runs hold together",
        check_records_hold_together,
        "ledger",
    ),
    "attack on sums": of_platforms(
        "canary users in both sums prove no more than the epsilon of 1 that is accounted",
        attacked.on_sums,
        "attack",
    ),
    "attack on rounds": of_platforms(
        "canary users in four rounds prove no more than the epsilon of 1 that is accounted",
        attacked.on_rounds,
        "attack",
    ),
    "attack on charges": of_platforms(
        "canary users in rounds at epsilon 8 prove no more than what the ledger charged",
        attacked.on_charges,
        "attack",
    ),
}
