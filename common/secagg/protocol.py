"""Secure aggregation, stage by stage: what a platform computes, and what the coordinator does.

For one request, whose release each platform has made and keeps to itself:

1. **advertise**: each platform draws two key pairs and signs them with its registered key, together
   with the digest of the request;
2. **share**: told everybody's keys, it checks the signatures and deals shares of its secrets (the
   private key that its masks follow from, and the seed of a mask of its own) to its neighbours;
3. **mask**: told who dealt shares, it adds its own mask, and one that it agrees on with each
   neighbour (which of the two adds it and which subtracts it follows from their names);
4. **confirm**: told whose masked release arrived, it signs this list, once and for ever;
5. **unmask**: shown that t platforms signed the same list, it reveals for each neighbour one share:
   of the seed of a survivor, of the mask key of one who dropped out. Never both.

Bonawitz et al. 2017, figure 4, with the consistency check of the variant for active servers. Masks
of neighbours cancel in the sum of the survivors; the coordinator takes away what is left.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from common.errors import InvalidRelease, RequestRefused
from common.secagg.keys import (
    KEY_BYTES,
    TAG_BYTES,
    add_streams_,
    agreed_key,
    new_private_key,
    public_key_of,
    seal,
    unseal,
)
from common.secagg.sharing import SECRET_BYTES, SHARE_BYTES, join, split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from common.secagg.terms import SecaggTerms

SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Advertised:
    """A platform's public keys for one sum."""

    sealing_key: bytes
    """X25519, for sending it shares."""
    mask_key: bytes
    """X25519, for agreeing on masks."""
    signature: bytes
    """Of :func:`keys_statement`, by its registered key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Secrets:
    """What a platform keeps to itself until the sum is opened."""

    sealing_key: bytes
    """Private half."""
    mask_key: bytes
    """Private half; revealed in shares if the platform drops out."""
    own_mask: bytes
    """Seed of its own mask; revealed in shares if its release is in the sum."""

    @classmethod
    def new(cls) -> Secrets:
        """Fresh ones, for one session only."""
        return cls(
            sealing_key=new_private_key(),
            mask_key=new_private_key(),
            own_mask=secrets.token_bytes(SECRET_BYTES),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One attempt at a sum: its terms, and the keys of everybody who is there."""

    terms: SecaggTerms
    request_digest: str
    """SHA-256 of all that the platforms were asked, but for whom."""
    advertised: Mapping[str, Advertised]
    """By platform."""
    present: tuple[str, ...] = field(init=False)
    """Who is there, increasing."""
    digest: bytes = field(init=False)
    """Names the session: terms, request, platforms and keys are all in it."""

    def __post_init__(self) -> None:
        """Compute once what every key is derived from."""
        present = tuple(sorted(self.advertised))
        parts = [b"crossrec secagg session", self.request_digest.encode()]
        for name in present:
            keys = self.advertised[name]
            parts += [name.encode(), keys.sealing_key, keys.mask_key, keys.signature]
        object.__setattr__(self, "present", present)
        object.__setattr__(self, "digest", _digest(parts))

    def check_size(self, names: tuple[str, ...], what: str) -> None:
        """Refuse a sum of fewer platforms than the noise was made for.

        Raises:
            RequestRefused: or if there are strangers among them.
        """
        strangers = set(names) - set(self.terms.participants)
        if strangers or list(names) != sorted(set(names)):
            msg = f"{what}: expected participants, increasing, each once; found {list(names)}."
            raise RequestRefused(msg)
        if len(names) < self.terms.min_summed:
            msg = (
                f"{what}: {len(names)} of {len(self.terms.participants)} platforms, and the noise "
                f"is made for at least {self.terms.min_summed}."
            )
            raise RequestRefused(msg)

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Who holds shares of ``name``, and agrees on masks with it."""
        return self.terms.neighbours_of(name, self.present)

    def needed(self, name: str) -> int:
        """Shares that open a secret of ``name``."""
        return self.terms.shares_needed(len(self.neighbours(name)), len(self.advertised))

    def point(self, name: str) -> int:
        """Where the shares that ``name`` holds are taken."""
        return self.present.index(name) + 1


def keys_statement(request_digest: str, name: str, sealing_key: bytes, mask_key: bytes) -> bytes:
    """What a platform signs at the first stage."""
    parts = [b"crossrec secagg keys", request_digest.encode(), name.encode(), sealing_key, mask_key]
    return _digest(parts)


def survivors_statement(session: Session, survivors: tuple[str, ...]) -> bytes:
    """What a platform signs at the fourth stage."""
    names = [name.encode() for name in survivors]
    return _digest([b"crossrec secagg survivors", session.digest, *names])


def commitment(session: Session, name: str, own_mask: bytes) -> bytes:
    """Says nothing about the seed, and shows later that it is the one: 32 bytes."""
    return _digest([b"crossrec secagg own mask", session.digest, name.encode(), own_mask])


def deal_shares(session: Session, name: str, own: Secrets) -> dict[str, bytes]:
    """Shares of both secrets of ``name`` for each neighbour, sealed for it.

    Raises:
        InvalidRelease: if a neighbour's key is not valid.
    """
    neighbours, needed = session.neighbours(name), session.needed(name)
    points = [session.point(other) for other in neighbours]
    of_mask_key = split(own.mask_key, points, needed)
    of_own_mask = split(own.own_mask, points, needed)
    return {
        other: seal(
            _sealing_key(session, own, sender=name, receiver=other, own_name=name),
            of_own_mask[point] + of_mask_key[point],
        )
        for other, point in zip(neighbours, points, strict=True)
    }


def open_share(session: Session, name: str, own: Secrets, sender: str, sealed: bytes) -> bytes:
    """What ``sender`` dealt to ``name``: a share of its own mask, and one of its mask key.

    Raises:
        InvalidRelease: if it is not what ``sender`` dealt in this session.
    """
    key = _sealing_key(session, own, sender=sender, receiver=name, own_name=name)
    try:
        shares = unseal(key, sealed)
    except InvalidRelease as error:
        raise InvalidRelease(f"{sender}: {error}") from error
    if len(shares) != 2 * SHARE_BYTES:
        raise InvalidRelease(f"{sender}: dealt {len(shares)} bytes.")
    return shares


def mask_(
    vector: np.ndarray, session: Session, name: str, own: Secrets, sharers: tuple[str, ...]
) -> None:
    """Add all masks of ``name`` to its release, in place.

    Args:
        vector: whole numbers on the lattice, one-dimensional.
        session: of which ``name`` is part.
        name: whose release it is.
        own: its secrets.
        sharers: who dealt shares; masks are agreed on with neighbours among them.

    Raises:
        InvalidRelease: if a neighbour's key is not valid.
    """
    plus, minus = _pair_keys(session, name, own.mask_key, sharers)
    add_streams_(vector, plus=[*plus, _own_key(session, own.own_mask)], minus=minus)


def reveal(
    session: Session,
    name: str,
    held: Mapping[str, bytes],
    sharers: tuple[str, ...],
    survivors: tuple[str, ...],
) -> dict[str, bytes]:
    """The shares that ``name`` gives away: of each neighbour that dealt, one and only one.

    Args:
        session: of which ``name`` is part.
        name: who reveals.
        held: both shares of each neighbour, see :func:`open_share`.
        sharers: who dealt shares.
        survivors: whose releases are in the sum; a subset of ``sharers``.
    """
    return {
        other: held[other][:SHARE_BYTES] if other in survivors else held[other][SHARE_BYTES:]
        for other in session.neighbours(name)
        if other in sharers
    }


def unmask_(
    total: np.ndarray,
    session: Session,
    sharers: tuple[str, ...],
    survivors: tuple[str, ...],
    revealed: Mapping[str, Mapping[str, bytes]],
    commitments: Mapping[str, bytes],
) -> None:
    """Take away what is left of the masks in the sum of the survivors, in place.

    Args:
        total: sum of the survivors' masked releases.
        session: what the masks belong to.
        sharers: who dealt shares.
        survivors: whose releases are in ``total``.
        revealed: by who revealed, a share of each of its neighbours.
        commitments: of each survivor's own mask.

    Raises:
        InvalidRelease: if a secret cannot be put together, naming whose, and who gave the shares.
    """
    plus: list[bytes] = []
    minus: list[bytes] = []
    for owner in sharers:
        if owner in survivors:
            committed = partial(commitment, session, owner)
            what = "another seed than it committed to"
            own_mask = _secret_of(owner, session, revealed, committed, commitments[owner], what)
            minus.append(_own_key(session, own_mask))
        else:
            advertised = session.advertised[owner].mask_key
            what = "another key than it advertised"
            mask_key = _secret_of(owner, session, revealed, public_key_of, advertised, what)
            added, taken = _pair_keys(session, owner, mask_key, survivors)
            # What the owner would have added, its neighbours took away, and the other way round.
            plus += added
            minus += taken
    add_streams_(total, plus=plus, minus=minus)


def _secret_of(
    owner: str,
    session: Session,
    revealed: Mapping[str, Mapping[str, bytes]],
    public_form: Callable[[bytes], bytes],
    expected: bytes,
    wrong: str,
) -> bytes:
    """Put a secret together; where there are more shares than needed, one of them may be a lie.

    Args:
        owner: whose it is.
        session: in which it was dealt.
        revealed: by who revealed, a share of each of its neighbours.
        public_form: of a secret.
        expected: that of the right one.
        wrong: what another one is, for people.

    Raises:
        InvalidRelease: if no shares give the right one.
    """
    holders = sorted(holder for holder, found in revealed.items() if owner in found)
    needed = session.needed(owner)
    why = f"they give {wrong}."
    # Those who stand next to each other, beginning with each one: some of these leave a liar out.
    for first in range(len(holders) if len(holders) > needed else 1):
        chosen = (holders[first:] + holders[:first])[:needed]
        shares = {session.point(holder): revealed[holder][owner] for holder in chosen}
        try:
            found = join(shares, needed)
        except InvalidRelease as error:
            why = str(error)
            continue
        if public_form(found) == expected:
            return found
        why = f"they give {wrong}."
    msg = f"the mask of {owner!r} cannot be taken away: {why} Shares came from {holders}."
    raise InvalidRelease(msg)


def _pair_keys(
    session: Session, name: str, mask_key: bytes, others: tuple[str, ...]
) -> tuple[list[bytes], list[bytes]]:
    """Keys of the streams that ``name`` adds, and of those that it takes away."""
    plus: list[bytes] = []
    minus: list[bytes] = []
    for other in session.neighbours(name):
        if other in others:
            low, high = sorted((name, other))
            key = agreed_key(
                mask_key,
                session.advertised[other].mask_key,
                session=session.digest,
                purpose=_digest([b"crossrec secagg pair mask", low.encode(), high.encode()]),
            )
            (plus if name == low else minus).append(key)
    return plus, minus


def _own_key(session: Session, own_mask: bytes) -> bytes:
    return _digest([b"crossrec secagg own stream", session.digest, own_mask])[:KEY_BYTES]


def _sealing_key(
    session: Session, own: Secrets, *, sender: str, receiver: str, own_name: str
) -> bytes:
    other = receiver if own_name == sender else sender
    return agreed_key(
        own.sealing_key,
        session.advertised[other].sealing_key,
        session=session.digest,
        purpose=_digest([b"crossrec secagg share", sender.encode(), receiver.encode()]),
    )


def _digest(parts: list[bytes]) -> bytes:
    """SHA-256 of all parts, each after its length."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.digest()
