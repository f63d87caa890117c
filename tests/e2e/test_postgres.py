"""A platform whose interactions are in PostgreSQL: a real server, started here and for this only.

Needs PostgreSQL's programs (Debian: ``apt-get install postgresql``) and the extra ``postgres``::

    pytest -m postgres
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from client.platform import Platform
from common.data import sql
from common.data.readers import read_interactions
from common.data.schema import Columns
from common.data.sql import SqlQuery
from common.errors import DataError
from common.storage import pack_arrays
from tests.unit.client.homes import (
    asked_arrays,
    move_in,
    purchases,
    shared_arrays,
    sum_request,
    train_request,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.models.partition import Arrays

pytestmark = pytest.mark.postgres

PASSWORD = "p@ss/w:rd%?"  # noqa: S105 - of a server that lives as long as this module
FROM_ENVIRONMENT = "${SHOP_PASSWORD}"
ALL = "SELECT * FROM orders"


def programs() -> Path:
    """Folder of the newest initdb and pg_ctl."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    found.sort(key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and not on_path:
        pytest.skip("the programs of a PostgreSQL server are not installed")
    return (found[-1] if found else Path(str(on_path))).parent


@dataclass(frozen=True)
class Server:
    port: int
    folder: Path

    def address(self, password: str = FROM_ENVIRONMENT, database: str = "postgres") -> str:
        return f"postgresql+psycopg://owner:{password}@127.0.0.1:{self.port}/{database}"

    def query(self, statement: str = ALL) -> SqlQuery:
        return SqlQuery(address=self.address(), statement=statement)

    def run(self, *statements: str) -> list[Any]:
        """What each statement gives, over a connection of its own."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="owner", password=PASSWORD, dbname="postgres"
        ) as connection:
            cursors = [connection.execute(statement.encode()) for statement in statements]
            return [cursor.fetchall() if cursor.description else None for cursor in cursors]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg")
    bin_folder = programs()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # PostgreSQL refuses to run as root, and nobody else may look into pytest's own folders.
    folder = Path(tempfile.mkdtemp(prefix="crossrec-postgres-"))
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    secret = folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    data = str(folder / "data")

    def call(program: str, *arguments: str) -> None:
        command = [str(bin_folder / program), "-D", data, *arguments]
        with (folder / "output").open("a") as output:
            done = subprocess.run(
                command, cwd=folder, check=False, stdout=output, stderr=output, **as_user
            )
        assert done.returncode == 0, (folder / "output").read_text()

    options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder}"
    try:
        call("initdb", "-U", "owner", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8")
        call("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield Server(port=port, folder=folder)
        finally:
            call("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def orders(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    server.run(
        "DROP TABLE IF EXISTS orders",
        "CREATE SEQUENCE IF NOT EXISTS numbers",
        """CREATE TABLE orders (
            customer_id bigint, session uuid, account numeric(20), sku text, stars numeric(3, 1),
            bought_at timestamptz, day date
        )""",
        """INSERT INTO orders
            SELECT n, md5(n::text)::uuid, n, 'A%' || n % 7, 1 + n % 5 * 0.5,
                timestamptz '2024-03-01 00:00+00' + n * interval '1 hour', date '2024-03-01' + n
            FROM generate_series(1, 500) AS n""",
    )


def failure(asked: SqlQuery) -> str:
    with pytest.raises(DataError) as caught:
        read_interactions(asked)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("rows_at_once", [7, 20_000])
def test_every_type_of_a_column_reads_as_in_a_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(sql, "_ROWS_AT_ONCE", rows_at_once)
    numbers = range(1, 501)
    (sessions,) = server.run("SELECT session::text FROM orders ORDER BY customer_id")
    file = tmp_path / "orders.csv"
    moments = pd.Timestamp("2024-03-01", tz="UTC") + pd.to_timedelta(list(numbers), unit="h")
    pd.DataFrame(
        {
            "customer_id": list(numbers),
            "session": [session for (session,) in sessions],
            "account": list(numbers),
            "sku": [f"A%{n % 7}" for n in numbers],
            "stars": [1 + n % 5 * 0.5 for n in numbers],
            "bought_at": [moment.isoformat() for moment in moments],
            "day": [
                str((pd.Timestamp("2024-03-01") + pd.Timedelta(days=n)).date()) for n in numbers
            ],
        }
    ).to_csv(file, index=False)
    for user in ("customer_id", "session", "account"):
        for time in ("bought_at", "day"):
            columns = Columns(user=user, time=time)
            expected, _ = read_interactions(file, columns)
            found, _ = read_interactions(server.query(f"{ALL} ORDER BY customer_id"), columns)
            pd.testing.assert_frame_equal(found, expected)
            assert len(found) == 500
    epochs = "SELECT customer_id, sku, extract(epoch FROM bought_at) AS time FROM orders"
    found, _ = read_interactions(server.query(f"{epochs} ORDER BY customer_id"))
    assert found["timestamp"].iloc[0] == moments[0].timestamp()


@pytest.mark.parametrize(
    "condition", ["sku LIKE 'A%3'", "sku = 'A%3'::text;", "sku || ':x' = 'A%3:x'"]
)
def test_a_statement_is_sent_as_it_is(server: Server, condition: str) -> None:
    frame, _ = read_interactions(server.query(f"{ALL} WHERE {condition}"))
    assert set(frame["item_id"]) == {"A%3"}


def test_rows_are_streamed_and_a_failure_halfway_gives_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "_ROWS_AT_ONCE", 50)
    num_chunks = 0
    real = sql._columns

    def count(*arguments: Any) -> Any:  # noqa: ANN401
        nonlocal num_chunks
        num_chunks += 1
        return real(*arguments)

    monkeypatch.setattr(sql, "_columns", count)
    # Computed as rows are fetched: without a cursor on the server it would fail at once.
    asked = server.query("SELECT customer_id, sku, 1 / (customer_id - 400) AS rating FROM orders")
    found = failure(asked)
    assert "failed while it was read" in found
    assert "DivisionByZero (SQLSTATE 22012)" in found
    assert num_chunks > 3


def test_a_connection_that_is_lost_halfway_gives_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "_ROWS_AT_ONCE", 50)
    real = sql._columns

    def cut(*arguments: Any) -> Any:  # noqa: ANN401
        others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'owner'"
        server.run(f"SELECT pg_terminate_backend(pid) {others}")
        return real(*arguments)

    monkeypatch.setattr(sql, "_columns", cut)
    assert "failed while it was read" in failure(server.query())


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("SELEKT 1", "syntax error"),
        ("SELECT * FROM nowhere", 'relation "nowhere" does not exist'),
        ("SELECT buyer FROM orders", 'column "buyer" does not exist'),
        ("DELETE FROM orders RETURNING *", "syntax error"),
        ("SELECT nextval('numbers')", "ReadOnlySqlTransaction"),
        ("SELECT * FROM orders WHERE sku::int > 0", "InvalidTextRepresentation"),
    ],
)
def test_a_query_that_cannot_run_is_named_and_changes_nothing(
    server: Server, statement: str, named: str
) -> None:
    found = failure(server.query(statement))
    assert named in found
    assert "A%" not in found
    assert server.run("SELECT count(*) FROM orders")[0] == [(500,)]


def test_who_is_not_let_in_is_told_why(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def at(address: str) -> str:
        return failure(SqlQuery(address=address, statement=ALL))

    assert 'database "nowhere" does not exist' in at(server.address(database="nowhere"))
    found = at(server.address(password="guess"))  # noqa: S106
    assert "password authentication failed" in found
    assert "expected a user and a password that the server accepts" in found
    assert "guess" not in found
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2")
    found = at(server.address())
    assert "password authentication failed" in found
    assert "hunter2" not in found
    found = at("postgresql+psycopg://owner@127.0.0.1:1/postgres")
    assert "expected a server that runs at this host and port" in found


def test_no_rows_are_an_error(server: Server) -> None:
    assert "returns no rows" in failure(server.query(f"{ALL} WHERE false"))


def test_a_platform_releases_the_same_from_a_database_and_from_a_file(
    server: Server, tmp_path: Path
) -> None:
    config = move_in(tmp_path)
    rows = pd.read_csv(purchases(config))
    values = ", ".join(str(row) for row in rows.itertuples(index=False, name=None))
    server.run(
        "DROP TABLE IF EXISTS purchases",
        "CREATE TABLE purchases (user_id text, item_id text, timestamp bigint)",
        f"INSERT INTO purchases VALUES {values}",  # noqa: S608 - our own rows
    )
    statement = "SELECT * FROM purchases ORDER BY random()"
    asked = replace(config.data, source=server.address(), query=statement)
    elsewhere = replace(config.state, folder=tmp_path / "other-state")
    releases: list[list[Arrays | None]] = []
    for own in (config, replace(config, data=asked, state=elsewhere)):
        platform = Platform(own)
        replies = [
            platform.sum_up(sum_request(own), asked_arrays()),
            platform.train(train_request(own), shared_arrays()),
        ]
        assert [reply.outcome for reply, _ in replies] == ["released", "released"]
        releases.append([release for _, release in replies])
    for from_file, from_database in zip(*releases, strict=True):
        assert from_file is not None
        assert from_database is not None
        assert pack_arrays(from_file, {}) == pack_arrays(from_database, {})
