from __future__ import annotations

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, StateError
from common.keys import (
    SIGNATURE_BYTES,
    fingerprint,
    new_key_pair,
    parse_public_key,
    read_private_key,
    read_public_key,
    sign,
    verify,
)

if TYPE_CHECKING:
    from pathlib import Path

KEY = ec.generate_private_key(ec.SECP384R1())
OTHERS: list[Any] = [
    ec.generate_private_key(ec.SECP256R1()),
    ed25519.Ed25519PrivateKey.generate(),
]


def public_text(key: Any) -> bytes:  # noqa: ANN401 - any kind of key
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return bytes(key.public_key().public_bytes(encoding, form))


def private_text(key: Any) -> bytes:  # noqa: ANN401 - any kind of key
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH)
    return bytes(key.private_bytes(*form, serialization.NoEncryption()))


def test_a_pair_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "node.pub").write_bytes(public_text(KEY) + b" shop-a\n")
    (tmp_path / "node.key").write_bytes(private_text(KEY))
    public = read_public_key(tmp_path / "node.pub")
    assert public == KEY.public_key()
    assert public == read_private_key(tmp_path / "node.key").public_key()
    assert len(fingerprint(public)) == 64
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    assert fingerprint(public) == fingerprint(KEY.public_key()) != fingerprint(other)


@pytest.mark.parametrize("content", [b"", b"notes", b"\xff\x00", private_text(KEY)])
def test_what_is_no_public_key_is_named_with_what_to_do(content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"a\.pub: is not a public key\. Take the node\.pub"):
        parse_public_key(content, "a.pub")


@pytest.mark.parametrize("key", OTHERS)
def test_a_key_of_another_kind_is_refused(tmp_path: Path, key: Any) -> None:  # noqa: ANN401
    (tmp_path / "node.pub").write_bytes(public_text(key))
    with pytest.raises(ConfigError, match=r"node\.pub: is not an elliptic-curve key \(P-384\)"):
        read_public_key(tmp_path / "node.pub")
    (tmp_path / "node.key").write_bytes(private_text(key))
    with pytest.raises(ConfigError, match=r"node\.key: is not an elliptic-curve key \(P-384\)"):
        read_private_key(tmp_path / "node.key")


def test_what_is_no_private_key_is_named_and_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    with pytest.raises(StateError, match=r"node\.key: cannot be read"):
        read_private_key(path)
    with pytest.raises(StateError, match=r"node\.pub: cannot be read"):
        read_public_key(tmp_path / "node.pub")
    whole = private_text(KEY)
    for content in (b"", b"notes", whole[:200], public_text(KEY)):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"node\.key: is not a private key .*node\.key"):
            read_private_key(path)


def test_a_password_is_not_asked_for(tmp_path: Path) -> None:
    # The file says that it is encrypted; what it holds does not matter.
    begin, *lines, end = private_text(KEY).decode().splitlines()
    _, _, rest = b64decode("".join(lines)).partition(wire(b"none") * 2 + wire(b""))
    head = wire(b"aes256-ctr") + wire(b"bcrypt") + wire(wire(bytes(16)) + b"\0\0\0\x10")
    content = b64encode(b"openssh-key-v1\0" + head + rest).decode()
    path = tmp_path / "node.key"
    path.write_text(f"{begin}\n{content}\n{end}\n")
    with pytest.raises(ConfigError, match="without a password") as refused:
        read_private_key(path)
    assert isinstance(refused.value.__cause__, TypeError)


def wire(text: bytes) -> bytes:
    """``text`` as it stands in an SSH file, after its length."""
    return len(text).to_bytes(4, "big") + text


@given(st.binary(max_size=200))
def test_a_signature_holds_for_its_key_and_message_only(message: bytes) -> None:
    signature = sign(KEY, message)
    assert verify(KEY.public_key(), signature, message)
    assert not verify(KEY.public_key(), signature, message + b"x")
    other = ec.generate_private_key(ec.SECP384R1())
    assert not verify(other.public_key(), signature, message)
    assert not verify(KEY.public_key(), sign(other, message), message)


@given(st.binary(max_size=120))
def test_bytes_that_are_no_signature_are_answered(signature: bytes) -> None:
    assert not verify(KEY.public_key(), signature, b"message")


@pytest.mark.parametrize("place", [0, 3, 20, -1])
def test_a_changed_signature_does_not_hold(place: int) -> None:
    signature = bytearray(sign(KEY, b"message"))
    signature[place] ^= 1
    assert not verify(KEY.public_key(), bytes(signature), b"message")


def test_a_new_pair_belongs_together_and_is_no_other(tmp_path: Path) -> None:
    publics = []
    for name in ("shop-a", "shop-b"):
        private, public = new_key_pair(name)
        assert public.endswith(f" {name}\n".encode())
        (tmp_path / name).write_bytes(private)
        key = read_private_key(tmp_path / name)
        publics.append(parse_public_key(public, name))
        assert verify(publics[-1], sign(key, b"message"), b"message")
    assert publics[0] != publics[1]


def test_signatures_have_one_length_and_each_is_another() -> None:
    found = [sign(KEY, b"message")]
    # One in 128 has a number that begins with a zero byte: 4,000 without are unheard of.
    while 0 not in (found[-1][0], found[-1][48]):
        assert len(found) < 4000
        found.append(sign(KEY, b"message"))
    assert {len(signature) for signature in found} == {SIGNATURE_BYTES}
    assert len(set(found)) == len(found)
    assert verify(KEY.public_key(), found[-1], b"message")


@pytest.mark.parametrize("half", [bytes(48), bytes(47) + b"\x01", b"\xff" * 48])
def test_numbers_at_the_ends_are_no_signature(half: bytes) -> None:
    right = sign(KEY, b"message")
    for signature in (half + half, half + right[48:], right[:48] + half, right[48:] + right[:48]):
        assert not verify(KEY.public_key(), signature, b"message")
