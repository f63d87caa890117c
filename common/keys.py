"""A platform's key pair: elliptic curve P-384, in the files that ``crossrec client init`` writes.

The public key stands for the platform's name, so everybody reads it in this one way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from common.errors import ConfigError
from common.storage import read_content, sha256

if TYPE_CHECKING:
    from pathlib import Path

CURVE = ec.SECP384R1
SIGNATURE_BYTES = 96
_ALGORITHM = ec.ECDSA(hashes.SHA384())


def new_key_pair(name: str) -> tuple[bytes, bytes]:
    """Contents of a fresh ``node.key`` and ``node.pub``; ``name`` is a remark in the latter."""
    key = ec.generate_private_key(CURVE())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private, public + f" {name}\n".encode()


def parse_public_key(content: bytes, source: object) -> ec.EllipticCurvePublicKey:
    """Decode the OpenSSH text of a public key.

    Raises:
        ConfigError: naming ``source``, if it is anything else.
    """
    try:
        key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        msg = f"{source}: is not a public key. Take the node.pub that `crossrec client init` wrote."
        raise ConfigError(msg) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVE):
        msg = (
            f"{source}: is not an elliptic-curve key (P-384). Take the node.pub that "
            "`crossrec client init` wrote."
        )
        raise ConfigError(msg)
    return key


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a platform's ``node.pub``.

    Raises:
        ConfigError: if it is no such key.
        StateError: if the file is missing or cannot be read.
    """
    return parse_public_key(read_content(path), path)


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a platform's ``node.key``.

    Raises:
        ConfigError: if it is no such key, or is protected by a password; quotes nothing of it.
        StateError: if the file is missing or cannot be read.
    """
    content = read_content(path)
    try:
        key = serialization.load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        msg = (
            f"{path}: is not a private key without a password. Take the node.key that "
            "`crossrec client init` wrote."
        )
        raise ConfigError(msg) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, CURVE):
        msg = (
            f"{path}: is not an elliptic-curve key (P-384). Take the node.key that "
            "`crossrec client init` wrote."
        )
        raise ConfigError(msg)
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key (DER): the platform and the coordinator are shown the same."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return sha256(der)


def sign(private_key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """An ECDSA signature of ``message`` with SHA-384: r and s, 96 bytes; each one is another."""
    r, s = decode_dss_signature(private_key.sign(message, _ALGORITHM))
    return r.to_bytes(SIGNATURE_BYTES // 2, "big") + s.to_bytes(SIGNATURE_BYTES // 2, "big")


def verify(public_key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Whether the holder of ``public_key`` signed ``message``; bytes of any kind are answered."""
    half = SIGNATURE_BYTES // 2
    if len(signature) != SIGNATURE_BYTES:
        return False
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    try:
        public_key.verify(encode_dss_signature(r, s), message, _ALGORITHM)
    except InvalidSignature:
        return False
    return True
