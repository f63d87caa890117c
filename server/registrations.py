"""Which node may speak for which platform: what ``crossrec server run`` registered, on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from common.errors import RequestRefused, StateError
from common.storage import read_content, write_durably

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REGISTRATIONS_FILE = "registrations.json"
"""In the server's state folder: node id and key of each platform that was registered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """A platform that the SuperLink accepts."""

    node_id: int
    """Flower's number for it."""
    key_sha256: str
    """Of its public key file."""


def read_registrations(path: Path) -> dict[str, Registration]:
    """Platform name -> what was registered; empty if nothing was yet.

    Raises:
        StateError: if the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        return {
            str(name): Registration(
                node_id=int(entry["node_id"]), key_sha256=str(entry["key_sha256"])
            )
            for name, entry in json.loads(read_content(path)).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path}: is damaged ({error}). Delete it, and platforms are registered again."
        raise StateError(msg) from error


def write_registrations(path: Path, found: Mapping[str, Registration]) -> None:
    """Replace what :func:`read_registrations` reads."""
    content = {name: asdict(registration) for name, registration in found.items()}
    write_durably(path, json.dumps(content, indent=2, sort_keys=True).encode())


def check_speaker(registered: Mapping[str, Registration], platform: str, node: int) -> None:
    """Refuse whoever calls itself ``platform`` and does not hold the key registered for it.

    Flower gives a node its number by its key, and keeps it: the number stands for the key.

    Raises:
        RequestRefused: saying which node was registered.
    """
    found = registered.get(platform)
    if found is None:
        msg = f"platform {platform!r} has no registered key: crossrec server register {platform}."
        raise RequestRefused(msg)
    if found.node_id != node:
        msg = (
            f"node {node} calls itself {platform!r}, whose registered key belongs to node "
            f"{found.node_id}."
        )
        raise RequestRefused(msg)
