from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from server.certificates import create_authority, issue_server_certificate

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, hosts: list[str]) -> None:
    authority_key, authority = create_authority("market")
    key, certificate = issue_server_certificate(authority_key, authority, hosts)
    (folder / "ca.crt").write_bytes(authority)
    (folder / "server.crt").write_bytes(certificate)
    (folder / "server.key").write_bytes(key)


def shake_hands(folder: Path, name: str, authority: Path) -> str | None:
    """The TLS version that a server with these files and a client agree on."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(ours, server_side=True):
                pass
        except (ssl.SSLError, OSError):
            pass  # the client's side tells

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        context = ssl.create_default_context(cafile=authority)
        with context.wrap_socket(theirs, server_hostname=name) as secure:
            return secure.version()
    finally:
        theirs.close()
        thread.join(10)


@pytest.mark.parametrize("name", ["coordinator.example", "203.0.113.7", "127.0.0.1", "localhost"])
def test_a_platform_that_holds_the_authority_trusts_the_coordinator(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path, ["coordinator.example", "203.0.113.7"])
    assert shake_hands(tmp_path, name, tmp_path / "ca.crt") == "TLSv1.3"


def test_another_name_and_another_authority_are_refused(tmp_path: Path) -> None:
    write(tmp_path, ["coordinator.example"])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, "elsewhere.example", tmp_path / "ca.crt")
    other = tmp_path / "other.crt"
    other.write_bytes(create_authority("market")[1])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, "coordinator.example", other)


def test_the_servers_certificate_cannot_sign_others(tmp_path: Path) -> None:
    write(tmp_path, ["coordinator.example"])
    found = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert found.not_valid_before_utc < datetime.now(UTC) < found.not_valid_after_utc
