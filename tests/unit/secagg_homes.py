"""Platforms with keys, data and ledgers on disk that sum securely; and who coordinates them.

A :class:`Coordinator` drives real platforms through the stages: honestly where nothing is said,
and as a test wants otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from client.config import (
    AdaptationSection,
    CatalogueSection,
    DataSection,
    PlatformConfig,
    PlatformSection,
    PrivacySection,
    SecaggSection,
    SimulationSection,
    StateSection,
)
from client.data import catalogue_digest
from client.platform import Platform
from client.secure_sum import SessionFiles
from client.state import PlatformState
from common.config import dump_config
from common.keys import new_key_pair, read_private_key, sign
from common.messages import ReleaseRequest, SecaggStage, SumRequest, TrainRequest
from common.models.partition import LATTICE
from common.secagg.lattice import choose_lattice
from common.secagg.protocol import Advertised, Session, unmask_
from common.secagg.terms import SecaggTerms, noise_share
from common.secagg.wire import pack_bytes, pack_keys, unpack_bytes
from common.storage import FOR_ALL, pack_arrays, sha256, write_durably
from tests.unit.client.homes import MODEL, NUM_ITEMS, shared_arrays, write_users

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from common.messages import Reply
    from common.models.partition import Arrays

FIVE = ("east", "north", "south", "west", "york")
SIX = (*FIVE, "zeal")
NUM_USERS = 8
NOISE = 10.0
COUNTS: Arrays = {"items": np.arange(NUM_ITEMS)}
"""What stands beside a request for counts."""

Stage = Literal["share", "mask", "confirm", "unmask"]
STAGES: tuple[Stage, ...] = ("share", "mask", "confirm", "unmask")


@dataclass(frozen=True, kw_only=True)
class Market:
    """Who is there."""

    folder: Path
    configs: Mapping[str, PlatformConfig]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.configs)

    @property
    def keys(self) -> Path:
        """Where everybody finds everybody's public keys."""
        return self.folder / "platform-keys"

    @property
    def files(self) -> list[Path]:
        """Each ``platform.toml``."""
        return [self.folder / name / "platform.toml" for name in self.names]

    def platform(self, name: str) -> Platform:
        return Platform(self.configs[name])

    def session_file(self, request: ReleaseRequest, name: str) -> Path:
        folder = self.configs[name].state.folder / "secagg"
        return SessionFiles(folder).path(request.id_for(name))

    def kept(self, request: ReleaseRequest, name: str) -> Any:  # noqa: ANN401 - not public
        """All that ``name`` knows of a sum: what it tells the coordinator if it colludes."""
        folder = self.configs[name].state.folder / "secagg"
        kept = SessionFiles(folder).load(request.id_for(name))
        assert kept is not None
        return kept

    def sign(self, name: str, message: bytes) -> bytes:
        """By the registered key of ``name``."""
        section = self.configs[name].secagg
        assert section is not None
        return sign(read_private_key(section.private_key), message)

    def stored(self, request: ReleaseRequest, name: str) -> np.ndarray:
        """What ``name`` keeps to itself: its release on the lattice, as its disk has it."""
        state = PlatformState(self.configs[name].state.folder, 3)
        release = state.load_release(request.id_for(name))
        state.close()
        assert release is not None
        array: np.ndarray = release[LATTICE]
        return array

    def plain_sum(self, request: ReleaseRequest, names: Iterable[str]) -> np.ndarray:
        """What the releases of ``names`` add up to, modulo the lattice."""
        total: np.ndarray = np.sum(
            [self.stored(request, name) for name in names], axis=0, dtype=request_type()
        )
        return total

    def counts_request(self, **changes: Any) -> SumRequest:  # noqa: ANN401 - any field
        """A secure sum of counts over everybody; one may drop out, one may collude."""
        terms = changes.pop("secagg", None) or agreed(self.names)
        request = SumRequest(
            run_id="spring",
            platform=self.names[0],
            catalogue_digest=catalogue_digest(self.configs[self.names[0]]),
            trust="secagg",
            num_platforms=len(terms.participants),
            noise_multiplier=NOISE,
            secagg=terms,
            quantity="item-counts",
        )
        return replace(request, **changes)

    def round_request(self, **changes: Any) -> TrainRequest:  # noqa: ANN401 - any field
        terms = agreed(self.names, noise_std=0.25)
        request = TrainRequest(
            run_id="spring",
            round_number=1,
            platform=self.names[0],
            catalogue_digest=catalogue_digest(self.configs[self.names[0]]),
            model=MODEL,
            trust="secagg",
            num_platforms=len(terms.participants),
            noise_multiplier=1.0,
            secagg=terms,
            clipping_norm=0.25,
            sampling_rate=1.0,
            local_steps=1,
            denominator=float(NUM_USERS),
            learning_rate=1.0,
            user_steps=2,
            dropout=0.5,
        )
        return replace(request, **changes)


