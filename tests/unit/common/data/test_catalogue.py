"""Laws of the catalogue: one order for all, and a file that gives it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from common.data.catalogue import (
    Catalogue,
    PlatformCatalogue,
    derive_catalogue,
    read_catalogue,
    write_catalogue,
)
from common.data.interactions import UserItems
from common.data.schema import PlatformTable
from common.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def make(**listings: list[int]) -> Catalogue:
    return Catalogue(
        item_ids=("10", "9", "a", "é"),
        listings={name: np.array(listing) for name, listing in listings.items()},
        derived=False,
        attributes=pd.DataFrame(
            {
                "brand": ["x", "y, z", "", "x"],
                "price": [0.1, 1e-7, 12345.678, np.nan],
                "on_promotion": [True, False, False, True],
            },
            index=pd.Index(["10", "9", "a", "é"], name="item_id"),
        ),
    )


def test_reading_what_was_written_gives_it_back(tmp_path: Path) -> None:
    catalogue = make(north=[0, 2], south=[0, 1])  # the last item is listed by nobody
    write_catalogue(catalogue, tmp_path / "catalogue.csv")
    again = read_catalogue(tmp_path / "catalogue.csv", platforms=["south", "north"])
    assert again.item_ids == catalogue.item_ids
    assert again.digest == catalogue.digest
    assert {k: v.tolist() for k, v in again.listings.items()} == {"north": [0, 2], "south": [0, 1]}
    assert not again.derived
    assert again.attributes is not None
    assert catalogue.attributes is not None
    pd.testing.assert_frame_equal(again.attributes, catalogue.attributes, check_dtype=False)


def test_index_of_inverts_item_ids_and_refuses_strangers() -> None:
    catalogue = make(north=[0])
    assert catalogue.index_of(catalogue.item_ids).tolist() == [0, 1, 2, 3]
    assert catalogue.index_of(["a", "10", "a"]).tolist() == [2, 0, 2]
    with pytest.raises(DataError, match="1 unknown of 2") as caught:
        catalogue.index_of(["a", "secret"])
    assert "secret" not in str(caught.value)


def test_the_digest_depends_on_the_ids_and_their_borders() -> None:
    def digest(*ids: str) -> str:
        return Catalogue(item_ids=ids, listings={}, derived=False).digest

    assert digest("a", "b") == digest("a", "b")
    assert len({digest("a", "b"), digest("ab"), digest("a\nb"), digest('a","b'), digest("a")}) == 5
    assert digest("b", "a") != digest("a", "b")


def test_the_order_given_is_the_order_of_rows_and_no_file_would_keep_another(
    tmp_path: Path,
) -> None:
    grown = Catalogue(item_ids=("b", "d", "a"), listings={"n": np.array([0, 2])}, derived=False)
    assert grown.index_of(["a", "b", "d"]).tolist() == [2, 0, 1]
    assert grown.listed_ids("n") == ("b", "a")
    with pytest.raises(ValueError, match="another order"):
        write_catalogue(grown, tmp_path / "catalogue.csv")
    assert not (tmp_path / "catalogue.csv").exists()


def test_a_platform_needs_only_its_own_part_to_read_its_data() -> None:
    whole = Catalogue(
        item_ids=("b", "d", "a", "c"), listings={"n": np.array([0, 2, 3])}, derived=False
    )
    part = PlatformCatalogue(
        platform="n",
        item_ids=("b", "a", "c"),
        rows=np.array([0, 2, 3]),
        num_items=whole.num_items,
        digest=whole.digest,
    )
    frame = pd.DataFrame(
        [("1", "c"), ("1", "b"), ("2", "a")], columns=["user_id", "item_id"], dtype="str"
    )
    for catalogue in (whole, part):
        users = UserItems.from_table(frame, catalogue, "n")
        assert users.listing.tolist() == [0, 2, 3]
        assert users.matrix.toarray().tolist() == [[1, 0, 1], [0, 1, 0]]
        assert catalogue.listed_ids("n") == ("b", "a", "c")
    with pytest.raises(DataError, match="1 unknown of 2"):
        part.index_of(["a", "d"])
    with pytest.raises(DataError, match="'s'"):
        part.listing("s")


@pytest.mark.parametrize(
    ("ids", "rows"),
    [
        ((), []),
        (("a", "b"), [1]),
        (("a", "b"), [1, 0]),
        (("a", "b"), [1, 1]),
        (("a", "a"), [0, 1]),
        (("a", "b"), [-1, 1]),
        (("a", "b"), [0, 4]),
    ],
)
def test_a_part_that_is_not_one_row_for_each_item_is_refused(
    ids: tuple[str, ...], rows: list[int]
) -> None:
    with pytest.raises(ValueError, match="rows"):
        PlatformCatalogue(
            platform="n", item_ids=ids, rows=np.array(rows, dtype=int), num_items=4, digest=""
        )


@pytest.mark.parametrize(
    ("ids", "listing"),
    [
        ((), [0]),
        (("a", "a"), [0]),
        (("a", "b"), []),
        (("a", "b"), [1, 0]),
        (("a", "b"), [0, 0]),
        (("a", "b"), [0, 2]),
        (("a", "b"), [-1, 0]),
    ],
)
def test_an_order_that_two_sides_could_read_differently_is_refused(
    ids: tuple[str, ...], listing: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"sorted|no id twice"):
        Catalogue(item_ids=ids, listings={"p": np.array(listing, dtype=int)}, derived=False)


def test_a_derived_catalogue_lists_what_was_touched_or_held_out() -> None:
    def frame(*pairs: tuple[str, str]) -> pd.DataFrame:
        return pd.DataFrame(list(pairs), columns=["user_id", "item_id"], dtype="str")

    tables = [
        PlatformTable(name="n", source="", interactions=frame(("1", "b"), ("2", "a"), ("2", "b"))),
        PlatformTable(
            name="s",
            source="",
            interactions=frame(("1", "c"), ("2", "b")),
            held_out=frame(("1", "9")),
        ),
    ]
    catalogue = derive_catalogue(tables)
    assert catalogue.derived
    assert catalogue.item_ids == ("9", "a", "b", "c")
    assert catalogue.listed_ids("n") == ("a", "b")
    assert catalogue.listed_ids("s") == ("9", "b", "c")
    assert derive_catalogue(tables[::-1]).digest == catalogue.digest


def test_without_a_platform_column_everybody_lists_everything(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.tsv"
    path.write_text("ItemID\tcategory\n02\tx\n1\ty\n02\tz\n")
    catalogue = read_catalogue(path, platforms=["n", "s"])
    assert catalogue.listed_ids("n") == catalogue.listed_ids("s") == ("02", "1")
    assert catalogue.attributes is not None
    assert catalogue.attributes["category"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("platform,price\nn,1\n", "item column is missing"),
        ("item_id,platform\na,s\n", "lists nothing for platform 'n'"),
        ("item_id,platform\na,n\n,n\n", "line 3, column 'item_id'"),
        ("17\n18\n", "no header line"),
    ],
)
def test_a_faulty_catalogue_is_one_error(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "catalogue.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_catalogue(path, platforms=["n"])
