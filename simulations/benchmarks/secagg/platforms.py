"""The platforms' side of a measured round: all of them in one process, one message at a time."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from client.config import SecaggSection
from client.secure_sum import SecureSum, SessionFiles
from common.messages import Reply, SecaggStage, TrainRequest
from common.models.partition import LATTICE, flatten, shared_shapes, unflatten
from common.privacy.account import Account
from common.privacy.noise import add_gaussian_noise_
from common.privacy.randomness import SystemRandom
from common.secagg.lattice import noisy_lattice
from common.storage import pack_arrays, read_arrays, sha256
from common.wire import decode, encode
from simulations.benchmarks.secagg.grid import platform_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flwr.app import RecordDict

    from common.models.partition import Arrays
    from common.secagg.lattice import Lattice
    from simulations.benchmarks.secagg.costs import SecaggCase

CLIPPING_NORM = 0.25
NOISE_MULTIPLIER = 4.0
DENOMINATOR = 1000.0
"""What updates are divided by; with it they are near 0.001, as in a real round."""

_Outcome = Literal["released", "prepared", "shared", "masked", "confirmed", "unmasked"]

UPDATE = "update"
KEYS = "keys"
"""Folder with ``NAME.key`` and ``NAME.pub`` of each platform."""


class Platforms(Protocol):
    """How messages are answered, and what their sum should be."""

    def prepare(self, node: int, stage: str) -> None:
        """Everything that is not measured: what stands in for clipped gradients."""

    def answer(self, node: int, stage: str, record: RecordDict) -> RecordDict:
        """What is measured."""

    def keep(self, node: int, stage: str) -> None:
        """Everything that is not measured afterwards."""

    def expected(self, survivors: list[int]) -> np.ndarray:
        """What the coordinator should have found."""


class Releases:
    """Numbers before noise, and releases on disk, as a real platform keeps them."""

    def __init__(self, case: SecaggCase, folder: Path) -> None:
        """Name the place."""
        self.shapes = shared_shapes(case.model, case.num_items)
        self._folder = folder
        self._size = sum(int(np.prod(shape)) for shape in self.shapes.values())

    def sums(self, node: int) -> torch.Tensor:
        """Stand for clipped sums: small beside the noise."""
        return torch.randn(
            self._size, dtype=torch.float64, generator=torch.Generator().manual_seed(node)
        ).mul_(0.1)

    def path(self, node: int) -> Path:
        """Where the release of ``node`` is."""
        return self._folder / f"{platform_name(node)}.safetensors"

    def save(self, node: int, release: Arrays) -> None:
        """Keep it."""
        self.path(node).write_bytes(pack_arrays(release, {}))

    def load(self, node: int) -> Arrays:
        """Take it out again."""
        return read_arrays(self.path(node))[0]


class PlainPlatforms:
    """Noise, float32, and it is sent."""

    def __init__(self, case: SecaggCase, folder: Path) -> None:
        """Name the place."""
        self._releases = Releases(case, folder)
        self._sums = torch.empty(0)
        self._update: Arrays = {}

    def prepare(self, node: int, stage: str) -> None:
        """Sums of the one stage that there is."""
        del stage
        self._sums = self._releases.sums(node)

    def answer(self, node: int, stage: str, record: RecordDict) -> RecordDict:
        """A noised release."""
        del stage
        request, _ = decode(record, TrainRequest)
        self._update = noised_update(self._sums, request, self._releases)
        return encode(_reply(request, "released", node), self._update)

    def keep(self, node: int, stage: str) -> None:
        """The release."""
        del stage
        self._releases.save(node, {UPDATE: flatten(self._update)})

    def expected(self, survivors: list[int]) -> np.ndarray:
        """The mean."""
        return mean_of(self._releases, survivors)


def noised_update(sums: torch.Tensor, request: TrainRequest, releases: Releases) -> Arrays:
    """What a platform without secure aggregation makes of its sums; they are used up."""
    add_gaussian_noise_(sums, request.noise_std, SystemRandom())
    sums.mul_(-request.learning_rate / request.denominator)
    return unflatten(sums.float().numpy(), releases.shapes)


def mean_of(releases: Releases, nodes: list[int]) -> np.ndarray:
    """The mean update, float64, flat."""
    total = np.zeros(0)
    for node in nodes:
        update = releases.load(node)[UPDATE].astype(np.float64)
        total = update if node == nodes[0] else total + update
    mean: np.ndarray = total / len(nodes)
    return mean


class _Confirmed:
    """In place of a ledger, which costs the same with and without secure aggregation."""

    def __init__(self) -> None:
        self._account = Account()

    def account(self) -> Account:
        """What was confirmed."""
        return self._account

    def confirm(self, request_id: str, sha256: str, survivors: Sequence[str]) -> None:
        """Remember one list."""
        del survivors
        self._account.confirmations[request_id] = sha256


class SecurePlatforms:
    """Noise on the lattice, and the stages of a deployed platform with its files."""

    def __init__(self, case: SecaggCase, folder: Path) -> None:
        """Name the place."""
        self._releases = Releases(case, folder)
        self._folder = folder
        self._sums = torch.empty(0)
        self._lattice: Lattice | None = None
        self._confirmed: defaultdict[int, _Confirmed] = defaultdict(_Confirmed)
        self._release: Arrays = {}

    def _secure_sum(self, node: int) -> SecureSum:
        name, keys = platform_name(node), self._folder / KEYS
        config = SecaggSection(private_key=keys / f"{name}.key", platform_keys=keys, min_summed=2)
        files = SessionFiles(self._folder / f"{name}-sessions")
        return SecureSum(name, config, files, self._confirmed[node])

    def prepare(self, node: int, stage: str) -> None:
        """Sums before the first stage."""
        if stage == "round":
            self._sums = self._releases.sums(node)

    def answer(self, node: int, stage: str, record: RecordDict) -> RecordDict:
        """One stage."""
        secure = self._secure_sum(node)
        if stage == "round":
            request, shared = decode(record, TrainRequest)
            terms = request.secagg
            assert terms is not None
            self._lattice = terms.lattice
            number, source = len(terms.participants), SystemRandom()
            vector = noisy_lattice(self._sums, request.noise_std, terms.lattice, number, source)
            self._release = {LATTICE: vector}
            digest = request.common_digest(sha256(pack_arrays(shared, {})))
            keys = secure.advertise(request.request_id, digest, terms)
            return encode(_reply(request, "prepared", node), keys)
        asked, arrays = decode(record, SecaggStage)
        if stage == "share":
            return encode(_reply(asked, "shared", node), secure.share(asked, arrays))
        if stage == "mask":
            masked = secure.mask(asked, arrays, self._releases.load(node))
            return encode(_reply(asked, "masked", node), masked)
        if stage == "confirm":
            return encode(_reply(asked, "confirmed", node), secure.confirm(asked))
        return encode(_reply(asked, "unmasked", node), secure.unmask(asked, arrays))

    def keep(self, node: int, stage: str) -> None:
        """The release, after the first stage."""
        if stage == "round":
            self._releases.save(node, self._release)
            self._release = {}

    def expected(self, survivors: list[int]) -> np.ndarray:
        """The sum of the survivors' whole numbers, exactly."""
        total = self._releases.load(survivors[0])[LATTICE]
        for node in survivors[1:]:
            total += self._releases.load(node)[LATTICE]
        assert self._lattice is not None
        return self._lattice.values(total)


def _reply(request: TrainRequest | SecaggStage, outcome: _Outcome, node: int) -> Reply:
    return Reply(
        platform=platform_name(node),
        run_id=request.run_id,
        round_number=request.round_number,
        outcome=outcome,
    )
