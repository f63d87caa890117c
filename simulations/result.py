"""``result.json``: what a run was, what it cost in privacy, and how well each model ranks.

The file is strict JSON (no NaN, no Infinity) with sorted keys. ``null`` stands for what is not
defined: an epsilon without guarantee, a standard error of fewer than two users. Two runs of the
same seed differ in `TIMING_KEYS` at most; `without_timing` removes those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping  # noqa: TC003  (pydantic reads field types at run time)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import ConfigDict, TypeAdapter

from common.errors import StateError
from common.storage import FOR_ALL, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from common.evaluation.metrics import PairedDifference, RankingMetrics

SCHEMA_VERSION = 2
TIMING_KEYS = frozenset({"wall_seconds", "peak_memory_mb"})
"""Top-level fields that differ between two runs of the same seed; so do a sum's and a round's
``seconds``."""

NEIGHBOURING = "add or remove one user with all her interactions"
PRIMARY_METRIC = "ndcg@10"


class Checked:
    """What is read back must be exactly of the declared types: nothing unknown, no conversion."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def finite_or_none(value: float | None) -> float | None:
    """Return ``value``, or None where it is infinite or undefined (JSON has neither)."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelResult(Checked):
    """One model's ranking on one platform.

    Attributes:
        metrics: ``"ndcg@10"``, ``"hr@10"`` and others; None where undefined.
        stderr: standard error over test users of those metrics that are means over users.
        num_test_users: users measured.
    """

    metrics: Mapping[str, float | None]
    stderr: Mapping[str, float | None]
    num_test_users: int

    def __post_init__(self) -> None:
        reserved = {"num_test_users", "stderr", "stderr_by_metric"} & set(self.metrics)
        if reserved:
            raise ValueError(f"metric named {min(reserved)!r} collides with a field of result.json")

    @classmethod
    def measured(cls, metrics: RankingMetrics) -> ModelResult:
        """Take the means and standard errors of an evaluation."""
        return cls(
            metrics={name: finite_or_none(value) for name, value in metrics.mean.items()},
            stderr={name: finite_or_none(value) for name, value in metrics.stderr.items()},
            num_test_users=metrics.num_test_users,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain(Checked):
    """What joining adds to a metric: federated minus local over the same users."""

    mean: float | None
    stderr: float | None

    @classmethod
    def measured(cls, difference: PairedDifference) -> Gain:
        """Take a paired difference of ``federated`` minus ``local``."""
        return cls(mean=finite_or_none(difference.mean), stderr=finite_or_none(difference.stderr))


@dataclass(frozen=True, kw_only=True, slots=True)
class PlatformResult(Checked):
    """One platform: its size, its privacy spend and its models.

    Attributes:
        num_users: users in training.
        num_items: items that the platform lists.
        num_interactions: distinct (user, item) pairs in training.
        num_test_users: users with a held-out item.
        epsilon: spent in all by each user at most; None without a guarantee.
        epsilon_if_secagg_broken: the same if the server saw single releases; None if unknown.
        epsilon_budget: the most the platform agreed to spend; None without a limit.
        delta: of all epsilons here.
        privacy_unit: ``user``, ``interaction`` or ``platform``.
        trust: ``secagg``, ``local`` or ``none``.
        epsilon_history: epsilon spent after each release, sums first; None without a guarantee.
        noise_multiplier: noise's standard deviation over the clipping norm, as the accountant
            priced it; the smallest of all releases.
        sampling_rate: chance of a user to take part in a round.
        models: by name: ``popularity``, ``local`` (going alone), ``federated`` (joining), others.
        gain: by metric, federated minus local paired over users; may be empty.
        unfinished: models that were still improving when their epochs ran out.
        gate: whether the platform serves what it fitted alone or what joining added to it, by its
            own validation users; None if the run did not get there.
    """

    num_users: int
    num_items: int
    num_interactions: int
    num_test_users: int
    epsilon: float | None
    delta: float
    privacy_unit: str
    trust: str
    epsilon_history: tuple[float | None, ...]
    models: Mapping[str, ModelResult]
    epsilon_if_secagg_broken: float | None = None
    epsilon_budget: float | None = None
    noise_multiplier: float | None = None
    sampling_rate: float | None = None
    gain: Mapping[str, Gain] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()
    gate: Literal["alone", "joined"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SumRecord(Checked):
    """One private sum over the platforms, before the first round.

    Attributes:
        quantity: ``item-counts`` or ``item-pairs``.
        seconds: wall time (a timing field).
        platforms: ``"released"``, ``"declined: reason"`` or another state, by platform name.
    """

    quantity: str
    seconds: float
    platforms: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRecord(Checked):
    """One round of the federation.

    Attributes:
        round: 1-based.
        seconds: wall time (a timing field).
        platforms: ``"released"``, ``"declined: reason"`` or another state, by platform name.
        update_norm: L2 norm of the aggregated update, noise included; None without one.
    """

    round: int
    seconds: float
    platforms: Mapping[str, str]
    update_norm: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DataStatement(Checked):
    """Where the interactions came from.

    Attributes:
        source: folder, or the name of the built-in marketplace.
        is_synthetic: no real person is in the data.
        catalogue_derived: which items a platform lists was read off its interactions, so the
            listing itself is not covered by epsilon.
        num_items: size of the shared catalogue.
        notes: further remarks for the reader, one sentence each.
        items_in_common: ``[a][b]`` items that both platforms list; ``[a][a]`` is a's own number.
    """

    source: str
    is_synthetic: bool
    catalogue_derived: bool
    num_items: int
    notes: tuple[str, ...] = ()
    items_in_common: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyStatement(Checked):
    """What was promised to a user, and by which mechanism.

    Attributes:
        unit: ``user``, ``interaction`` or ``platform``.
        neighbouring: how two neighbouring data sets differ.
        delta: target delta.
        trust: ``secagg``, ``local`` or ``none``.
        mechanism: what makes a release private, in words.
        accountant: name and library of what priced it.
        planned_epsilon: largest epsilon over platforms if everything runs; None without guarantee.
        clipping_norm: L2 bound on one user's contribution to a release; None without clipping.
        sampling: how users are drawn into a round, in words.
        noise_source: where the noise comes from, in words.
        released: all that leaves a platform.
    """

    unit: str
    delta: float
    trust: str
    mechanism: str
    accountant: str
    planned_epsilon: float | None
    clipping_norm: float | None
    sampling: str
    noise_source: str
    released: tuple[str, ...]
    neighbouring: str = NEIGHBOURING


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult(Checked):
    """Everything that ``result.json`` holds. `write_result` refuses what JSON cannot hold.

    Attributes:
        status: ``partial`` if the run stopped before its end.
        configuration: options of the run, as JSON values.
        seed: of every derived stream.
        versions: of crossrec and the libraries that numbers depend on.
        command: reproduces the run.
        resume_command: continues a partial run; None if there is nothing to continue.
        wall_seconds: a timing field.
        peak_memory_mb: a timing field; None where the system does not tell.
        platforms: by name.
        sums_planned: sums that the run asks every platform for.
        sums: those that were closed.
        simulation: always true: the noise was seeded, see the report.
    """

    status: Literal["complete", "partial"]
    configuration: Mapping[str, object]
    seed: int
    versions: Mapping[str, str]
    command: str
    wall_seconds: float
    peak_memory_mb: float | None
    data: DataStatement
    privacy: PrivacyStatement
    rounds_planned: int
    rounds_completed: int
    rounds: tuple[RoundRecord, ...]
    platforms: Mapping[str, PlatformResult]
    sums_planned: int = 0
    sums: tuple[SumRecord, ...] = ()
    resume_command: str | None = None
    simulation: Literal[True] = True
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not 0 <= self.rounds_completed <= self.rounds_planned:
            raise ValueError(
                f"{self.rounds_completed} rounds completed of {self.rounds_planned} planned"
            )
        if len(self.sums) > self.sums_planned:
            raise ValueError(f"{len(self.sums)} sums closed of {self.sums_planned} planned")

    @property
    def progress(self) -> str:
        """How far the private part came: ``2 of 2 sums and 5 of 30 rounds``."""
        parts = []
        if self.sums_planned:
            parts.append(f"{len(self.sums)} of {self.sums_planned} sums")
        if self.rounds_planned:
            parts.append(f"{self.rounds_completed} of {self.rounds_planned} rounds")
        return " and ".join(parts)


def to_dict(result: RunResult) -> dict[str, object]:
    """Return the JSON object of ``result``.

    A model's metrics stand beside ``num_test_users`` and ``stderr`` (that of ndcg@10; the others
    are in ``stderr_by_metric``).

    Raises:
        ValueError: if a number is NaN or infinite (use `finite_or_none`).
        TypeError: if the configuration holds what JSON does not know.
    """
    # Through text once, so that a mapping or tuple of any kind is what a reader would get back.
    text = json.dumps(TypeAdapter(RunResult).dump_python(result), allow_nan=False)
    document: dict[str, object] = json.loads(text)
    for model in _models(document):
        model.update(model.pop("metrics"))
        model["stderr_by_metric"] = model["stderr"]
        model["stderr"] = model["stderr_by_metric"].get(PRIMARY_METRIC)
    return document


def without_timing(document: Mapping[str, object]) -> dict[str, object]:
    """Return a result's JSON object without its timing and memory fields."""
    kept = {key: value for key, value in document.items() if key not in TIMING_KEYS}
    for key in ("sums", "rounds"):
        records = cast("list[Mapping[str, object]]", document[key])
        kept[key] = [{k: v for k, v in record.items() if k != "seconds"} for record in records]
    return kept


