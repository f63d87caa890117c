"""Interactions in the form in which models train on them: a sparse user-item matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp

from common.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from common.data.catalogue import ItemOrder


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UserItems:
    """Who interacted with what on one platform, in local indices.

    Attributes:
        user_ids: sorted by code point; position = row of ``matrix``.
        listing: sorted catalogue indices of the platform's items; position = column of
            ``matrix`` (local item index).
        matrix: CSR of float32 ones, shape (num_users, num_listed), indices sorted.

    Raises:
        ValueError: if the shapes do not fit or the user ids are not sorted and unique.
    """

    user_ids: tuple[str, ...]
    listing: NDArray[np.int64]
    matrix: sp.csr_matrix

    def __post_init__(self) -> None:
        if self.matrix.shape != (len(self.user_ids), len(self.listing)):
            msg = (
                f"matrix has shape {self.matrix.shape}, "
                f"expected ({len(self.user_ids)}, {len(self.listing)})"
            )
            raise ValueError(msg)
        if any(a >= b for a, b in zip(self.user_ids, self.user_ids[1:], strict=False)):
            raise ValueError("user_ids must be sorted and hold no id twice")

    @classmethod
    def from_table(
        cls,
        frame: pd.DataFrame,
        catalogue: ItemOrder,
        platform: str,
        *,
        extra_users: Iterable[str] = (),
    ) -> Self:
        """Index the pairs of ``frame`` (``user_id``, ``item_id``); a repeated pair counts once.

        Args:
            frame: interactions of the platform.
            catalogue: gives the item indices.
            platform: whose listing gives the columns.
            extra_users: users who get a row even without an interaction here, such as
                those who occur in held-out pairs only.

        Raises:
            DataError: if an item is not listed on the platform.
        """
        users = sorted({*pd.unique(frame["user_id"]).tolist(), *extra_users})
        return cls(
            user_ids=tuple(users),
            listing=catalogue.listing(platform),
            matrix=_encode(frame, users, catalogue, platform),
        )

    @property
    def num_users(self) -> int:
        """Rows of ``matrix``."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Columns of ``matrix``: the items that the platform lists."""
        return len(self.listing)

    @property
    def num_interactions(self) -> int:
        """Ones in ``matrix``."""
        return int(self.matrix.nnz)


def encode_held_out(
    frame: pd.DataFrame, *, user_ids: Sequence[str], catalogue: ItemOrder, platform: str
) -> sp.csr_matrix:
    """Held-out pairs as a matrix aligned with :class:`UserItems`.

    Args:
        frame: ``user_id`` and ``item_id``; a user may have any number of items.
        user_ids: the rows, in this order.
        catalogue: gives the item indices.
        platform: whose listing gives the columns.

    Returns:
        CSR of float32 ones, shape (len(user_ids), num_listed), indices sorted.

    Raises:
        DataError: if an item is not listed on the platform, or a user is not in ``user_ids``.
    """
    return _encode(frame, user_ids, catalogue, platform)


def _encode(
    frame: pd.DataFrame, user_ids: Sequence[str], catalogue: ItemOrder, platform: str
) -> sp.csr_matrix:
    listing = catalogue.listing(platform)
    # Each distinct id is looked up once, however many rows it has.
    user_codes, users = pd.factorize(frame["user_id"])
    item_codes, items = pd.factorize(frame["item_id"])
    user_rows = pd.Index(np.asarray(user_ids, dtype=object)).get_indexer(users.astype(object))
    indices = catalogue.index_of(items)
    places = np.searchsorted(listing, indices)
    is_listed = listing[np.minimum(places, len(listing) - 1)] == indices
    for is_known, what in ((user_rows >= 0, "user"), (is_listed, "item")):
        if not is_known.all():
            raise DataError(
                f"interactions name a {what} without a place on platform {platform!r}"
                if what == "user"
                else f"interactions name an item that platform {platform!r} does not list",
                source=platform,
                found=f"{int((~is_known).sum())} such {what}s",
                expected="none",
            )
    matrix = sp.csr_matrix(
        (
            np.ones(len(frame), dtype=np.float32),
            (user_rows[user_codes].astype(np.int64), places[item_codes]),
        ),
        shape=(len(user_ids), len(listing)),
        dtype=np.float32,
    )
    matrix.sum_duplicates()  # sorts the indices as well
    matrix.data[:] = 1.0
    return matrix
