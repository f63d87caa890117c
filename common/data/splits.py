"""Hold interactions out for test or validation.

The outcome depends on the set of rows and the seed only, never on the order of the
rows, and what is held out is never left in the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import pandas as pd

from common.errors import DataError
from common.rng import derive_seed

if TYPE_CHECKING:
    from common.data.marketplace import Marketplace
    from common.data.schema import PlatformTable

_PAIR: Final = ["user_id", "item_id"]


class Split(NamedTuple):
    """One platform's interactions to train on and pairs to test with, without a common pair.

    Attributes:
        train: as :attr:`PlatformTable.interactions`.
        test: ``user_id`` and ``item_id``.
        origin: where ``test`` comes from.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    origin: Literal["held-out file", "leave-one-out"]


def leave_last_out(
    table: pd.DataFrame, *, seed: int, share: float = 1.0, min_kept: int = 1, place: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take the last interaction of each chosen user who keeps at least ``min_kept`` others.

    The last is the one with the greatest ``timestamp``; without times, and among equal
    ones, it is drawn. With ``place`` it is the one before, or the one before that, of the same
    users, so that one user can be asked several times.

    Guarantee: whether a user is chosen, and what she gives up, is a function of ``seed`` and her
    own rows. Adding or removing another user changes nothing for her, so private training on the
    rest keeps its sensitivity.

    Args:
        table: ``user_id``, ``item_id``, optionally ``timestamp``, and any other columns; a
            pair occurs once.
        seed: of the draws.
        share: chance of each user to be chosen, in [0, 1].
        min_kept: interactions that a user must keep, >= 1.
        place: 0 takes the last interaction, 1 the one before, and so on.

    Returns:
        ``(rest, held_out)``, each with the columns of ``table``, sorted by user and item.

    Raises:
        ValueError: if a pair occurs twice, or an argument is out of range.
    """
    if min_kept < 1 or place < 0 or not 0 <= share <= 1:
        raise ValueError(
            f"min_kept must be >= 1, place >= 0 and share in [0, 1], "
            f"found {min_kept}, {place} and {share}"
        )
    users, distinct_users = pd.factorize(table["user_id"], sort=True)
    items, _ = pd.factorize(table["item_id"], sort=True)
    order = np.lexsort((items, users))
    users, items = users[order], items[order]
    table = table.iloc[order].reset_index(drop=True)
    if ((users[1:] == users[:-1]) & (items[1:] == items[:-1])).any():
        raise ValueError(
            "a pair of user and item occurs twice: leaving one out would leave it in as well"
        )
    user_ids = table["user_id"].to_numpy(dtype=object)
    draws = _uniform(
        user_ids + "\x1f" + table["item_id"].to_numpy(dtype=object), seed, "interaction"
    )
    times = table["timestamp"].to_numpy() if "timestamp" in table.columns else np.zeros(len(table))
    by_time = np.lexsort((draws, times, users))
    counts = np.bincount(users, minlength=len(distinct_users))
    ends = np.cumsum(counts) - 1
    last = by_time[np.maximum(ends - place, 0)]  # one row per user, in the order of users
    chosen = _uniform(np.asarray(distinct_users, dtype=object), seed, "user") < share
    is_held_out = np.zeros(len(table), dtype=bool)
    is_held_out[last[(counts > max(min_kept, place)) & chosen]] = True
    return (
        table.loc[~is_held_out].reset_index(drop=True),
        table.loc[is_held_out].reset_index(drop=True),
    )


def _uniform(texts: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """A number in [0, 1) for each text, which depends on that text and the seed alone."""
    key = f"{derive_seed(seed, purpose):016x}"
    if not len(texts):
        return np.empty(0)
    return (pd.util.hash_array(texts, hash_key=key, categorize=False) >> np.uint64(11)) * 2.0**-53


def split_marketplace(marketplace: Marketplace, seed: int) -> dict[str, Split]:
    """Split every platform into train and test, keyed by its name.

    A platform with held-out pairs of its own is tested with those; a pair that stands among
    its interactions too is taken out of them. Every other platform is split leave-one-out.

    Args:
        marketplace: the federation.
        seed: draws ties; each platform has a stream of its own.

    Raises:
        DataError: if a platform has no interaction to spare for a test, or none to train on.
    """
    return {platform.name: _split(platform, seed) for platform in marketplace.platforms}


def _split(platform: PlatformTable, seed: int) -> Split:
    if platform.held_out is not None:
        train = _without(platform.interactions, platform.held_out)
        split = Split(train, platform.held_out[_PAIR], "held-out file")
    else:
        platform_seed = derive_seed(seed, "split", platform.name)
        train, test = leave_last_out(platform.interactions, seed=platform_seed)
        split = Split(train, test[_PAIR], "leave-one-out")
    if split.train.empty or split.test.empty:
        raise DataError(
            f"platform {platform.name!r} has too few interactions to train and to test",
            source=platform.source,
            found=f"{len(split.train)} to train and {len(split.test)} to test",
            expected="a user with at least 2 interactions, or a held-out file",
        )
    return split


def _without(frame: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    marks = frame[_PAIR].merge(pairs[_PAIR], on=_PAIR, how="left", indicator=True)["_merge"]
    return frame.loc[(marks == "left_only").to_numpy()].reset_index(drop=True)
