"""This platform's part in a secure sum: its secrets on disk, and what it agrees to at each stage.

The stages are those of :mod:`common.secagg.protocol`. A session belongs to one release, which is on
disk and recorded by then. Every answer is written down before it leaves:

- a key pair is for one session. Whoever begins anew gets new keys and cannot use the old ones;
- each stage is answered once. Only the last two are answered again, with the same bytes: the
  coordinator may have lost the answers;
- a list of survivors is confirmed once for a release, whatever becomes of the session or its file:
  the ledger holds it. From then on there is no other session for it, so no second sum with this
  platform in it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from common.config import parse_config
from common.errors import ConfigError, RequestRefused, StateError
from common.keys import fingerprint, read_private_key, read_public_key, sign, verify
from common.models.partition import LATTICE
from common.secagg.keys import public_key_of
from common.secagg.protocol import (
    Advertised,
    Secrets,
    Session,
    commitment,
    deal_shares,
    keys_statement,
    mask_,
    open_share,
    reveal,
    survivors_statement,
)
from common.secagg.terms import SecaggTerms
from common.secagg.wire import pack_bytes, unpack_bytes, unpack_keys
from common.storage import read_content, write_durably

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from client.config import SecaggSection
    from common.messages import SecaggStage
    from common.models.partition import Arrays
    from common.privacy.account import Account


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """What is on disk of one session."""

    terms: SecaggTerms
    request_digest: str
    own: Secrets
    own_keys: Advertised
    session: Session | None = None
    sharers: tuple[str, ...] = ()
    held: Mapping[str, bytes] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    signature: bytes = b""


class SessionFiles:
    """A platform's sessions in its state folder, one file for each release."""

    def __init__(self, folder: Path) -> None:
        """Name the place."""
        self._folder = folder

    def path(self, request_id: str) -> Path:
        """Where the session of a release is."""
        name = hashlib.sha256(request_id.encode()).hexdigest()[:32]
        return self._folder / f"{name}.json"

    def save(self, request_id: str, kept: _Kept) -> None:
        """Write it down.

        Raises:
            StateError: if it cannot be written; then nothing may be answered.
        """
        write_durably(self.path(request_id), json.dumps(_to_plain(kept)).encode())

    def load(self, request_id: str) -> _Kept | None:
        """The session of a release, or None if there is none.

        Raises:
            StateError: if the file is damaged.
        """
        path = self.path(request_id)
        if not path.exists():
            return None
        try:
            return _from_plain(json.loads(read_content(path)))
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            msg = f"{path}: is damaged ({error}). This attempt at a sum cannot go on."
            raise StateError(msg) from error

    def forget_all_but(self, request_ids: set[str]) -> None:
        """Remove the secrets of older releases."""
        kept = {self.path(request_id) for request_id in request_ids}
        for path in self._folder.glob("*.json"):
            if path not in kept:
                path.unlink(missing_ok=True)


class Confirmations(Protocol):
    """What a ledger knows of confirmed lists: see :class:`common.privacy.ledger.Ledger`."""

    def account(self) -> Account:
        """With ``confirmations`` by release."""

    def confirm(self, request_id: str, sha256: str, survivors: Sequence[str]) -> None:
        """Record one, durably, or refuse another."""


