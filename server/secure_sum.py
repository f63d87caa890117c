"""Collecting releases that are only ever seen added up: the coordinator's side of secure sums.

The stages are those of :mod:`common.secagg.protocol`. Whoever fails at one is out of this sum and
is survived, down to the number that the noise was made for; with fewer the sum is not opened. From
the moment when platforms are asked to confirm who is in it, a sum can be finished in one way only,
so what that needs is on disk by then: a run that was cut off goes on there.

With ``trust = "secagg-simulated"`` the same whole numbers are sent and added up in the clear.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message

from common.errors import InvalidRelease, RunFailed, StateError
from common.keys import read_public_key, verify
from common.messages import SECAGG, SecaggStage
from common.models.partition import LATTICE, check_lattice
from common.secagg.keys import check_public_key
from common.secagg.protocol import (
    Advertised,
    Session,
    keys_statement,
    survivors_statement,
    unmask_,
)
from common.secagg.wire import most_bytes, pack_bytes, pack_keys, unpack_bytes, unpack_keys
from common.storage import pack_arrays, read_arrays, sha256, write_durably
from common.wire import encode
from server.records import note_confirmed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Literal

    from cryptography.hazmat.primitives.asymmetric import ec

    from common.messages import ReleaseRequest
    from common.models.partition import Arrays
    from common.secagg.terms import SecaggTerms
    from server.config import FederationConfig
    from server.exchange import Exchange
    from server.journal import Journal

    Report = Callable[[str, str], None]
    """Is told a platform's name and, once for each, what became of its release."""

log = logging.getLogger(__name__)

PENDING_FILE = "secure-sum.safetensors"
"""In the run's folder: the sum that is being opened."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Summed:
    """Releases added up."""

    platforms: tuple[str, ...]
    """Whose releases are in it, increasing."""
    numbers: np.ndarray
    """[size] float64."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pending:
    """A sum under masks, and what is needed to take them away."""

    session: Session
    sharers: tuple[str, ...]
    survivors: tuple[str, ...]
    commitments: Mapping[str, bytes]
    total: np.ndarray


