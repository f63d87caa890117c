"""What the coordinator holds of one platform looks like chance, whatever the platform released.

Chi-square and correlations on masked vectors of nothing but zeros. Keys are seeded, so that right
code passes always or never; over all checks here, a seed is a bad one with probability
``FALSE_ALARM``. Each check refuses planted bugs.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats

from common.secagg import protocol
from common.secagg.keys import add_streams_, agreed_key
from common.secagg.protocol import Session, _pair_keys
from tests.laws.training import FALSE_ALARM
from tests.unit.common.secagg.parties import Parties, seeded_secrets, terms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIZE = 40_000
LEAST = FALSE_ALARM / 1000
"""Probability below which one of up to a thousand numbers is no chance."""


def idle(number: int, *, bits: int = 32, dropped: int = 0, seed: object = 0) -> Parties:
    """Platforms that release zeros."""
    found = terms(number, bits=bits, dropped=dropped)
    zeros = np.zeros(SIZE, dtype=found.lattice.dtype)
    return Parties(found, dict.fromkeys(found.participants, zeros), seed=seed)


def is_uniform(vector: np.ndarray) -> bool:
    """Bytes at each place of a number, and its low and high bits."""
    table = vector.view(np.uint8).reshape(len(vector), -1)
    pvalues = [stats.chisquare(np.bincount(column, minlength=256)).pvalue for column in table.T]
    for bit in (0, 1, 8 * vector.itemsize - 1):
        ones = int(((vector >> vector.dtype.type(bit)) & vector.dtype.type(1)).sum())
        pvalues.append(stats.binomtest(ones, len(vector)).pvalue)
    # Neighbouring numbers have nothing in common.
    pairs = np.bincount((table[:-1, 0] & 15) * 16 + (table[1:, 0] & 15), minlength=256)
    pvalues.append(stats.chisquare(pairs).pvalue)
    return bool(min(pvalues) > LEAST)


def are_unrelated(first: np.ndarray, second: np.ndarray) -> bool:
    """Neither their difference nor their sum, nor their correlation, shows anything."""
    ranks = stats.pearsonr(first.astype(np.float64), second.astype(np.float64))
    together = is_uniform(first - second) and is_uniform(first + second)
    return together and bool(ranks.pvalue > LEAST)


def seen(found: Parties, digest: str = "request") -> dict[str, np.ndarray]:
    names = found.terms.participants
    session = found.session(names, digest)
    return {name: found.masked(session, name, names) for name in names}


def test_what_is_no_chance_is_refused() -> None:
    rng = np.random.default_rng(1)
    chance = rng.integers(0, 2**32, SIZE, dtype=np.uint32)
    assert is_uniform(chance)
    for wrong in (
        np.zeros(SIZE, dtype=np.uint32),
        np.arange(SIZE, dtype=np.uint32),
        chance & np.uint32(0xFFFFFFFE),
        chance >> np.uint32(1),
        np.repeat(chance[: SIZE // 2], 2),
        (1000 * rng.standard_normal(SIZE)).astype(np.int32).view(np.uint32),
    ):
        assert not is_uniform(wrong)
    assert not are_unrelated(chance, chance)
    assert not are_unrelated(chance, -chance)
    assert not are_unrelated(chance, chance + np.arange(SIZE, dtype=np.uint32) % 7)


@pytest.mark.parametrize(("number", "bits"), [(2, 32), (2, 64), (3, 32), (6, 64)])
def test_each_masked_release_looks_like_chance(number: int, bits: int) -> None:
    found = seen(idle(number, bits=bits))
    assert all(is_uniform(vector) for vector in found.values())
    for first, second in combinations(found.values(), 2):
        assert are_unrelated(first, second)


def test_all_masked_releases_but_one_together_look_like_chance() -> None:
    first, second, third, _ = seen(idle(4)).values()
    assert is_uniform(first + second + third)


def without_session(*args: Any, **kwargs: Any) -> bytes:  # noqa: ANN401 - as agreed_key
    return agreed_key(*args, **{**kwargs, "session": b""})


def own_key_without_session(session: Session, own_mask: bytes) -> bytes:
    assert session.present
    return own_mask


def without_pair_masks(
    found: Parties, session: Session, name: str, sharers: tuple[str, ...]
) -> np.ndarray:
    """What is left for whoever was given the mask key of ``name``, as if it had dropped out."""
    vector = found.masked(session, name, sharers).copy()
    plus, minus = _pair_keys(session, name, found.own[name].mask_key, sharers)
    add_streams_(vector, plus=minus, minus=plus)
    return vector


def without_own_mask(
    found: Parties, session: Session, name: str, sharers: tuple[str, ...]
) -> np.ndarray:
    """What is left for whoever was given the seed of ``name``, whose release is in the sum."""
    vector = found.masked(session, name, sharers).copy()
    add_streams_(vector, minus=[protocol._own_key(session, found.own[name].own_mask)])
    return vector


def sessions_are_unrelated(first: Parties, second: Parties) -> bool:
    """Of two requests, whichever of its masks is known to the coordinator."""
    names = first.terms.participants
    one, two = first.session(names, "request"), second.session(names, "another")
    return all(
        are_unrelated(left(first, one, name, names), left(second, two, name, names))
        for left in (Parties.masked, without_pair_masks, without_own_mask)
        for name in names[:2]
    )


def test_two_sessions_have_nothing_in_common() -> None:
    """Even if keys were used twice, which nobody does: each stream is of one session."""
    assert sessions_are_unrelated(idle(3), idle(3))
    assert sessions_are_unrelated(idle(3), idle(3, seed=1))


@pytest.mark.parametrize(
    ("name", "broken"), [("agreed_key", without_session), ("_own_key", own_key_without_session)]
)
def test_streams_that_are_used_again_are_seen(
    name: str, broken: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, name, broken)
    assert all(is_uniform(vector) for vector in seen(idle(3)).values())
    assert not sessions_are_unrelated(idle(3), idle(3))


def test_a_late_release_is_covered_by_its_own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    found = idle(4, dropped=1)
    names = found.terms.participants
    session = found.session(names)
    left = [without_pair_masks(found, session, name, names) for name in names]
    assert all(is_uniform(vector) for vector in left)
    assert are_unrelated(*left[:2])

    def no_own_mask(
        vector: np.ndarray, plus: Sequence[bytes] = (), minus: Sequence[bytes] = ()
    ) -> None:
        add_streams_(vector, plus=plus[:-1], minus=minus)

    monkeypatch.setattr(protocol, "add_streams_", no_own_mask)
    broken = idle(4, dropped=1)
    left = [without_pair_masks(broken, session, name, names) for name in names]
    assert not any(is_uniform(vector) for vector in left)


def test_a_sum_without_its_own_masks_is_covered_by_those_of_neighbours() -> None:
    """Own masks of survivors become known to all; releases one by one must not."""
    found = idle(4)
    names = found.terms.participants
    session = found.session(names)
    left = [without_own_mask(found, session, name, names) for name in names]
    assert all(is_uniform(vector) for vector in left)
    for first, second in combinations(left, 2):
        assert are_unrelated(first, second)
    assert not sum(left[1:], start=left[0]).any(), "together they cancel"


def guessable(session: Session, name: str, others: tuple[str, ...], bits: int) -> bool:
    """Whether a stream of a key that differs beyond the first bits is the same."""
    own = seeded_secrets("first", name)
    first, _ = protocol._pair_keys(session, name, own.mask_key, others)
    changed = bytearray(own.mask_key)
    changed[bits // 8] ^= 4
    second, _ = protocol._pair_keys(session, name, bytes(changed), others)
    return first == second


def test_masks_depend_on_all_of_the_secret_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = idle(3)
    session = found.session(found.terms.participants)
    others = found.terms.participants
    for bits in (32, 64, 128, 240):
        assert not guessable(session, "p000", others, bits)

    def of_a_short_seed(private: bytes, public: bytes, **kwargs: bytes) -> bytes:
        return agreed_key(private[:4] + bytes(28), public, **kwargs)

    monkeypatch.setattr(protocol, "agreed_key", of_a_short_seed)
    assert guessable(session, "p000", others, 32)