class SecureSum:
    """Answers the stages for one platform."""

    def __init__(
        self, name: str, config: SecaggSection, files: SessionFiles, ledger: Confirmations
    ) -> None:
        """Name the place; keys are read when they are needed."""
        self._name = name
        self._config = config
        self._files = files
        self._ledger = ledger

    def advertise(self, request_id: str, request_digest: str, terms: SecaggTerms) -> Arrays:
        """Begin a session for a release that is on disk: fresh keys, signed.

        Raises:
            RequestRefused: if survivors were confirmed in an earlier session.
        """
        if request_id in self._ledger.account().confirmations:
            msg = "secagg: who is in this sum was confirmed already; it is not begun anew."
            raise RequestRefused(msg)
        own = Secrets.new()
        sealing_key, mask_key = public_key_of(own.sealing_key), public_key_of(own.mask_key)
        statement = keys_statement(request_digest, self._name, sealing_key, mask_key)
        signature = sign(read_private_key(self._config.private_key), statement)
        keys = Advertised(sealing_key=sealing_key, mask_key=mask_key, signature=signature)
        kept = _Kept(terms=terms, request_digest=request_digest, own=own, own_keys=keys)
        self._files.save(request_id, kept)
        return pack_bytes(sealing_key=sealing_key, mask_key=mask_key, signature=signature)

    def share(self, request: SecaggStage, arrays: Arrays) -> Arrays:
        """Check who is there, and deal shares of both secrets to the neighbours.

        Raises:
            RequestRefused: if a key is not signed by a platform that is trusted, or they are too
                few.
        """
        kept = self._kept(request)
        if kept.session is not None:
            raise RequestRefused("secagg: shares were dealt already; begin the sum anew.")
        advertised = unpack_keys(arrays, request.names)
        session = Session(
            terms=kept.terms, request_digest=kept.request_digest, advertised=advertised
        )
        session.check_size(request.names, "who advertised keys")
        if advertised.get(self._name) != kept.own_keys:
            raise RequestRefused("secagg: this platform's own keys are not those that it sent.")
        for name, keys in advertised.items():
            statement = keys_statement(kept.request_digest, name, keys.sealing_key, keys.mask_key)
            if not verify(
                read_public_key(_key_file(self._config, name)), keys.signature, statement
            ):
                msg = f"secagg: the keys of {name!r} are not signed by its registered key."
                raise RequestRefused(msg)
        sealed = deal_shares(session, self._name, kept.own)
        self._files.save(request.request_id, replace(kept, session=session))
        return pack_bytes(
            commitment=commitment(session, self._name, kept.own.own_mask),
            sealed=[sealed[name] for name in session.neighbours(self._name)],
        )

    def mask(self, request: SecaggStage, arrays: Arrays, release: Arrays) -> Arrays:
        """Take the shares of the others, and mask the release.

        Raises:
            RequestRefused: if too few dealt shares.
            InvalidRelease: if a share cannot be opened, naming whose.
        """
        kept = self._kept(request)
        session = kept.session
        if session is None or kept.sharers:
            raise RequestRefused("secagg: not the stage at which releases are masked.")
        session.check_size(request.names, "who dealt shares")
        if self._name not in request.names or not set(request.names) <= set(session.present):
            raise RequestRefused("secagg: those who dealt shares are not of this session.")
        senders = [n for n in session.neighbours(self._name) if n in request.names]
        sealed = unpack_bytes(arrays, ("sealed",), len(senders))["sealed"]
        held = {
            sender: open_share(session, self._name, kept.own, sender, part)
            for sender, part in zip(senders, sealed, strict=True)
        }
        masked = release[LATTICE].copy()
        mask_(masked, session, self._name, kept.own, request.names)
        self._files.save(request.request_id, replace(kept, sharers=request.names, held=held))
        return {"masked": masked}

    def confirm(self, request: SecaggStage) -> Arrays:
        """Sign whose releases are in the sum: one list for a release, for ever.

        Raises:
            RequestRefused: if another list was signed, or it is too short.
        """
        kept = self._kept(request)
        session = kept.session
        if session is None or not kept.sharers:
            raise RequestRefused("secagg: not the stage at which survivors are confirmed.")
        if not kept.survivors:
            session.check_size(request.names, "whose releases arrived")
            if not set(request.names) <= set(kept.sharers):
                raise RequestRefused("secagg: a survivor dealt no shares.")
            if self._name not in request.names:
                msg = f"secagg: {self._name!r} is not in this sum and does not help to open it."
                raise RequestRefused(msg)
            statement = survivors_statement(session, request.names)
            self._ledger.confirm(request.request_id, statement.hex(), request.names)
            signature = sign(read_private_key(self._config.private_key), statement)
            kept = replace(kept, survivors=request.names, signature=signature)
            self._files.save(request.request_id, kept)
        elif kept.survivors != request.names:
            raise RequestRefused("secagg: other survivors were confirmed; there is one list.")
        return pack_bytes(signature=kept.signature)

    def unmask(self, request: SecaggStage, arrays: Arrays) -> Arrays:
        """Reveal one share of each neighbour, once enough platforms signed the same survivors.

        Raises:
            RequestRefused: if too few did, or a signature is wrong.
        """
        kept = self._kept(request)
        session = kept.session
        if session is None or not kept.sharers or not kept.survivors:
            raise RequestRefused("secagg: not the stage at which masks are taken away.")
        session.check_size(request.names, "who confirmed the survivors")
        if not set(request.names) <= set(kept.survivors):
            raise RequestRefused("secagg: those who confirmed are not in the sum.")
        found = unpack_bytes(arrays, ("signatures",), len(request.names))["signatures"]
        statement = survivors_statement(session, kept.survivors)
        for name, signature in zip(request.names, found, strict=True):
            if not verify(read_public_key(_key_file(self._config, name)), signature, statement):
                msg = f"secagg: {name!r} did not sign that these are the survivors."
                raise RequestRefused(msg)
        shares = reveal(session, self._name, kept.held, kept.sharers, kept.survivors)
        return pack_bytes(shares=list(shares.values()))

    def _kept(self, request: SecaggStage) -> _Kept:
        kept = self._files.load(request.request_id)
        if kept is None:
            raise RequestRefused("secagg: this platform has no release in such a sum.")
        return kept


