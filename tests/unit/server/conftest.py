"""What tests of a deployed federation share: its founding, and the keys of its platforms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.keys import CURVE
from server.founding import found_federation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., Path]:
    """Found the federation ``market`` of platforms a and b, and return its ``federation.toml``."""

    def found(**changes: Any) -> Path:  # noqa: ANN401 - any option
        options: dict[str, Any] = {
            "hosts": ["127.0.0.1"],
            "port": 8000,
            "platforms": ["a", "b"],
            "epsilon": 4.0,
            "delta": 1e-6,
            "plan": "pairs",
            "rounds": 7,
        }
        return found_federation(tmp_path / "market", **{**options, **changes})

    return found


@pytest.fixture
def public_key(tmp_path: Path) -> Callable[..., Path]:
    """Write a public key to the file ``name``, a new platform's if none is given."""

    def public_key(name: str, key: Any = None) -> Path:  # noqa: ANN401 - any kind of key
        key = key or ec.generate_private_key(CURVE())
        encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        path = tmp_path / name
        path.write_bytes(key.public_key().public_bytes(encoding, form))
        return path

    return public_key
