"""``federation.toml``: everything that is the same for all platforms of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.config import split_address
from common.data.agreement import MAX_ITEMS
from common.errors import ConfigError
from common.messages import MAX_DROPOUT
from common.models.ncf import NcfConfig
from common.models.pairs import MAX_PAIRED_ITEMS
from common.privacy.mechanisms import PrivacyUnit, SampledGaussian, TrustMode
from common.secagg.lattice import choose_lattice
from common.secagg.terms import SecaggTerms, noise_share

AggregationName = Literal["mean", "median", "trimmed-mean", "krum"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FederationSection:
    """``[federation]``."""

    run_id: str
    """Name of the run; platforms answer once per run and round."""
    rounds: int
    """Rounds of private training; 0 for a run that ends with its sums."""
    platforms: tuple[str, ...]
    """Names of the platforms that may take part."""
    quorum: int = 2
    """A round with fewer releases than this is discarded and ends the run."""
    seed: int = 0
    """Starting values of the shared parameters, and which platforms a round asks."""
    platforms_per_round: int | None = None
    """Platforms that a round asks, drawn by name and seed; all if left out. Sums ask all."""
    join_timeout_seconds: float = 600.0
    """How long the run waits for platforms that are not there yet, before it starts without."""
    round_timeout_seconds: float = 3600.0
    """How long a round waits before it closes with the platforms that answered."""

    def __post_init__(self) -> None:
        """Refuse runs that could not take place."""
        if not self.run_id or "/" in self.run_id:
            msg = f"run_id: found {self.run_id!r}, expected a name without a slash."
            raise ConfigError(msg)
        if self.rounds < 0:
            msg = f"rounds: found {self.rounds}, expected at least 0."
            raise ConfigError(msg)
        if len(set(self.platforms)) != len(self.platforms) or not self.platforms:
            msg = "platforms must be named, each once."
            raise ConfigError(msg)
        if not 1 <= self.quorum <= len(self.platforms):
            msg = f"quorum: found {self.quorum}, expected 1 to {len(self.platforms)}."
            raise ConfigError(msg)
        per_round = self.platforms_per_round
        if per_round is not None and not self.quorum <= per_round <= len(self.platforms):
            msg = (
                f"platforms_per_round: found {per_round}, expected from the quorum "
                f"{self.quorum} to {len(self.platforms)}."
            )
            raise ConfigError(msg)
        for name in ("join_timeout_seconds", "round_timeout_seconds"):
            if not getattr(self, name) > 0:  # infinity is a choice, NaN is not
                msg = f"{name}: found {getattr(self, name)}, expected a positive number."
                raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueSection:
    """``[catalogue]``: a file that everybody holds, or what the platforms agree on."""

    file: Path | None = None
    """The shared catalogue: columns ``item_id`` and ``platform``; a public input."""
    agree: bool = False
    """Ask the platforms for their items when a run starts: see :mod:`server.agreement`."""
    max_items: int = 1_000_000
    """A platform that lists more is left out; items are never taken out of a catalogue."""

    def __post_init__(self) -> None:
        """Refuse two sources of one thing."""
        if (self.file is None) != self.agree:
            found = "both" if self.agree else "neither"
            msg = f"expected either file or agree = true, found {found}."
            raise ConfigError(msg)
        if not 1 <= self.max_items <= MAX_ITEMS:
            msg = f"max_items: found {self.max_items}, expected 1 to {MAX_ITEMS}."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class MechanismSection:
    """``[mechanism]``: what every platform is asked to run in every round."""

    noise_multiplier: float | None = None
    """Noise over clipping norm that an observer faces; rounds do not run without."""
    clipping_norm: float = 0.25
    """C: bound on one user's contribution."""
    sampling_rate: float = 1.0
    """Poisson sampling rate of users; 1 takes every user in every step."""
    local_steps: int = 1
    """Noisy steps per round."""
    unit: PrivacyUnit = "user"
    """Privacy unit."""
    trust: TrustMode = "local"
    """Trust mode; platforms refuse one that is not theirs."""

    def __post_init__(self) -> None:
        """Refuse a mechanism that no accountant knows, before a platform is asked for it."""
        self._gaussian(0.0 if self.noise_multiplier is None else self.noise_multiplier)
        if not (math.isfinite(self.clipping_norm) and self.clipping_norm > 0):
            msg = f"clipping_norm: found {self.clipping_norm}, expected a positive number."
            raise ConfigError(msg)

    def per_round(self) -> SampledGaussian:
        """The mechanism of one round.

        Raises:
            ConfigError: if nobody said how much noise it has.
        """
        if self.noise_multiplier is None:
            msg = (
                "mechanism.noise_multiplier is missing, and rounds need it; add it, or rounds = 0."
            )
            raise ConfigError(msg)
        return self._gaussian(self.noise_multiplier)

    def _gaussian(self, noise_multiplier: float) -> SampledGaussian:
        return SampledGaussian(
            noise_multiplier=noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=self.local_steps,
            unit=self.unit,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SumsSection:
    """``[sums]``: its presence asks every platform for counts of items and of pairs, once each.

    A user's part has an L2 norm of at most 1; trust and unit are those of ``[mechanism]``.
    """

    counts_noise_multiplier: float
    """Standard deviation of the noise in the counts that an observer faces."""
    pairs_noise_multiplier: float
    """The same in the pairs."""
    max_items: int = 4000
    """Pairs are counted of so many items at most: those with the largest noisy counts."""

    def __post_init__(self) -> None:
        """Refuse sums that no platform would release."""
        for noise in (self.counts_noise_multiplier, self.pairs_noise_multiplier):
            SampledGaussian(noise_multiplier=noise, sampling_rate=1.0, steps=1)
        if not 2 <= self.max_items <= MAX_PAIRED_ITEMS:
            msg = f"max_items: found {self.max_items}, expected 2 to {MAX_PAIRED_ITEMS}."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSection:
    """``[training]``."""

    local_learning_rate: float = 1.0
    """Step length on the platforms."""
    user_steps: int = 2
    """Private steps on user vectors before each gradient."""
    dropout: float = 0.5
    """Part of a user's fitted vector that each of her gradients leaves out, by her own coins."""
    strategy: Literal["fedadam", "fedavg"] = "fedadam"
    """How the server applies the mean update."""
    server_learning_rate: float = 0.06
    """Step length on the server; FedAdam's falls to 0 over the planned rounds."""
    momentum: float = 0.9
    """First-moment decay of both strategies; 0 switches momentum off."""
    aggregation: AggregationName = "mean"
    """What is taken of a round's releases. All but the mean hold them in memory and need each one
    by itself, which secure aggregation excludes; see :mod:`server.robust`."""
    max_hostile: int = 1
    """Platforms that may lie without moving a trimmed mean or Krum at will."""

    def __post_init__(self) -> None:
        """Refuse steps that lead nowhere."""
        for name in ("local_learning_rate", "server_learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                msg = f"{name}: found {getattr(self, name)}, expected a positive number."
                raise ConfigError(msg)
        if self.user_steps < 1:
            msg = f"user_steps: found {self.user_steps}, expected at least 1."
            raise ConfigError(msg)
        if not 0 <= self.dropout <= MAX_DROPOUT:
            msg = f"dropout: found {self.dropout}, expected a number from 0 to {MAX_DROPOUT}."
            raise ConfigError(msg)
        if not 0 <= self.momentum < 1:
            msg = f"momentum: found {self.momentum}, expected a number in [0, 1)."
            raise ConfigError(msg)
        if self.max_hostile < 1:
            msg = f"max_hostile: found {self.max_hostile}, expected at least 1."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationSection:
    """``[validation]``: which releases are left out, and who is not asked again.

    Every release is held against what an honest platform of the declared size could send at most
    (:mod:`common.privacy.bounds`).
    """

    population_slack: float = 2.0
    """A platform may have so many times the users that it declares."""
    max_population: int = 10**10
    """A platform that declares more is not let in."""
    max_update_norm: float | None = None
    """Largest L2 norm of an update, where that is less; left out: what the size allows."""
    max_failures: int = 3
    """Bad replies or time-outs in a row until a platform is set aside; 0: never."""

    def __post_init__(self) -> None:
        """Refuse limits that no honest platform could keep."""
        if not 1 <= self.population_slack < math.inf:
            msg = f"population_slack: found {self.population_slack}, expected at least 1."
            raise ConfigError(msg)
        if self.max_population < 1:
            msg = f"max_population: found {self.max_population}, expected at least 1."
            raise ConfigError(msg)
        if self.max_update_norm is not None and not self.max_update_norm > 0:
            msg = f"max_update_norm: found {self.max_update_norm}, expected a positive number."
            raise ConfigError(msg)
        if self.max_failures < 0:
            msg = f"max_failures: found {self.max_failures}, expected 0 (never) or more."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class SecaggSection:
    """``[secagg]``: secure sums, where ``mechanism.trust`` asks for them."""

    max_dropped: int = 0
    """Platforms that may drop out of a sum, at whatever stage; with more it is not opened. Each one
    costs noise: every platform adds 1/sqrt(platforms - max_dropped - max_colluding) of it."""
    max_colluding: int = 1
    """Platforms that may tell the coordinator all they know; they cost as much."""
    neighbours: int | None = None
    """Platforms that each one exchanges masks and shares with: an even number of at least
    ``max_colluding + max_dropped + 1`` and ``max_colluding + 2 max_dropped``; all others if left
    out. Saves time with very many."""
    stage_timeout_seconds: float = 120.0
    """How long platforms have for each stage that follows the training."""

    def __post_init__(self) -> None:
        """Refuse what could never be opened."""
        if not self.stage_timeout_seconds > 0:
            msg = (
                f"stage_timeout_seconds: found {self.stage_timeout_seconds}, expected a positive "
                "number."
            )
            raise ConfigError(msg)
        if self.neighbours is not None and self.neighbours < 1:
            msg = f"neighbours: found {self.neighbours}, expected at least 1."
            raise ConfigError(msg)

    @property
    def least_participants(self) -> int:
        """Platforms that a sum needs for ``max_dropped`` of them to be allowed to drop out."""
        return 2 * self.max_dropped + self.max_colluding + 1

    def terms(
        self, participants: tuple[str, ...], *, noise_std: float, largest_sum: float
    ) -> SecaggTerms:
        """What platforms are asked to agree on.

        Args:
            participants: who is asked, increasing.
            noise_std: standard deviation that an observer must face.
            largest_sum: public bound on the numbers of one platform's sum, without noise.

        Raises:
            ConfigError: if too many may drop out or collude, or the noise is too small.
        """
        number = len(participants)
        certain = number - self.max_dropped - self.max_colluding
        if certain < 1:
            msg = (
                f"secagg: of {number} platforms {self.max_dropped} may drop out and "
                f"{self.max_colluding} collude, which leaves nobody to hide among."
            )
            raise ConfigError(msg)
        std = noise_std * noise_share(number - self.max_dropped, self.max_colluding)
        return SecaggTerms(
            participants=participants,
            max_dropped=self.max_dropped,
            max_colluding=self.max_colluding,
            neighbours=number - 1 if self.neighbours is None else self.neighbours,
            lattice=choose_lattice(std, largest_sum, number),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StateSection:
    """``[state]``."""

    folder: Path = Path("federation-state")
    """What outlives runs, and a folder for each run with its journal and checkpoints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSection:
    """``[network]``: how platforms reach a deployed coordinator; simulations have none."""

    address: str
    """Where the coordinator listens: host and port."""
    root_certificate: Path
    """Certificate of the federation's authority, which platforms hold as well."""
    certificate: Path
    """The coordinator's own."""
    private_key: Path
    """Of the coordinator's certificate."""
    platform_keys: Path
    """Folder with the public key of each platform: ``NAME.pub``."""

    def __post_init__(self) -> None:
        """Refuse what nobody can listen on."""
        split_address(self.address)


@dataclass(frozen=True, kw_only=True, slots=True)
class FederationConfig:
    """The whole file."""

    federation: FederationSection
    catalogue: CatalogueSection
    mechanism: MechanismSection = field(default_factory=MechanismSection)
    model: NcfConfig = field(default_factory=NcfConfig)
    training: TrainingSection = field(default_factory=TrainingSection)
    state: StateSection = field(default_factory=StateSection)
    sums: SumsSection | None = None
    network: NetworkSection | None = None
    validation: ValidationSection = field(default_factory=ValidationSection)
    secagg: SecaggSection = field(default_factory=SecaggSection)

    @property
    def is_summed(self) -> bool:
        """Whether releases are only seen added up, or would be."""
        return self.mechanism.trust in ("secagg", "secagg-simulated")

    @property
    def run_folder(self) -> Path:
        """Journal, sums and checkpoint of this run."""
        return self.state.folder / self.federation.run_id

    def __post_init__(self) -> None:
        """Refuse runs that make nothing, or that no platform's ledger would let come to an end."""
        if self.federation.rounds == 0 and self.sums is None:
            msg = "federation.rounds = 0 makes nothing: add rounds, or a [sums] section."
            raise ConfigError(msg)
        if self.federation.rounds > 0:
            self.mechanism.per_round()
        if self.training.aggregation != "mean" and self.is_summed:
            msg = (
                f"training.aggregation = {self.training.aggregation!r} needs each release by "
                "itself, and secure aggregation shows only their sum: use 'mean', or trust 'local'."
            )
            raise ConfigError(msg)
        if self.is_summed:
            self._check_summed()
        if self.federation.rounds > 0 and self.sums and self.mechanism.sampling_rate < 1:
            msg = (
                "mechanism.sampling_rate below 1 cannot follow [sums]: ledgers hold a run that "
                "samples to one mechanism. Take every user (sampling_rate = 1), or leave one out."
            )
            raise ConfigError(msg)

    def _check_summed(self) -> None:
        federation, secagg = self.federation, self.secagg
        number = min(federation.platforms_per_round or math.inf, len(federation.platforms))
        if 2 * (number - secagg.max_dropped) <= number + secagg.max_colluding:
            msg = (
                f"secagg: of {number} platforms {secagg.max_dropped} may drop out and "
                f"{secagg.max_colluding} collude; 2 (platforms - max_dropped) has to be more than "
                "platforms + max_colluding."
            )
            raise ConfigError(msg)
        if self.mechanism.local_steps > 1:
            msg = (
                f"mechanism.local_steps = {self.mechanism.local_steps}: secure aggregation takes "
                "one noisy step in a round. A second one would follow from the first with this "
                "platform's share of the noise alone."
            )
            raise ConfigError(msg)
