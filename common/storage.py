"""Files that survive a crash: written whole or not at all, and read back strictly.

Arrays are safetensors (no pickle: a pickle from elsewhere is code).
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np


FOR_ALL = 0o644
"""Permissions of a file that others of this machine may read: certificates, reports, results."""


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write ``content`` to ``path`` so that after a crash the file is the old or the new one.

    Two writers of one path do not mix: the last one wins whole.

    Args:
        path: its folder is made if it is not there.
        content: all of the file.
        mode: permissions, less what the process's umask takes away; the owner's alone unless
            the file is meant for others (:data:`FOR_ALL`).

    Raises:
        StateError: if the disk is full or the folder cannot be written; ``path`` holds what it
            held before, or all of ``content``.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "wb", opener=partial(os.open, mode=mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        msg = f"{path}: cannot be written ({error.strerror}). Free the disk or fix permissions."
        raise StateError(msg) from error


def make_private(folder: Path) -> None:
    """Make ``folder`` if it is not there; nobody but its owner may look into it from now on.

    Raises:
        StateError: if it cannot be made, or belongs to another user.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        msg = f"{folder}: cannot be made this user's own ({error.strerror})."
        raise StateError(msg) from error


def sync_folder(folder: Path) -> None:
    """Make the names of new files in ``folder`` survive a crash.

    Raises:
        OSError: if the operating system refuses.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def pack_arrays(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Encode named arrays and text as safetensors bytes; the same input gives the same bytes."""
    contiguous = {name: array.copy(order="C") for name, array in arrays.items()}
    return save(contiguous, metadata={"crossrec": json.dumps(dict(metadata), sort_keys=True)})


def unpack_arrays(content: bytes, source: object) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Decode :func:`pack_arrays`.

    Raises:
        StateError: naming ``source``, if the bytes are damaged or not ours.
    """
    try:
        arrays = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = json.loads(header["__metadata__"]["crossrec"])
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise TypeError("its metadata is not a table of texts")  # noqa: TRY301
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        msg = f"{source}: damaged or not a CrossRec array file ({error})."
        raise StateError(msg) from error
    return arrays, metadata


def read_content(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        StateError: if it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})."
        raise StateError(msg) from error


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a file written from :func:`pack_arrays`.

    Raises:
        StateError: if the file is missing or damaged.
    """
    return unpack_arrays(read_content(path), path)


def sha256(content: bytes) -> str:
    """Hex SHA-256 of ``content``."""
    return hashlib.sha256(content).hexdigest()
