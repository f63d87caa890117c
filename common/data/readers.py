"""From files to platforms: read interactions, held-out pairs and whole federations, checked.

A query is read like a file. Whatever is wrong with either becomes one
:class:`~common.errors.DataError` that names the source, the line or column, what was found and what
is expected. Nothing is guessed silently: rows left out (duplicates, unlisted items) are counted on
the :class:`PlatformTable`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pandas as pd

from common.data.catalogue import derive_catalogue, read_catalogue
from common.data.marketplace import Marketplace
from common.data.schema import Columns, PlatformTable, match_columns
from common.data.sql import SqlQuery, read_query
from common.data.tables import RawTable, check_header, first_row, read_raw
from common.data.values import ratings, timestamps
from common.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from common.data.catalogue import Catalogue
    from common.data.schema import Role

_DATA_FILE: Final = re.compile(
    r"(?P<stem>.+?)\.(csv|tsv|txt|dat|data|inter|parquet|pq)(\.gz)?", re.IGNORECASE
)
_DOCUMENTS: Final = frozenset(
    {"readme", "license", "licence", "copying", "notice", "changelog", "changes", "citation"}
)
_HELD_OUT_NAME: Final = re.compile(r".*qrel.*|test.*", re.IGNORECASE)
# Beside the platforms' own files only an unmistakable name is taken for a held-out file: a
# shop may be called "testers".
_STRAY_HELD_OUT_NAME: Final = re.compile(r".*qrel.*|test([._-].*)?", re.IGNORECASE)
_PAIR: Final = ["user_id", "item_id"]
_ALL_COLUMNS: Final = Columns()


def read_interactions(
    source: Path | SqlQuery, columns: Columns = _ALL_COLUMNS
) -> tuple[pd.DataFrame, int]:
    """Read one file of interactions, or what a database has of them.

    Of several rows with one user and item the latest is kept (without times, the one with
    the highest rating).

    Args:
        source: CSV, TSV or Parquet, plain or gzipped, where text needs a header line; or a query.
        columns: explicit column names, where the usual spellings do not fit.

    Returns:
        The interactions as :class:`PlatformTable` describes them, and the number of
        duplicate rows left out.

    Raises:
        ConfigError: if a query's address names an environment variable that is not set.
        DataError: if the source cannot be used as it is.
    """
    _, frame = _read_checked(source, columns)
    return _without_duplicates(frame.reset_index(drop=True))


def read_held_out(path: Path, columns: Columns = _ALL_COLUMNS) -> pd.DataFrame:
    """Read one file of held-out pairs: ``user_id``, ``item_id``, each pair once.

    A row with rating 0 is a judged pair that is not relevant: it is left out.

    Raises:
        DataError: if the file cannot be used as it is, or no pair is relevant.
    """
    _, frame = _read_held_out(path, columns)
    return frame.reset_index(drop=True)


def read_platform(
    path: Path,
    *,
    columns: Columns = _ALL_COLUMNS,
    name: str | None = None,
    catalogue: Catalogue | None = None,
) -> PlatformTable:
    """Read one platform: a file of interactions, or a folder with one or more of them.

    In a folder the files whose name matches ``*qrel*`` or ``test*`` hold the platform's own
    held-out pairs; all others are joined to one table and must have the same columns.

    Args:
        path: the file or folder.
        columns: explicit column names for all files.
        name: the platform's name; by default the file's stem or the folder's name.
        catalogue: a public catalogue that the platform's items are checked against:
            interactions with unlisted items are left out and counted.

    Raises:
        DataError: if there is no interaction file, a file cannot be used as it is, or a
            held-out item is not listed.
    """
    name = name or platform_name(path)
    interaction_files, held_out_files = _platform_files(path)
    frames = [_read_checked(file, columns)[1] for file in interaction_files]
    for file, frame in zip(interaction_files, frames, strict=True):
        if list(frame.columns) != list(frames[0].columns):
            raise DataError(
                f"the files of platform {name!r} have different columns",
                source=file,
                found=", ".join(frame.columns),
                expected=f"{', '.join(frames[0].columns)} as in {interaction_files[0].name}",
            )
    interactions, num_duplicates = _without_duplicates(pd.concat(frames, ignore_index=True))
    listed = None if catalogue is None else catalogue.listed_ids(name)
    num_unlisted = 0
    if listed is not None:
        is_listed = interactions["item_id"].isin(listed)
        num_unlisted = int((~is_listed).sum())
        interactions = interactions.loc[is_listed].reset_index(drop=True)
    held_out = [_read_held_out(file, columns, listed=listed)[1] for file in held_out_files]
    return PlatformTable(
        name=name,
        interactions=interactions,
        held_out=(
            pd.concat(held_out, ignore_index=True).drop_duplicates(ignore_index=True)
            if held_out
            else None
        ),
        source=str(path),
        num_duplicates=num_duplicates,
        num_unlisted=num_unlisted,
    )


def read_marketplace(
    folder: Path, *, columns: Columns = _ALL_COLUMNS, catalogue: Path | None = None
) -> Marketplace:
    """Read a federation: one file or one sub-folder per platform, named after it.

    Files that hold no data by their name (hidden ones, README, LICENSE, unknown endings) are
    passed over. ``catalogue.*`` in the folder, or ``catalogue``, is the public catalogue;
    without one it is derived from the interactions.

    Args:
        folder: the federation.
        columns: explicit column names for all platforms.
        catalogue: a catalogue file elsewhere.

    Returns:
        The platforms in the order of their names.

    Raises:
        DataError: if the folder, a file in it or the catalogue cannot be used as it is.
    """
    if not folder.is_dir():
        raise DataError(
            "the data folder cannot be read",
            source=folder,
            found="a file" if folder.exists() else "nothing",
            expected="a folder with one file or one sub-folder per platform",
        )
    own_catalogue, paths = _marketplace_files(folder)
    names = [platform_name(path) for path in paths]
    catalogue_path = catalogue or own_catalogue
    given = None if catalogue_path is None else read_catalogue(catalogue_path, platforms=names)
    platforms = tuple(read_platform(path, columns=columns, catalogue=given) for path in paths)
    return Marketplace(
        platforms=platforms,
        catalogue=given or derive_catalogue(platforms),
        source=str(folder),
    )


def platform_name(path: Path) -> str:
    """The name that a file or folder gives its platform: ``t1.csv.gz`` and ``t1/`` -> ``t1``."""
    match = _DATA_FILE.fullmatch(path.name)
    return match["stem"] if match and not path.is_dir() else path.name


def _is_data_file(path: Path) -> bool:
    match = _DATA_FILE.fullmatch(path.name)
    is_hidden = path.name.startswith((".", "_"))
    return (
        match is not None
        and not is_hidden
        and match["stem"].lower() not in _DOCUMENTS
        and path.is_file()
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: (platform_name(path), path.name))
    except OSError as error:
        raise DataError(
            "the folder cannot be read",
            source=folder,
            found=error.strerror or type(error).__name__,
            expected="a readable folder",
        ) from None


def _marketplace_files(folder: Path) -> tuple[Path | None, list[Path]]:
    """The catalogue in ``folder``, if any, and the file or sub-folder of every platform."""
    catalogues: list[Path] = []
    platforms: dict[str, Path] = {}
    for path in _entries(folder):
        name = platform_name(path)
        if _is_data_file(path):
            if name.lower() in {"catalogue", "catalog"}:
                catalogues.append(path)
                continue
            if _STRAY_HELD_OUT_NAME.fullmatch(name):
                raise DataError(
                    "a held-out file lies beside the platforms",
                    source=path,
                    found="a name that marks held-out pairs",
                    expected="one sub-folder per platform with its interactions and its "
                    "held-out file (for a single platform, give the folder above)",
                )
        elif not path.is_dir() or path.name.startswith((".", "_")):
            continue
        if name in platforms:
            raise DataError(
                f"two sources for platform {name!r}",
                source=folder,
                found=f"{platforms[name].name} and {path.name}",
                expected="one file or one sub-folder per platform",
            )
        platforms[name] = path
    if len(catalogues) > 1:
        raise DataError(
            "two catalogues",
            source=folder,
            found=" and ".join(path.name for path in catalogues),
            expected="one",
        )
    if not platforms:
        raise DataError(
            "no platform found",
            source=folder,
            found=", ".join(path.name for path in _entries(folder)[:10]) or "an empty folder",
            expected="one sub-folder, or one file ending in .csv, .tsv, .txt, .dat, .inter or "
            ".parquet (.gz), per platform",
        )
    return (catalogues[0] if catalogues else None), list(platforms.values())


def _platform_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The interaction files and the held-out files of a platform."""
    if not path.is_dir():
        return [path], []
    files = [file for file in _entries(path) if _is_data_file(file)]
    held_out = [file for file in files if _HELD_OUT_NAME.fullmatch(file.name)]
    interactions = [file for file in files if file not in held_out]
    if not interactions:
        raise DataError(
            f"no interactions of platform {platform_name(path)!r}",
            source=path,
            found=", ".join(file.name for file in _entries(path)[:10]) or "an empty folder",
            expected="a file such as train.csv beside the held-out file (*qrel*, test*)",
        )
    return interactions, held_out