def write_result(path: Path, result: RunResult) -> None:
    """Write ``result`` so that ``path`` holds either the old file or all of the new one.

    Raises:
        ValueError, TypeError: as `to_dict`.
        StateError: if the folder cannot be written; ``path`` is untouched.
    """
    text = json.dumps(to_dict(result), indent=2, sort_keys=True, ensure_ascii=False)
    write_durably(path, f"{text}\n".encode(), mode=FOR_ALL)


def read_result(path: Path) -> RunResult:
    """Read what `write_result` wrote.

    Raises:
        StateError: if the file is missing, is not strict JSON, or has another schema.
    """
    try:
        document = json.loads(path.read_bytes(), parse_constant=refuse_constant)
    except (OSError, ValueError) as error:
        raise StateError(f"{path}: cannot be read as a result: {error}. Run again.") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise StateError(
            f"{path}: schema version {version}, expected {SCHEMA_VERSION}. "
            "Read it with the crossrec version that it names, or run again."
        )
    try:
        for model in _models(document):
            stderr = model.pop("stderr_by_metric")
            num_test_users = model.pop("num_test_users")
            del model["stderr"]
            metrics = dict(model)
            model.clear()
            model.update(metrics=metrics, stderr=stderr, num_test_users=num_test_users)
        return TypeAdapter(RunResult).validate_json(json.dumps(document))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StateError(f"{path}: not a valid result: {error}. Run again.") from error


def _models(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for platform in document["platforms"].values():
        yield from platform["models"].values()


def refuse_constant(name: str) -> float:
    """What `json.loads` calls at NaN and Infinity.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is not JSON")
