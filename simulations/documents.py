"""JSON documents of results: strict, versioned, whole or not at all.

A document is a frozen dataclass that inherits :class:`simulations.result.Checked`, with a field
``schema_version``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from common.errors import StateError
from common.storage import FOR_ALL, write_durably
from simulations.result import refuse_constant

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")


def write_document(path: Path, value: object) -> None:
    """Write ``value``; ``path`` holds either the old file or all of the new one.

    Raises:
        ValueError: if a number in it is NaN or infinite.
        StateError: if the folder cannot be written.
    """
    plain = TypeAdapter(type(value)).dump_python(value)
    text = json.dumps(plain, allow_nan=False, indent=2, sort_keys=True, ensure_ascii=False)
    write_durably(path, f"{text}\n".encode(), mode=FOR_ALL)


def read_document(path: Path, schema: type[T], version: int) -> T:
    """Read what :func:`write_document` wrote.

    Raises:
        StateError: if the file is missing, is not strict JSON, or has another schema.
    """
    try:
        document: Any = json.loads(path.read_bytes(), parse_constant=refuse_constant)
        found = document.get("schema_version") if isinstance(document, dict) else None
        if found == version:
            return TypeAdapter(schema).validate_json(json.dumps(document))
    except FileNotFoundError as error:
        raise StateError(f"{path}: there is no such file.") from error
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot be read as {schema.__name__}: {_short(error)}. Make it again."
        raise StateError(msg) from error
    msg = f"{path}: schema version {found}, expected {version}. Make it again."
    raise StateError(msg)


def _short(error: Exception) -> str:
    """Its cause in one line: of many mistakes in a document the first."""
    if isinstance(error, OSError):
        return str(error.strerror)
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"no strict JSON ({error})"
