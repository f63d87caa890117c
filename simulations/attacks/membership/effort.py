"""What is attacked, and how much is tried."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from simulations.newcomers import Newcomer, draw_newcomer
from simulations.simulate import load_marketplace, option_words

if TYPE_CHECKING:
    from pathlib import Path

    from common.data.marketplace import Marketplace
    from simulations.options import SimulationOptions


MOST_WITH_ROUNDS = 500
"""Canaries where the plan has rounds: gradients of canaries with an item in common mix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is tried; of small data, as much as they have room for."""

    mode: Literal["quick", "thorough"]
    """Its name."""
    users: int
    """Canary users in one run; at most ``MOST_WITH_ROUNDS`` where the plan has rounds."""
    interactions: int
    """Canary interactions in the same run, on another platform; likewise."""
    platforms: int
    """Canary platforms in a run of their own."""
    runs: int
    """Of LiRA."""
    runs_with_rounds: int
    """Of LiRA, where the plan has rounds; 0 leaves it out."""
    records: int
    """Real users whose membership is guessed in each of them."""
    probes: int
    """Canaries looked for in recommendations, in a run of their own; 0 leaves it out."""


QUICK = Effort(
    mode="quick",
    users=2000,
    interactions=1000,
    platforms=24,
    runs=8,
    runs_with_rounds=0,
    records=400,
    probes=0,
)
THOROUGH = Effort(
    mode="thorough",
    users=20_000,
    interactions=5000,
    platforms=40,
    runs=32,
    runs_with_rounds=8,
    records=1000,
    probes=300,
)


def attacked_marketplace(options: SimulationOptions) -> Marketplace:
    """The data that a run with ``options`` is about.

    Raises:
        DataError: if they cannot be used.
    """
    marketplace = load_marketplace(options)
    if options.newcomer is None:
        return marketplace
    return draw_newcomer(marketplace, Newcomer.parse(options.newcomer), options.seed)


def attack_command(
    options: SimulationOptions, effort: Effort, *, runs: Path | None, seed: int, confidence: float
) -> str:
    """The command that repeats an attack."""
    words = ["crossrec", "audit", "attack", f"--{effort.mode}", "--seed", str(seed)]
    words += ["--confidence", str(confidence)]
    words += option_words(options) if runs is None else ["--runs", str(runs)]
    return shlex.join(words)
