"""The sum under masks is the sum, whoever drops out and when; nothing opens with one drop more."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidRelease, RequestRefused
from common.keys import new_key_pair, parse_public_key, read_private_key, sign, verify
from common.secagg import protocol
from common.secagg.protocol import (
    SEALED_BYTES,
    Session,
    commitment,
    deal_shares,
    keys_statement,
    mask_,
    open_share,
    reveal,
    survivors_statement,
    unmask_,
)
from common.secagg.sharing import _PRIME, SHARE_BYTES
from tests.unit.common.secagg.parties import STAGES, Parties, parties, seeded_secrets, terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


def patterns(names: tuple[str, ...], most: int) -> Iterator[dict[str, str]]:
    """Every way in which up to ``most`` platforms drop out."""
    for number in range(most + 1):
        for gone in combinations(names, number):
            for stages in product(STAGES, repeat=number):
                yield dict(zip(gone, stages, strict=True))


def is_right(found: Parties, drops: Mapping[str, str]) -> bool:
    opened = found.run(drops)
    early = {name for name, stage in drops.items() if stage in STAGES[:3]}
    assert set(opened.survivors) == set(found.terms.participants) - early
    return np.array_equal(opened.total, found.plain_sum(opened.survivors))


@pytest.mark.parametrize(
    ("number", "dropped", "colluding", "bits"),
    [(2, 0, 1, 32), (3, 0, 1, 64), (3, 0, 2, 32), (4, 1, 1, 32), (4, 1, 1, 64), (5, 1, 2, 32)],
)
def test_the_sum_is_exact_for_every_pattern_of_drops(
    number: int, dropped: int, colluding: int, bits: int
) -> None:
    found = parties(terms(number, dropped=dropped, colluding=colluding, bits=bits))
    for drops in patterns(found.terms.participants, dropped):
        assert is_right(found, drops), drops


@pytest.mark.parametrize(("neighbours", "bits"), [(5, 32), (4, 64)])
def test_the_sum_of_six_is_exact_for_every_pattern_of_drops(neighbours: int, bits: int) -> None:
    dropped = 2 if neighbours == 5 else 1
    found = parties(terms(6, dropped=dropped, neighbours=neighbours, bits=bits))
    for drops in patterns(found.terms.participants, dropped):
        assert is_right(found, drops), drops


@st.composite
def larger(draw: st.DrawFn) -> tuple[Parties, dict[str, str]]:
    number = draw(st.integers(7, 24))
    colluding = draw(st.integers(1, 3))
    dropped = draw(st.integers(0, (number - colluding - 1) // 2))
    least = colluding + max(dropped + 1, 2 * dropped)
    least += least % 2
    neighbours = draw(st.sampled_from([number - 1, min(least, number - 1)]))
    found = terms(
        number,
        dropped=dropped,
        colluding=colluding,
        neighbours=neighbours,
        bits=draw(st.sampled_from([32, 64])),
    )
    gone = draw(st.lists(st.sampled_from(found.participants), max_size=dropped, unique=True))
    drops = {name: draw(st.sampled_from(STAGES)) for name in gone}
    return parties(found, seed=draw(st.integers(0, 9))), drops


@settings(max_examples=25)
@given(larger())
def test_the_sum_of_more_is_exact_for_any_allowed_drops(
    case: tuple[Parties, dict[str, str]],
) -> None:
    assert is_right(*case)


@pytest.mark.parametrize(("neighbours", "dropped", "bits"), [(99, 20, 32), (12, 5, 64)])
def test_a_hundred_are_summed_exactly(neighbours: int, dropped: int, bits: int) -> None:
    found = parties(terms(100, dropped=dropped, neighbours=neighbours, bits=bits))
    names = found.terms.participants
    drops = {names[7 * place % 100]: STAGES[place % 5] for place in range(dropped)}
    assert is_right(found, drops)


@pytest.mark.parametrize("neighbours", [5, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_one_drop_too_many_is_refused_and_opens_nothing(stage: str, neighbours: int) -> None:
    found = parties(terms(6, dropped=1, neighbours=neighbours))
    drops = {"p001": "unmask", "p002": stage}
    with pytest.raises(RequestRefused, match=r"4 of 6 platforms.*made for at least 5"):
        found.run(drops)
    drops = {"p001": "advertise", "p002": stage}
    with pytest.raises(RequestRefused, match=r"4 of 6 platforms.*made for at least 5"):
        found.run(drops)


@pytest.mark.parametrize("neighbours", [5, 4])
def test_too_few_helpers_cannot_open_a_mask_whatever_they_agree_to(neighbours: int) -> None:
    found = parties(terms(6, dropped=1, neighbours=neighbours))
    drops = {"p001": "unmask", "p002": "unmask"}
    with pytest.raises(InvalidRelease, match=r"the mask of 'p00\d' .* found \d shares, \d are"):
        found.run(drops, check=False)


def test_lists_of_strangers_or_in_disorder_are_refused() -> None:
    found = parties(terms(4))
    session = found.session(found.terms.participants)
    everybody = found.terms.participants
    session.check_size(everybody, "all")
    for names in (everybody[::-1], (*everybody, "p003"), (*everybody[:3], "zzz")):
        with pytest.raises(RequestRefused, match="expected participants, increasing, each once"):
            session.check_size(names, "all")


def test_a_release_that_comes_late_changes_nothing_and_stays_masked() -> None:
    found = parties(terms(4, dropped=1), size=2000)
    names = found.terms.participants
    session, survivors = found.session(names), names[1:]
    opened = found.run({"p000": "mask"})
    late = found.masked(session, "p000", names)
    assert np.array_equal(opened.total, found.plain_sum(survivors))
    # The coordinator has it, and all that was revealed: with it added, the own mask is left.
    revealed = found.revealed(session, survivors, names, survivors)
    total = found.masked_sum(session, names, survivors) + late
    unmask_(total, session, names, survivors, revealed, found.commitments(session))
    assert (total == found.plain_sum(names)).sum() < 5
    assert {len(shares) for shares in revealed.values()} == {3}
    own = {found.held(session)[holder]["p000"][:SHARE_BYTES] for holder in survivors}
    assert not own & {share for shares in revealed.values() for share in shares.values()}


def wrong(share: bytes, by: int = 1) -> bytes:
    return ((int.from_bytes(share, "big") + by) % _PRIME).to_bytes(SHARE_BYTES, "big")


@pytest.mark.parametrize(
    ("owner", "which", "num_liars", "opens"),
    [("p000", "key", 1, True), ("p000", "key", 2, False), ("p002", "seed", 1, False)],
)
def test_wrong_shares_are_left_out_while_there_are_others_and_then_named(
    owner: str, which: str, num_liars: int, *, opens: bool
) -> None:
    """Four hold shares of one who dropped out, three of one who did not; three are needed."""
    found = parties(terms(5, dropped=1))
    names, survivors = found.terms.participants, found.terms.participants[1:]
    session = found.session(names)
    assert session.needed(owner) == 3
    for liars in combinations([name for name in survivors if name != owner], num_liars):
        revealed = found.revealed(session, survivors, names, survivors)
        for place, liar in enumerate(liars, start=1):
            revealed[liar][owner] = wrong(revealed[liar][owner], by=place**5)
        total = found.masked_sum(session, names, survivors)
        if opens:
            unmask_(total, session, names, survivors, revealed, found.commitments(session))
            assert np.array_equal(total, found.plain_sum(survivors))
            continue
        with pytest.raises(InvalidRelease) as caught:
            unmask_(total, session, names, survivors, revealed, found.commitments(session))
        message = f"the mask of {owner!r} cannot be taken away: they give another {which} than"
        assert message in str(caught.value) or "do not belong together" in str(caught.value)
        assert all(repr(liar) in str(caught.value) for liar in liars)


def test_a_wrong_commitment_names_its_owner() -> None:
    found = parties(terms(3))
    names = found.terms.participants
    session = found.session(names)
    committed = found.commitments(session) | {"p001": bytes(32)}
    revealed = found.revealed(session, names, names, names)
    total = found.masked_sum(session, names, names)
    with pytest.raises(InvalidRelease, match=r"the mask of 'p001' .* seed than it committed to"):
        unmask_(total, session, names, names, revealed, committed)


def test_an_invalid_mask_key_stops_whoever_would_agree_with_it() -> None:
    found = parties(terms(3))
    session = found.session(found.terms.participants)
    bad = replace(session.advertised["p001"], mask_key=bytes(32), sealing_key=bytes(32))
    session = replace(session, advertised={**session.advertised, "p001": bad})
    with pytest.raises(InvalidRelease, match="not valid"):
        mask_(np.zeros(3, dtype="<u4"), session, "p000", found.own["p000"], session.present)
    with pytest.raises(InvalidRelease, match="not valid"):
        deal_shares(session, "p000", found.own["p000"])


# Shares


def test_shares_are_sealed_for_one_holder_of_one_session() -> None:
    found = parties(terms(3))
    session = found.session(found.terms.participants)
    sealed = deal_shares(session, "p000", found.own["p000"])
    assert {len(part) for part in sealed.values()} == {SEALED_BYTES}
    part, own = sealed["p001"], found.own
    assert len(open_share(session, "p001", own["p001"], "p000", part)) == 2 * SHARE_BYTES
    other = found.session(found.terms.participants, "another request")
    attempts: list[tuple[Session, str, str, bytes]] = [
        (session, "p002", "p000", part),
        (session, "p001", "p002", part),
        (session, "p000", "p001", part),
        (other, "p001", "p000", part),
        (session, "p001", "p000", part[:-1] + bytes([part[-1] ^ 1])),
    ]
    for used, name, sender, content in attempts:
        with pytest.raises(InvalidRelease, match=f"{sender}: a sealed share cannot be opened"):
            open_share(used, name, own[name], sender, content)


def one_share_of_each(reveal_: Callable[..., dict[str, bytes]]) -> bool:
    """Whatever the survivors are, and whoever dealt: the seed's of these, the key's of others."""
    found = parties(terms(5, dropped=1))
    session, name = found.session(found.terms.participants), "p002"
    held = found.held(session)[name]
    for sharers in combinations(found.terms.participants, 4):
        subsets = chain.from_iterable(combinations(sharers, n) for n in range(5))
        for survivors in subsets:
            expected = {
                other: shares[:SHARE_BYTES] if other in survivors else shares[SHARE_BYTES:]
                for other, shares in held.items()
                if other in sharers
            }
            if reveal_(session, name, held, sharers, survivors) != expected:
                return False
    return True


def both_shares(*args: Any) -> dict[str, bytes]:  # noqa: ANN401 - as reveal
    session, name, held, sharers, _ = args
    return {other: held[other] for other in session.neighbours(name) if other in sharers}


def of_who_dealt_none(*args: Any) -> dict[str, bytes]:  # noqa: ANN401 - as reveal
    session, name, held, _, survivors = args
    return reveal(session, name, held, session.present, survivors)


def the_other_way_round(*args: Any) -> dict[str, bytes]:  # noqa: ANN401 - as reveal
    session, name, held, sharers, survivors = args
    gone = tuple(other for other in sharers if other not in survivors)
    return reveal(session, name, held, sharers, gone)


def test_of_each_neighbour_one_share_is_revealed_and_never_both() -> None:
    assert one_share_of_each(reveal)
    for broken in (both_shares, of_who_dealt_none, the_other_way_round):
        assert not one_share_of_each(broken)


# What is signed


FIELDS = ("request", "p001", b"s" * 32, b"m" * 32)
CHANGED = [
    ("other", *FIELDS[1:]),
    (FIELDS[0], "p002", *FIELDS[2:]),
    (*FIELDS[:2], b"x" * 32, FIELDS[3]),
    (*FIELDS[:3], b"x" * 32),
    (*FIELDS[:2], FIELDS[3], FIELDS[2]),
    ("requestp", "001", *FIELDS[2:]),
    (*FIELDS[:2], b"s" * 32 + b"m", b"m" * 31),
]


def test_a_signature_of_keys_holds_for_all_of_its_fields_only(tmp_path: Path) -> None:
    private, public = new_key_pair("p001")
    (tmp_path / "node.key").write_bytes(private)
    key, known = read_private_key(tmp_path / "node.key"), parse_public_key(public, "node.pub")
    signature = sign(key, keys_statement(*FIELDS))
    assert verify(known, signature, keys_statement(*FIELDS))
    for changed in CHANGED:
        assert not verify(known, signature, keys_statement(*changed))
    session = parties(terms(3)).session(("p000", "p001", "p002"))
    assert not verify(known, signature, survivors_statement(session, ("p000",)))


def statements_differ(digest: Callable[[list[bytes]], bytes]) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "_digest", digest)
        statements = [keys_statement(*fields) for fields in (FIELDS, *CHANGED)]
    return len(set(statements)) == len(statements)


def test_fields_cannot_run_into_each_other() -> None:
    assert statements_differ(protocol._digest)
    assert not statements_differ(b"".join)


def test_everything_of_a_session_is_in_its_digest_and_in_what_is_signed() -> None:
    found = parties(terms(4))
    session, names = found.session(found.terms.participants), found.terms.participants
    changed = [
        found.session(names, "another request"),
        found.session(names[:3]),
        parties(terms(4), seed=1).session(names),
    ]
    for field in ("sealing_key", "mask_key", "signature"):
        bad = replace(session.advertised["p002"], **{field: b"x" * 32})
        changed.append(replace(session, advertised={**session.advertised, "p002": bad}))
    swapped = dict(zip(names, reversed(list(session.advertised.values())), strict=True))
    changed.append(replace(session, advertised=swapped))
    assert len({other.digest for other in (session, *changed)}) == len(changed) + 1
    every = [session, *changed]
    assert len({survivors_statement(used, names[:3]) for used in every}) == len(every)
    assert len({commitment(used, "p001", b"s" * 32) for used in every}) == len(every)
    lists = [names, names[:3], names[1:], ("p000p001", *names[2:])]
    assert len({survivors_statement(session, survivors) for survivors in lists}) == len(lists)
    committed = {commitment(session, name, own) for name in names for own in (b"a", b"b")}
    assert len(committed) == 2 * len(names)


def test_an_order_of_answers_changes_no_session() -> None:
    found = parties(terms(4))
    session = found.session(found.terms.participants)
    turned = replace(session, advertised=dict(reversed(list(session.advertised.items()))))
    assert turned.digest == session.digest
    assert turned.present == session.present
    assert seeded_secrets(1) != seeded_secrets(2)
