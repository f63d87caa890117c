"""Keys, signatures and shares as arrays of bytes, checked strictly on both sides.

They travel beside :class:`common.messages.SecaggStage`, whose table lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from common.errors import InvalidRelease
from common.keys import SIGNATURE_BYTES
from common.secagg.keys import KEY_BYTES
from common.secagg.protocol import SEALED_BYTES, Advertised
from common.secagg.sharing import SHARE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from common.models.partition import Arrays

_WIDTHS = {
    "sealing_key": KEY_BYTES,
    "mask_key": KEY_BYTES,
    "signature": SIGNATURE_BYTES,
    "commitment": KEY_BYTES,
    "sealing_keys": KEY_BYTES,
    "mask_keys": KEY_BYTES,
    "signatures": SIGNATURE_BYTES,
    "sealed": SEALED_BYTES,
    "shares": SHARE_BYTES,
}
_SINGLE = frozenset({"sealing_key", "mask_key", "signature", "commitment"})
_ROW_BYTES = 512
"""More than all rows of one name together, and its array's header."""


def pack_bytes(**parts: bytes | Sequence[bytes]) -> Arrays:
    """Arrays of uint8: one row for each of several parts, none for a single one."""
    arrays = {}
    for name, found in parts.items():
        rows = [found] if isinstance(found, bytes) else list(found)
        flat = np.frombuffer(b"".join(rows), dtype=np.uint8)
        shape = (_WIDTHS[name],) if name in _SINGLE else (len(rows), _WIDTHS[name])
        arrays[name] = flat.reshape(shape)
    return arrays


def unpack_bytes(
    arrays: Mapping[str, np.ndarray], names: Sequence[str], rows: int = 0
) -> dict[str, list[bytes]]:
    """Undo :func:`pack_bytes`; a single part is a list of one.

    Args:
        arrays: as they came.
        names: that there must be, and no others.
        rows: of those that have several.

    Raises:
        InvalidRelease: for another key, shape or type.
    """
    if set(arrays) != set(names):
        msg = f"found arrays {sorted(arrays)}, expected exactly {sorted(names)}."
        raise InvalidRelease(msg)
    found = {}
    for name in names:
        array = arrays[name]
        shape = (_WIDTHS[name],) if name in _SINGLE else (rows, _WIDTHS[name])
        if array.dtype != np.uint8 or array.shape != shape:
            msg = f"{name}: found {array.dtype} {array.shape}, expected uint8 {shape}."
            raise InvalidRelease(msg)
        parts = array.reshape(-1, _WIDTHS[name])
        found[name] = [part.tobytes() for part in parts]
    return found


def most_bytes(rows: int) -> int:
    """Bytes of any of these replies with so many rows, at most."""
    return (rows + 8) * _ROW_BYTES


def pack_keys(advertised: Mapping[str, Advertised]) -> Arrays:
    """What platforms advertised, in the order of their names."""
    keys = [advertised[name] for name in sorted(advertised)]
    return pack_bytes(
        sealing_keys=[key.sealing_key for key in keys],
        mask_keys=[key.mask_key for key in keys],
        signatures=[key.signature for key in keys],
    )


def unpack_keys(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Advertised]:
    """Undo :func:`pack_keys` for the platforms ``names``.

    Raises:
        InvalidRelease: as :func:`unpack_bytes`.
    """
    found = unpack_bytes(arrays, ("sealing_keys", "mask_keys", "signatures"), len(names))
    columns = zip(names, *(found[key] for key in found), strict=True)
    return {
        name: Advertised(sealing_key=sealing, mask_key=mask, signature=signature)
        for name, sealing, mask, signature in columns
    }