class SecureSums:
    """Asks platforms for releases and adds them up without seeing them."""

    def __init__(self, config: FederationConfig, exchange: Exchange, journal: Journal) -> None:
        """Name the place; nothing is asked yet."""
        self._config = config
        self._exchange = exchange
        self._journal = journal
        self._path = config.run_folder / PENDING_FILE

    def collect(
        self,
        messages: Mapping[str, Message],
        requests: Mapping[str, ReleaseRequest],
        arrays: Arrays,
        *,
        size: int,
        report: Report,
    ) -> Summed:
        """The sum of what ``messages`` ask for.

        Args:
            messages: by platform.
            requests: what each of them asks; all the same but for the name.
            arrays: what stands beside the requests.
            size: numbers in a release.
            report: see :data:`Report`.

        Raises:
            RunFailed: if fewer platforms are left than the noise was made for, or masks cannot be
                taken away; names the cause.
            StateError: if what is on disk is damaged.
        """
        if not requests:
            raise RunFailed("no platform is left to be asked; crossrec server status names them.")
        request = next(iter(requests.values()))
        terms = request.secagg
        if terms is None:
            raise ValueError("the request is for no secure sum")
        # Whoever cannot be enough is not asked: it would be charged for nothing.
        self._check_number(request.what, "are there", requests, terms)
        if request.trust == "secagg-simulated":
            return self._in_the_clear(messages, request, terms, size, report)
        digest = request.common_digest(sha256(pack_arrays(arrays, {})))
        pending = self._load(terms, digest)
        if pending is None:
            pending = self._gather(messages, request, terms, digest, size, report)
            self._save(pending)
        return self._open(pending, messages, request, report)

    def _in_the_clear(
        self,
        messages: Mapping[str, Message],
        request: ReleaseRequest,
        terms: SecaggTerms,
        size: int,
        report: Report,
    ) -> Summed:
        total, survivors = np.zeros(size, dtype=terms.lattice.dtype), []
        for name, found, outcome in self._exchange.ask(
            messages,
            number=request.round_number,
            wanted="released",
            check=lambda _, arrays: check_lattice(arrays, terms.lattice, size),
            max_bytes=_lattice_bytes(terms, size),
        ):
            if found is not None:
                total += found[LATTICE]
                survivors.append(name)
            report(name, outcome)
        self._check_number(request.what, "released", survivors, terms)
        return Summed(platforms=tuple(sorted(survivors)), numbers=terms.lattice.values(total))

    def _gather(
        self,
        messages: Mapping[str, Message],
        request: ReleaseRequest,
        terms: SecaggTerms,
        digest: str,
        size: int,
        report: Report,
    ) -> _Pending:
        """The first three stages."""
        keys = self._public_keys(terms)
        advertised: dict[str, Advertised] = {}

        def check_keys(name: str, arrays: Arrays) -> Arrays:
            parts = unpack_bytes(arrays, ("sealing_key", "mask_key", "signature"))
            found = Advertised(**{part: rows[0] for part, rows in parts.items()})
            statement = keys_statement(digest, name, found.sealing_key, found.mask_key)
            if keys is not None and not verify(keys[name], found.signature, statement):
                raise InvalidRelease("its keys are not signed by its registered key.")
            # Signed or not, one that is of no use would stop each platform that is told it.
            for key in (found.sealing_key, found.mask_key):
                check_public_key(key)
            advertised[name] = found
            return arrays

        for name, found, outcome in self._exchange.ask(
            messages,
            number=request.round_number,
            wanted="prepared",
            check=check_keys,
            max_bytes=most_bytes(1),
        ):
            if found is None:
                report(name, outcome)
        self._check_number(request.what, "advertised keys", advertised, terms)
        session = Session(terms=terms, request_digest=digest, advertised=advertised)
        shared = self._ask(
            "share",
            session.present,
            dict.fromkeys(session.present, pack_keys(advertised)),
            messages,
            request,
            check=lambda name, arrays: _checked(
                arrays, ("commitment", "sealed"), len(session.neighbours(name))
            ),
            report=report,
        )
        self._check_number(request.what, "dealt shares", shared, terms)
        sharers = tuple(sorted(shared))
        sealed = {
            name: dict(
                zip(
                    session.neighbours(name),
                    unpack_bytes(
                        shared[name], ("commitment", "sealed"), len(session.neighbours(name))
                    )["sealed"],
                    strict=True,
                )
            )
            for name in sharers
        }
        dealt = {
            name: pack_bytes(
                sealed=[
                    sealed[other][name] for other in session.neighbours(name) if other in sealed
                ]
            )
            for name in sharers
        }
        total, survivors = np.zeros(size, dtype=terms.lattice.dtype), []

        def add(name: str, arrays: Arrays) -> Arrays:
            masked = arrays.get("masked", np.zeros(0))
            checked = check_lattice({LATTICE: masked}, terms.lattice, size)
            np.add(total, checked[LATTICE], out=total)
            survivors.append(name)
            return {}

        self._ask(
            "mask",
            sharers,
            dealt,
            messages,
            request,
            check=add,
            report=report,
            max_bytes=_lattice_bytes(terms, size),
        )
        self._check_number(request.what, "sent masked releases", survivors, terms)
        return _Pending(
            session=session,
            sharers=sharers,
            survivors=tuple(sorted(survivors)),
            commitments={name: shared[name]["commitment"].tobytes() for name in sharers},
            total=total,
        )

    def _open(
        self,
        pending: _Pending,
        messages: Mapping[str, Message],
        request: ReleaseRequest,
        report: Report,
    ) -> Summed:
        """The last two stages."""
        session, terms = pending.session, pending.session.terms
        keys, statement = self._public_keys(terms), survivors_statement(session, pending.survivors)

        def check_signature(name: str, arrays: Arrays) -> Arrays:
            (signature,) = unpack_bytes(arrays, ("signature",))["signature"]
            if keys is not None and not verify(keys[name], signature, statement):
                raise InvalidRelease("its confirmation is not signed by its registered key.")
            return arrays

        def note(name: str, outcome: str) -> None:
            # Its release is in the sum already; that it did not help to open it is worth a line.
            log.warning("%s: %s", name, outcome)

        asked: dict[str, Arrays] = {n: {} for n in pending.survivors if n in messages}
        confirmed = self._ask(
            "confirm",
            pending.survivors,
            asked,
            messages,
            request,
            check=check_signature,
            report=note,
        )
        self._check_number(request.what, "confirmed who is in the sum", confirmed, terms)
        note_confirmed(self._journal, request, statement, pending.survivors)
        signers = tuple(sorted(confirmed))
        signatures = pack_bytes(
            signatures=[confirmed[name]["signature"].tobytes() for name in signers]
        )

        def dealers(name: str) -> list[str]:
            return [other for other in session.neighbours(name) if other in pending.sharers]

        answers = self._ask(
            "unmask",
            signers,
            dict.fromkeys(signers, signatures),
            messages,
            request,
            check=lambda name, arrays: _checked(arrays, ("shares",), len(dealers(name))),
            report=note,
        )
        self._check_number(request.what, "helped to open the sum", answers, terms)
        revealed = {
            name: dict(
                zip(
                    dealers(name),
                    unpack_bytes(found, ("shares",), len(dealers(name)))["shares"],
                    strict=True,
                )
            )
            for name, found in answers.items()
        }
        total = pending.total.copy()
        try:
            unmask_(
                total, session, pending.sharers, pending.survivors, revealed, pending.commitments
            )
        except InvalidRelease as error:
            msg = (
                f"{request.what}: {error} Who is in this sum is settled, so it is not begun anew: "
                "unless a platform answers differently at `crossrec server resume`, choose "
                "another run_id and leave out the platform that lies."
            )
            raise RunFailed(msg) from error
        for name in pending.survivors:
            report(name, "released")
        return Summed(platforms=pending.survivors, numbers=terms.lattice.values(total))

    def _ask(
        self,
        stage: Literal["share", "mask", "confirm", "unmask"],
        names: tuple[str, ...],
        arrays: Mapping[str, Arrays],
        messages: Mapping[str, Message],
        request: ReleaseRequest,
        *,
        check: Callable[[str, Arrays], Arrays],
        report: Report,
        max_bytes: int = 0,
    ) -> dict[str, Arrays]:
        """Ask the platforms that ``arrays`` are for to take one stage; keep what each answers."""
        asked = {}
        for name, beside in arrays.items():
            content = SecaggStage(
                run_id=request.run_id,
                platform=name,
                round_number=request.round_number,
                request_id=request.id_for(name),
                stage=stage,
                names=names,
            )
            node = messages[name].metadata.dst_node_id
            asked[name] = Message(encode(content, beside), node, SECAGG, group_id=stage)
        found, missing = {}, {}
        for name, answer, outcome in self._exchange.ask(
            asked,
            number=request.round_number,
            wanted={
                "share": "shared",
                "mask": "masked",
                "confirm": "confirmed",
                "unmask": "unmasked",
            }[stage],
            check=check,
            max_bytes=max_bytes or most_bytes(len(names)),
            patience=self._config.secagg.stage_timeout_seconds,
        ):
            if answer is None:
                missing[name] = outcome
                report(name, f"{outcome} (secure aggregation, stage {stage!r})")
            else:
                found[name] = answer
        self._journal.write(
            "secagg-stage",
            what=request.what,
            stage=stage,
            platforms=len(found),
            missing=missing,
        )
        return found

    def _check_number(
        self, what: str, done: str, names: Mapping[str, object] | list[str], terms: SecaggTerms
    ) -> None:
        number = len(terms.participants)
        if len(names) < terms.min_summed:
            missing = sorted(set(terms.participants) - set(names))
            msg = (
                f"{what}: {len(names)} of {number} platforms {done}, and the noise is made for at "
                f"least {terms.min_summed}; without: {', '.join(missing)}. The sum is not opened. "
                "What is finished is kept; see the journal for each platform's reason, then start "
                "the same run again."
            )
            raise RunFailed(msg)

    def _public_keys(self, terms: SecaggTerms) -> Mapping[str, ec.EllipticCurvePublicKey] | None:
        """Registered keys; a simulation has none: its platforms are who they say."""
        network = self._config.network
        if network is None:
            return None
        folder = network.platform_keys
        return {name: read_public_key(folder / f"{name}.pub") for name in terms.participants}

    def _save(self, pending: _Pending) -> None:
        arrays = {
            "total": pending.total,
            **pack_keys(pending.session.advertised),
        }
        metadata = {
            "run": self._config.federation.run_id,
            "digest": pending.session.request_digest,
            "present": json.dumps(pending.session.present),
            "sharers": json.dumps(pending.sharers),
            "survivors": json.dumps(pending.survivors),
            "commitments": json.dumps({n: c.hex() for n, c in pending.commitments.items()}),
        }
        write_durably(self._path, pack_arrays(arrays, metadata))

    def _load(self, terms: SecaggTerms, digest: str) -> _Pending | None:
        """What is on disk for this very sum, or None."""
        if not self._path.exists():
            return None
        arrays, metadata = read_arrays(self._path)
        try:
            if metadata["digest"] != digest:
                return None
            present = json.loads(metadata["present"])
            total = arrays.pop("total")
            return _Pending(
                session=Session(
                    terms=terms, request_digest=digest, advertised=unpack_keys(arrays, present)
                ),
                sharers=tuple(json.loads(metadata["sharers"])),
                survivors=tuple(json.loads(metadata["survivors"])),
                commitments={
                    name: bytes.fromhex(found)
                    for name, found in json.loads(metadata["commitments"]).items()
                },
                total=total,
            )
        except (KeyError, ValueError, TypeError, AttributeError, InvalidRelease) as error:
            msg = f"{self._path}: is not a sum that is being opened ({error})."
            raise StateError(msg) from error


def _checked(arrays: Arrays, names: tuple[str, ...], rows: int) -> Arrays:
    unpack_bytes(arrays, names, rows)
    return arrays


def _lattice_bytes(terms: SecaggTerms, size: int) -> int:
    return terms.lattice.dtype.itemsize * size + most_bytes(1)
