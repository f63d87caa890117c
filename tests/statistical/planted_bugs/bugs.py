"""The table of planted bugs: what each one is, where it is put, and which checks say no to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.statistical.planted_bugs import afterwards, in_noise, in_records, in_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pytest


@dataclass(frozen=True, kw_only=True)
class Bug:
    """A realistic mistake, or a cheat, in code that is right without it."""

    name: str
    """What it is."""
    place: str
    """The real name that is replaced."""
    plant: Callable[[pytest.MonkeyPatch], None]
    """Puts it there."""
    caught: Mapping[str, str]
    """Each check that says no, and what it says (a regular expression)."""


BUGS: tuple[Bug, ...] = (
    # --- Noise: how much ---
    Bug(
        name="no noise on sums",
        place="client.platform.noisy",
        plant=in_noise.scaled_in_sums(0.0),
        caught={"noise of sums": "not N", "attack on sums": "proved"},
    ),
    Bug(
        name="no noise on rounds",
        place="client.platform._plan",
        plant=in_noise.scaled_in_rounds(0.0),
        caught={"noise of rounds": "without noise", "attack on rounds": "proved"},
    ),
    Bug(
        name="2/3 of the noise on sums",
        place="client.platform.noisy",
        plant=in_noise.scaled_in_sums(2 / 3),
        caught={"noise of sums": "not N"},
    ),
    Bug(
        name="2/3 of the noise on rounds",
        place="client.platform._plan",
        plant=in_noise.scaled_in_rounds(2 / 3),
        caught={"noise of rounds": "not N"},
    ),
    Bug(
        name="2/3 in every draw",
        place="common.privacy.randomness.RandomSource.gaussian",
        plant=in_noise.draws_of_two_thirds,
        caught={"noise of rounds": "not N", "noise of sums": "not N", "noise of shares": "not N"},
    ),
    Bug(
        name="secure sums: each platform adds 1/K of the noise",
        place="common.secagg.terms.SecaggTerms.noise_share",
        plant=in_noise.one_kth,
        caught={"noise of secure sums": "not N", "noise of shares": "not N"},
    ),
    Bug(
        name="secure sums: noise as if nobody dropped out or colluded",
        place="common.secagg.terms.SecaggTerms.noise_share",
        plant=in_noise.nobody_drops_or_colludes,
        caught={"noise of secure sums": "not N", "noise of shares": "not N"},
    ),
    # --- Noise: where ---
    Bug(
        name="biases without noise",
        place="client.trainer.add_gaussian_noise_",
        plant=in_noise.biases_spared,
        caught={
            "noise of rounds": "without noise",
            "noise of the trainer": "not N",
            "noise of nobody": "not N",
        },
    ),
    Bug(
        name="one number of the tower without noise",
        place="client.trainer.add_gaussian_noise_",
        plant=in_noise.last_bias_spared,
        caught={"noise of the trainer": "not N", "noise of nobody": "stands still"},
    ),
    Bug(
        name="rows without noise that nobody touched",
        place="client.trainer.add_gaussian_noise_",
        plant=in_noise.untouched_rows_spared,
        caught={"noise of the trainer": "not N", "noise of nobody": "not N"},
    ),
    Bug(
        name="arrays without noise that nobody touched",
        place="client.trainer.add_gaussian_noise_",
        plant=in_noise.untouched_arrays_spared,
        caught={
            "noise of nobody": "not N",
            "noise of the trainer": "not N",
        },
    ),
    Bug(
        name="no noise where nobody was sampled",
        place="client.trainer.poisson_sample",
        plant=in_noise.nothing_without_users,
        caught={"noise of nobody": "not N"},
    ),
    Bug(
        name="secure sums: rows without noise that the platform does not list",
        place="client.platform.noisy_lattice",
        plant=in_noise.unlisted_rows_spared,
        caught={"noise of shares": "without noise"},
    ),
    Bug(
        name="secure sums: rounded before the noise",
        place="client.platform.noisy_lattice",
        plant=in_noise.rounded_before,
        caught={"rounding": "rounding moves"},
    ),
    # --- Noise: the same again ---
    Bug(
        name="every round has the same noise",
        place="client.platform.Platform._random_source",
        plant=in_noise.one_stream_for_a_run,
        caught={
            "separate noise": "the same noise",
            "separate streams": "correlation",
        },
    ),
    Bug(
        name="every run has the same noise",
        place="client.platform.Platform._random_source",
        plant=in_noise.one_stream_for_all_runs,
        caught={
            "separate noise": "the same noise",
            "separate streams": "correlation",
        },
    ),
    Bug(
        name="platforms share noise",
        place="client.platform.Platform._random_source",
        plant=in_noise.one_stream_for_all_platforms,
        caught={
            "separate noise": "the same noise",
            "separate streams": "correlation",
        },
    ),
    Bug(
        name="each round takes the last one's noise away",
        place="client.trainer.add_gaussian_noise_",
        plant=in_noise.differences,
        caught={"separate noise": "share noise: correlation"},
    ),
    Bug(
        name="noise is drawn once and kept",
        place="common.privacy.randomness.RandomSource.gaussian",
        plant=in_noise.drawn_once,
        caught={
            "fresh noise": "correlation",
            "noise of steps": "not N",
            "noise of chunks": "correlation",
            "separate noise": "the same noise",
        },
    ),
    Bug(
        name="a deployed platform's noise follows from a seed",
        place="client.platform.Platform._random_source",
        plant=in_noise.seeded_everywhere,
        caught={"system noise": "can be predicted"},
    ),
    Bug(
        name="a deployed platform's noise follows from the clock",
        place="common.privacy.randomness.SystemRandom.__init__",
        plant=in_noise.key_of_the_clock,
        caught={"system noise": "does not come from the operating system"},
    ),
    Bug(
        name="a deployed platform's noise has 2^32 starts",
        place="common.privacy.randomness.SystemRandom.__init__",
        plant=in_noise.key_of_few_bytes,
        caught={"system noise": "few keys"},
    ),
    # --- One user's part ---
    Bug(
        name="clipping off",
        place="common.privacy.engines.add_clipped_gradients_",
        plant=in_sums.not_clipped,
        caught={
            "part of a round": "more than allowed",
            "clipped gradient": "more than C",
            "attack on rounds": "proved",
        },
    ),
    Bug(
        name="the tower is left out of the norm",
        place="common.privacy.clipping.squared_norms",
        plant=in_sums.tower_left_out,
        caught={"clipped gradient": "more than C"},
    ),
    Bug(
        name="each array is clipped by itself",
        place="common.privacy.engines.add_clipped_gradients_",
        plant=in_sums.arrays_one_by_one,
        caught={
            "clipped gradient": "more than C",
            "part of a round": "more than allowed",
        },
    ),
    Bug(
        name="each purchase is clipped by itself",
        place="common.privacy.engines.add_clipped_gradients_",
        plant=in_sums.purchases_one_by_one,
        caught={
            "part of a round": "more than allowed",
            "clipped gradient": "more than C",
        },
    ),
    Bug(
        name="pairs are not normalised",
        place="client.platform.pair_sum",
        plant=in_sums.pairs_as_they_are,
        caught={
            "part of a sum": "item-pairs: a user moves the sum",
            "exact part": "norm 1",
        },
    ),
    Bug(
        name="counts are not normalised",
        place="client.platform.count_sum",
        plant=in_sums.counts_as_they_are,
        caught={
            "part of a sum": "item-counts: a user moves the sum",
            "exact part": "norm 1",
        },
    ),
    Bug(
        name="pairs are weighted by the platform's own counts",
        place="client.platform.pair_sum",
        plant=in_sums.pairs_weighted_by_own_counts,
        caught={
            "part of a sum": "item-pairs: her part depends on others",
            "exact part": "her part depends on others",
        },
    ),
    Bug(
        name="divided by the number of sampled users",
        place="common.privacy.engines.add_clipped_gradients_",
        plant=in_sums.divided_by_the_sample,
        caught={
            "part of a round": "her part depends on others",
            "clipped gradient": "her part depends on others",
        },
    ),
    Bug(
        name="divided by the number of users",
        place="client.trainer.train_round",
        plant=in_sums.divided_by_its_users,
        caught={
            "part of a round": "more than allowed",
            "noise of the trainer": "not N",
        },
    ),
    Bug(
        name="users are weighted by others' activity",
        place="common.privacy.engines.add_clipped_gradients_",
        plant=in_sums.weighted_by_activity,
        caught={
            "part of a round": "her part depends on others",
            "clipped gradient": "her part depends on others",
        },
    ),
    Bug(
        name="user vectors are centred on the sample",
        place="client.user_vectors.UserVectors.fit_",
        plant=in_sums.vectors_centred_on_the_sample,
        caught={"part of a round": "more than allowed|depends on others"},
    ),
    Bug(
        name="negatives are what others bought",
        place="client.trainer.user_batch",
        plant=in_sums.negatives_in_the_batch,
        caught={"public negatives": "what others bought"},
    ),
    # --- Who takes part ---
    Bug(
        name="shuffled batches of one size",
        place="client.trainer.poisson_sample",
        plant=in_sums.shuffled_batches,
        caught={
            "sampling": "variance of the sample's size",
            "sampler": "variance of the sample's size",
        },
    ),
    Bug(
        name="epochs: nobody twice before all were there",
        place="client.trainer.poisson_sample",
        plant=in_sums.epochs,
        caught={
            "sampling": "inclusion rates|variance of the sample's size",
            "sampler": "overall rate",
        },
    ),
    Bug(
        name="one and a half times the rate that is charged",
        place="client.trainer.poisson_sample",
        plant=in_sums.more_than_priced,
        caught={
            "sampling": "overall rate",
            "sampler": "overall rate",
        },
    ),
    Bug(
        name="everybody in each step, and sampling is charged",
        place="client.trainer.poisson_sample",
        plant=in_sums.everybody_each_time,
        caught={
            "sampling": "overall rate",
            "sampler": "overall rate",
        },
    ),
    # --- What is charged ---
    Bug(
        name="the accountant starts anew with each release",
        place="common.privacy.account.Account.price",
        plant=in_records.each_by_itself,
        caught={"audit verify": "budget of north", "budget": "beyond the budget"},
    ),
    Bug(
        name="the accountant starts anew with each run",
        place="common.privacy.account.Account.price",
        plant=in_records.each_run_by_itself,
        caught={"audit verify": "budget of north", "budget": "of another run is beyond the budget"},
    ),
    Bug(
        name="releases with the same noise are charged once",
        place="common.privacy.accounting._history",
        plant=in_records.equal_releases_count_once,
        caught={
            "budget": "beyond the budget",
            "price": "at epsilon",
            "audit verify": "price-dp-accounting",
        },
    ),
    Bug(
        name="rounds count, and sums do not",
        place="common.privacy.account.Account.price",
        plant=in_records.rounds_only,
        caught={"audit verify": "budget of north", "budget": "after a sum is beyond the budget"},
    ),
    Bug(
        name="a restarted platform begins a new ledger",
        place="client.state.Ledger",
        plant=in_records.new_ledger_at_each_start,
        caught={
            "audit verify": "that the ledger lacks",
            "budget": "beyond the budget",
            "price": "at epsilon",
            "attack on charges": "proved",
        },
    ),
    Bug(
        name="more noise is charged than added",
        place="client.platform.Spend",
        plant=in_records.more_noise_written_down,
        caught={
            "audit verify": "mechanisms of north",
            "noise of rounds": "not N",
            "noise of sums": "not N",
            "price": "at epsilon",
        },
    ),
    Bug(
        name="a lower sampling rate is charged than used",
        place="client.platform.Spend",
        plant=in_records.fewer_users_written_down,
        caught={
            "audit verify": "mechanisms of north",
            "sampling": "overall rate",
            "attack on charges": "proved",
        },
    ),
    # --- In which order, and once ---
    Bug(
        name="data are read before the spend",
        place="client.platform.Platform._release",
        plant=in_records.data_before_the_spend,
        caught={"order": "before the spend"},
    ),
    Bug(
        name="a release leaves before it is recorded",
        place="common.privacy.ledger.Ledger.commit",
        plant=in_records.recorded_later,
        caught={"audit verify": "never recorded", "order": "a release was sent"},
    ),
    Bug(
        name="a request asked again gets fresh noise",
        place="client.state.PlatformState.load_release",
        plant=in_records.fresh_noise_when_asked_again,
        caught={
            "replay": "asked again it is declined",
            "audit verify": "releases of north: .* never recorded, or was changed",
        },
    ),
    Bug(
        name="a request asked again gets fresh noise, and the ledger is not told",
        place="client.state.PlatformState.load_release",
        plant=in_records.fresh_noise_and_nobody_looks,
        caught={
            "audit verify": "another release of .* than the ledger recorded",
            "replay": "a second look",
        },
    ),
    Bug(
        name="requests are known by their names alone",
        place="common.messages.ReleaseRequest.digest",
        plant=in_records.requests_known_by_name_alone,
        caught={"audit verify": "requests of north", "one request": "answered again"},
    ),
    Bug(
        name="whatever lies in the folder of releases is sent",
        place="client.state.PlatformState.load_release",
        plant=in_records.files_are_believed,
        caught={"one release": "another file was sent"},
    ),
    Bug(
        name="secure sums: many lists of survivors for one release",
        place="common.privacy.ledger.Ledger.confirm",
        plant=in_records.many_lists_of_survivors,
        caught={"one list": "confirms another list"},
    ),
    Bug(
        name="secure sums: releases leave without masks",
        place="client.secure_sum.mask_",
        plant=in_records.masks_forgotten,
        caught={"masks": "without its mask"},
    ),
    # --- What is said ---
    Bug(
        name="a count in the words of a reply",
        place="client.platform.Platform.train",
        plant=in_records.told_in_words,
        caught={"silent reply": "shows whose data"},
    ),
    Bug(
        name="a loss beside the release",
        place="client.platform.Platform.train",
        plant=in_records.told_in_an_array,
        caught={"silent reply": "more than the release"},
    ),
    Bug(
        name="metrics beside the reply",
        place="client.app.encode",
        plant=in_records.told_in_metrics,
        caught={"silent reply": "more records"},
    ),
    Bug(
        name="the platform says whether joining paid",
        place="client.platform.Platform.adopt",
        plant=in_records.gate_told,
        caught={"silent reply": "shows whose data"},
    ),
    Bug(
        name="the population is counted, not declared",
        place="client.platform.Platform.profile",
        plant=in_records.population_counted,
        caught={"silent reply": "shows whose data"},
    ),
    Bug(
        name="how long the work took is told",
        place="client.supernode._change_flower",
        plant=in_records.durations_told,
        caught={"silent clock": "is told"},
    ),
    # --- What is changed afterwards ---
    Bug(
        name="kept releases are swapped",
        place="client.state.PlatformState.begin_handover",
        plant=afterwards.releases_swapped,
        caught={"audit verify": "releases of north"},
    ),
    Bug(
        name="a noise multiplier in the ledger is edited",
        place="client.state.PlatformState.begin_handover",
        plant=afterwards.sigma_edited,
        caught={"audit verify": "chain of north"},
    ),
    Bug(
        name="the ledger is written anew with more noise, and fits together",
        place="client.state.PlatformState.begin_handover",
        plant=afterwards.ledger_rewritten,
        caught={"audit verify": "server-mechanisms of north"},
    ),
    Bug(
        name="the ledger is written anew without a round",
        place="client.state.PlatformState.begin_handover",
        plant=afterwards.ledger_shortened,
        caught={"audit verify": "took another release of"},
    ),
    Bug(
        name="an older copy of the ledger is put back, head and all",
        place="client.state.PlatformState.begin_handover",
        plant=afterwards.older_ledger,
        caught={"audit verify": "that the ledger lacks"},
    ),
)
