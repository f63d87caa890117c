"""TOML configuration parsed at the edge into frozen dataclasses, and written back.

A schema is a dataclass; a field that is itself a dataclass is a section. Field types may be
``str``, ``int``, ``float``, ``bool``, ``Path``, ``Literal[...]``, ``X | None``, ``tuple[X, ...]``,
``tuple[X, Y]`` and dataclasses. TOML keys are the field names. A field of type ``Path | str`` is a
path, unless it holds ``://``: then it is an address, and stays as it is.

Every mistake in a file is a :class:`~common.errors.ConfigError` that names the file, the section
and the key. What a value may be is for the dataclass to check in ``__post_init__``: a
``ValueError`` or ``ConfigError`` raised there gets the same context.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import tomli_w

from common.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_TOML_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
_UNION_TYPES = (Union, types.UnionType)
_PLACE = Path | str


def load_config(path: Path, schema: type[T]) -> T:
    """Read a TOML file into ``schema``.

    Relative ``Path`` values are taken from the file's own folder, ``~`` from the home folder.

    Raises:
        ConfigError: unreadable file, TOML syntax error (with its line), or as `parse_config`.
    """
    try:
        with path.open("rb") as file:
            mapping = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}.") from error
    return parse_config(mapping, schema, str(path), folder=path.absolute().parent)


def parse_config(
    mapping: Mapping[str, object],
    schema: type[T],
    source: str,
    *,
    folder: Path | None = None,
    complete: bool = False,
) -> T:
    """Build ``schema`` from a parsed TOML document.

    Args:
        mapping: the document.
        schema: dataclass to build.
        source: what errors call the document, usually its file name.
        folder: what relative paths are relative to; ``None`` leaves them as they are.
        complete: every key must be there, also those that have a default.

    Raises:
        ConfigError: unknown key or section (naming the nearest known one), missing key, wrong
            type, or a value that the dataclass itself refuses.
    """
    parser = _Parser(source=source, folder=folder, complete=complete)
    return parser.section(mapping, schema, name="")


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` (``[host]:port`` for IPv6) as its two parts.

    Raises:
        ConfigError: if it is not of this form.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"found {address!r}, expected an address like 'shop.example:8000'.")
    return host, int(port)


def dump_config(value: DataclassInstance) -> str:
    """Write ``value`` as TOML that `parse_config` reads back to an equal value.

    Raises:
        ConfigError: a field is ``None`` where that is not its default; TOML has no null.
    """
    return tomli_w.dumps(_section_to_toml(value, name=""))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Parser:
    source: str
    folder: Path | None
    complete: bool

    def section(self, mapping: Mapping[str, object], schema: type[T], *, name: str) -> T:
        hints = get_type_hints(schema)
        fields = {field.name: field for field in dataclasses.fields(schema) if field.init}
        for key, found in mapping.items():
            if key not in fields:
                raise self._unknown(key, found, hints, fields, name)
        values: dict[str, Any] = {}
        for key, field in fields.items():
            place = f"{name}.{key}" if name else key
            if key in mapping:
                values[key] = self._value(mapping[key], hints[key], place)
            elif _has_default(field) and not self.complete:
                continue
            elif _is_section(hints[key]):
                # An absent section reads as an empty one, so that the error names the key it needs.
                values[key] = self._value({}, hints[key], place)
            else:
                raise self._error(
                    place, f"is missing; add `{key} = ...` with {_expected(hints[key])}"
                )
        try:
            return schema(**values)
        except (ValueError, ConfigError) as error:
            raise self._error(name, str(error).removesuffix("."), is_section=True) from error

    def _value(self, found: object, hint: Any, place: str) -> Any:  # noqa: ANN401 - any field type
        origin = get_origin(hint)
        if hint == _PLACE:
            if not isinstance(found, str):
                raise self._wrong(found, hint, place)
            return self._value(found, str if "://" in found else Path, place)
        if origin in _UNION_TYPES:
            # JSON has a null, TOML has none.
            return None if found is None else self._value(found, _without_none(hint), place)
        if origin is Literal:
            # `True == 1` in Python, but not in TOML.
            for choice in get_args(hint):
                if choice == found and type(choice) is type(found):
                    return choice
            raise self._wrong(found, hint, place)
        if origin is tuple:
            return self._array(found, hint, place)
        if _is_section(hint):
            if not isinstance(found, Mapping):
                raise self._wrong(found, hint, place)
            return self.section(found, hint, name=place)
        return self._scalar(found, hint, place)

    def _array(self, found: object, hint: Any, place: str) -> tuple[Any, ...]:  # noqa: ANN401
        if not isinstance(found, list):
            raise self._wrong(found, hint, place)
        element_hints = get_args(hint)
        if element_hints[-1] is Ellipsis:
            element_hints = (element_hints[0],) * len(found)
        elif len(element_hints) != len(found):
            raise self._error(
                place, f"has {len(found)} values, expected exactly {len(element_hints)}"
            )
        return tuple(
            self._value(element, element_hint, f"{place}[{index}]")
            for index, (element, element_hint) in enumerate(zip(found, element_hints, strict=True))
        )

    def _scalar(self, found: object, hint: Any, place: str) -> Any:  # noqa: ANN401
        # bool is an int in Python: `type(...) is`, not isinstance.
        if hint is Path and isinstance(found, str):
            path = Path(found).expanduser()
            return path if self.folder is None else self.folder / path
        if hint is float and type(found) is int:
            try:
                return float(found)
            except OverflowError:
                raise self._wrong(found, hint, place) from None
        if hint in _TOML_NAMES and type(found) is hint:
            return found
        raise self._wrong(found, hint, place)

    def _wrong(self, found: object, hint: Any, place: str) -> ConfigError:  # noqa: ANN401
        suggestion = ""
        if get_origin(hint) is Literal and isinstance(found, str):
            suggestion = _did_you_mean(found, map(str, get_args(hint)))
        return self._error(place, f"found {_shown(found)}, expected {_expected(hint)}{suggestion}")

    def _unknown(
        self,
        key: str,
        found: object,
        hints: Mapping[str, Any],
        known: Iterable[str],
        name: str,
    ) -> ConfigError:
        is_section = isinstance(found, Mapping)
        # A misspelt section is nearest to another section, a misspelt key to another key.
        alike = [k for k in known if _is_section(hints[k]) == is_section]
        kind = "section" if is_section else "key"
        names = ", ".join(sorted(known))
        return self._error(
            name,
            f"unknown {kind} {key!r}{_did_you_mean(key, alike or known)} (known here: {names})",
            is_section=True,
        )

    def _error(self, place: str, problem: str, *, is_section: bool = False) -> ConfigError:
        section, _, key = (place, "", "") if is_section else place.rpartition(".")
        where = " ".join(part for part in (f"[{section}]" if section else "", key) if part)
        return ConfigError(f"{self.source}: {where}{': ' if where else ''}{problem}.")


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return (
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    )


def _is_section(hint: Any) -> TypeGuard[type[DataclassInstance]]:  # noqa: ANN401
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _without_none(hint: Any) -> Any:  # noqa: ANN401
    members = [member for member in get_args(hint) if member is not types.NoneType]
    if len(members) != 1:
        raise TypeError(f"A configuration field is one type or None, not {hint}")
    return members[0]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {nearest[0]!r}?" if nearest else ""


def _shown(found: object) -> str:
    if isinstance(found, Mapping):
        return "a section"
    if isinstance(found, list):
        return "an array"
    text = str(found).lower() if isinstance(found, bool) else repr(found)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _expected(hint: Any) -> str:  # noqa: ANN401, PLR0911 - one line for each type
    origin = get_origin(hint)
    if hint == _PLACE:
        return "a path or an address (a string)"
    if origin in _UNION_TYPES:
        return _expected(_without_none(hint))
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    if origin is tuple:
        return "an array of " + " and ".join(
            dict.fromkeys(_expected(element) for element in get_args(hint) if element is not ...)
        )
    if _is_section(hint):
        return "a section"
    if hint is Path:
        return "a path (a string)"
    if hint in _TOML_NAMES:
        return _TOML_NAMES[hint]
    raise TypeError(f"A configuration field cannot be of type {hint}")


def _section_to_toml(value: DataclassInstance, *, name: str) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        if not field.init:
            continue
        place = f"{name}.{field.name}" if name else field.name
        found = getattr(value, field.name)
        if found is not None:
            table[field.name] = _to_toml(found, place)
        elif field.default is not None:
            raise ConfigError(f"{place}: cannot be written: TOML has no null; give it a value.")
    return table


def _to_toml(value: Any, place: str) -> Any:  # noqa: ANN401
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _section_to_toml(value, name=place)
    if isinstance(value, tuple):
        return [_to_toml(element, place) for element in value]
    return str(value) if isinstance(value, Path) else value
