"""``platform.toml``: everything a platform decides for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from client.devices import DeviceName
from common.config import split_address
from common.data.sql import SqlQuery
from common.errors import ConfigError
from common.privacy.account import Budget
from common.privacy.engines import ClippingEngine
from common.privacy.mechanisms import PrivacyUnit, TrustMode

_MAX_LOST = 0.1
"""Users whom delta may give up in expectation: delta has to stay well below one over the users."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlatformSection:
    """``[platform]``."""

    name: str
    """Name of the platform, unique in the federation."""
    population: int
    """Public, approximate number of users: what you would print in a brochure, not a count."""

    def __post_init__(self) -> None:
        """Refuse a population that nobody could divide by."""
        if self.population < 1 or not self.name:
            msg = "name must not be empty and population must be at least 1."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSection:
    """``[data]``."""

    source: Path | str = field(repr=False)
    """File of interactions: CSV, TSV or Parquet, gzip or not. Or a database, by SQLAlchemy's URL:
    ``postgresql+psycopg://user:${NAME}@host/database``, where ``${NAME}`` is an environment
    variable, so that the password need not stand here."""
    query: str | None = None
    """What a database is asked for: ``SELECT`` with a row for each interaction."""
    user_column: str | None = None
    """Name of the column of user ids; recognised if left out."""
    item_column: str | None = None
    """Name of the column of item ids; recognised if left out."""
    rating_column: str | None = None
    """Name of the column of ratings; recognised if left out."""
    time_column: str | None = None
    """Name of the column of times; recognised if left out."""

    def __post_init__(self) -> None:
        """Refuse an address that nothing could be read from."""
        self.interactions()

    def interactions(self) -> Path | SqlQuery:
        """Where the interactions are read from."""
        if isinstance(self.source, str):
            return SqlQuery(address=self.source, statement=self.query or "")
        if self.query is not None:
            msg = "query: is for databases, and source has no :// and is taken for a file."
            raise ConfigError(msg)
        return self.source


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueSection:
    """``[catalogue]``: the whole catalogue, or this platform's part of one to be agreed on."""

    file: Path | None = None
    """The shared catalogue that everybody holds: columns ``item_id`` and ``platform``."""
    assortment: Path | None = None
    """The items that this platform lists: a column ``item_id``; others stay here. A public input,
    like the above: it must never be made from who bought what, for it is reported as it is."""
    key_file: Path | None = None
    """A secret that only the platforms share, 64 hexadecimal digits or more. Hashes of item ids
    under it are reported in place of ids, and tell the coordinator how many items platforms have in
    common, but not which. It stays the same as long as the catalogue: under another one, every item
    would be a new item."""

    def __post_init__(self) -> None:
        """Refuse two sources of one thing, and a secret that nothing is done with."""
        if (self.file is None) == (self.assortment is None):
            found = "neither" if self.file is None else "both"
            msg = f"expected either file or assortment, found {found}."
            raise ConfigError(msg)
        if self.key_file is not None and self.assortment is None:
            msg = "key_file hides the ids of an assortment; a catalogue file is not reported."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacySection:
    """``[privacy]``."""

    epsilon: float
    """The whole budget of a user, over the life of the federation (or ``period_days``)."""
    delta: float = 1e-5
    """Delta of the guarantee; well below one over the number of users."""
    unit: PrivacyUnit = "user"
    """Privacy unit."""
    trust: TrustMode = "local"
    """Who may see this platform's releases; requests in another mode are refused."""
    max_clipping_norm: float = 10.0
    """Requests with a larger clipping norm are refused."""
    min_noise_multiplier: float = 0.3
    """Requests with less noise are refused, however cheap sampling makes them look."""
    max_rounds: int = 1000
    """Requests for a later round of a run are refused, however cheap."""
    period_days: int | None = None
    """Days after which the budget ends and has to be granted anew; left out: for life."""

    def __post_init__(self) -> None:
        """Refuse no noise with a finite budget, and budgets that could never be kept."""
        budget = self.budget()
        if not (math.isfinite(self.max_clipping_norm) and self.max_clipping_norm > 0):
            msg = f"max_clipping_norm: found {self.max_clipping_norm}, expected a positive number."
            raise ConfigError(msg)
        if self.max_rounds < 1:
            msg = f"max_rounds: found {self.max_rounds}, expected at least 1."
            raise ConfigError(msg)
        if not (math.isfinite(self.min_noise_multiplier) and self.min_noise_multiplier >= 0):
            msg = f"min_noise_multiplier: found {self.min_noise_multiplier}, expected at least 0."
            raise ConfigError(msg)
        if self.trust == "none" and budget.epsilon != float("inf"):
            msg = "trust 'none' adds no noise: it needs epsilon = inf, and belongs in simulations."
            raise ConfigError(msg)

    def budget(self) -> Budget:
        """The budget that the ledger enforces."""
        return Budget(
            epsilon=self.epsilon, delta=self.delta, unit=self.unit, period_days=self.period_days
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SecaggSection:
    """``[secagg]``: what ``privacy.trust = "secagg"`` needs, and the least that is accepted."""

    private_key: Path
    """This platform's own, of its registered key pair: it signs what the others must believe."""
    platform_keys: Path
    """Folder with the public key of each platform that this one trusts to be there: ``NAME.pub``.
    It comes from the platforms themselves, or is compared with them: the coordinator must not be
    able to put its own keys there. ``crossrec client trust`` adds one."""
    min_summed: int = 3
    """Least number of platforms in a sum, this one included; sums of fewer are refused."""
    max_colluding: int = 1
    """Platforms that may tell the coordinator all they know. Requests that reckon with fewer are
    refused: noise has to hide this platform's users from all of them together."""

    def __post_init__(self) -> None:
        """Refuse sums that hide nothing."""
        if self.min_summed < 2:
            msg = f"min_summed: found {self.min_summed}, expected at least 2."
            raise ConfigError(msg)
        if self.max_colluding < 1:
            msg = f"max_colluding: found {self.max_colluding}, expected at least 1."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class StateSection:
    """``[state]``."""

    folder: Path = Path("state")
    """Ledger, releases and models of this platform."""
    keep_releases: int = 3
    """Latest releases kept for exact replay; an older request is answered with a refusal."""

    def __post_init__(self) -> None:
        """Refuse to forget the release that a repeated request asks for."""
        if self.keep_releases < 1:
            msg = f"keep_releases: found {self.keep_releases}, expected at least 1."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSection:
    """``[training]``: how a release is computed, which changes nothing in what it contains."""

    engine: ClippingEngine = "fast"
    """What sums clipped gradients: ``fast``, or Opacus' slower ways to the same sum."""
    device: DeviceName = "cpu"
    """Where: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptationSection:
    """``[adaptation]``: local, private fitting. Nothing of it is ever released."""

    enabled: bool = True
    """Fit models when a run is handed over; false keeps what is served."""
    max_epochs: int = 40
    """Upper bound on passes over the data; the validation users stop earlier."""
    validation_users: int = 1500
    """Judgements that models are chosen by: users who give up one interaction for it. A platform
    with fewer users asks each one several times."""

    def __post_init__(self) -> None:
        """Refuse what would fail only after training."""
        if self.max_epochs < 1:
            msg = f"max_epochs: found {self.max_epochs}, expected at least 1."
            raise ConfigError(msg)
        if self.validation_users < 0:
            msg = f"validation_users: found {self.validation_users}, expected at least 0."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationSection:
    """``[simulation]``: its presence marks everything this platform does as a simulation."""

    seed: int
    """Noise and sampling follow from it: whoever knows it can remove the noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSection:
    """``[server]``: how a deployed platform reaches its coordinator; simulations have none."""

    address: str
    """Host and port of the coordinator."""
    root_certificate: Path
    """Certificate of the federation's authority: the only one that is trusted."""
    private_key: Path
    """The platform's own, by whose public half the coordinator knows it."""

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        split_address(self.address)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlatformConfig:
    """The whole file."""

    platform: PlatformSection
    data: DataSection
    catalogue: CatalogueSection
    privacy: PrivacySection
    state: StateSection = field(default_factory=StateSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    adaptation: AdaptationSection = field(default_factory=AdaptationSection)
    server: ServerSection | None = None
    secagg: SecaggSection | None = None
    simulation: SimulationSection | None = None

    def __post_init__(self) -> None:
        """Refuse modes without a guarantee outside simulations."""
        if self.simulation is None and not math.isfinite(self.privacy.epsilon):
            msg = "privacy.epsilon = inf never binds: it is for simulations only."
            raise ConfigError(msg)
        if self.simulation is None and self.privacy.delta * self.platform.population > _MAX_LOST:
            msg = (
                f"privacy.delta = {self.privacy.delta:g} allows up to "
                f"{self.privacy.delta * self.platform.population:g} of {self.platform.population} "
                f"users to be exposed; use at most {_MAX_LOST / self.platform.population:.1g}."
            )
            raise ConfigError(msg)
        if self.privacy.trust == "secagg" and self.secagg is None:
            msg = (
                "privacy.trust = 'secagg' needs a [secagg] section with private_key and "
                "platform_keys: platforms have to know each other's keys."
            )
            raise ConfigError(msg)
        if self.privacy.trust in ("secagg-simulated", "none") and self.simulation is None:
            msg = (
                f"privacy.trust = {self.privacy.trust!r} is for simulations only. "
                "Use trust = 'local' or 'secagg', or add a [simulation] section with a seed."
            )
            raise ConfigError(msg)
