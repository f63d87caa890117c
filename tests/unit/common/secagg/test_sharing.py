"""Enough shares give the secret, fewer say nothing about it, and wrong ones do not pass for right.

Coefficients come from the operating system: a check of their distribution gives a false alarm once
in a million runs (``FALSE_ALARM``).
"""

from __future__ import annotations

import secrets
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.errors import InvalidRelease
from common.secagg.sharing import _PRIME, SECRET_BYTES, SHARE_BYTES, _weights, join, split
from tests.laws.training import FALSE_ALARM

if TYPE_CHECKING:
    from collections.abc import Callable

    Split = Callable[[bytes, range, int], dict[int, bytes]]

SECRETS = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


def is_prime(number: int) -> bool:
    """Miller and Rabin, 64 rounds: a composite number passes with probability below 2^-128."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(64):
        power = pow(2 + secrets.randbelow(number - 4), odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def test_the_modulus_is_a_prime_above_all_secrets() -> None:
    assert is_prime(_PRIME)
    assert not is_prime(_PRIME + 2)
    assert not is_prime((2**61 - 1) * (2**89 - 1))
    assert 2**256 <= _PRIME < 2 ** (8 * SHARE_BYTES)


@given(SECRETS, st.sets(st.integers(1, 1000), min_size=1, max_size=12), st.data())
def test_any_enough_shares_give_the_secret(
    secret: bytes, points: set[int], data: st.DataObject
) -> None:
    needed = data.draw(st.integers(1, len(points)))
    shares = split(secret, sorted(points), needed)
    assert set(shares) == points
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}
    chosen = data.draw(st.permutations(sorted(points)))[
        : data.draw(st.integers(needed, len(points)))
    ]
    assert join({point: shares[point] for point in chosen}, needed) == secret


@pytest.mark.parametrize("needed", [1, 2, 3, 4, 5])
def test_every_choice_of_enough_holders_is_enough(needed: int) -> None:
    secret = secrets.token_bytes(SECRET_BYTES)
    shares = split(secret, range(1, 6), needed)
    for chosen in combinations(shares, needed):
        assert join({point: shares[point] for point in chosen}, needed) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(31) + b"\x01"])
def test_the_ends_of_the_range_are_secrets_as_well(secret: bytes) -> None:
    assert join(split(secret, range(1, 8), 4), 4) == secret


@settings(max_examples=30)
@given(SECRETS, SECRETS, st.integers(2, 8))
def test_too_few_shares_go_with_every_secret(secret: bytes, other: bytes, needed: int) -> None:
    """One share more can be made up so that all together give any other secret."""
    shares = split(secret, range(1, needed + 1), needed)
    held = {point: shares[point] for point in range(1, needed)}
    with pytest.raises(InvalidRelease, match=f"found {needed - 1} shares, {needed} are needed"):
        join(held, needed)
    *known, last = _weights(tuple(range(1, needed + 1)))
    rest = int.from_bytes(other, "big") - sum(
        weight * int.from_bytes(share, "big")
        for weight, share in zip(known, held.values(), strict=True)
    )
    made_up = rest * pow(last, -1, _PRIME) % _PRIME
    assert join(held | {needed: made_up.to_bytes(SHARE_BYTES, "big")}, needed) == other


def low_bytes_look_random(split_: Split) -> bool:
    """For one secret, and each holder alone: 256 values of the last byte, chi-square."""
    drawn = [split_(bytes(32), range(1, 4), 3) for _ in range(4000)]
    pvalues = []
    for point in range(1, 4):
        counts = np.bincount([shares[point][-1] for shares in drawn], minlength=256)
        pvalues.append(stats.chisquare(counts).pvalue)
    # What two hold together says nothing, either.
    both = [(shares[1][-1] - 2 * shares[2][-1]) % 256 for shares in drawn]
    pvalues.append(stats.chisquare(np.bincount(both, minlength=256)).pvalue)
    return bool(min(pvalues) > FALSE_ALARM)


def with_small_coefficients(secret: bytes, points: range, needed: int) -> dict[int, bytes]:
    factors = [secrets.randbelow(2**7) for _ in range(needed - 1)]
    value = int.from_bytes(secret, "big")
    return {
        point: (sum(f * point ** (i + 1) for i, f in enumerate(factors)) + value).to_bytes(
            SHARE_BYTES, "big"
        )
        for point in points
    }


def without_coefficients(secret: bytes, points: range, needed: int) -> dict[int, bytes]:
    """Everybody holds the secret."""
    assert needed <= len(points)
    return dict.fromkeys(points, b"\0" + secret)


def test_shares_are_spread_evenly_whatever_the_secret() -> None:
    assert low_bytes_look_random(split)
    for broken in (with_small_coefficients, without_coefficients):
        assert not low_bytes_look_random(broken)


def test_no_two_sharings_of_a_secret_are_alike() -> None:
    drawn = [split(bytes(32), range(1, 4), 2)[1] for _ in range(100)]
    assert len(set(drawn)) == 100


@pytest.mark.parametrize("wrong", [1, 2, 3])
def test_a_wrong_share_gives_another_secret_or_none(wrong: int) -> None:
    secret = secrets.token_bytes(SECRET_BYTES)
    shares = split(secret, range(1, 4), 3)
    shares[wrong] = ((int.from_bytes(shares[wrong], "big") + 1) % _PRIME).to_bytes(
        SHARE_BYTES, "big"
    )
    try:
        assert join(shares, 3) != secret
    except InvalidRelease as error:
        assert "do not belong together" in str(error)  # noqa: PT017 - one of two right answers


def test_what_no_secret_has_as_shares_is_refused() -> None:
    one = (2**256).to_bytes(SHARE_BYTES, "big")
    with pytest.raises(InvalidRelease, match="the shares do not belong together"):
        join({1: one, 2: one}, 2)


@pytest.mark.parametrize(
    ("secret", "points", "needed"),
    [
        (bytes(32), [1, 2], 0),
        (bytes(32), [1, 2], 3),
        (bytes(32), [1, 1], 2),
        (bytes(32), [0, 1], 2),
        (bytes(31), [1, 2], 2),
        (bytes(33), [1, 2], 2),
    ],
)
def test_what_cannot_be_shared_is_refused(secret: bytes, points: list[int], needed: int) -> None:
    with pytest.raises(ValueError, match="cannot share"):
        split(secret, points, needed)
