"""What travels between server and platform, as values. No Flower here: see :mod:`common.wire`.

Replies carry public facts, a noised release, or a refusal: never a loss, a count, a metric or
the text of an error that training met.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from common.config import parse_config
from common.data.agreement import MAX_ITEMS
from common.errors import ConfigError, RequestRefused
from common.models.ncf import NcfConfig
from common.models.partition import SumQuantity
from common.privacy.mechanisms import PrivacyUnit, SampledGaussian, TrustMode
from common.secagg.lattice import Lattice
from common.secagg.terms import SecaggTerms

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PROFILE = "query.profile"
TRAIN = "train.round"
SUM = "train.sum"
ADOPT = "query.adopt"
SECAGG = "query.secagg"
ASSORTMENT = "query.assortment"
AGREEMENT = "query.agreement"

MAX_DROPOUT = 0.9
"""Most that a gradient may leave out of a user's vector."""

_LIMITS: dict[str, tuple[float, float]] = {
    "round_number": (1, 1_000_000),
    "num_platforms": (1, 1_000_000),
    "local_steps": (1, 1_000),
    "user_steps": (1, 100),
    "dropout": (0.0, MAX_DROPOUT),
    # float32 sums keep the sensitivity only while C is far above its smallest numbers.
    "clipping_norm": (1e-4, 1e4),
    "learning_rate": (1e-6, 1e6),
    "noise_multiplier": (0.0, 1e6),
    "denominator": (1e-6, 1e12),
    "rounds_done": (0, 1_000_000),
    "num_sums": (0, 1_000_000),
    "max_items": (1, MAX_ITEMS),
    "num_items": (1, MAX_ITEMS),
    "version": (1, 1_000_000),
    "noise_std": (0.0, 1e6),
}
"""What a request may ask for: wide enough for any honest run, narrow enough to compute with."""

