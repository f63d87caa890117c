"""Who took part when a run began: what every later request says, whoever is there by then.

Requests hold the number of platforms and a public denominator, and a platform refuses a repeated
request that says anything else. So both are fixed before the first one is sent, and kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import RunFailed, StateError
from common.rng import derive_seed
from common.storage import read_content, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MEMBERS_FILE = "members.json"
"""In the run's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """The platforms of a run."""

    founders: tuple[str, ...]
    """Who was there at its first start, sorted."""
    populations: Mapping[str, int]
    """Declared number of users of each founder, and of who came later."""

    @property
    def mean_population(self) -> float:
        """Of the founders: divided by it, the mean of releases is the pooled gradient."""
        return sum(self.populations[name] for name in self.founders) / len(self.founders)

    @property
    def largest_population(self) -> int:
        """Of the founders."""
        return max(self.populations[name] for name in self.founders)

    def num_asked(self, platforms_per_round: int | None) -> int:
        """Platforms that a round asks if all are there."""
        return min(platforms_per_round or len(self.founders), len(self.founders))


def settle_membership(
    folder: Path, run_id: str, populations: Mapping[str, int], *, at_least: int = 1
) -> Membership:
    """The run's founders: those in ``folder``, or at its first start those who are there now.

    Args:
        folder: the run's.
        run_id: the run.
        populations: declared by each platform that is there.
        at_least: founders that the run needs.

    Raises:
        RunFailed: if fewer are there at the first start; nothing is settled then.
        StateError: if the file is damaged, belongs to another run, or cannot be written.
    """
    path = folder / MEMBERS_FILE
    if not path.exists():
        if len(populations) < at_least:
            msg = (
                f"{len(populations)} platforms are there ({', '.join(sorted(populations))}), and "
                f"secure sums with this max_dropped and max_colluding take {at_least}. Start the "
                "run again when the others are there."
            )
            raise RunFailed(msg)
        content = {"run": run_id, "populations": dict(populations)}
        write_durably(path, json.dumps(content, indent=1, sort_keys=True).encode())
    founders = _read(path, run_id)
    return Membership(founders=tuple(sorted(founders)), populations={**populations, **founders})


def sample_platforms(
    names: Iterable[str], number: int, *, seed: int, round_number: int
) -> list[str]:
    """Draw ``number`` of the platforms for a round, sorted; all of them if there are no more.

    Each name has a rank of its own from seed and round: who else is there changes nothing about who
    of two comes first, and node ids play no part.
    """

    def rank(name: str) -> int:
        return derive_seed(seed, "platforms-of-a-round", round_number, name)

    return sorted(sorted(names, key=rank)[:number])


def _read(path: Path, run_id: str) -> dict[str, int]:
    try:
        content = json.loads(read_content(path))
        found = {str(name): int(number) for name, number in content["populations"].items()}
        run = content["run"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path}: is damaged ({error}). Start a run with another run_id."
        raise StateError(msg) from error
    if run != run_id or not found:
        msg = f"{path}: belongs to run {run!r}, expected {run_id!r} and at least one platform."
        raise StateError(msg)
    return found
