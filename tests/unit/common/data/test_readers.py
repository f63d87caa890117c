"""Laws of reading: every form of one federation gives one table, every fault one clear error."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from common.data.catalogue import Catalogue
from common.data.readers import read_held_out, read_interactions, read_marketplace, read_platform
from common.data.schema import Columns, match_columns
from common.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = [
    ("007", "A-1", "5", "2024-03-01"),
    ("007", "b 2", "3.5", "2024-03-02"),
    ("8", "A-1", "0", "2023-12-31"),
    ("9", "NA", "4", "2024-01-01"),
]
MARCH_1 = 1709251200.0


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def joined(separator: str, header: tuple[str, ...], *, quote: bool = False) -> str:
    rows = [[f'"{v}"' if quote and " " in v else v for v in row] for row in ROWS]
    return "\n".join(separator.join(row) for row in [header, *rows]) + "\n"


def failure(path: Path, columns: Columns | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        read_interactions(path, columns or Columns())
    return caught.value


FORMS: dict[str, Callable[[Path], Path]] = {
    "tab": lambda d: write(d / "a.tsv", joined("\t", ("userId", "itemId", "rating", "timestamp"))),
    "comma, CRLF, byte order mark": lambda d: write(
        d / "a.csv",
        "\ufeff" + joined(",", ("User ID", "SKU", "Stars", "Date")).replace("\n", "\r\n"),
    ),
    "semicolon": lambda d: write(d / "a.csv", joined(";", ("customer-id", "asin", "rate", "time"))),
    "pipe": lambda d: write(d / "a.txt", joined("|", ("uid", "product_id", "score", "bought_at"))),
    "double colon": lambda d: write(
        d / "a.dat", joined("::", ("UserID", "MovieID", "Rating", "Timestamp"))
    ),
    "space": lambda d: write(
        d / "a.txt", joined(" ", ("userId", "itemId", "rate", "date"), quote=True)
    ),
    "atomic file": lambda d: write(
        d / "a.inter",
        joined("\t", ("user_id:token", "item_id:token", "rating:float", "timestamp:token")),
    ),
    "old line ends": lambda d: write(
        d / "a.csv", joined(",", ("user", "item", "rating", "date")).replace("\n", "\r")
    ),
    "other order, more columns": lambda d: write(
        d / "a.csv",
        "title,date,item,user,rating\n"
        + "".join(f'"x, y",{t},{i},{u},{r}\n' for u, i, r, t in ROWS),
    ),
}


def zipped(path: Path) -> Path:
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_zipped", [False, True])
def test_every_form_of_a_file_reads_alike(form: str, is_zipped: bool, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path)
    frame, num_duplicates = read_interactions(zipped(path) if is_zipped else path)
    assert list(frame.columns) == ["user_id", "item_id", "rating", "timestamp"]
    assert frame["user_id"].tolist() == ["007", "007", "8", "9"]
    assert frame["item_id"].tolist() == ["A-1", "b 2", "A-1", "NA"]
    assert frame["rating"].tolist() == [5.0, 3.5, 0.0, 4.0]
    assert frame["timestamp"].iloc[0] == MARCH_1
    assert num_duplicates == 0


@pytest.mark.parametrize("categorical", [False, True])
def test_parquet_ids_are_text_and_its_times_are_seconds(categorical: bool, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "customer_id": [7, 8, 2**60 + 1],
            "sku": ["001", "1", "001"],
            "bought_at": pd.to_datetime(["2024-03-01", "2024-03-02", "2024-03-03"]),
        }
    )
    frame["sku"] = frame["sku"].astype("category" if categorical else "str")
    # Content decides, not the ending.
    frame.to_parquet(tmp_path / "a.csv")
    got, _ = read_interactions(
        tmp_path / "a.csv", Columns(user="customer_id", item="sku", time="bought_at")
    )
    assert got["user_id"].tolist() == ["7", "8", str(2**60 + 1)]
    assert got["item_id"].tolist() == ["001", "1", "001"]
    assert got["timestamp"].tolist() == [MARCH_1, MARCH_1 + 86400, MARCH_1 + 2 * 86400]
    assert "rating" not in got.columns


@pytest.mark.parametrize(
    "time",
    [
        *("2024-03-01", "2024-03-01T00:00:00Z", "2024-03-01T02:00:00+02:00", "20240301"),
        *("1709251200", "1709251200.0", "1709251200000", "1709251200000000"),
    ],
)
def test_dates_and_unix_times_become_seconds(time: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"user,item,timestamp\n1,a,{time}\n2,b,{time}\n")
    assert read_interactions(path)[0]["timestamp"].tolist() == [MARCH_1, MARCH_1]


def test_named_columns_win_over_recognised_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,item,Billed To,rating\nx,a,1,5\ny,b,2,5\n")
    frame, _ = read_interactions(path, Columns(user="billed_to"))
    assert frame["user_id"].tolist() == ["1", "2"]
    assert match_columns(["date", "time", "user"], Columns(user="time")) == {"user": 1, "time": 0}
    with pytest.raises(ConfigError, match="one name"):
        Columns(user="id", item="id")


def test_a_repeated_pair_is_kept_once_at_its_latest(tmp_path: Path) -> None:
    text = "user,item,rating,time\n1,a,5,30\n1,b,1,1\n1,a,2,40\n2,a,3,2\n1,a,4,10\n"
    frame, num_duplicates = read_interactions(write(tmp_path / "a.csv", text))
    assert num_duplicates == 2
    assert frame.to_dict("list") == {
        "user_id": ["1", "1", "2"],
        "item_id": ["b", "a", "a"],
        "rating": [1.0, 2.0, 3.0],
        "timestamp": [1.0, 40.0, 2.0],
    }


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "missing user": ("who,item\n1,a\n", {"column": "user_id", "found": "columns who, item"}),
    "missing item": ("user,what\n1,a\n", {"column": "item_id", "found": "columns user, what"}),
    "empty": ("", {"found": "0 bytes"}),
    "header only": ("user,item\n", {"found": "0 rows"}),
    "blank rows only": ("user,item\n\n \n", {"found": "0 rows"}),
    "blank first line": ("\nuser,item\n1,a\n", {"line": 1}),
    "no header": ("196\t242\t3\t881250949\n186\t302\t3\t891717742\n", {"line": 1}),
    "no header, one row": ("196::242::3::881250949\n", {"line": 1}),
    "negative rating": (
        "user,item,rating\n1,a,1\n\n1,b,-2\n",
        {"line": 4, "column": "rating", "found": "'-2'"},
    ),
    "rating in words": ("user,item,rate\n1,a,good\n", {"line": 2, "found": "'good'"}),
    "rating NaN": ("user,item,rating\n1,a,1\n1,b,nan\n", {"line": 3}),
    "rating infinite": ("user,item,rating\n1,a,inf\n", {"line": 2, "found": "'inf'"}),
    "rating left out": ("user,item,rating\n1,a,1\n2,b\n", {"line": 3, "found": "nothing"}),
    "blank user": ("user,item\n1,a\n ,b\n", {"line": 3, "column": "user"}),
    "blank item": ("user,item\n1,a\n2,\n", {"line": 3, "column": "item"}),
    "short row": ("user,item\n1,a\n2\n", {"line": 3, "column": "item"}),
    "long row": ("user,item\n1,a\n2,b,c\n", {"line": 3, "found": "3 fields"}),
    "bad date": (
        "user,item,date\n1,a,2024-01-01\n2,b,2024-13-01\n",
        {"line": 3, "column": "date", "found": "'2024-13-01'"},
    ),
    "local date": ("user,item,date\n1,a,13/01/2024\n", {"line": 2, "found": "'13/01/2024'"}),
    "no date": ("user,item,time\n1,a,5\n2,b,\n", {"line": 3, "found": "nothing"}),
    "date among numbers": ("user,item,time\n1,a,5\n2,b,2024-01-01\n", {"line": 3}),
    "quoted line breaks": ('note,user,item\n"a\nb",1,a\n"c",,b\n', {"line": 4, "column": "user"}),
    "open quote": ('user,item\n1,"a\n2,b\n', {"line": 2}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_error_with_its_place(fault: str, tmp_path: Path) -> None:
    text, expected = FAULTS[fault]
    path = write(tmp_path / "shop.csv", text)
    error = failure(path)
    assert error.source == str(path)
    assert {key: getattr(error, key) for key in expected} == expected
    assert error.expected


def test_the_error_for_a_missing_header_repeats_no_value(tmp_path: Path) -> None:
    error = failure(write(tmp_path / "u.data", "196\t242\t3\t881250949\n"))
    assert "196" not in str(error)
    assert "242" not in str(error)
    assert "user_id" in error.expected


def test_a_named_column_must_exist(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,item\n1,a\n")
    error = failure(path, Columns(rating="points"))
    assert (error.column, error.found) == ("points", "columns user, item")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("user,item\n1,a\n2,caf\xe9\n".encode("latin-1"), 3),
        ("us\xe9r,item\n1,a\n".encode("latin-1"), 1),
        ("user,item\n1,a\n".encode("utf-16"), 1),
    ],
)
@pytest.mark.parametrize("is_zipped", [False, True])
def test_another_encoding_is_told_with_its_line(
    content: bytes, line: int, is_zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    error = failure(zipped(path) if is_zipped else path)
    assert (error.problem, error.line) == ("the encoding cannot be read", line)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    text = "user,item\n" + "".join(f"{k},{k * k}\n" for k in range(9999))
    whole = gzip.compress(text.encode())
    for name, content in {
        "cut.csv.gz": whole[: len(whole) // 2],
        "head.csv.gz": whole[:5],
        "bits.csv.gz": whole[:2000] + bytes(100) + whole[2100:],
        "cut.parquet": b"PAR1" + bytes(50),
        "text.parquet": text.encode(),
        "image.csv": b"\x89PNG\r\n\x1a\n\0\0\0",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert failure(tmp_path / name).source.endswith(name)
    assert failure(tmp_path / "none.csv").problem == "the file cannot be opened"


def test_faults_in_parquet_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    good = {"user": [1, 2, 3], "item": ["a", "b", "c"], "rating": [1.0, 2.0, 3.0]}
    bad: dict[str, list[object]] = {
        "user": [1, None, 3],
        "item": ["a", " ", "c"],
        "rating": [1.0, None, 2.0],
    }
    for column, values in bad.items():
        pd.DataFrame(good | {column: pd.Series(values, dtype=object)}).to_parquet(path)
        error = failure(path)
        assert (error.column, error.line) == (column, None)
        assert error.problem.startswith("row 2")
    pd.DataFrame(good | {"user": [1.0, 2.0, 3.0]}).to_parquet(path)
    assert failure(path).found == "float"


SHOP = "user,item\n1,a\n2,b\n"


def test_a_federation_is_a_folder_of_files_and_sub_folders(tmp_path: Path) -> None:
    write(tmp_path / "north.csv", SHOP)
    write(tmp_path / "south" / "part-1.tsv", SHOP.replace(",", "\t"))
    write(tmp_path / "south" / "part-2.csv", "user,item\n2,b\n3,c\n")
    write(
        tmp_path / "south" / "valid_qrel.tsv", "userId\titemId\trating\n1\tc\t1\n1\td\t0\n1\tb\t2\n"
    )
    write(tmp_path / "south" / "README.md", "#")
    zipped(write(tmp_path / "east.2024.csv", SHOP)).rename(tmp_path / "east.2023.csv.gz")
    for ignored in ("README.txt", "LICENSE", "license.txt", ".hidden.csv", "plot.png"):
        write(tmp_path / ignored, "nothing of use")
    market = read_marketplace(tmp_path)
    assert [p.name for p in market.platforms] == ["east.2023", "east.2024", "north", "south"]
    south = market.platform("south")
    assert (south.num_interactions, south.num_users, south.num_duplicates) == (3, 3, 1)
    assert south.held_out is not None
    assert south.held_out.to_numpy().tolist() == [["1", "c"], ["1", "b"]]
    assert market.platform("north").held_out is None
    assert market.catalogue.derived
    assert market.catalogue.item_ids == ("a", "b", "c")
    assert market.catalogue.listed_ids("south") == ("a", "b", "c")
    assert market.catalogue.listed_ids("north") == ("a", "b")
    assert not market.is_synthetic


def test_a_folder_without_clear_platforms_is_refused(tmp_path: Path) -> None:
    def problem(folder: Path) -> str:
        with pytest.raises(DataError) as caught:
            read_marketplace(folder)
        return caught.value.problem

    assert problem(tmp_path / "none") == "the data folder cannot be read"
    assert problem(write(tmp_path / "file" / "a.csv", SHOP)) == "the data folder cannot be read"
    write(tmp_path / "empty" / "README.txt", "x")
    assert problem(tmp_path / "empty") == "no platform found"
    write(tmp_path / "two" / "a.csv", SHOP)
    write(tmp_path / "two" / "a" / "train.csv", SHOP)
    assert problem(tmp_path / "two") == "two sources for platform 'a'"
    write(tmp_path / "inside" / "train.csv", SHOP)
    write(tmp_path / "inside" / "test.csv", SHOP)
    assert problem(tmp_path / "inside") == "a held-out file lies beside the platforms"
    write(tmp_path / "lacking" / "a" / "test.csv", SHOP)
    assert problem(tmp_path / "lacking") == "no interactions of platform 'a'"
    write(tmp_path / "mixed" / "a" / "1.csv", SHOP)
    write(tmp_path / "mixed" / "a" / "2.csv", "user,item,date\n1,a,2024-01-01\n")
    assert problem(tmp_path / "mixed") == "the files of platform 'a' have different columns"
    write(tmp_path / "lonely" / "a.csv", "user,item\n1,a\n1,b\n")
    assert problem(tmp_path / "lonely") == "platform 'a' has too few users to learn from"


def test_against_a_given_catalogue_unlisted_items_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "catalogue.csv", "item_id,platform,price\na,north,1\nb,north,2\nz,south,3\n")
    train = write(tmp_path / "north" / "train.csv", "user,item\n1,a\n2,b\n2,z\n3,q\n")
    test = write(tmp_path / "north" / "test.csv", "user,item\n1,b\n")
    market = read_marketplace(tmp_path)
    assert not market.catalogue.derived
    assert market.catalogue.item_ids == ("a", "b", "z")
    (north,) = market.platforms
    assert (north.num_unlisted, north.interactions["item_id"].tolist()) == (2, ["a", "b"])

    write(test, "user,item,rating\n1,b,1\n1,z,0\n2,z,1\n")
    with pytest.raises(DataError, match="never listed: found item z") as caught:
        read_marketplace(tmp_path)
    assert (caught.value.line, caught.value.source) == (4, str(test))

    write(train, "user,item\n1,a\n2,q\n")
    write(test, "user,item\n1,b\n")
    with pytest.raises(DataError, match="found 1 user,"):
        read_marketplace(tmp_path)


def test_a_catalogue_may_lie_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "data" / "north.csv", SHOP)
    listing = write(tmp_path / "assortment.tsv", "sku\na\nb\nc\n")
    market = read_marketplace(tmp_path / "data", catalogue=listing)
    assert market.catalogue.listed_ids("north") == ("a", "b", "c")


def test_held_out_columns_may_lack_what_is_named_for_interactions(tmp_path: Path) -> None:
    columns = Columns(user="Client No", item="Art", rating="Points", time="Day")
    write(tmp_path / "a" / "train.csv", "Client No;Art;Points;Day\n1;x;2;2024-01-01\n2;y;3;5\n")
    write(tmp_path / "a" / "test.csv", "Client No;Art;Points\n1;y;0\n2;x;1\n")
    with pytest.raises(DataError, match="line 3, column 'Day'"):
        read_platform(tmp_path / "a", columns=columns)
    write(tmp_path / "a" / "train.csv", "Client No;Art;Points;Day\n1;x;2;4\n2;y;3;5\n")
    table = read_platform(tmp_path / "a", columns=columns)
    assert table.held_out is not None
    assert table.held_out.to_numpy().tolist() == [["2", "x"]]
    path = write(tmp_path / "none.csv", "user,item,rating\n1,a,0\n")
    with pytest.raises(DataError, match="no held-out pair is relevant"):
        read_held_out(path)


def test_a_platform_that_the_catalogue_does_not_know_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "north.csv", SHOP)
    other = Catalogue(item_ids=("a",), listings={}, derived=False)
    with pytest.raises(DataError, match="lists nothing for platform 'north'"):
        read_platform(path, catalogue=other)
