"""``compare.json``: what was compared, and what came out.

The file is strict JSON (no NaN, no Infinity) with sorted keys. ``null`` stands for what is not
defined: an epsilon without noise, a standard error over one seed. Two comparisons with the same
options differ in ``wall_seconds`` and ``resume_command`` at most; `without_timing` removes those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping  # noqa: TC003  (pydantic reads field types at run time)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter

from common.errors import StateError
from common.storage import FOR_ALL, write_durably
from simulations.compare.statistics import SeededGain, SeedMean  # noqa: TC001  (as above)
from simulations.result import Checked, DataStatement, refuse_constant

if TYPE_CHECKING:
    from pathlib import Path

COMPARE_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedModel(Checked):
    """One model on one platform.

    Attributes:
        metrics: by name (``ndcg@10``, ``hr@10``), over seeds.
        gain: by metric, this model minus ``local`` on the same users; empty for ``local`` itself
            and where there is none.
    """

    metrics: Mapping[str, SeedMean]
    gain: Mapping[str, SeededGain]


@dataclass(frozen=True, kw_only=True, slots=True)
class UserGroup(Checked):
    """Some of a platform's test users.

    Attributes:
        label: such as ``1-4``.
        local: mean over seeds of their NDCG@10 with the platform's own model.
        federated: the same with what the platform serves.
        gain: ``federated`` minus ``local`` in NDCG@10.
    """

    label: str
    local: float | None
    federated: float | None
    gain: SeededGain


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting(Checked):
    """A platform in a scenario, at one trust and epsilon, over all seeds that are there.

    Attributes:
        trust: ``none`` is without noise.
        epsilon: budget of a user; None without noise.
        epsilon_spent: largest over seeds; None without a guarantee.
        num_seeds: runs that are in here.
        times_joined: runs in which the platform's gate added what joining brought.
        unfinished: models that were still improving when their epochs ran out, in some run.
        models: by name.
        by_popularity: test users by how many others bought their held-out item from the platform;
            at the main epsilon and without noise only.
        by_activity: test users by their own purchases; as above.
    """

    trust: str
    epsilon: float | None
    epsilon_spent: float | None
    num_seeds: int
    times_joined: int
    unfinished: tuple[str, ...]
    models: Mapping[str, ComparedModel]
    by_popularity: tuple[UserGroup, ...] = ()
    by_activity: tuple[UserGroup, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedPlatform(Checked):
    """One platform of interest in a scenario.

    Attributes:
        num_users: users in training; of a newcomer the drawn ones.
        num_test_users: users with a held-out item, in the first run.
        settings: without noise first, then by trust and epsilon; what no run has reached is absent.
    """

    num_users: int
    num_test_users: int
    settings: tuple[Setting, ...]

    def setting(self, trust: str, epsilon: float | None) -> Setting | None:
        """The one at ``trust`` and ``epsilon``, if it is there."""
        for setting in self.settings:
            if (setting.trust, setting.epsilon) == (trust, epsilon):
                return setting
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioResult(Checked):
    """A federation, and the platforms of interest in it.

    Attributes:
        name: ``full`` or ``NAME:FRACTION``.
        newcomer: platform with a part of its users; None in ``full``.
        fraction: of its users that it has.
        platforms: by name; of a newcomer's scenario the newcomer only.
    """

    name: str
    newcomer: str | None
    fraction: float | None
    platforms: Mapping[str, ComparedPlatform]


@dataclass(frozen=True, kw_only=True, slots=True)
class CellRecord(Checked):
    """One run.

    Attributes:
        scenario: its name.
        seed: of everything random.
        trust: ``none`` is without noise.
        epsilon: None without noise.
        status: ``missing``: not reached yet.
        reason: why it failed.
        wall_seconds: a timing field.
    """

    scenario: str
    seed: int
    trust: str
    epsilon: float | None
    status: Literal["finished", "failed", "missing"]
    reason: str | None
    wall_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareResult(Checked):
    """Everything that ``compare.json`` holds.

    Attributes:
        status: ``partial`` if a cell failed or is missing.
        configuration: options, as JSON values.
        epsilons: ascending.
        main_epsilon: that of verdicts, bars and groups of users.
        delta: of all epsilons.
        trusts: in the order asked for.
        seeds: repetitions asked for.
        versions: of crossrec and the libraries that numbers depend on.
        command: reproduces the comparison.
        resume_command: continues a partial one; a timing field.
        data: what was compared; None before the first run has ended.
        scenarios: the full federation first.
        cells: every run.
        simulation: always true: the noise was seeded.
    """

    status: Literal["complete", "partial"]
    configuration: Mapping[str, object]
    epsilons: tuple[float, ...]
    main_epsilon: float
    delta: float
    trusts: tuple[str, ...]
    seeds: tuple[int, ...]
    versions: Mapping[str, str]
    command: str
    resume_command: str | None
    data: DataStatement | None
    scenarios: tuple[ScenarioResult, ...]
    cells: tuple[CellRecord, ...]
    simulation: Literal[True] = True
    schema_version: int = COMPARE_SCHEMA_VERSION


def to_dict(result: CompareResult) -> dict[str, object]:
    """Return the JSON object of ``result``.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    text = json.dumps(TypeAdapter(CompareResult).dump_python(result), allow_nan=False)
    document: dict[str, object] = json.loads(text)
    return document


def without_timing(document: Mapping[str, object]) -> dict[str, object]:
    """Return a comparison's JSON object without what differs between equal comparisons."""
    kept = {key: value for key, value in document.items() if key != "resume_command"}
    cells = document["cells"]
    assert isinstance(cells, list)
    kept["cells"] = [{k: v for k, v in cell.items() if k != "wall_seconds"} for cell in cells]
    return kept


def write_compare_result(path: Path, result: CompareResult) -> None:
    """Write ``result`` whole or not at all.

    Raises:
        ValueError: as `to_dict`.
        StateError: if the folder cannot be written.
    """
    text = json.dumps(to_dict(result), indent=2, sort_keys=True, ensure_ascii=False)
    write_durably(path, f"{text}\n".encode(), mode=FOR_ALL)


def read_compare_result(path: Path) -> CompareResult:
    """Read what `write_compare_result` wrote.

    Raises:
        StateError: if the file is missing, is not strict JSON, or has another schema.
    """
    try:
        document = json.loads(path.read_bytes(), parse_constant=refuse_constant)
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != COMPARE_SCHEMA_VERSION:
            raise StateError(
                f"{path}: schema version {version}, expected {COMPARE_SCHEMA_VERSION}. "
                "Read it with the crossrec version that it names, or compare again."
            )
        return TypeAdapter(CompareResult).validate_json(json.dumps(document))
    except (OSError, ValueError) as error:
        raise StateError(f"{path}: not a valid comparison: {error}. Compare again.") from error
