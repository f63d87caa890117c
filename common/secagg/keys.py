"""Keys of one secure sum: key pairs that last for it, keys that two agree on, and key streams.

X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869), AES-256 in counter mode and AES-256-GCM, all of the
``cryptography`` package. Each derived key has one purpose, one session and one direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import InvalidRelease

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY_BYTES = 32
TAG_BYTES = 16
_NONCE = bytes(12)  # a key seals one message
_CHUNK = 1 << 18  # bytes of key stream at a time: they stay in the processor's cache


def new_private_key() -> bytes:
    """A fresh X25519 key of the operating system's generator, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key_of(private: bytes) -> bytes:
    """The public half, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed_key(private: bytes, public: bytes, *, session: bytes, purpose: bytes) -> bytes:
    """What the holders of both halves agree on for one purpose in one session: 32 bytes.

    Raises:
        InvalidRelease: if the other's key is one that everybody could agree on.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as error:
        msg = "a public key is not valid."
        raise InvalidRelease(msg) from error
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=session, info=purpose).derive(secret)


def check_public_key(public: bytes) -> None:
    """Refuse a key that nobody can agree on anything with, before it is passed on.

    Raises:
        InvalidRelease: if it is of low order.
    """
    agreed_key(new_private_key(), public, session=b"", purpose=b"")


def seal(key: bytes, message: bytes) -> bytes:
    """Encrypt and authenticate the one message of ``key``; 16 bytes longer."""
    return AESGCM(key).encrypt(_NONCE, message, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Undo :func:`seal`.

    Raises:
        InvalidRelease: if it was not sealed with ``key``, or was changed since.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, sealed, None)
    except InvalidTag as error:
        msg = "a sealed share cannot be opened."
        raise InvalidRelease(msg) from error


def add_streams_(
    vector: np.ndarray, plus: Sequence[bytes] = (), minus: Sequence[bytes] = ()
) -> None:
    """Add the key streams of ``plus`` to ``vector`` and subtract those of ``minus``, in place.

    Modulo the range of its type; one AES-256-CTR stream for each key, from counter 0.

    Args:
        vector: unsigned, one-dimensional, contiguous, little-endian.
        plus: keys of 32 bytes.
        minus: keys of 32 bytes.
    """
    signs = [np.add] * len(plus) + [np.subtract] * len(minus)
    streams = [
        Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor() for key in (*plus, *minus)
    ]
    zeros = memoryview(bytes(_CHUNK))
    block = bytearray(_CHUNK + 15)  # the cipher wants room for one block more
    size = _CHUNK // vector.itemsize
    for start in range(0, len(vector), size):
        part = vector[start : start + size]
        mask = np.frombuffer(block, dtype=vector.dtype, count=len(part))
        for combine, stream in zip(signs, streams, strict=True):
            stream.update_into(zeros[: part.nbytes], block)
            combine(part, mask, out=part)
