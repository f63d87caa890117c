"""What is measured, and what comes out of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from common.models.ncf import NcfConfig

Subject = Literal[
    "plain",
    "secagg",
    "secagg-drops",
    "secagg-sparse",
    "secagg-sparse-drops",
    "flower",
    "flower-drops",
    "flower-sparse",
    "flower-sparse-drops",
]

_SPARSE_FROM = 50
"""Platforms from which few neighbours are worth a row. Flower's has no other there: dealing shares
to a hundred takes it minutes."""
_DIM = 24  # with the bias 25 numbers for each item: round numbers of parameters
_MOST_FLOWER_DRAWS = 10**10
"""Random numbers of all platforms together; Flower's generator takes a minute for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecaggCase:
    """One workload."""

    platforms: int
    """K."""
    parameters: int
    """Numbers in a release; rounded up to whole items."""
    drops: int
    """d: platforms that may drop out."""
    colluding: int = 1
    """c: platforms that may tell the coordinator all they know."""
    with_flower: bool = True
    """Whether Flower's own is compared as well."""

    @property
    def model(self) -> NcfConfig:
        """The shared model."""
        return NcfConfig(kind="gmf", dim=_DIM)

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        return -(-self.parameters // (_DIM + 1))

    @property
    def sparse_neighbours(self) -> int:
        """The fewest neighbours that the terms allow."""
        least = self.colluding + self.drops + 1
        return least + least % 2

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """What is compared, ``plain`` first."""
        found: list[Subject] = ["plain", "secagg"]
        is_large = self.platforms >= _SPARSE_FROM
        if is_large:
            found.append("secagg-sparse")
        if self.with_flower:
            found.append("flower-sparse" if is_large else "flower")
        if self.drops:
            found += [f"{name}-drops" for name in found[1:]]  # type: ignore[misc]
        return tuple(found)

    def for_subject(self, subject: Subject) -> SecaggCase:
        """The same for all, but for a size that Flower's would take minutes for."""
        others = self.sparse_neighbours if "sparse" in subject else self.platforms
        most = _MOST_FLOWER_DRAWS // (self.platforms * others)
        if subject.startswith("flower") and self.parameters > most:
            return replace(self, parameters=most)
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """One stage at a platform; medians over those that answered."""

    stage: str
    """``round`` is the request itself, with a release or keys as the reply."""
    seconds: float
    """The platform's own work, on the clock."""
    cpu_seconds: float
    """Of the processor."""
    sent_bytes: float
    """Its reply."""
    received_bytes: float
    """What it was sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundCost:
    """One measured round, or the medians of several."""

    case: SecaggCase
    """The workload, as it was measured."""
    subject: Subject
    """What ran."""
    stages: tuple[StageCost, ...]
    """In order."""
    server_seconds: float
    """The coordinator's own work, on the clock."""
    server_cpu_seconds: float
    """Of the processor."""
    messages: int
    """Both ways, all platforms together."""
    lattice_bits: int
    """Of each number on the wire; 32 where float32 is sent."""
    platform_mebibytes: float
    """Peak resident memory of the platforms' process, libraries included."""
    server_mebibytes: float
    """The same of the coordinator's."""
    ratio_to_plain: float | None = None
    """Seconds of one platform and the coordinator over those of ``plain`` in the same repeat; None
    for another size."""
    cpu_ratio_to_plain: float | None = None
    """The same in time of the processor: for machines where others work as well."""
    platform_ratio_to_plain: float | None = None
    """Seconds of one platform alone."""
    bytes_ratio_to_plain: float | None = None
    """Bytes of one platform, both ways."""
    sent_ratio_to_plain: float | None = None
    """Bytes that one platform sends."""

    @property
    def platform_seconds(self) -> float:
        """One platform's own work in the round."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def platform_cpu_seconds(self) -> float:
        """The same, of the processor."""
        return sum(stage.cpu_seconds for stage in self.stages)

    @property
    def sent_bytes(self) -> float:
        """By one platform."""
        return sum(stage.sent_bytes for stage in self.stages)

    @property
    def received_bytes(self) -> float:
        """By one platform."""
        return sum(stage.received_bytes for stage in self.stages)

    def to_dict(self) -> dict[str, object]:
        """A plain form for JSON."""
        return {
            **asdict(self),
            "platform_seconds": self.platform_seconds,
            "platform_cpu_seconds": self.platform_cpu_seconds,
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
        }


def allowed_drops(platforms: int) -> int:
    """How many of so many platforms may drop out unless somebody says otherwise: 3 of 10, 10 %."""
    return platforms * 3 // 10 if platforms <= 10 else platforms // 10
