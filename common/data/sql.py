"""From a database to the table that a file would give: one query, read once and never written.

Rows are streamed from a cursor on the server, and only whole results come back: a query that fails
half-way gives an error. Nothing is committed; SQLite and PostgreSQL are opened for reading only.

No error here holds the address' password or its options. What a server says of a query is passed
on; what it says of a row is not, since it may quote the row.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote
from uuid import UUID

import pyarrow as pa
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.pool import NullPool

from common.data.tables import raw_table
from common.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import URL, Connection

    from common.data.tables import RawTable

_ROWS_AT_ONCE: Final = 20_000
_LONGEST_CAUSE: Final = 300
_VARIABLE: Final = re.compile(r"\$\{([^{}]*)\}")
# A driver that cannot turn a value into Python's own raises what it likes.
_FAILED: Final = (SQLAlchemyError, ValueError, OverflowError)
_ABOUT_LOGIN: Final = re.compile("password|authentication|access denied|login", re.IGNORECASE)
# Where the package to install has another name than the module that is missing.
_PACKAGES: Final = {
    "psycopg": "crossrec[postgres]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SqlQuery:
    """Where a platform's interactions are asked for, and how.

    Raises:
        ConfigError: if the address is none, its driver is not installed, a SQLite file has no
            absolute path, or the statement is blank. Nothing is connected to yet.
    """

    address: str = field(repr=False)
    """SQLAlchemy's URL. ``${NAME}`` in user, password, host or database is an environment variable,
    taken literally: its value needs no escapes."""
    statement: str
    """What is asked for, sent as it is."""

    def __post_init__(self) -> None:
        """Find out before anybody relies on it."""
        url = _parsed(self.address)
        _check_driver(url)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_absolute():
            msg = (
                f"source: found {url.database or 'no'!r} as the file of a SQLite database, "
                "expected an absolute path: sqlite:////var/lib/shop.db, with four slashes."
            )
            raise ConfigError(msg)
        if not self.statement.strip():
            msg = "query: is blank; expected SELECT ... with a row for each interaction."
            raise ConfigError(msg)

    def __str__(self) -> str:
        """The address as errors and logs may show it: no password, no options."""
        return _parsed(self.address).set(query={}).render_as_string(hide_password=True)


def read_query(query: SqlQuery) -> RawTable:
    """Run ``query`` and read all of its rows.

    Raises:
        ConfigError: if an environment variable that the address names is not set.
        DataError: if the database does not answer or refuses, the query cannot be run or fails
            while it is read, a column holds values of several types, or there are no rows.
    """
    with _connected(query) as connection:
        try:
            result = connection.exec_driver_sql(query.statement)
        except _FAILED as error:  # of reading the first row, too
            is_about_query = isinstance(error, ProgrammingError | OperationalError)
            raise DataError(
                "the query cannot be run",
                source=query,
                found=_first_line(error) if is_about_query else _code(error),
                expected="a query that works, with this user's rights, in the database's own shell",
            ) from None
        if not result.returns_rows:
            raise DataError(
                "the query returns no table",
                source=query,
                found="a statement without rows",
                expected="SELECT ... with a row for each interaction",
            )
        names = tuple(str(name) for name in result.keys())  # noqa: SIM118 - a result is no dict
        try:
            chunks = [_columns(rows, names, query) for rows in result.partitions(_ROWS_AT_ONCE)]
        except _FAILED as error:
            raise DataError(
                "the query failed while it was read, and none of its rows is used",
                source=query,
                found=_code(error),
                expected="all rows; the database's own log may say more",
            ) from None
    if not chunks:
        raise DataError(
            "the query returns no rows", source=query, found="0 rows", expected="at least one row"
        )
    by_name = zip(names, zip(*chunks, strict=True), strict=True)
    return raw_table([_joined(name, parts, query) for name, parts in by_name], names, query)


@contextmanager
def _connected(query: SqlQuery) -> Iterator[Connection]:
    """A connection that reads; whatever was begun is rolled back."""
    url = _with_environment(_parsed(query.address))
    if url.get_backend_name() == "sqlite":
        # For reading: else a missing file would be made.
        query_part = {**url.query, "mode": "ro", "uri": "true"}
        url = url.set(database=f"file:{quote(url.database or '')}", query=query_part)
    # Without parameters a driver takes the statement as it is, with its % and : in place.
    options = {"postgresql_readonly": True, "no_parameters": True}
    engine = create_engine(url, poolclass=NullPool, execution_options=options)
    try:
        connection = engine.connect()
    except SQLAlchemyError as error:
        text = " ".join(str(getattr(error, "orig", error)).split())
        if url.password:
            text = text.replace(str(url.password), "***")
        raise DataError(
            "the database does not let us in",
            source=query,
            found=text[:_LONGEST_CAUSE].rstrip(".") or type(error).__name__,
            expected=_expected_of_server(url, text),
        ) from None
    try:
        yield connection.execution_options(stream_results=True)
    finally:
        with suppress(SQLAlchemyError):  # a connection that is lost cannot be closed, either
            connection.close()


def _expected_of_server(url: URL, text: str) -> str:
    if url.get_backend_name() == "sqlite":
        return "a SQLite file that this process may read"
    if _ABOUT_LOGIN.search(text):
        return "a user and a password that the server accepts"
    return "a server that runs at this host and port, can be reached from here and has the database"


def _parsed(address: str) -> URL:
    try:
        return make_url(address)
    except (ArgumentError, ValueError):
        msg = (
            "source: is no address of a database; expected the form of SQLAlchemy's URLs: "
            "postgresql+psycopg://user:${PASSWORD}@host:5432/database."
        )
        raise ConfigError(msg) from None


def _check_driver(url: URL) -> None:
    try:
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except NoSuchModuleError:
        msg = (
            f"source: {url.drivername!r} is no kind of database that SQLAlchemy knows here. "
            "Write postgresql+psycopg://, sqlite:// or another of its names, or install the "
            "package that brings this one."
        )
        raise ConfigError(msg) from None
    except ImportError as error:
        missing = (error.name or dialect.driver).partition(".")[0]
        package = _PACKAGES.get(missing, missing)
        msg = (
            f"source: {url.drivername} needs the Python package {missing!r}, which cannot be "
            f"imported here. Install it: pip install '{package}'."
        )
        raise ConfigError(msg) from None
    if dialect.is_async:
        msg = f"source: {url.drivername} is asynchronous; name a driver that is not."
        raise ConfigError(msg)


def _with_environment(url: URL) -> URL:
    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            msg = (
                f"source: the environment variable {match[1]!r} is not set. Set it where the "
                "platform is started."
            )
            raise ConfigError(msg)
        return found

    def filled(part: str | None) -> str | None:
        return None if part is None else _VARIABLE.sub(value, part)

    # After parsing, so that a password may hold any character.
    return url.set(
        username=filled(url.username),
        password=filled(url.password),
        host=filled(url.host),
        database=filled(url.database),
    )


def _columns(
    rows: Sequence[Sequence[object]], names: Sequence[str], query: SqlQuery
) -> list[pa.Array]:
    """Some rows as columns, of which numbers and ids have one form whatever the driver makes."""
    columns = []
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        try:
            column = pa.array([str(v) if isinstance(v, UUID) else v for v in values])
            if pa.types.is_decimal(column.type):
                column = column.cast(pa.int64() if column.type.scale == 0 else pa.float64())
        except (pa.ArrowException, OverflowError, UnicodeError):
            raise _mixed(name, query) from None
        columns.append(column)
    return columns


def _joined(name: str, chunks: Sequence[pa.Array], query: SqlQuery) -> pa.ChunkedArray:
    tables = [pa.table({"": chunk}) for chunk in chunks]
    try:
        return pa.concat_tables(tables, promote_options="permissive").column(0)
    except pa.ArrowException:
        raise _mixed(name, query) from None


def _mixed(name: str, query: SqlQuery) -> DataError:
    return DataError(
        "the values do not fit into one column",
        source=query,
        found="several types, or one beyond 64 bits",
        expected="one type; CAST(... AS ...) in the query makes it one",
        column=name,
    )


def _first_line(error: Exception) -> str:
    lines = str(getattr(error, "orig", error)).splitlines() or [type(error).__name__]
    return lines[0][:_LONGEST_CAUSE].rstrip(".")


def _code(error: Exception) -> str:
    """What kind of error it was, without its text: that may quote a row."""
    cause = getattr(error, "orig", None) or error
    code = getattr(cause, "sqlstate", None)
    return type(cause).__name__ + (f" (SQLSTATE {code})" if code else "")