def _read_held_out(
    path: Path, columns: Columns, *, listed: Sequence[str] | None = None
) -> tuple[RawTable, pd.DataFrame]:
    raw, frame = _read_checked(path, columns, is_held_out=True)
    if "rating" in frame.columns:
        frame = frame.loc[frame["rating"] > 0]
    if frame.empty:
        raise DataError(
            "no held-out pair is relevant",
            source=path,
            found="rating 0 in every row",
            expected="at least one row with a rating above 0",
        )
    if listed is not None:
        is_unlisted = ~frame["item_id"].isin(listed)
        if is_unlisted.any():
            row = first_row(is_unlisted)
            raise raw.error(
                "a held-out item was never listed",
                row=row,
                found=f"item {frame['item_id'][row]}",
                expected="an item that the catalogue lists for the platform",
            )
    return raw, frame[_PAIR].drop_duplicates()


def _read_checked(
    source: Path | SqlQuery, columns: Columns, *, is_held_out: bool = False
) -> tuple[RawTable, pd.DataFrame]:
    """Read and check a file or query; the frame keeps the index of the raw table.

    Held-out pairs need no rating and no time even where ``columns`` names them for the
    interactions, and their time is not read.
    """
    if isinstance(source, SqlQuery):
        raw = read_query(source)
    else:
        raw = read_raw(source, num_recognised=lambda names: len(match_columns(names, columns)))
    wanted = replace(columns, rating=None, time=None) if is_held_out else columns
    places = match_columns(raw.names, columns)
    if is_held_out:
        places = match_columns(raw.names, wanted) | places
        places.pop("time", None)
    _check_columns(raw, places, wanted)
    frame = pd.DataFrame(
        {
            "user_id": raw.ids(places["user"], "user"),
            "item_id": raw.ids(places["item"], "item"),
        }
    )
    if "rating" in places:
        frame["rating"] = ratings(raw, places["rating"])
    if "time" in places:
        frame["timestamp"] = timestamps(raw, places["time"])
    return raw, frame


def _check_columns(raw: RawTable, places: dict[Role, int], columns: Columns) -> None:
    if not places:
        check_header(raw)
    for role, name in columns.named().items():
        if role in places or (name is None and role in {"rating", "time"}):
            continue
        spelling = name or f"{role}_id"
        raise DataError(
            f"the {role} column is missing",
            source=raw.source,
            found=f"columns {', '.join(raw.names)}",
            expected=f"a column {spelling!r}"
            + ("" if name else " or a usual spelling, or its name given explicitly"),
            column=spelling,
        )


def _without_duplicates(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Keep each pair once: the latest row, then the one with the highest rating."""
    is_repeated = frame.duplicated(_PAIR, keep=False)
    if not is_repeated.any():
        return frame, 0
    order = [name for name in ("timestamp", "rating") if name in frame.columns]
    repeated = frame.loc[is_repeated].sort_values([*_PAIR, *order], kind="stable")
    kept = repeated.drop_duplicates(_PAIR, keep="last")
    unique = pd.concat([frame.loc[~is_repeated], kept]).sort_index()
    return unique.reset_index(drop=True), len(frame) - len(unique)
