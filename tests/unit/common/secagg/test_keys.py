"""Two agree on a key that nobody else has, for one purpose and session; its stream is AES-CTR."""

from __future__ import annotations

import hashlib
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidRelease
from common.secagg import keys
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
from common.secagg.protocol import Secrets

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = ["<u4", "<u8"]
PRIME = 2**255 - 19
# Every 32 bytes that X25519 takes for a point of order 1, 2, 4 or 8 (cr.yp.to/ecdh.html).
LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    PRIME - 1,
    PRIME,
    PRIME + 1,
]


def numbered_key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def test_both_sides_agree_on_one_key_and_everything_else_gives_another() -> None:
    first, second, third = (new_private_key() for _ in range(3))
    asked = {"session": b"session", "purpose": b"masks"}
    key = agreed_key(first, public_key_of(second), **asked)
    assert key == agreed_key(second, public_key_of(first), **asked)
    assert len(key) == KEY_BYTES
    others = {
        agreed_key(first, public_key_of(second), session=b"other", purpose=b"masks"),
        agreed_key(first, public_key_of(second), session=b"session", purpose=b"shares"),
        agreed_key(first, public_key_of(second), session=b"masks", purpose=b"session"),
        agreed_key(first, public_key_of(third), **asked),
        agreed_key(second, public_key_of(third), **asked),
    }
    assert len(others | {key}) == 6


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_key_that_everybody_would_agree_on_is_refused(point: int) -> None:
    with pytest.raises(InvalidRelease, match="a public key is not valid"):
        agreed_key(new_private_key(), point.to_bytes(32, "little"), session=b"s", purpose=b"p")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_what_is_no_key_is_refused(size: int) -> None:
    with pytest.raises(InvalidRelease, match="a public key is not valid"):
        agreed_key(new_private_key(), bytes(size), session=b"s", purpose=b"p")


@settings(max_examples=30)
@given(st.binary(max_size=100), st.data())
def test_what_was_sealed_is_opened_with_the_same_key_and_unchanged(
    message: bytes, data: st.DataObject
) -> None:
    key, other = numbered_key(1), numbered_key(2)
    sealed = seal(key, message)
    assert len(sealed) == len(message) + TAG_BYTES
    assert unseal(key, sealed) == message
    changed = bytearray(sealed)
    changed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    attempts = [(other, sealed), (key, bytes(changed)), (key, sealed[:-1]), (key, sealed + b"x")]
    for used, found in attempts:
        with pytest.raises(InvalidRelease, match="cannot be opened"):
            unseal(used, found)


def reference(key: bytes, size: int, dtype: str) -> np.ndarray:
    """The stream in one go."""
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    width = np.dtype(dtype).itemsize
    return np.frombuffer(cipher.update(bytes(size * width)) + cipher.finalize(), dtype=dtype)


SIZES = [0, 1, 2, 3, 5, 1001] + [
    chunks * keys._CHUNK // 8 + more for chunks, more in product((1, 2), (-1, 0, 1, 3))
]


@pytest.mark.parametrize(("size", "dtype"), list(product(SIZES, DTYPES)))
def test_streams_are_added_and_subtracted_as_aes_makes_them(size: int, dtype: str) -> None:
    vector = np.arange(size, dtype=dtype)
    plus, minus = [numbered_key(n) for n in (1, 2)], [numbered_key(3)]
    found = vector.copy()
    add_streams_(found, plus=plus, minus=minus)
    first, second, third = (reference(key, size, dtype) for key in (*plus, *minus))
    assert np.array_equal(found, vector + first + second - third)
    assert found.dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_goes_on_from_chunk_to_chunk(dtype: str) -> None:
    size = keys._CHUNK // np.dtype(dtype).itemsize + 1
    found = np.zeros(2 * size, dtype=dtype)
    add_streams_(found, plus=[numbered_key(1)])
    assert np.array_equal(found, reference(numbered_key(1), 2 * size, dtype))


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 9), max_size=4),
    st.lists(st.integers(0, 9), max_size=4),
    st.integers(0, 300),
    st.sampled_from(DTYPES),
)
def test_what_is_added_and_taken_away_is_gone(
    plus: list[int], minus: list[int], size: int, dtype: str
) -> None:
    vector = np.arange(size, dtype=dtype)
    added, taken = [numbered_key(n) for n in plus], [numbered_key(n) for n in minus]
    found = vector.copy()
    add_streams_(found, plus=added, minus=taken)
    add_streams_(found, plus=taken, minus=added)
    assert np.array_equal(found, vector)


def every_byte_of_the_key_matters(add: Callable[..., None]) -> bool:
    key, streams = numbered_key(1), set()
    for place in range(KEY_BYTES):
        other = bytearray(key)
        other[place] ^= 1
        streams.add(stream_of(add, bytes(other)))
    return len(streams | {stream_of(add, key)}) == KEY_BYTES + 1


def stream_of(add: Callable[..., None], key: bytes) -> bytes:
    vector = np.zeros(64, dtype="<u4")
    add(vector, plus=[key])
    return vector.tobytes()


def of_32_bits(vector: np.ndarray, plus: list[bytes]) -> None:
    add_streams_(vector, plus=[hashlib.sha256(key[:4]).digest() for key in plus])


def of_128_bits(vector: np.ndarray, plus: list[bytes]) -> None:
    add_streams_(vector, plus=[key[:16] * 2 for key in plus])


def test_a_stream_depends_on_all_of_its_key() -> None:
    assert every_byte_of_the_key_matters(add_streams_)
    for broken in (of_32_bits, of_128_bits):
        assert not every_byte_of_the_key_matters(broken)


def every_byte_varies(draws: list[bytes]) -> bool:
    """32 draws of a random byte are all the same once in 10^74 runs."""
    table = np.array([list(draw) for draw in draws])
    return table.shape[1] == KEY_BYTES and bool((np.ptp(table, axis=0) > 0).all())


def test_secrets_are_fresh_in_every_byte() -> None:
    drawn = [Secrets.new() for _ in range(32)]
    for kind in ("sealing_key", "mask_key", "own_mask"):
        found = [getattr(own, kind) for own in drawn]
        assert every_byte_varies(found)
        assert len(set(found)) == 32
        assert not every_byte_varies([bytes(28) + draw[:4] for draw in found]), "32-bit seeds"
    assert all(own.sealing_key != own.mask_key for own in drawn)
