"""A newcomer: a platform that has a part of its users only, in an otherwise unchanged federation.

What would joining bring to a shop that has just opened? Its users are drawn at random; what it
lists, and every other platform, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from common.errors import ConfigError
from common.rng import derived_generator

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from common.data.marketplace import Marketplace

FEWEST_USERS = 2
"""A platform with fewer users cannot take part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Newcomer:
    """A platform, and the share of its users that it has."""

    platform: str
    """Its name."""
    fraction: float
    """Of its users, in (0, 1]."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not (self.platform and 0 < self.fraction <= 1):
            msg = f"fraction: found {self.fraction:g}, expected a number in (0, 1]."
            raise ConfigError(msg)

    def __str__(self) -> str:
        """``NAME:FRACTION``, as :meth:`parse` reads it."""
        return f"{self.platform}:{self.fraction:.12g}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``NAME:FRACTION``.

        Raises:
            ConfigError: if it is something else.
        """
        name, _, share = text.strip().rpartition(":")
        try:
            return cls(platform=name, fraction=float(share))
        except (ValueError, ConfigError):
            msg = (
                f"newcomer: found {text!r}, expected NAME:FRACTION with a fraction "
                "in (0, 1], such as shop-a:0.1."
            )
            raise ConfigError(msg) from None


def require_platforms(names: Iterable[str], marketplace: Marketplace) -> None:
    """Check that the federation has platforms of these names.

    Raises:
        ConfigError: naming the first that it has not.
    """
    known = [platform.name for platform in marketplace.platforms]
    for name in names:
        if name not in known:
            msg = f"there is no platform {name!r}; the data have {', '.join(sorted(known))}."
            raise ConfigError(msg)


def draw_newcomer(marketplace: Marketplace, newcomer: Newcomer, seed: int) -> Marketplace:
    """The same federation in which one platform has some of its users, drawn by ``seed``.

    A larger fraction with the same seed has all users of a smaller one. Users without any
    interaction of their own, who occur in held-out pairs only, are left out.

    Raises:
        ConfigError: if there is no such platform.
    """
    require_platforms([newcomer.platform], marketplace)
    table = marketplace.platform(newcomer.platform)
    kept = _draw(table.interactions["user_id"], newcomer, seed)
    held_out = table.held_out
    smaller = replace(
        table,
        interactions=_of_users(table.interactions, kept),
        held_out=None if held_out is None else _of_users(held_out, kept),
    )
    return replace(
        marketplace,
        platforms=tuple(smaller if p is table else p for p in marketplace.platforms),
    )


def _draw(user_ids: pd.Series[str], newcomer: Newcomer, seed: int) -> np.ndarray:
    users = np.array(sorted(user_ids.unique().tolist()), dtype=object)
    number = max(FEWEST_USERS, round(newcomer.fraction * len(users)))
    rng = derived_generator(seed, "newcomer", newcomer.platform)
    drawn: np.ndarray = rng.permutation(users)[:number]
    return drawn


def _of_users(frame: pd.DataFrame, users: np.ndarray) -> pd.DataFrame:
    return frame.loc[frame["user_id"].isin(users)].reset_index(drop=True)
