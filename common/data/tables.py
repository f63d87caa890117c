"""One file of any supported form, as a table of columns that still knows its line numbers.

What a database returns becomes the same kind of table, see :mod:`common.data.sql`.

Text is read as text: no value is turned into a number or a missing value here.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

_WHITESPACE: Final = r"\s+"
# In the order in which they are preferred when a header reads equally well with several.
_SEPARATORS: Final = ("\t", "::", ";", "|", ",", _WHITESPACE)
_GZIP_MAGIC: Final = b"\x1f\x8b"
_PARQUET_MAGIC: Final = b"PAR1"
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_MAX_HEADER_BYTES: Final = 1 << 16
_BROKEN_GZIP: Final = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawTable:
    """A source's columns as they are; ``frame.index`` holds each row's position in it."""

    source: object
    """File or query, as errors name it."""
    names: tuple[str, ...]
    frame: pd.DataFrame
    is_text: bool

    def column(self, position: int) -> pd.Series:
        """The column at ``position`` (names may repeat)."""
        return self.frame.iloc[:, position]

    def text(self, position: int) -> pd.Series:
        """The column as text: integers become their decimal digits, nulls stay missing.

        Raises:
            DataError: if it holds anything else, such as floats.
        """
        values = self.column(position)
        try:
            return _as_text(values)
        except TypeError:
            types = {type(value).__name__ for value in values if value is not None}
            raise DataError(
                "the column has a type that is no id",
                source=self.source,
                found=", ".join(sorted(types)),
                expected="text or integers",
                column=self.names[position],
            ) from None

    def ids(self, position: int, kind: str) -> pd.Series:
        """The column as ids, each exactly as written.

        Args:
            position: the column.
            kind: what it identifies, for the message (``"user"``).

        Raises:
            DataError: if an id is missing or blank.
        """
        ids = self.text(position)
        is_missing = ids.isna() | (ids.str.strip() == "")
        if is_missing.any():
            raise self.error(
                f"the {kind} id is missing",
                row=first_row(is_missing),
                column=self.names[position],
                found="nothing",
                expected="an id",
            )
        return ids

    def error(
        self, problem: str, *, row: int, found: object, expected: str, column: str | None = None
    ) -> DataError:
        """A :class:`DataError` about row ``row`` (an index label of ``frame``)."""
        if not self.is_text:
            return DataError(
                f"row {row + 1}: {problem}",
                source=self.source,
                found=found,
                expected=expected,
                column=column,
            )
        # A quoted field may hold line breaks: count them, or the line would be wrong.
        before = self.frame.loc[self.frame.index < row]
        breaks = sum(int(before.iloc[:, k].str.count("\n").sum()) for k in range(before.shape[1]))
        return DataError(
            problem,
            source=self.source,
            found=found,
            expected=expected,
            line=row + 2 + breaks,
            column=column,
        )


def first_row(mask: pd.Series) -> int:
    """The index label of the first True in ``mask``."""
    return int(mask.index.to_numpy()[mask.to_numpy(dtype=bool).argmax()])


def _as_text(values: pd.Series) -> pd.Series:
    """``values`` as text, or TypeError; floats too are refused (is ``7.0`` the id ``7``?)."""
    if isinstance(values.dtype, pd.StringDtype):
        return values
    if pd.api.types.is_integer_dtype(values.dtype):
        return values.astype("str")
    known = values.dropna()
    if values.dtype == object and known.map(lambda v: type(v) in (int, str)).all():
        return values.where(values.isna(), values.map(str)).astype("str")
    raise TypeError(str(values.dtype))


def read_raw(path: Path, *, num_recognised: Callable[[Sequence[str]], int]) -> RawTable:
    """Read ``path``: text with a header line, plain or gzipped, or Parquet.

    What a file is follows from its first bytes, not from its name. The separator (tab,
    ``::``, semicolon, pipe, comma, white space) is the one with which the header has the
    most recognised names.

    Args:
        path: the file.
        num_recognised: how many of the given header names are known.

    Raises:
        DataError: if the file cannot be read, is empty, has no header or no row, is not
            UTF-8, or has a row with too many fields.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DataError(
            "the file cannot be opened",
            source=path,
            found=error.strerror or type(error).__name__,
            expected="a readable file",
        ) from None
    if not start:
        raise DataError(
            "the file is empty", source=path, found="0 bytes", expected="a header line and rows"
        )
    if start == _PARQUET_MAGIC or path.suffix.lower() in {".parquet", ".pq"}:
        return _read_parquet(path)
    return _read_text(path, num_recognised, is_gzip=start.startswith(_GZIP_MAGIC))


def _read_parquet(path: Path) -> RawTable:
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            "the Parquet file cannot be read",
            source=path,
            found=str(error).splitlines()[0].rstrip("."),
            expected="a complete Parquet file",
        ) from None
    names = tuple(str(name) for name in table.column_names)
    if not names or not table.num_rows:
        raise DataError(
            "the file holds no rows", source=path, found="0 rows", expected="at least one row"
        )
    return raw_table(table.columns, names, path)


def raw_table(
    columns: Iterable[pa.ChunkedArray], names: tuple[str, ...], source: object
) -> RawTable:
    """Columns that have types, as a table.

    Args:
        columns: of one length, in the order of ``names``.
        names: what the source calls them.
        source: what errors call the source.
    """
    # Column by column, with nulls as they are: to_pandas() on a table would turn an integer
    # column with a null into floats, and "7" into "7.0".
    series = [column.to_pandas(integer_object_nulls=True) for column in columns]
    series = [
        values.astype(values.cat.categories.dtype)
        if isinstance(values.dtype, pd.CategoricalDtype)
        else values
        for values in series
    ]
    return RawTable(
        source=source, names=names, frame=pd.DataFrame(dict(enumerate(series))), is_text=False
    )


