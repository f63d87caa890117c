"""What the membership attacks found: ``attack.json``, strict and versioned.

Pure: written by ``crossrec audit attack``, read by ``crossrec audit report``.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  (pydantic reads field types at run time)
from dataclasses import dataclass
from typing import Literal

from simulations.result import Checked

SCHEMA_VERSION = 1
ATTACK_FILE = "attack.json"

Unit = Literal["user", "interaction", "platform"]
"""What is there or not: a user with all she did, one thing she did, a platform with all its
users."""
Adversary = Literal["releases", "model", "recommendations"]
"""What the attacker sees: ``releases`` (white box) every release as its trust mode shows it;
``model`` (black box) what the run made, in the end; ``recommendations`` what another platform's
users are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Roc(Checked):
    """How well scores tell who was in, at every threshold."""

    auc: float
    """Area under the curve; .5 is guessing."""
    tpr_at_fpr: Mapping[str, float]
    """True positive rate at false positive rates ``"0.001"``, ``"0.01"``, ``"0.1"``."""
    curve: tuple[tuple[float, float], ...]
    """(false positive rate, true positive rate), increasing, at most 200 points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit(Checked):
    """One attacker against canaries of one unit: the least epsilon that its success proves."""

    unit: Unit
    """What a canary is."""
    adversary: Adversary
    """What the attacker sees."""
    num_canaries: int
    """Each was in or out by a fair coin of its own."""
    num_in: int
    """Of them."""
    num_guesses: int
    """Canaries that the attacker did not pass over; fixed before it saw anything."""
    num_correct: int
    """Guesses that were right."""
    epsilon_lower: float
    """At ``confidence``, no guarantee with a smaller epsilon holds (Steinke et al. 2023)."""
    epsilon_lower_gaussian: float | None
    """The same for Gaussian mechanisms alone, whose whole trade-off is tested (Mahloujifar et al.
    2024): no Gaussian noise with a smaller epsilon allows such success. None where users are
    sampled, or nothing is accounted."""
    confidence: float
    """Of both lower bounds, e.g. .95, each by itself."""
    epsilon_estimate: float | None
    """From two Gaussians fitted to the scores (Andrew et al. 2023): an estimate, no bound; None if
    there are too few canaries."""
    epsilon_accounted: float | None
    """What the accountant says for this unit and adversary; None: no guarantee."""
    delta: float
    """Of all epsilons."""
    accounted_as: str
    """In words: how ``epsilon_accounted`` follows from what the ledger says."""
    roc: Roc
    """Of the canaries' scores."""
    detail: str
    """In words: what the canaries are and how they are scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership(Checked):
    """Likelihood-ratio membership inference with shadow runs (LiRA, Carlini et al. 2022)."""

    target: str
    """Whose membership: ``canary users`` or ``users`` (as they are in the data)."""
    adversary: Adversary
    """What the attacker sees."""
    num_runs: int
    """Each one is attacked with all others as its shadows."""
    num_records: int
    """Users whose membership was guessed in each run."""
    roc: Roc
    """Over all runs and records."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackResult(Checked):
    """Everything that was tried on one configuration."""

    command: str
    """Repeats it."""
    configuration: Mapping[str, object]
    """Options of the attacked run, as in its result.json."""
    mode: Literal["quick", "thorough"]
    """How much was tried."""
    seed: int | None
    """Of data, coins and noise; they are seeded, and marked as simulation."""
    epsilon: float | None
    """Accounted epsilon of a user; None without a guarantee."""
    delta: float
    """Its delta."""
    audits: tuple[Audit, ...]
    """By unit and adversary."""
    memberships: tuple[Membership, ...]
    """LiRA."""
    versions: Mapping[str, str]
    """Of crossrec and the libraries that numbers depend on."""
    wall_seconds: float
    """How long it took."""
    schema_version: int = SCHEMA_VERSION
