"""All five stages of a secure sum in one place: platforms that drop out, and who adds up.

Keys are drawn from a seed, so that a test repeats itself; shares are not, which changes no mask.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.secagg.keys import public_key_of
from common.secagg.lattice import Lattice
from common.secagg.protocol import (
    Advertised,
    Secrets,
    Session,
    commitment,
    deal_shares,
    mask_,
    open_share,
    reveal,
    unmask_,
)
from common.secagg.terms import SecaggTerms

if TYPE_CHECKING:
    from collections.abc import Mapping

STAGES = ("advertise", "share", "mask", "confirm", "unmask")


def terms(
    number: int, *, dropped: int = 0, colluding: int = 1, neighbours: int = 0, bits: int = 32
) -> SecaggTerms:
    return SecaggTerms(
        participants=tuple(f"p{place:03}" for place in range(number)),
        max_dropped=dropped,
        max_colluding=colluding,
        neighbours=neighbours or number - 1,
        lattice=Lattice(bits=bits, exponent=-20),
    )


def seeded_secrets(*seed: object) -> Secrets:
    parts = [hashlib.sha256(repr((kind, *seed)).encode()).digest() for kind in range(3)]
    return Secrets(sealing_key=parts[0], mask_key=parts[1], own_mask=parts[2])


@dataclass(frozen=True)
class Opened:
    """What the coordinator ends with."""

    total: np.ndarray
    survivors: tuple[str, ...]


class Parties:
    """Platforms with a release each. What they answer at one stage to one list is kept."""

    def __init__(
        self, terms: SecaggTerms, releases: Mapping[str, np.ndarray], *, seed: object = 0
    ) -> None:
        self.terms = terms
        self.releases = releases
        self.own = {name: seeded_secrets(seed, name) for name in terms.participants}
        self._shares: dict[bytes, dict[str, dict[str, bytes]]] = {}
        self._masked: dict[tuple[object, ...], np.ndarray] = {}

    def session(self, present: tuple[str, ...], request_digest: str = "request") -> Session:
        advertised = {
            name: Advertised(
                sealing_key=public_key_of(self.own[name].sealing_key),
                mask_key=public_key_of(self.own[name].mask_key),
                signature=bytes(96),
            )
            for name in present
        }
        return Session(terms=self.terms, request_digest=request_digest, advertised=advertised)

    def held(self, session: Session) -> dict[str, dict[str, bytes]]:
        """By holder and owner: both shares, as they were dealt, sealed and opened."""
        present, digest = session.present, session.digest
        if digest not in self._shares:
            sealed = {name: deal_shares(session, name, self.own[name]) for name in present}
            self._shares[digest] = {
                name: {
                    other: open_share(session, name, self.own[name], other, sealed[other][name])
                    for other in session.neighbours(name)
                }
                for name in present
            }
        return self._shares[digest]

    def masked(self, session: Session, name: str, sharers: tuple[str, ...]) -> np.ndarray:
        key = (session.digest, name, sharers)
        if key not in self._masked:
            vector = self.releases[name].copy()
            mask_(vector, session, name, self.own[name], sharers)
            self._masked[key] = vector
        return self._masked[key]

    def masked_sum(
        self, session: Session, sharers: tuple[str, ...], survivors: tuple[str, ...]
    ) -> np.ndarray:
        first, *others = (self.masked(session, name, sharers) for name in survivors)
        total = first.copy()
        for vector in others:
            total += vector
        return total

    def commitments(self, session: Session) -> dict[str, bytes]:
        return {
            name: commitment(session, name, self.own[name].own_mask) for name in session.present
        }

    def revealed(
        self,
        session: Session,
        helpers: tuple[str, ...],
        sharers: tuple[str, ...],
        survivors: tuple[str, ...],
    ) -> dict[str, dict[str, bytes]]:
        held = self.held(session)
        return {
            name: reveal(
                session,
                name,
                {other: shares for other, shares in held[name].items() if other in sharers},
                sharers,
                survivors,
            )
            for name in helpers
        }

    def run(self, drops: Mapping[str, str], *, check: bool = True) -> Opened:
        """The sum, if platforms drop out at these stages."""
        left = [self.terms.participants]
        for stage in STAGES:
            left.append(tuple(name for name in left[-1] if drops.get(name) != stage))
        _, present, sharers, survivors, signers, helpers = left
        session = self.session(present)
        for names, what in zip(left[1:], STAGES, strict=True):
            if check:
                session.check_size(names, what)
        total = self.masked_sum(session, sharers, survivors)
        assert set(helpers) <= set(signers)
        revealed = self.revealed(session, helpers, sharers, survivors)
        unmask_(total, session, sharers, survivors, revealed, self.commitments(session))
        return Opened(total=total, survivors=survivors)

    def plain_sum(self, names: tuple[str, ...]) -> np.ndarray:
        modulus = 1 << self.terms.lattice.bits
        found = [[int(value) for value in self.releases[name]] for name in names]
        sums = [sum(column) % modulus for column in zip(*found, strict=True)]
        return np.array(sums, dtype=self.terms.lattice.dtype)


def parties(terms: SecaggTerms, *, size: int = 5, seed: int = 0) -> Parties:
    """With releases from all of the range."""
    rng = np.random.default_rng(seed)
    top = (1 << terms.lattice.bits) - 1
    draw = rng.integers(0, top, (len(terms.participants), size), dtype=np.uint64, endpoint=True)
    releases = dict(zip(terms.participants, draw.astype(terms.lattice.dtype), strict=True))
    return Parties(terms, releases, seed=seed)
