"""Messages and arrays in and out of Flower's records: the one place that knows both."""

from __future__ import annotations

import io
import math
import secrets
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.errors import RequestRefused
from common.messages import from_json, to_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from common.models.partition import Arrays

_MESSAGE, _ARRAYS = "message", "arrays"
_JSON, _NONCE = "json", "nonce"
_NONCE_BYTES = 16

T = TypeVar("T", bound="DataclassInstance")


def encode(value: DataclassInstance, arrays: Arrays | None = None) -> RecordDict:
    """Put one message, and the arrays beside it, into a Flower record.

    The nonce beside it says nothing and is in no digest. Flower stores a message under the hash of
    its content: whoever could guess the next one could take its place in the store.
    """
    record = RecordDict({_MESSAGE: ConfigRecord({_JSON: to_json(value), _NONCE: _nonce()})})
    if arrays is not None:
        record[_ARRAYS] = ArrayRecord(
            {name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()}
        )
    return record


def question() -> RecordDict:
    """The content of a message whose type says everything."""
    return RecordDict({_MESSAGE: ConfigRecord({_NONCE: _nonce()})})


def decode(record: RecordDict, schema: type[T], *, max_bytes: float = math.inf) -> tuple[T, Arrays]:
    """Take one message of type ``schema``, and the arrays beside it, out of a Flower record.

    Args:
        record: what came; Flower holds its bytes already.
        schema: what it must be.
        max_bytes: of message, arrays and their names together; more is refused before any of it is
            decoded.

    Raises:
        RequestRefused: if anything else is in it, it is too large, or does not parse.
    """
    foreign = set(record) - {_MESSAGE, _ARRAYS}
    message = record.get(_MESSAGE)
    if foreign or not isinstance(message, ConfigRecord) or set(message) != {_JSON, _NONCE}:
        msg = f"malformed message: expected one {schema.__name__}, found {sorted(record)}."
        raise RequestRefused(msg)
    nonce = message[_NONCE]
    if not isinstance(nonce, str) or len(nonce) != 2 * _NONCE_BYTES:
        msg = f"malformed message: 'nonce' is not of {2 * _NONCE_BYTES} characters."
        raise RequestRefused(msg)
    arrays = record.get(_ARRAYS, ArrayRecord())
    if not isinstance(arrays, ArrayRecord):
        msg = "malformed message: 'arrays' holds no arrays."
        raise RequestRefused(msg)
    num_bytes = len(str(message[_JSON])) + sum(
        len(name) + len(array.data) for name, array in arrays.items()
    )
    if num_bytes > max_bytes:
        msg = f"malformed message: {num_bytes:,} bytes, expected at most {max_bytes:,.0f}."
        raise RequestRefused(msg)
    try:
        numpy_arrays = {name: _numpy(array) for name, array in arrays.items()}
    except Exception as error:
        # Any exception: the bytes are a stranger's, and numpy's reader raises what it meets.
        msg = f"malformed message: an array cannot be decoded ({type(error).__name__})."
        raise RequestRefused(msg) from error
    return from_json(str(message[_JSON]), schema), numpy_arrays


def _nonce() -> str:
    return secrets.token_hex(_NONCE_BYTES)


def _numpy(array: Array) -> np.ndarray:
    """Decode one array; unlike ``Array.numpy()``, never a zip archive of several.

    Raises:
        ValueError: if it is none, or its header promises another number of bytes than follow.
    """
    content = io.BytesIO(array.data)
    version = np.lib.format.read_magic(content)
    read_header = np.lib.format.read_array_header_1_0
    shape, _, dtype = (read_header if version == (1, 0) else np.lib.format.read_array_header_2_0)(
        content
    )
    # Before memory is asked for: a header of a hundred bytes may promise terabytes.
    if len(array.data) - content.tell() != dtype.itemsize * math.prod(shape):
        raise ValueError("the header promises another size")
    content.seek(0)
    return np.lib.format.read_array(content, allow_pickle=False)
