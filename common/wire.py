"""Messages and arrays in and out of Flower's records: the one place that knows both."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.errors import RequestRefused
from common.messages import from_json, to_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from common.models.partition import Arrays

_MESSAGE, _ARRAYS = "message", "arrays"

T = TypeVar("T", bound="DataclassInstance")


def encode(value: DataclassInstance, arrays: Arrays | None = None) -> RecordDict:
    """Put one message, and the arrays beside it, into a Flower record."""
    record = RecordDict({_MESSAGE: ConfigRecord({"json": to_json(value)})})
    if arrays is not None:
        record[_ARRAYS] = ArrayRecord(
            {name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()}
        )
    return record


def decode(record: RecordDict, schema: type[T]) -> tuple[T, Arrays]:
    """Take one message of type ``schema``, and the arrays beside it, out of a Flower record.

    Raises:
        RequestRefused: if anything else is in it, or the message does not parse.
    """
    foreign = set(record) - {_MESSAGE, _ARRAYS}
    message = record.get(_MESSAGE)
    if foreign or not isinstance(message, ConfigRecord) or set(message) != {"json"}:
        msg = f"malformed message: expected one {schema.__name__}, found {sorted(record)}."
        raise RequestRefused(msg)
    arrays = record.get(_ARRAYS, ArrayRecord())
    if not isinstance(arrays, ArrayRecord):
        msg = "malformed message: 'arrays' holds no arrays."
        raise RequestRefused(msg)
    try:
        numpy_arrays = {name: _numpy(array) for name, array in arrays.items()}
    except Exception as error:
        # Any exception: the bytes are a stranger's, and numpy's reader raises what it meets.
        msg = f"malformed message: an array cannot be decoded ({type(error).__name__})."
        raise RequestRefused(msg) from error
    return from_json(str(message["json"]), schema), numpy_arrays


def _numpy(array: Array) -> np.ndarray:
    """Decode one array; unlike ``Array.numpy()``, never a zip archive of several."""
    content = io.BytesIO(array.data)
    return np.lib.format.read_array(content, allow_pickle=False)
