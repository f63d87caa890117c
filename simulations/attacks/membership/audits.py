"""From scores of canaries to what they prove."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.messages import TrainRequest
from common.rng import derived_generator
from server.config import SumsSection
from simulations.attacks.membership.accounted import shift_of
from simulations.attacks.membership.canaries import (
    choose_canaries,
    most_items_in_common,
    with_test_set_aside,
)
from simulations.attacks.membership.claims import claim_for
from simulations.attacks.membership.gradients import score_rounds
from simulations.attacks.membership.lower_bound import (
    FEWEST_CANARIES,
    best_guesses,
    epsilon_lower,
    estimated_shift,
    gaussian_epsilon,
    guess,
    shift_lower,
)
from simulations.attacks.membership.observed_run import histories, observe
from simulations.attacks.membership.result import Audit
from simulations.attacks.membership.roc import roc_of
from simulations.attacks.membership.scores import score_sums
from simulations.federation import plan_budget
from simulations.result import finite_or_none

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from common.data.marketplace import Marketplace
    from simulations.attacks.membership.canaries import Canaries
    from simulations.attacks.membership.claims import Claim
    from simulations.attacks.membership.observed_run import ObservedRun
    from simulations.attacks.membership.result import Adversary
    from simulations.options import SimulationOptions

MAX_PAIRED = SumsSection(counts_noise_multiplier=1.0, pairs_noise_multiplier=1.0).max_items
"""Items that a simulated run pairs at most."""
CONFIDENCE = 0.95


def visible_shift(
    canaries: Canaries, options: SimulationOptions, adversary: Adversary, num_platforms: int
) -> float:
    """How far a canary moves what an adversary sees, in units of the accounted noise.

    Args:
        canaries: how much of a sum each is.
        options: what is spent on what, and who sees it.
        adversary: the model has no counts in it, and the noise of all platforms.
        num_platforms: that add noise.
    """
    budget, alone = plan_budget(options), adversary == "releases"
    shares = 1  # of platforms that have the noise together
    if options.trust.startswith("secagg"):
        shares = max(1, num_platforms - options.max_dropped - options.max_colluding)
    spread = 1.0 if alone else math.sqrt(num_platforms / shares)
    squares = [0.0]
    for mechanism, moved in (
        (budget.counts if alone else None, math.hypot(*canaries.count_shifts)),
        (budget.pairs, canaries.pair_shift),
        (budget.rounds, float(canaries.num_users)),
    ):
        if mechanism is not None:
            squares.append((shift_of([mechanism]) * moved / spread) ** 2)
    return math.sqrt(sum(squares))


def audit(
    canaries: Canaries,
    scores: np.ndarray,
    claim: Claim,
    *,
    adversary: Adversary,
    num_guesses: int,
    detail: str,
    confidence: float = CONFIDENCE,
) -> Audit:
    """Guess by the scores, and bound epsilon by how many guesses are right.

    Args:
        canaries: with their coins.
        scores: [m], higher for in.
        claim: what is doubted.
        adversary: whose scores they are.
        num_guesses: fixed before scores were seen.
        detail: what canaries and scores are, in words.
        confidence: of each lower bound.

    Raises:
        ConfigError: if all coins fell on one side.
    """
    if canaries.is_in.all() or not canaries.is_in.any():
        msg = "canaries: all of them fell on one side; ask for more, or take another seed."
        raise ConfigError(msg)
    num_correct = guess(scores, canaries.is_in, num_guesses)
    counted = {
        "num_canaries": canaries.number,
        "num_guesses": num_guesses,
        "num_correct": num_correct,
    }
    shift = estimated_shift(scores, canaries.is_in)
    gaussian = None
    if claim.is_gaussian and claim.epsilon is not None:
        gaussian = gaussian_epsilon(shift_lower(**counted, confidence=confidence), claim.delta)
    return Audit(
        unit=canaries.unit,
        adversary=adversary,
        **counted,
        num_in=int(canaries.is_in.sum()),
        epsilon_lower=epsilon_lower(**counted, delta=claim.delta, confidence=confidence),
        epsilon_lower_gaussian=gaussian,
        confidence=confidence,
        epsilon_estimate=(
            None if shift is None else finite_or_none(gaussian_epsilon(shift, claim.delta))
        ),
        epsilon_accounted=claim.epsilon,
        delta=claim.delta,
        accounted_as=claim.words,
        roc=roc_of(scores, canaries.is_in),
        detail=detail,
    )


def score_releases(canaries: Canaries, run: ObservedRun, *, seed: int) -> np.ndarray:
    """Logarithm of the likelihood ratio of users or interactions, from everything released."""
    scores = score_sums(canaries, run.seen, run.known)
    if any(isinstance(one.request, TrainRequest) for one in run.seen):
        scores += score_rounds(canaries, run.seen, histories(run.federation), seed=seed)
    return scores


def audit_users(
    marketplace: Marketplace,
    options: SimulationOptions,
    folder: Path,
    *,
    seed: int,
    num_canaries: int,
    platform: str | None = None,
    confidence: float = CONFIDENCE,
) -> Audit:
    """Attack the users of one platform in one run, with every release in view.

    Args:
        marketplace: the data, without canaries.
        options: of the run; its seed splits the data, and ``seed`` draws everything else.
        folder: an empty one.
        seed: of coins and noise.
        num_canaries: in or out.
        platform: which one is attacked; None: the one with most items in common with others.
        confidence: of the lower bounds.

    Raises:
        ConfigError: if the data are too small for so many canaries.
    """
    if num_canaries < FEWEST_CANARIES:
        msg = f"canaries: found {num_canaries}, expected at least {FEWEST_CANARIES}."
        raise ConfigError(msg)
    marketplace = with_test_set_aside(marketplace, options.seed)
    name = platform or most_items_in_common(marketplace)[0]
    canaries = choose_canaries(
        marketplace,
        "user",
        name,
        num_canaries,
        max_items=MAX_PAIRED,
        rng=derived_generator(seed, "canaries", name),
    )
    shift = visible_shift(canaries, options, "releases", len(marketplace.platforms))
    num_guesses = best_guesses(num_canaries, shift, delta=options.delta, confidence=confidence)
    run = observe(marketplace, [canaries], options, folder, seed=seed)
    scores = score_releases(canaries, run, seed=seed)
    claim = claim_for(
        "user",
        "releases",
        run.spends[name],
        options,
        num_platforms=len(marketplace.platforms),
    )
    return audit(
        canaries,
        scores,
        claim,
        adversary="releases",
        num_guesses=num_guesses,
        detail=f"users of {name} with two items each, by likelihood ratio of all releases",
        confidence=confidence,
    )
