"""What a simulated run is asked to do: the options of ``crossrec simulate``, as a value.

Written to ``simulation.toml`` in the run's folder, from which an interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from common.config import dump_config
from common.errors import ConfigError
from common.models.ncf import NcfConfig
from common.privacy.mechanisms import PrivacyUnit, TrustMode
from common.privacy.plan import PLANS, PlanName
from simulations.newcomers import Newcomer

EngineName = Literal["in-process", "ray"]
StrategyName = Literal["fedadam", "fedavg"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationOptions:
    """One run. Two runs with equal options have equal results with the in-process engine."""

    data: Path | None = None
    """Folder with one file or sub-folder per platform; None is the built-in marketplace."""
    user_column: str | None = None
    """Name of the column of user ids; recognised if left out. So for the next three."""
    item_column: str | None = None
    """Name of the column of item ids."""
    rating_column: str | None = None
    """Name of the column of ratings."""
    time_column: str | None = None
    """Name of the column of times."""
    catalogue: Path | None = None
    """File of the public catalogue; None derives it from the interactions."""
    epsilon: float = 8.0
    """Budget of a user for the whole run."""
    delta: float = 1e-5
    """Delta of the guarantee."""
    privacy_unit: PrivacyUnit = "user"
    """What the guarantee protects."""
    trust: TrustMode = "local"
    """Who may see a single platform's release."""
    max_dropped: int = 0
    """With secure aggregation: platforms that may drop out of a sum; each one costs noise."""
    max_colluding: int = 1
    """With secure aggregation: platforms that may tell the server all they know."""
    plan: PlanName = "pairs"
    """What the budget is spent on."""
    rounds: int = 30
    """Rounds of private training, where the plan has any."""
    sampling_rate: float = 1.0
    """Poisson sampling rate of users in each step."""
    local_steps: int = 1
    """Noisy steps per round."""
    clipping_norm: float = 0.25
    """Bound on one user's contribution."""
    strategy: StrategyName = "fedadam"
    """How the server applies the mean update."""
    server_learning_rate: float = 0.06
    """Step length on the server; FedAdam's falls to 0 over the rounds."""
    epochs: int = 40
    """Most epochs of each platform's own fitting."""
    candidates: int | None = None
    """Rank the held-out item among this many sampled ones; None ranks the whole catalogue."""
    newcomer: str | None = None
    """``NAME:FRACTION``: this platform has that share of its users only; None: all have all."""
    adapting: tuple[str, ...] | None = None
    """Platforms that fit models of their own and are measured; None: all. The others train."""
    engine: EngineName = "in-process"
    """What runs the apps."""
    seed: int = 0
    """Everything random follows from it."""
    model: NcfConfig = field(default_factory=NcfConfig)
    """The shared model."""

    def __post_init__(self) -> None:
        """Refuse options that contradict each other, before anything is read."""
        self._check_plan()
        self._check_secagg()
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            msg = (
                f"epsilon: found {self.epsilon}, expected a positive number. "
                "For a run without privacy use trust 'none'."
            )
            raise ConfigError(msg)
        if not 0 < self.delta < 1:
            msg = f"delta: found {self.delta}, expected a number in (0, 1)."
            raise ConfigError(msg)
        if not 0 < self.sampling_rate <= 1:
            msg = f"sampling_rate: found {self.sampling_rate}, expected a number in (0, 1]."
            raise ConfigError(msg)
        if self.trust not in get_args(TrustMode):
            expected = ", ".join(get_args(TrustMode))
            msg = f"trust: found {self.trust!r}, expected one of {expected}."
            raise ConfigError(msg)
        if self.rounds < 1 or self.local_steps < 1 or self.epochs < 1:
            msg = "rounds, local steps and epochs must each be at least 1."
            raise ConfigError(msg)
        if self.candidates is not None and self.candidates < 2:
            msg = f"candidates: found {self.candidates}, expected 'all' or at least 2."
            raise ConfigError(msg)
        self._check_platforms()
        for name in ("clipping_norm", "server_learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                msg = f"{name}: found {getattr(self, name)}, expected a positive number."
                raise ConfigError(msg)

    def _check_secagg(self) -> None:
        if self.max_dropped < 0 or self.max_colluding < 1:
            msg = (
                f"max_dropped: found {self.max_dropped}, expected at least 0; max_colluding: "
                f"found {self.max_colluding}, expected at least 1."
            )
            raise ConfigError(msg)
        if self.trust in ("secagg", "secagg-simulated") and self.local_steps > 1:
            msg = (
                f"local_steps: found {self.local_steps}; with trust {self.trust!r} a round has one "
                "noisy step."
            )
            raise ConfigError(msg)

    def _check_platforms(self) -> None:
        if self.newcomer is not None:
            Newcomer.parse(self.newcomer)
        if self.adapting is not None and not self.adapting:
            msg = "adapting: found no platform, expected at least one, or leave it out for all."
            raise ConfigError(msg)

    def _check_plan(self) -> None:
        if self.plan not in PLANS:
            msg = f"plan: found {self.plan!r}, expected one of {', '.join(PLANS)}."
            raise ConfigError(msg)
        if self.sampling_rate < 1 and PLANS[self.plan].pairs > 0:
            msg = "sampling_rate: users are sampled in rounds only; choose plan 'ncf'."
            raise ConfigError(msg)

    @property
    def num_rounds(self) -> int:
        """Rounds that run: none where the plan spends nothing on them."""
        return self.rounds if PLANS[self.plan].rounds > 0 else 0

    @property
    def run_id(self) -> str:
        """Names the run by what its platforms act on; the noise follows from it.

        Where the data lie, what runs the apps and who is measured afterwards and how is not part
        of it; nor is whether the sum of secure aggregation is under masks, which changes no bit.
        """
        acted_on = replace(
            self,
            data=None,
            catalogue=None,
            candidates=None,
            adapting=None,
            engine="in-process",
            trust="secagg" if self.trust == "secagg-simulated" else self.trust,
        )
        return hashlib.sha256(dump_config(acted_on).encode()).hexdigest()[:12]
