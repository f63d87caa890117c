"""What the rest of CrossRec may assume about interactions: tables and column names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from common.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

Role = Literal["user", "item", "rating", "time"]

# Usual spellings, compared in lower case without punctuation; the first that a file has wins.
SPELLINGS: Final[Mapping[Role, tuple[str, ...]]] = {
    "user": (
        *("userid", "user", "uid", "userno", "customerid", "customer", "customerno", "custid"),
        *("clientid", "client", "buyerid", "buyer", "shopperid", "shopper", "memberid", "member"),
        *("visitorid", "visitor", "accountid", "account", "reviewerid", "reviewer", "username"),
    ),
    "item": (
        *("itemid", "item", "iid", "itemno", "sku", "skuid", "productid", "product", "productno"),
        *("articleid", "article", "articleno", "stockcode", "parentasin", "asin", "isbn"),
        *("movieid", "movie", "bookid", "book", "trackid", "track", "songid", "song", "artistid"),
        *("artist", "videoid", "video", "gameid", "game", "newsid", "businessid", "business"),
    ),
    "rating": (
        *("rating", "rate", "ratings", "score", "stars", "star", "overall", "relevance", "rel"),
        *("label", "grade", "preference"),
    ),
    "time": (
        *("timestamp", "unixtimestamp", "unixtime", "unixreviewtime", "time", "datetime", "date"),
        *("ts", "boughtat", "boughton", "purchasedat", "purchasetime", "purchasedate", "orderedat"),
        *("orderedon", "ordertime", "orderdate", "invoicedate", "eventtime", "eventdate"),
        *("createdat", "ratedat", "reviewedat", "reviewdate", "viewedat", "clickedat", "tdat"),
    ),
}

_ATOMIC_TYPE = re.compile(r":(token|float)(_seq)?$")  # RecBole's "user_id:token"


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Names of the columns to read; ``None`` means: recognise a usual spelling.

    Raises:
        ConfigError: if a name is blank, or two roles name one column.
    """

    user: str | None = None
    item: str | None = None
    rating: str | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        named = [name for name in self.named().values() if name is not None]
        if any(not name.strip() for name in named):
            raise ConfigError(
                "a column name is blank: give the name as it stands in the file's first line."
            )
        if len(set(named)) < len(named):
            raise ConfigError(
                f"two columns have one name ({', '.join(named)}): each needs a column of its own."
            )

    def named(self) -> dict[Role, str | None]:
        """The explicit name of each role, in the order user, item, rating, time."""
        return {"user": self.user, "item": self.item, "rating": self.rating, "time": self.time}


def plain_name(name: str) -> str:
    """``name`` without case, punctuation and RecBole type suffix: ``User-ID`` -> ``userid``."""
    return "".join(c for c in _ATOMIC_TYPE.sub("", name.strip()).casefold() if c.isalnum())


def match_columns(names: Sequence[str], columns: Columns) -> dict[Role, int]:
    """Return the position in ``names`` of every role that can be found there.

    Explicit names come first (exactly as written, else without case and punctuation);
    the roles without one take the first usual spelling among the columns that are left.
    """
    plain = [plain_name(name) for name in names]
    stripped = [name.strip() for name in names]
    found: dict[Role, int] = {}
    for role, name in columns.named().items():
        if name is None:
            continue
        if name.strip() in stripped:
            found[role] = stripped.index(name.strip())
        elif plain_name(name) in plain:
            found[role] = plain.index(plain_name(name))
    for role, name in columns.named().items():
        if name is not None:
            continue
        taken = set(found.values())
        for spelling in SPELLINGS[role]:
            free = [k for k, p in enumerate(plain) if p == spelling and k not in taken]
            if free:
                found[role] = free[0]
                break
    return {role: found[role] for role in columns.named() if role in found}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlatformTable:
    """The interactions of one platform, checked.

    Attributes:
        name: the platform's name.
        interactions: columns ``user_id`` and ``item_id`` (str), and where the source has
            them ``rating`` (float64, finite, >= 0) and ``timestamp`` (float64 seconds since
            1970, UTC). A pair of user and item occurs once.
        held_out: the platform's own test pairs (``user_id``, ``item_id``; relevant ones
            only), or None.
        source: where it came from, for reports.
        num_duplicates: rows of interactions left out because their pair occurs already.
        num_unlisted: rows of interactions left out because a public catalogue does not list
            their item on this platform.

    Raises:
        DataError: if a column is missing, a pair occurs twice, or there are fewer than two
            users.
    """

    name: str
    interactions: pd.DataFrame
    held_out: pd.DataFrame | None = None
    source: str
    num_duplicates: int = 0
    num_unlisted: int = 0

    def __post_init__(self) -> None:
        pair = ["user_id", "item_id"]
        for frame in (self.interactions, self.held_out):
            if frame is None:
                continue
            missing = [name for name in pair if name not in frame.columns]
            if missing:
                raise DataError(
                    "a column is missing",
                    source=self.source,
                    found=f"columns {', '.join(map(str, frame.columns))}",
                    expected="user_id and item_id",
                    column=missing[0],
                )
            if frame.duplicated(pair).any():
                raise DataError(
                    f"platform {self.name!r} holds a pair of user and item twice",
                    source=self.source,
                    found=f"{int(frame.duplicated(pair).sum())} repeated rows",
                    expected="every pair once",
                )
        if self.num_users < 2:
            raise DataError(
                f"platform {self.name!r} has too few users to learn from",
                source=self.source,
                found=f"{self.num_users} user{'' if self.num_users == 1 else 's'}",
                expected="at least 2 users with interactions",
            )

    @property
    def num_users(self) -> int:
        """Users with at least one interaction."""
        return int(self.interactions["user_id"].nunique())

    @property
    def num_items(self) -> int:
        """Items with at least one interaction."""
        return int(self.interactions["item_id"].nunique())

    @property
    def num_interactions(self) -> int:
        """Rows of ``interactions``."""
        return len(self.interactions)