_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What a platform says of itself when a run starts; all of it public."""

    platform: str
    """Name, unique in the federation."""
    population: int
    """Declared approximate number of users; chosen by the platform, never counted for a reply."""
    catalogue_digest: str
    """SHA-256 of the shared catalogue that the platform holds; empty before one is agreed on."""
    trust: TrustMode
    """Trust mode that the platform's own configuration demands."""
    unit: PrivacyUnit
    """Privacy unit of its budget."""
    delta: float
    """Delta of its budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseRequest(ABC):
    """What every request for a noised release says; arrays come beside it."""

    run_id: str
    """The run; a platform answers once per run and round, and once per run and sum."""
    platform: str
    """Who is asked."""
    catalogue_digest: str
    """SHA-256 of the catalogue that rows refer to."""
    trust: TrustMode
    """Trust mode of the run."""
    num_platforms: int
    """K: platforms that are asked the same."""
    noise_multiplier: float
    """Noise over the bound on a user's part that an observer must face."""
    secagg: SecaggTerms | None = None
    """Terms of the sum under ``trust = "secagg"`` or ``"secagg-simulated"``."""

    def __post_init__(self) -> None:
        """Refuse numbers that no request can have, whoever sent them."""
        _check_run_id(self.run_id)
        _check_limits(self)
        if (self.secagg is not None) != (self.trust in ("secagg", "secagg-simulated")):
            msg = f"secagg: found {self.secagg}, which does not go with trust {self.trust!r}."
            raise ConfigError(msg)
        if self.secagg is not None:
            if self.num_platforms != len(self.secagg.participants):
                msg = "num_platforms: is not the number of secagg.participants."
                raise ConfigError(msg)
            if self.mechanism().steps > 1:
                # A platform's second step follows from its first with its own noise alone.
                msg = "local_steps: secure aggregation takes one noisy step in a round."
                raise ConfigError(msg)
        self.mechanism()

    @property
    @abstractmethod
    def what(self) -> str:
        """What is asked for, for people: ``round 3``."""

    @property
    def request_id(self) -> str:
        """Names the release for ever: run, what of it, platform."""
        return self.id_for(self.platform)

    @abstractmethod
    def id_for(self, platform: str) -> str:
        """The same request's id where another platform is asked."""

    @property
    @abstractmethod
    def round_number(self) -> int:
        """The round; 0 for what is no round."""

    @abstractmethod
    def mechanism(self) -> SampledGaussian:
        """What an observer faces if the trust mode holds."""

    @property
    def noise_share(self) -> float:
        """This platform's noise over the noise an observer must face."""
        return 1.0 if self.secagg is None else self.secagg.noise_share

    @property
    @abstractmethod
    def noise_std(self) -> float:
        """Standard deviation of the noise that this platform adds to each number of its sum."""

    def mechanism_if_broken(self) -> SampledGaussian:
        """What an observer of this platform's own release faces."""
        return replace(self.mechanism(), noise_multiplier=self.noise_multiplier * self.noise_share)

    def digest(self, arrays_digest: str) -> str:
        """Hash of everything asked for, the arrays included."""
        return _digest_of([asdict(self), arrays_digest])

    def common_digest(self, arrays_digest: str) -> str:
        """Hash of what all platforms are asked alike: of everything but whom it is for."""
        return _digest_of([{**asdict(self), "platform": ""}, arrays_digest])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest(ReleaseRequest):
    """One round of private training asked of one platform; the shared arrays come beside it."""

    round_number: int
    """From 1."""
    model: NcfConfig
    """The shared model."""
    clipping_norm: float
    """C."""
    sampling_rate: float
    """Poisson sampling rate of users."""
    local_steps: int
    """Noisy steps."""
    denominator: float
    """Public constant that sums are divided by."""
    learning_rate: float
    """Local step length."""
    user_steps: int
    """Private steps on user vectors."""
    dropout: float
    """Part of each vector that is left out of a gradient."""

    @property
    def what(self) -> str:
        """The round, for people."""
        return f"round {self.round_number}"

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise that this platform adds to each number of its sum."""
        return self.noise_multiplier * self.noise_share * self.clipping_norm

    def id_for(self, platform: str) -> str:
        """The same request's id where another platform is asked."""
        return f"{self.run_id}/{self.round_number}/{platform}"

    def mechanism(self) -> SampledGaussian:
        """What an observer faces if the trust mode holds."""
        return SampledGaussian(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=self.local_steps,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SumRequest(ReleaseRequest):
    """One private sum asked of one platform before the first round.

    The items, and for pairs their weights, come beside it. A user's part has an L2 norm of at most
    1, so the noise multiplier is the standard deviation of the noise.
    """

    quantity: SumQuantity
    """What is summed."""

    @property
    def what(self) -> str:
        """The quantity, for people."""
        return self.quantity

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise that this platform adds to each number of its sum."""
        return self.noise_multiplier * self.noise_share

    @property
    def round_number(self) -> int:
        """What a reply says: no round."""
        return 0

    def id_for(self, platform: str) -> str:
        """The same request's id where another platform is asked."""
        return sum_request_id(self.run_id, self.quantity, platform)

    def mechanism(self) -> SampledGaussian:
        """What an observer faces if the trust mode holds: one Gaussian over everyone."""
        return SampledGaussian(noise_multiplier=self.noise_multiplier, sampling_rate=1.0, steps=1)


def sum_request_id(run_id: str, quantity: SumQuantity, platform: str) -> str:
    """The name of a sum's release; no round has it."""
    return f"{run_id}/{quantity}/{platform}"


def is_round(request_id: str) -> bool:
    """Whether a release of this name is a round's, and not a sum's."""
    parts = request_id.split("/")
    return len(parts) > 1 and parts[1].isdecimal()


@dataclass(frozen=True, kw_only=True, slots=True)
class SecaggStage:
    """One stage of a secure sum, see :mod:`common.secagg.protocol`; the first comes with a release.

    | stage | names | arrays beside it | arrays of the reply |
    |---|---|---|---|
    | share | who advertised keys | ``sealing_keys`` ``mask_keys`` [n, 32], ``signatures`` [n, 96] \
| ``commitment`` [32], ``sealed`` [k, 82], for each neighbour |
    | mask | who dealt shares | ``sealed`` [k, 82], of each neighbour among them \
| ``masked`` [size], on the lattice |
    | confirm | whose masked releases arrived | | ``signature`` [96] |
    | unmask | who confirmed | ``signatures`` [n, 96] \
| ``shares`` [k, 33], of each neighbour that dealt |

    All but ``masked`` is uint8. The reply with a release has ``sealing_key`` ``mask_key`` [32] and
    ``signature`` [96].
    """

    run_id: str
    """The run."""
    platform: str
    """Who is asked."""
    round_number: int
    """The round that is summed; 0 for a sum before the first."""
    request_id: str
    """The release that is summed."""
    stage: Literal["share", "mask", "confirm", "unmask"]
    """What is to be done."""
    names: tuple[str, ...]
    """Platforms, increasing; see above."""

    def __post_init__(self) -> None:
        """Refuse a run that cannot be named in a ledger."""
        _check_run_id(self.run_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdoptRequest:
    """What the run made, for the platform to keep and adapt privately.

    Beside it come the shared arrays if there were rounds, and ``pairs.items``, ``pairs.weights``
    and ``pairs.sum`` if pairs were summed.
    """

    run_id: str
    """The run that made it."""
    platform: str
    """Who receives it."""
    catalogue_digest: str
    """SHA-256 of the catalogue that rows refer to."""
    model: NcfConfig
    """The shared model."""
    rounds_done: int
    """Closed rounds; with 0 there are no shared arrays."""
    num_sums: int
    """Platforms whose releases are in ``pairs.sum``; with 0 there is none."""
    own_included: bool
    """Whether the receiving platform's release is one of them."""
    noise_std: float
    """Standard deviation of the noise in each of these releases."""
    lattice: Lattice | None = None
    """What they were summed on, if secure aggregation did; else None."""

    def __post_init__(self) -> None:
        """Refuse a run that cannot be named in a ledger, and numbers that none can have."""
        _check_run_id(self.run_id)
        _check_limits(self)
        if self.rounds_done == 0 and self.num_sums == 0:
            msg = "rounds_done and num_sums: found 0 twice, expected something to hand over."
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class AssortmentRequest:
    """Asks a platform for the keys of its items, a public input; see :mod:`common.data.agreement`.

    They come beside the reply, increasing.
    """

    run_id: str
    """The run that wants a catalogue."""
    platform: str
    """Who is asked."""
    max_items: int
    """A platform that lists more is left out."""

    def __post_init__(self) -> None:
        """Refuse what no honest run asks."""
        _check_run_id(self.run_id)
        _check_limits(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """The catalogue that was agreed on, as one platform sees it.

    Beside it come ``rows`` [n] int64: for each key that the platform reported, its catalogue row.
    """

    run_id: str
    """The run that uses it."""
    platform: str
    """Whose rows they are."""
    assortment_digest: str
    """SHA-256 of the keys that the rows belong to."""
    origin: str
    """SHA-256 of the first version: catalogues of one origin never move a row."""
    version: int
    """Counts from 1; each one extends the one before."""
    catalogue_digest: str
    """SHA-256 of this version."""
    num_items: int
    """Items of all platforms."""

    def __post_init__(self) -> None:
        """Refuse what no catalogue can be."""
        _check_run_id(self.run_id)
        _check_limits(self)
        for name in ("assortment_digest", "origin", "catalogue_digest"):
            if not _DIGEST.fullmatch(getattr(self, name)):
                msg = f"{name}: expected 64 hexadecimal digits."
                raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A platform's answer to any request but for its profile; a release comes beside it."""

    platform: str
    """Who answers."""
    run_id: str
    """The run it answers for."""
    round_number: int
    """The round; 0 for whatever is no round."""
    outcome: Literal[
        "released", "prepared", "shared", "masked", "confirmed", "unmasked",
        "adopted", "declined", "listed", "agreed",
    ]  # fmt: skip
    """What was done."""
    reason: str = ""
    """Why declined: ``budget``, ``refused`` or ``failed``, and public detail. The cause of a
    failure stays in the platform's own log."""


def _digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _check_run_id(run_id: str) -> None:
    if not _RUN_ID.fullmatch(run_id):
        msg = "run_id: expected 1 to 64 letters, digits, dots, dashes and underscores."
        raise ConfigError(msg)


def _check_limits(request: DataclassInstance) -> None:
    names = {field.name for field in fields(request)}
    for name, (low, high) in _LIMITS.items():
        if name in names and not low <= getattr(request, name) <= high:
            msg = f"{name}: found {getattr(request, name)}, expected {low:g} to {high:g}."
            raise ConfigError(msg)


def to_json(value: DataclassInstance) -> str:
    """Encode a message."""
    return json.dumps(asdict(value), sort_keys=True)


def from_json(text: str, schema: type[T]) -> T:
    """Decode a message strictly: unknown or missing fields and wrong types are refused.

    Raises:
        RequestRefused: naming the field.
    """
    try:
        value: Any = json.loads(text)
        mapping = value if isinstance(value, dict) else {"": value}
        return parse_config(mapping, schema, schema.__name__, complete=True)
    except (ValueError, ConfigError, RecursionError) as error:
        msg = f"malformed message: {error}"
        raise RequestRefused(msg) from error
