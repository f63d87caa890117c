"""What adversaries see of a run: an engine that writes it down.

Under secure aggregation nobody sees a platform's own release, and neither does anything here: what
is kept is the sum of all but the platforms that collude, which know their own and subtract it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.messages import ADOPT, SUM, TRAIN, AdoptRequest, Reply, SumRequest, TrainRequest
from common.models.partition import LATTICE
from common.wire import decode
from simulations.engines.in_process import InProcessGrid

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from flwr.app import Message

    from common.messages import ReleaseRequest
    from common.models.partition import Arrays


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seen:
    """One release, or the sum of several."""

    request: SumRequest | TrainRequest
    """What was asked for; of several, of the first."""
    asked: Arrays
    """The arrays beside it."""
    numbers: Arrays
    """As they were released; a sum under secure aggregation is ``sum``, one flat float64 array."""
    platforms: tuple[str, ...]
    """Whose users are in it."""

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise in each number of a sum, as it was asked for."""
        return self.request.noise_std * float(np.sqrt(len(self.platforms)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Handed:
    """What the run made, as every platform gets it."""

    request: AdoptRequest
    """What it says of itself."""
    arrays: Arrays
    """Shared parameters, pairs and their sum."""


class ObservingGrid(InProcessGrid):
    """The in-process engine, which keeps what an adversary sees."""

    def __init__(
        self, platform_configs: Sequence[Path], *, watched: Collection[str], colluding: int = 1
    ) -> None:
        """As the engine's own.

        Args:
            platform_configs: of all platforms.
            watched: whose releases are kept, where releases are seen one by one.
            colluding: how many of the others tell what they know, where they are not.
        """
        super().__init__(platform_configs)
        self._watched, self._num_colluding = frozenset(watched), colluding
        self._seen: dict[str, Seen] = {}
        self.handed: Handed | None = None

    @property
    def seen(self) -> tuple[Seen, ...]:
        """In the order of the requests."""
        return tuple(self._seen.values())

    def _execute(self, message: Message) -> Message:
        reply = super()._execute(message)
        kind = message.metadata.message_type
        if kind == ADOPT and self.handed is None:
            request, arrays = decode(message.content, AdoptRequest)
            self.handed = Handed(request=request, arrays=arrays)
        if kind in (SUM, TRAIN) and not reply.has_error():
            said, release = decode(reply.content, Reply)
            if said.outcome == "released":
                asked, arrays = decode(message.content, SumRequest if kind == SUM else TrainRequest)
                assert isinstance(asked, SumRequest | TrainRequest)
                self._keep(asked, arrays, release)
        return reply

    def _keep(self, request: SumRequest | TrainRequest, asked: Arrays, release: Arrays) -> None:
        if request.secagg is None:
            if request.platform in self._watched:
                self._seen[request.request_id] = Seen(
                    request=request, asked=asked, numbers=release, platforms=(request.platform,)
                )
        elif request.platform not in self._colluding(request):
            name, lattice = request.id_for(""), request.secagg.lattice
            before = self._seen.get(name)
            own = lattice.values(release[LATTICE])
            self._seen[name] = Seen(
                request=request if before is None else before.request,
                asked=asked,
                numbers={"sum": own if before is None else before.numbers["sum"] + own},
                platforms=(*(before.platforms if before else ()), request.platform),
            )

    def _colluding(self, request: ReleaseRequest) -> tuple[str, ...]:
        """The last of those who are asked and not watched."""
        assert request.secagg is not None
        others = [name for name in request.secagg.participants if name not in self._watched]
        return tuple(others[len(others) - self._num_colluding :])
