"""Agreeing on a catalogue: the keys of each platform's items, their union, and its extension.

Every platform reports the keys of its assortment, a public input that never depends on who bought
what. The server forms the union and tells each platform the rows of its own keys. A key is an item
id, or a keyed hash of it (:mod:`client.assortment`). Who learns what:

- the coordinator: each assortment, if keys are ids. If they are keyed hashes: how many items each
  platform lists and which of them others list too, and with the noisy sums how often a hash sells,
  but not what it stands for, unless a platform gives the secret away;
- a platform: the size and digest of the union, and the rows of its own items. Rows follow the
  order of the keys, so they tell how many keys of others lie between two of its own; a guess of
  *all* items of the others can be checked against the digest; and sums, later, tell which of its
  items another one lists.

Keys travel as ``text`` [num_bytes] uint8, UTF-8 one after the other, and ``lengths`` [n] int64.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from common.errors import InvalidRelease

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from common.models.partition import Arrays

MAX_KEY_BYTES = 256
"""Longest key, in UTF-8."""

MAX_ITEMS = 10_000_000
"""Largest catalogue that can be agreed on."""


def pack_keys(keys: Sequence[str]) -> Arrays:
    """Keys as arrays, in their order; :func:`unpack_keys` gives them back."""
    encoded = [key.encode() for key in keys]
    return {
        "text": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "lengths": np.array([len(key) for key in encoded], dtype=np.int64),
    }


def unpack_keys(arrays: Mapping[str, np.ndarray], *, max_items: int = MAX_ITEMS) -> tuple[str, ...]:
    """Take keys out of arrays, whoever sent them.

    Raises:
        InvalidRelease: if the arrays are not exactly those of :func:`pack_keys`, a key is blank,
            too long, no UTF-8 or there twice, or there is none, or more than ``max_items``.
    """
    kinds = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
    if kinds != {"text": (np.dtype("uint8"), 1), "lengths": (np.dtype("int64"), 1)}:
        msg = f"item keys: found arrays {sorted(arrays)}, expected uint8 text and int64 lengths."
        raise InvalidRelease(msg)
    lengths, content = arrays["lengths"], arrays["text"].tobytes()
    if not 1 <= len(lengths) <= max_items:
        msg = f"item keys: found {len(lengths)}, expected 1 to {max_items}."
        raise InvalidRelease(msg)
    if lengths.min() < 1 or lengths.max() > MAX_KEY_BYTES or lengths.sum() != len(content):
        msg = f"item keys: expected 1 to {MAX_KEY_BYTES} bytes each, as many as there are in all."
        raise InvalidRelease(msg)
    ends = itertools.accumulate(lengths.tolist(), initial=0)
    try:
        keys = tuple(content[start:end].decode() for start, end in itertools.pairwise(ends))
    except UnicodeDecodeError:
        msg = "item keys: a key is not UTF-8."
        raise InvalidRelease(msg) from None
    if len(set(keys)) < len(keys) or not all(key.strip() for key in keys):
        msg = "item keys: a key is blank, or there twice."
        raise InvalidRelease(msg)
    return keys


def check_assortment(arrays: Arrays, *, max_items: int) -> Arrays:
    """Return what a platform reports if it is a set of keys, in order and not too many.

    Raises:
        InvalidRelease: as :func:`unpack_keys`, or if the keys do not increase.
    """
    keys = unpack_keys(arrays, max_items=max_items)
    if list(keys) != sorted(keys):
        msg = "item keys: expected increasing keys."
        raise InvalidRelease(msg)
    return arrays


def extend_catalogue(known: Sequence[str], reported: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """The keys of a catalogue after everybody reported.

    Guarantee: it begins with ``known``, so no row ever moves, whatever is reported or no longer is;
    then come the new keys, sorted. The order of the reports changes nothing.
    """
    new = {key for keys in reported for key in keys}.difference(known)
    return (*known, *sorted(new))
