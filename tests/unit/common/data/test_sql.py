"""Laws of reading a database: as a file of the same rows reads, whole or not at all, no secrets."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from common.data import sql
from common.data.readers import read_interactions
from common.data.schema import Columns
from common.data.sql import SqlQuery
from common.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path

ALL = "SELECT * FROM orders"
SECRET = "hunter2@/:?"  # noqa: S105 - what must never be shown


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE orders (customer_id, sku TEXT, stars REAL, bought_at TEXT)")
        rows = [
            (7, "A-1", 5.0, "2024-03-01"),
            (7, "b 2", 3.5, "2024-03-02T10:30:00"),
            (8, "A-1", 0.0, "2023-12-31"),
            (9, "100%", 4.0, "2024-01-01"),
            (9, "100%", 2.0, "2024-01-03"),
        ]
        database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", rows)
    return path


def query(path: Path, statement: str = ALL) -> SqlQuery:
    return SqlQuery(address=f"sqlite:///{path}", statement=statement)


def failure(asked: SqlQuery, columns: Columns | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        read_interactions(asked, columns or Columns())
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


@pytest.mark.parametrize("rows_at_once", [1, 2, 20_000])
def test_a_query_reads_as_a_file_of_its_rows(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(sql, "_ROWS_AT_ONCE", rows_at_once)
    with closing(sqlite3.connect(shop)) as database:
        file = tmp_path / "orders.csv"
        pd.read_sql_query(ALL, database).to_csv(file, index=False)
    expected, num_duplicates = read_interactions(file)
    found, found_duplicates = read_interactions(query(shop))
    pd.testing.assert_frame_equal(found, expected)
    assert found_duplicates == num_duplicates == 1
    assert found["user_id"].tolist() == ["7", "7", "8", "9"]


def test_no_more_rows_than_asked_for_are_held_as_python_objects(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = sql._columns

    def watch(rows: Any, *arguments: Any) -> Any:  # noqa: ANN401
        sizes.append(len(rows))
        return real(rows, *arguments)

    monkeypatch.setattr(sql, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(sql, "_columns", watch)
    read_interactions(query(shop))
    assert sizes == [2, 2, 1]


def test_columns_are_named_as_for_files(shop: Path) -> None:
    asked = query(shop, "SELECT customer_id AS who, sku AS what FROM orders")
    assert "user column is missing" in str(failure(asked))
    assert "columns who, what" in str(failure(asked))
    frame, _ = read_interactions(asked, Columns(user="who", item="what"))
    assert list(frame.columns) == ["user_id", "item_id"]


@pytest.mark.parametrize(
    "condition", ["sku LIKE '%0\\%' ESCAPE '\\'", "sku || ':sku' = '100%:sku'", "sku = '100%' ;\n"]
)
def test_a_statement_is_sent_as_it_is(shop: Path, condition: str) -> None:
    frame, _ = read_interactions(query(shop, f"{ALL} WHERE {condition}"))
    assert frame["item_id"].tolist() == ["100%"]


def test_nulls_do_not_turn_ids_into_other_ids(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = "SELECT customer_id, sku, NULL AS rank FROM orders UNION ALL SELECT 10, NULL, 3"
    monkeypatch.setattr(sql, "_ROWS_AT_ONCE", 2)
    found = str(failure(query(shop, statement)))
    assert "row 6: the item id is missing" in found
    statement = statement.replace("10, NULL", "10, 'A-1'")
    frame, _ = read_interactions(query(shop, statement))
    assert set(frame["user_id"]) == {"7", "8", "9", "10"}


@pytest.mark.parametrize("rows_at_once", [1, 20_000])
@pytest.mark.parametrize("other", ["'x7'", "X'07'", "1.5"])
def test_a_column_of_several_types_is_refused(
    shop: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int, other: str
) -> None:
    monkeypatch.setattr(sql, "_ROWS_AT_ONCE", rows_at_once)
    error = failure(query(shop, f"{ALL} UNION ALL SELECT {other}, 'A-1', 1, '2024-01-01'"))
    assert error.column == "customer_id"
    assert "x7" not in str(error)


def test_a_query_that_fails_halfway_gives_nothing(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "_ROWS_AT_ONCE", 2)
    fails_at_four = "SELECT customer_id, sku, json(iif(rowid = 4, '{', '1')) AS rating FROM orders"
    error = failure(query(shop, fails_at_four))
    assert "failed while it was read" in str(error)


def test_what_a_row_holds_stands_in_no_error(shop: Path) -> None:
    with closing(sqlite3.connect(shop)) as database, database:
        database.execute("INSERT INTO orders VALUES (CAST(X'616C696365FF' AS TEXT), 'A', 1, '1')")
    assert "alice" not in str(failure(query(shop)))


def test_no_rows_are_an_error(shop: Path) -> None:
    assert "returns no rows" in str(failure(query(shop, f"{ALL} WHERE 0")))


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("SELEKT 1", "syntax error"),
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELECT buyer FROM orders", "no such column: buyer"),
        ("INSERT INTO orders VALUES (1, 'a', 1, 'b')", "readonly"),
        ("DROP TABLE orders", "readonly"),
        ("PRAGMA user_version = 3", "readonly"),
    ],
)
def test_a_query_that_cannot_run_is_named_and_changes_nothing(
    shop: Path, statement: str, named: str
) -> None:
    before = shop.read_bytes()
    assert named in str(failure(query(shop, statement)))
    assert shop.read_bytes() == before


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    error = failure(query(tmp_path / "shop.db"))
    assert "the database does not let us in" in str(error)
    assert "a SQLite file" in str(error)
    assert not (tmp_path / "shop.db").exists()


def test_a_file_name_is_taken_literally(shop: Path, tmp_path: Path) -> None:
    odd = tmp_path / "my shop#1.db"
    shop.rename(odd)
    assert len(read_interactions(query(odd))[0]) == 4


def test_the_environment_fills_in_what_the_file_does_not_say(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = SqlQuery(address=f"sqlite:///{shop.parent}/${{SHOP_FILE}}", statement=ALL)
    with pytest.raises(ConfigError, match="'SHOP_FILE' is not set"):
        read_interactions(asked)
    monkeypatch.setenv("SHOP_FILE", shop.name)
    assert len(read_interactions(asked)[0]) == 4


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("sqlite:///shop.db", "absolute"),
        ("sqlite://", "absolute"),
        ("postgres://u:{}@h/d", "'postgres' is no kind of database"),
        ("mysql+mysqldb://u:{}@h/d", "pip install 'mysqlclient'"),
        ("oracle+oracledb://u:{}@h/d", "pip install 'oracledb'"),
        ("sqlite+aiosqlite:///x", "pip install 'aiosqlite'"),
        ("://u:{}@h", "no address of a database"),
        ("postgresql+psycopg://u:{}@h:port/d", "no address of a database"),
    ],
)
def test_an_address_is_refused_before_anything_is_asked(address: str, named: str) -> None:
    with pytest.raises(ConfigError, match="source: ") as caught:
        SqlQuery(address=address.format("hunter2"), statement=ALL)
    assert named in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_missing_postgresql_driver_is_named_by_our_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'crossrec\[postgres\]'"):
        SqlQuery(address="postgresql+psycopg://u@h/d", statement=ALL)


def test_a_blank_statement_is_refused(shop: Path) -> None:
    with pytest.raises(ConfigError, match="query: is blank"):
        query(shop, " \n")


def test_a_password_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    pytest.importorskip("psycopg")
    for address in (
        "postgresql+psycopg://reader:hunter2@127.0.0.1:1/shop?password=hunter2",
        "postgresql+psycopg://reader:${SHOP_PASSWORD}@127.0.0.1:1/shop",
    ):
        asked = SqlQuery(address=address, statement=ALL)
        error = failure(asked)
        assert "127.0.0.1:1/shop: the database does not let us in" in str(error)
        assert "runs at this host and port" in str(error)
        for text in (str(error), repr(error), str(asked), repr(asked)):
            assert "hunter2" not in text