def check_terms(name: str, config: SecaggSection, terms: SecaggTerms) -> None:
    """Hold a sum's terms against the configuration of platform ``name``.

    Raises:
        RequestRefused: naming the first thing that the platform does not accept.
    """
    if name not in terms.participants:
        msg = f"secagg: the sum is not one that {name!r} takes part in."
        raise RequestRefused(msg)
    if terms.min_summed < config.min_summed:
        msg = (
            f"secagg: a sum of {terms.min_summed} platforms may be opened, this platform "
            f"accepts at least {config.min_summed}."
        )
        raise RequestRefused(msg)
    if terms.max_colluding < config.max_colluding:
        msg = (
            f"secagg.max_colluding: reckons with {terms.max_colluding}, this platform with "
            f"{config.max_colluding}."
        )
        raise RequestRefused(msg)
    owners: dict[str, str] = {}
    for other in terms.participants:
        path = _key_file(config, other)
        if not path.exists():
            msg = (
                f"secagg: platform {other!r} is not among those whose keys this platform "
                "trusts. Its operator adds one: crossrec client trust."
            )
            raise RequestRefused(msg)
        # Two names can be one file where case does not count: they would be counted twice.
        owner = owners.setdefault(fingerprint(read_public_key(path)), other)
        if owner != other:
            msg = f"secagg: {owner!r} and {other!r} have one key, so they are one platform."
            raise RequestRefused(msg)
    own = fingerprint(read_private_key(config.private_key).public_key())
    if owners.get(own) != name:
        msg = f"secagg: the key of {name!r} that is kept for others' is not this platform's own."
        raise RequestRefused(msg)


def _key_file(config: SecaggSection, name: str) -> Path:
    return config.platform_keys / f"{name}.pub"


def _to_plain(kept: _Kept) -> dict[str, Any]:
    advertised = kept.session.advertised if kept.session else {}
    return {
        "terms": asdict(kept.terms),
        "request_digest": kept.request_digest,
        "own": _hex(kept.own),
        "own_keys": _hex(kept.own_keys),
        "advertised": {name: _hex(keys) for name, keys in advertised.items()},
        "sharers": kept.sharers,
        "held": {name: shares.hex() for name, shares in kept.held.items()},
        "survivors": kept.survivors,
        "signature": kept.signature.hex(),
    }


def _from_plain(value: dict[str, Any]) -> _Kept:
    terms = parse_config(value["terms"], SecaggTerms, "terms", complete=True)
    digest = str(value["request_digest"])
    advertised = {name: Advertised(**_bytes(keys)) for name, keys in value["advertised"].items()}
    session = Session(terms=terms, request_digest=digest, advertised=advertised)
    return _Kept(
        terms=terms,
        request_digest=digest,
        own=Secrets(**_bytes(value["own"])),
        own_keys=Advertised(**_bytes(value["own_keys"])),
        session=session if advertised else None,
        sharers=tuple(map(str, value["sharers"])),
        held=_bytes(value["held"]),
        survivors=tuple(map(str, value["survivors"])),
        signature=bytes.fromhex(value["signature"]),
    )


def _hex(value: Secrets | Advertised) -> dict[str, str]:
    return {name: part.hex() for name, part in asdict(value).items()}


def _bytes(value: dict[str, str]) -> dict[str, bytes]:
    return {name: bytes.fromhex(part) for name, part in value.items()}