def request_type() -> np.dtype[np.unsignedinteger]:
    """All requests here fit into 32 bits."""
    return np.dtype("<u4")


def agreed(
    names: Sequence[str],
    *,
    max_dropped: int = 1,
    max_colluding: int = 1,
    noise_std: float = NOISE,
    neighbours: int | None = None,
) -> SecaggTerms:
    """Terms as an honest coordinator proposes them."""
    std = noise_std * noise_share(len(names) - max_dropped, max_colluding)
    return SecaggTerms(
        participants=tuple(sorted(names)),
        max_dropped=max_dropped,
        max_colluding=max_colluding,
        neighbours=len(names) - 1 if neighbours is None else neighbours,
        lattice=choose_lattice(std, 2.0 * NUM_USERS, len(names)),
    )


def settle(
    folder: Path,
    names: Sequence[str] = FIVE,
    *,
    seed: int | None = 3,
    secagg: Mapping[str, Any] | None = None,
    **privacy: Any,  # noqa: ANN401 - any field
) -> Market:
    """Give each of ``names`` a home with users of its own, and everybody everybody's keys."""
    catalogue = folder / "catalogue.csv"
    items = "".join(f"i{item:02d}\n" for item in range(NUM_ITEMS))
    write_durably(catalogue, f"item_id\n{items}".encode())
    configs = {}
    for place, name in enumerate(sorted(names)):
        home = folder / name
        home.mkdir()
        write_users(home / "purchases.csv", range(NUM_USERS * place, NUM_USERS * (place + 1)))
        private, public = new_key_pair(name)
        write_durably(home / "node.key", private)
        write_durably(folder / "platform-keys" / f"{name}.pub", public, mode=FOR_ALL)
        configs[name] = PlatformConfig(
            platform=PlatformSection(name=name, population=NUM_USERS),
            data=DataSection(source=home / "purchases.csv"),
            catalogue=CatalogueSection(file=catalogue),
            privacy=PrivacySection(**{"epsilon": 1000.0, "trust": "secagg", **privacy}),
            state=StateSection(folder=home / "state"),
            # As many as there are: one fold, and nobody needs more here.
            adaptation=AdaptationSection(enabled=False, validation_users=NUM_USERS),
            secagg=SecaggSection(
                **{
                    "private_key": home / "node.key",
                    "platform_keys": folder / "platform-keys",
                    **(secagg or {}),
                }
            ),
            simulation=None if seed is None else SimulationSection(seed=seed),
        )
        write_durably(home / "platform.toml", dump_config(configs[name]).encode())
    return Market(folder=folder, configs=configs)


