"""Laws of the indexed form: it holds the same pairs as the table, whatever the row order."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from common.data.catalogue import Catalogue
from common.data.interactions import UserItems, encode_held_out
from common.errors import DataError

CATALOGUE = Catalogue(
    item_ids=("a", "b", "c", "d", "e"),
    listings={"n": np.array([1, 2, 4]), "s": np.array([0, 4])},
    derived=False,
)


def frame(*pairs: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(list(pairs), columns=["user_id", "item_id"], dtype="str")


PAIRS = (("10", "e"), ("9", "b"), ("10", "b"), ("9", "b"))


def test_rows_are_sorted_users_and_columns_the_listing() -> None:
    items = UserItems.from_table(frame(*PAIRS), CATALOGUE, "n", extra_users=["1", "9"])
    assert items.user_ids == ("1", "10", "9")
    assert items.listing.tolist() == [1, 2, 4]
    assert items.matrix.toarray().tolist() == [[0, 0, 0], [1, 0, 1], [1, 0, 0]]
    assert items.matrix.dtype == np.float32
    assert items.matrix.has_sorted_indices
    assert (items.num_users, items.num_items, items.num_interactions) == (3, 3, 3)


def test_the_order_of_rows_changes_nothing() -> None:
    one = UserItems.from_table(frame(*PAIRS), CATALOGUE, "n")
    two = UserItems.from_table(frame(*PAIRS[::-1]), CATALOGUE, "n")
    assert one.user_ids == two.user_ids
    for part in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(one.matrix, part), getattr(two.matrix, part))


def test_held_out_pairs_align_with_the_users() -> None:
    users = ["1", "10", "9"]
    held_out = encode_held_out(
        frame(("9", "c"), ("1", "e"), ("9", "b")), user_ids=users, catalogue=CATALOGUE, platform="n"
    )
    assert held_out.toarray().tolist() == [[0, 0, 1], [0, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("item", ["a", "zzz"])
def test_an_item_that_is_not_listed_is_refused(item: str) -> None:
    with pytest.raises(DataError):
        UserItems.from_table(frame(("1", "b"), ("1", item)), CATALOGUE, "n")


def test_a_held_out_user_without_a_row_is_refused() -> None:
    with pytest.raises(DataError, match="name a user"):
        encode_held_out(frame(("7", "b")), user_ids=["1"], catalogue=CATALOGUE, platform="n")


def test_parts_that_do_not_fit_are_refused() -> None:
    listing = np.array([1, 2])
    with pytest.raises(ValueError, match="shape"):
        UserItems(user_ids=("1",), listing=listing, matrix=sp.csr_matrix((2, 2)))
    with pytest.raises(ValueError, match="sorted"):
        UserItems(user_ids=("2", "1"), listing=listing, matrix=sp.csr_matrix((2, 2)))
