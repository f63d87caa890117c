"""A coordinator that tells platforms different things, and knows all that some of them know.

It may say to each platform that others dealt shares, and pass over whom it likes at every stage.
Whatever it does, it must not come to hold one platform's release without any other's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from client.config import SecaggSection
from client.secure_sum import SecureSum, SessionFiles, check_terms
from common.errors import ConfigError, InvalidRelease, RequestRefused
from common.keys import new_key_pair, read_private_key, sign
from common.messages import SecaggStage
from common.models.partition import LATTICE
from common.privacy.account import Account
from common.secagg.keys import add_streams_
from common.secagg.lattice import Lattice
from common.secagg.protocol import Session, _own_key, _pair_keys, survivors_statement
from common.secagg.sharing import SHARE_BYTES, join
from common.secagg.terms import SecaggTerms
from common.secagg.wire import pack_bytes, pack_keys, unpack_bytes, unpack_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

SIZE = 64
LATTICE_32 = Lattice(bits=32, exponent=-20)
NAMES = tuple(f"p{place}" for place in range(10))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in NAMES:
        private, public = new_key_pair(name)
        (folder / f"{name}.key").write_bytes(private)
        (folder / f"{name}.pub").write_bytes(public)
    return folder


def terms(number: int, *, dropped: int, neighbours: int) -> SecaggTerms:
    return SecaggTerms(
        participants=NAMES[:number],
        max_dropped=dropped,
        max_colluding=1,
        neighbours=neighbours,
        lattice=LATTICE_32,
    )


class Confirmed:
    """In place of a ledger."""

    def __init__(self) -> None:
        self._account = Account()

    def account(self) -> Account:
        return self._account

    def confirm(self, request_id: str, sha256: str, survivors: Sequence[str]) -> None:
        assert survivors
        assert self._account.confirmations.setdefault(request_id, sha256) == sha256


class Coordinator:
    """Asks what it likes; one platform tells it all that it knows."""

    def __init__(self, keys: Path, folder: Path, terms: SecaggTerms, colluder: str) -> None:
        self.colluder = colluder
        self.files = {name: SessionFiles(folder / name) for name in terms.participants}
        for name in terms.participants:
            (folder / name).mkdir(parents=True)
        self.platforms = {
            name: SecureSum(
                name,
                SecaggSection(private_key=keys / f"{name}.key", platform_keys=keys, min_summed=2),
                self.files[name],
                Confirmed(),
            )
            for name in terms.participants
        }
        found = {}
        for name, platform in self.platforms.items():
            parts = unpack_bytes(
                platform.advertise("run/1", "digest", terms),
                ("sealing_key", "mask_key", "signature"),
            )
            found[name] = {part: rows[0] for part, rows in parts.items()}
        plural = {
            f"{part}s": [found[name][part] for name in terms.participants]
            for part in ("sealing_key", "mask_key", "signature")
        }
        packed = pack_bytes(**plural)
        self.session = Session(
            terms=terms,
            request_digest="digest",
            advertised=unpack_keys(packed, terms.participants),
        )
        self.sealed: dict[str, dict[str, bytes]] = {}
        for name, platform in self.platforms.items():
            beside = pack_keys(self.session.advertised)
            answer = platform.share(stage(name, "share", terms.participants), beside)
            others = self.session.neighbours(name)
            rows = unpack_bytes(answer, ("commitment", "sealed"), len(others))["sealed"]
            self.sealed[name] = dict(zip(others, rows, strict=True))
        self.sharers: dict[str, tuple[str, ...]] = {}

    def mask(self, name: str, sharers: Iterable[str], release: np.ndarray) -> np.ndarray:
        """The masked release of ``name``, who is told that ``sharers`` dealt shares."""
        self.sharers[name] = tuple(sorted(sharers))
        senders = [n for n in self.session.neighbours(name) if n in self.sharers[name]]
        beside = pack_bytes(sealed=[self.sealed[sender][name] for sender in senders])
        asked = stage(name, "mask", self.sharers[name])
        return self.platforms[name].mask(asked, beside, {LATTICE: release})["masked"]

    def confirm_and_unmask(
        self, survivors: Iterable[str], signers: Iterable[str]
    ) -> dict[str, dict[str, bytes]]:
        """What ``signers`` reveal, by who reveals and whose share it is."""
        names, signers = tuple(sorted(survivors)), tuple(sorted(signers))
        signatures = [
            self.platforms[name].confirm(stage(name, "confirm", names))["signature"].tobytes()
            for name in signers
        ]
        revealed = {}
        for name in signers:
            answer = self.platforms[name].unmask(
                stage(name, "unmask", signers), pack_bytes(signatures=signatures)
            )
            dealt = [n for n in self.session.neighbours(name) if n in self.sharers[name]]
            rows = unpack_bytes(answer, ("shares",), len(dealt))["shares"]
            revealed[name] = dict(zip(dealt, rows, strict=True))
        return revealed

    def without_masks(
        self,
        masked: np.ndarray,
        target: str,
        survivors: Iterable[str],
        revealed: Mapping[str, Mapping[str, bytes]],
    ) -> np.ndarray:
        """The masked release of ``target`` less all masks that can be known."""
        survivors = set(survivors)
        kept = self.files[self.colluder].load("run/1")
        assert kept is not None
        # Both shares of the colluder's neighbours, and one of each from who confirmed.
        own_masks: dict[str, dict[int, bytes]] = {}
        mask_keys: dict[str, dict[int, bytes]] = {}
        point = self.session.point(self.colluder)
        for owner, shares in kept.held.items():
            own_masks.setdefault(owner, {})[point] = shares[:SHARE_BYTES]
            mask_keys.setdefault(owner, {})[point] = shares[SHARE_BYTES:]
        for holder, found in revealed.items():
            for owner, share in found.items():
                known = own_masks if owner in survivors else mask_keys
                known.setdefault(owner, {})[self.session.point(holder)] = share
        result = masked.copy()
        try:
            seed = join(own_masks.get(target, {}), self.session.needed(target))
        except InvalidRelease:
            return result
        add_streams_(result, minus=[_own_key(self.session, seed)])
        for other in self.sharers[target]:
            if other == self.colluder:
                key = kept.own.mask_key
            else:
                try:
                    key = join(mask_keys.get(other, {}), self.session.needed(other))
                except InvalidRelease:
                    continue
            added, taken = _pair_keys(self.session, other, key, (target,))
            add_streams_(result, plus=added, minus=taken)
        return result


def stage(name: str, which: str, names: tuple[str, ...]) -> SecaggStage:
    return SecaggStage(
        run_id="run",
        platform=name,
        round_number=1,
        request_id="run/1",
        stage=which,  # type: ignore[arg-type]
        names=names,
    )


def cut_off(keys: Path, folder: Path, terms: SecaggTerms) -> bool:
    """Whether the coordinator can read p5's release.

    Of its neighbours p3 works with the coordinator, p4 is left out, and p6 and p7 are kept from it.
    The other eight sign that nine survive.
    """
    coordinator = Coordinator(keys, folder, terms, "p3")
    release = np.arange(SIZE, dtype="<u4")
    masked = coordinator.mask("p5", set(NAMES) - {"p6", "p7"}, release)
    for name in set(NAMES) - {"p5"}:
        coordinator.mask(name, NAMES, release)
    survivors = set(NAMES) - {"p4"}
    revealed = coordinator.confirm_and_unmask(survivors, survivors - {"p5"})
    found = coordinator.without_masks(masked, "p5", survivors, revealed)
    return np.array_equal(found, release)


def test_one_platform_cannot_be_cut_off_from_the_others(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"neighbours: found 4, .* at least 5"):
        terms(10, dropped=2, neighbours=4)
    assert not cut_off(keys, tmp_path / "six", terms(10, dropped=2, neighbours=6))
    monkeypatch.setattr(SecaggTerms, "__post_init__", lambda _: None)
    assert cut_off(keys, tmp_path / "four", terms(10, dropped=2, neighbours=4)), "an attack"


def test_who_is_not_in_the_sum_does_not_help_to_open_it(keys: Path, tmp_path: Path) -> None:
    """p0 is told that p2 dealt no shares, so all its masks are with p1, who is left out, and p3.

    If p1 signed that p0, p2 and p3 survive, three signatures would open p0's own mask as well as
    the mask key of p1: nothing would cover p0's release.
    """
    coordinator = Coordinator(keys, tmp_path, terms(4, dropped=1, neighbours=3), "p3")
    release = np.arange(SIZE, dtype="<u4")
    coordinator.mask("p0", ("p0", "p1", "p3"), release)
    for name in NAMES[1:4]:
        coordinator.mask(name, NAMES[:4], release)
    with pytest.raises(RequestRefused, match=r"'p1' is not in this sum"):
        coordinator.confirm_and_unmask(("p0", "p2", "p3"), ("p1", "p2", "p3"))


def test_a_signature_of_who_is_not_in_the_sum_does_not_count(keys: Path, tmp_path: Path) -> None:
    coordinator = Coordinator(keys, tmp_path, terms(4, dropped=1, neighbours=3), "p3")
    for name in NAMES[:4]:
        coordinator.mask(name, NAMES[:4], np.zeros(SIZE, dtype="<u4"))
    survivors, signers = ("p0", "p1", "p2"), ("p1", "p2", "p3")
    statement = survivors_statement(coordinator.session, survivors)
    signatures = [sign(read_private_key(keys / f"{name}.key"), statement) for name in signers]
    coordinator.platforms["p1"].confirm(stage("p1", "confirm", survivors))
    asked = stage("p1", "unmask", signers)
    with pytest.raises(RequestRefused, match="are not in the sum"):
        coordinator.platforms["p1"].unmask(asked, pack_bytes(signatures=signatures))


def names(*found: str) -> SecaggTerms:
    return SecaggTerms(
        participants=tuple(sorted(found)),
        max_dropped=0,
        max_colluding=1,
        neighbours=len(found) - 1,
        lattice=LATTICE_32,
    )


@pytest.fixture
def folder(keys: Path, tmp_path: Path) -> Path:
    for name in NAMES[:4]:
        (tmp_path / f"{name}.pub").write_bytes((keys / f"{name}.pub").read_bytes())
    return tmp_path


def config(keys: Path, folder: Path) -> SecaggSection:
    return SecaggSection(private_key=keys / "p0.key", platform_keys=folder)


def test_one_platform_is_not_counted_under_two_names(keys: Path, folder: Path) -> None:
    """Where case does not count in names of files, P3.pub is p3.pub.

    p3 would add no noise, sign for both, and the others' noise would be a share of less.
    """
    check_terms("p0", config(keys, folder), names("p0", "p1", "p2", "p3"))
    (folder / "P3.pub").hardlink_to(folder / "p3.pub")
    with pytest.raises(RequestRefused, match=r"'P3' and 'p3' have one key"):
        check_terms("p0", config(keys, folder), names("p0", "p1", "p3", "P3"))


def test_a_remark_does_not_make_another_key(keys: Path, folder: Path) -> None:
    key, _, _ = (folder / "p3.pub").read_bytes().rpartition(b" ")
    (folder / "p4.pub").write_bytes(key + b" p4\n")
    with pytest.raises(RequestRefused, match=r"'p3' and 'p4' have one key"):
        check_terms("p0", config(keys, folder), names("p0", "p1", "p3", "p4"))


def test_a_platform_that_others_could_not_believe_spends_nothing(keys: Path, folder: Path) -> None:
    (folder / "p0.pub").write_bytes((keys / "p9.pub").read_bytes())
    with pytest.raises(RequestRefused, match=r"the key of 'p0' .* is not this platform's own"):
        check_terms("p0", config(keys, folder), names("p0", "p1", "p2", "p3"))