class Coordinator:
    """One attempt at a sum; keeps all that platforms send."""

    def __init__(
        self, market: Market, request: SumRequest | TrainRequest, beside: Arrays | None = None
    ) -> None:
        """Ask nothing yet.

        Args:
            market: who is there.
            request: for each of them, whomever it names.
            beside: arrays of the request; by default those that its kind needs.
        """
        is_round = isinstance(request, TrainRequest)
        self.market = market
        self.request = request
        assert request.secagg is not None
        self.terms = request.secagg
        self.beside = beside or (shared_arrays() if is_round else COUNTS)
        self.digest = request.common_digest(sha256(pack_arrays(self.beside, {})))
        self.advertised: dict[str, Advertised] = {}
        self.commitments: dict[str, bytes] = {}
        self.sealed: dict[str, dict[str, bytes]] = {}
        self.masked: dict[str, np.ndarray] = {}

    @property
    def session(self) -> Session:
        return Session(
            terms=self.terms, request_digest=self.digest, advertised=dict(self.advertised)
        )

    # --- What is asked, and every answer ---

    def ask(self, name: str) -> tuple[Reply, Arrays | None]:
        """For a release, and for keys with it."""
        asked, platform = replace(self.request, platform=name), self.market.platform(name)
        if isinstance(asked, TrainRequest):
            return platform.train(asked, self.beside)
        return platform.sum_up(asked, self.beside)

    def send(
        self,
        name: str,
        stage: Stage,
        names: Iterable[str],
        arrays: Arrays | None = None,
        **changes: Any,  # noqa: ANN401 - any field
    ) -> tuple[Reply, Arrays | None]:
        content = SecaggStage(
            run_id=self.request.run_id,
            platform=name,
            round_number=self.request.round_number,
            request_id=self.request.id_for(name),
            stage=stage,
            names=tuple(names),
        )
        return self.market.platform(name).secagg(replace(content, **changes), arrays or {})

    def dealt_to(self, name: str, sharers: Iterable[str]) -> Arrays:
        """What the neighbours of ``name`` among ``sharers`` sealed for it."""
        chosen = set(sharers)
        senders = [other for other in self.session.neighbours(name) if other in chosen]
        return pack_bytes(sealed=[self.sealed[other][name] for other in senders])

    # --- Each stage as it should be ---

    def advertise(self, names: Iterable[str] | None = None) -> None:
        for name in self.terms.participants if names is None else names:
            arrays = _done(self.ask(name), "prepared")
            parts = unpack_bytes(arrays, ("sealing_key", "mask_key", "signature"))
            self.advertised[name] = Advertised(**{key: rows[0] for key, rows in parts.items()})

    def share(self, names: Iterable[str] | None = None) -> None:
        keys = pack_keys(self.advertised)
        for name in self.session.present if names is None else names:
            neighbours = self.session.neighbours(name)
            arrays = _done(self.send(name, "share", self.session.present, keys), "shared")
            found = unpack_bytes(arrays, ("commitment", "sealed"), len(neighbours))
            self.commitments[name] = found["commitment"][0]
            self.sealed[name] = dict(zip(neighbours, found["sealed"], strict=True))

    def mask(self, names: Iterable[str] | None = None) -> None:
        sharers = tuple(sorted(self.sealed))
        for name in sharers if names is None else names:
            answer = self.send(name, "mask", sharers, self.dealt_to(name, sharers))
            self.masked[name] = _done(answer, "masked")["masked"]

    def confirm(
        self, survivors: tuple[str, ...] | None = None, names: Iterable[str] | None = None
    ) -> dict[str, bytes]:
        """Signatures of ``names`` under the list of ``survivors``."""
        survivors = tuple(sorted(self.masked)) if survivors is None else survivors
        return {
            name: _done(self.send(name, "confirm", survivors), "confirmed")["signature"].tobytes()
            for name in (survivors if names is None else names)
        }

    def unmask(
        self, signed: Mapping[str, bytes], names: Iterable[str] | None = None
    ) -> dict[str, dict[str, bytes]]:
        """Shares of each neighbour that ``names`` reveal."""
        return {
            name: self.shares_in(name, _done(self.ask_to_unmask(name, signed), "unmasked"))
            for name in (signed if names is None else names)
        }

    def ask_to_unmask(self, name: str, signed: Mapping[str, bytes]) -> tuple[Reply, Arrays | None]:
        signers = sorted(signed)
        signatures = pack_bytes(signatures=[signed[signer] for signer in signers])
        return self.send(name, "unmask", signers, signatures)

    def shares_in(self, name: str, answer: Arrays) -> dict[str, bytes]:
        dealers = [other for other in self.session.neighbours(name) if other in self.sealed]
        shares = unpack_bytes(answer, ("shares",), len(dealers))["shares"]
        return dict(zip(dealers, shares, strict=True))

    def open(
        self, survivors: Sequence[str], revealed: Mapping[str, Mapping[str, bytes]]
    ) -> np.ndarray:
        """The sum of the releases of ``survivors``.

        Raises:
            InvalidRelease: if the shares are not enough.
        """
        total: np.ndarray = np.sum(
            [self.masked[name] for name in survivors], axis=0, dtype=request_type()
        )
        unmask_(
            total,
            self.session,
            tuple(sorted(self.sealed)),
            tuple(survivors),
            revealed,
            self.commitments,
        )
        return total

    def up_to(self, stage: Stage) -> Coordinator:
        """Do all that comes before ``stage``, with everybody."""
        self.advertise()
        for number, step in enumerate((self.share, self.mask)):
            if STAGES.index(stage) > number:
                step()
        return self


def _done(answer: tuple[Reply, Arrays | None], outcome: str) -> Arrays:
    reply, arrays = answer
    assert reply.outcome == outcome, reply.reason
    assert arrays is not None
    return arrays