def _read_text(
    path: Path, num_recognised: Callable[[Sequence[str]], int], *, is_gzip: bool
) -> RawTable:
    separator = _separator(_header_line(path, is_gzip=is_gzip), num_recognised)
    try:
        # The header is read as a row: so pandas fixes the number of fields by it, and the
        # position of a row is its line.
        frame = pd.read_csv(
            path,
            sep=separator,
            header=None,
            dtype="str",
            na_filter=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
            compression="gzip" if is_gzip else None,
            engine="python" if separator == "::" else "c",
        )
    except UnicodeDecodeError:
        raise _encoding_error(path, is_gzip=is_gzip) from None
    except _BROKEN_GZIP as error:
        raise _gzip_error(path, error) from None
    except pd.errors.ParserError as error:
        raise _parser_error(path, str(error)) from None
    if frame.isna().any(axis=None):  # the Python engine fills short rows with NaN
        frame = frame.fillna("")
    names = tuple(str(name).strip() for name in frame.iloc[0])
    frame = frame.iloc[1:].reset_index(drop=True)
    if frame.shape[1]:
        is_blank = frame.iloc[:, 0].str.strip() == ""
        for k in range(1, frame.shape[1]):
            if not is_blank.any():
                break
            is_blank &= frame.iloc[:, k].str.strip() == ""
        frame = frame.loc[~is_blank]
    if frame.empty:
        if _looks_like_values(names):
            raise no_header_error(path, names)
        raise DataError(
            "the file has a header and no rows",
            source=path,
            found="0 rows",
            expected="at least one row below the header",
        )
    return RawTable(source=path, names=names, frame=frame, is_text=True)


def no_header_error(source: object, names: Sequence[str]) -> DataError:
    """A file starts with values: say so without repeating them, they belong to a user."""
    return DataError(
        "the file has no header line",
        source=source,
        found=f"{len(names)} values and no column name",
        expected="a first line with the column names, for example "
        "user_id, item_id, rating, timestamp with the separator of the file (add it)",
        line=1,
    )


def check_header(raw: RawTable) -> None:
    """Raise the header-less :class:`DataError` if ``raw`` starts with values.

    For a caller that has recognised no column at all.
    """
    if raw.is_text and _looks_like_values(raw.names):
        raise no_header_error(raw.source, raw.names)


def _looks_like_values(names: Sequence[str]) -> bool:
    """Whether a line holds a number, which no header of ours does."""
    return any(re.fullmatch(r"[-+]?\d+([.,:T -]\d+)*Z?", name.strip()) for name in names)


def _header_line(path: Path, *, is_gzip: bool) -> str:
    try:
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
            line = cast("BinaryIO", file).readline(_MAX_HEADER_BYTES)
    except _BROKEN_GZIP as error:
        raise _gzip_error(path, error) from None
    if line.startswith(_UTF16_MARKS):
        raise _encoding_error(path, is_gzip=is_gzip)
    if b"\0" in line:
        raise DataError(
            "the file is not text",
            source=path,
            found="binary content",
            expected="CSV, TSV or Parquet, plain or gzipped",
            line=1,
        )
    try:
        text = re.split(r"[\r\n]", line.decode("utf-8-sig"), maxsplit=1)[0]
    except UnicodeDecodeError:
        raise _encoding_error(path, is_gzip=is_gzip) from None
    if not text.strip():
        raise DataError(
            "the first line is blank",
            source=path,
            found="no column names",
            expected="a header line such as user_id, item_id, rating, timestamp",
            line=1,
        )
    return text


def _separator(header: str, num_recognised: Callable[[Sequence[str]], int]) -> str:
    def fit(separator: str) -> tuple[int, int]:
        names = _split(header, separator)
        return num_recognised(names), len(names)

    return max(_SEPARATORS, key=fit)  # max() keeps the first of equals


def _split(header: str, separator: str) -> list[str]:
    if separator == "::":
        return header.split("::")
    if separator == _WHITESPACE:
        return header.split()
    return next(csv.reader([header], delimiter=separator))


def _encoding_error(path: Path, *, is_gzip: bool) -> DataError:
    with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
        line, found = 1, "bytes of another encoding"
        for line, content in enumerate(cast("BinaryIO", file), start=1):
            if line == 1 and content.startswith(_UTF16_MARKS):
                found = "a UTF-16 byte order mark"
                break
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{content[error.start]:02x} at position {error.start + 1}"
                break
    return DataError(
        "the encoding cannot be read", source=path, found=found, expected="UTF-8", line=line
    )


def _gzip_error(path: Path, error: Exception) -> DataError:
    return DataError(
        "the gzip file cannot be read",
        source=path,
        found="an early end" if isinstance(error, EOFError) else "damaged content",
        expected="a complete gzip file",
    )


def _parser_error(path: Path, message: str) -> DataError:
    fields = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", message)
    if fields:
        expected, line, saw = map(int, fields.groups())
        return DataError(
            "a row has more fields than the header",
            source=path,
            found=f"{saw} fields",
            expected=f"{expected} (quote a field that holds the separator)",
            line=line,
        )
    quote = re.search(r"EOF inside string starting at row (\d+)", message)
    if quote:
        return DataError(
            "a quoted field is not closed",
            source=path,
            found="the end of the file",
            expected="a closing quotation mark",
            line=int(quote.group(1)) + 1,
        )
    return DataError(
        "the rows cannot be told apart",
        source=path,
        found=message.strip().splitlines()[0].rstrip("."),
        expected="one row per line with one separator",
    )
