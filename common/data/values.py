"""Ratings and times out of the cells of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from common.data.tables import first_row

if TYPE_CHECKING:
    from common.data.tables import RawTable

_COMPACT_DATE: Final = (19000101.0, 21001231.0)
# Above these a Unix time in seconds would lie past the year 5000: it counts thousandths.
_UNIX_SCALES: Final = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))


def ratings(raw: RawTable, place: int) -> pd.Series:
    """The column at ``place`` as float64 ratings.

    Raises:
        DataError: if one is missing, no finite number, or negative.
    """
    values = raw.column(place)
    numbers = _as_numbers(values)
    is_wrong = ~(np.isfinite(numbers) & (numbers >= 0))
    if is_wrong.any():
        row = first_row(is_wrong)
        is_negative = np.isfinite(numbers[row]) and numbers[row] < 0
        raise raw.error(
            "the rating is negative" if is_negative else "the rating is no number",
            row=row,
            column=raw.names[place],
            found=_shown(values[row]),
            expected="a finite number of at least 0",
        )
    return numbers


def timestamps(raw: RawTable, place: int) -> pd.Series:
    """The column at ``place`` as float64 seconds since 1970 (UTC).

    Reads Unix times (in seconds, or in thousandths, millionths and so on where seconds
    would lie past the year 5000), ISO 8601 dates and Parquet's date types. A date without a
    zone is taken as UTC.

    Raises:
        DataError: if one is missing or cannot be read.
    """
    values = raw.column(place)
    if isinstance(values.dtype, pd.StringDtype):
        seconds = _from_text(values)
    elif pd.api.types.is_numeric_dtype(values.dtype):
        seconds = _from_unix(_as_numbers(values))
    else:  # dates and times, with or without a zone
        seconds = _from_datetimes(pd.to_datetime(values, utc=True, errors="coerce"))
    is_wrong = ~np.isfinite(seconds)
    if is_wrong.any():
        row = first_row(is_wrong)
        raise raw.error(
            "the date cannot be read",
            row=row,
            column=raw.names[place],
            found=_shown(values[row]),
            expected="an ISO date such as 2024-03-01 or 2024-03-01T12:30:00, or Unix seconds",
        )
    return seconds


def _from_text(values: pd.Series) -> pd.Series:
    numbers = _as_numbers(values)
    if numbers.between(*_COMPACT_DATE).all():  # 20240301, all of them?
        dates = pd.to_datetime(values.str.strip(), format="%Y%m%d", utc=True, errors="coerce")
        if dates.notna().all():
            return _from_datetimes(dates)
    # The first value decides: a column holds numbers or dates, not both.
    if np.isfinite(numbers.iloc[0]):
        return _from_unix(numbers)
    return _from_datetimes(
        pd.to_datetime(values.str.strip(), format="ISO8601", utc=True, errors="coerce")
    )


def _from_unix(numbers: pd.Series) -> pd.Series:
    typical = numbers.abs().median()
    scale = next((scale for limit, scale in _UNIX_SCALES if typical >= limit), 1.0)
    return numbers / scale


def _from_datetimes(dates: pd.Series) -> pd.Series:
    return (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)


def _as_numbers(values: pd.Series) -> pd.Series:
    try:
        return values.astype("float64")  # several times faster than to_numeric on text
    except (TypeError, ValueError):
        return pd.to_numeric(values, errors="coerce").astype("float64")


def _shown(value: object) -> str:
    text = str(value).strip()
    return "nothing" if value is None or text in {"", "nan", "NaT", "<NA>"} else repr(text)
