"""What a platform's score is a weighted sum of: parts, each of which scores all listed items.

Parts are values: fitted elsewhere, stored as named arrays, and never released.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from scipy.sparse import csr_matrix

from client.personal_ncf import PersonalNcf
from common.errors import CrossRecError, StateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.models.partition import Arrays

_BLOCK = 256
"""Users whose sparse scores are held at once."""


class Scorer(Protocol):
    """Scores all listed items for some users."""

    def scores(self, users: np.ndarray, history: csr_matrix) -> np.ndarray:
        """Scores for ``users``: float32 [B, num_listed].

        Args:
            users: row numbers, [B].
            history: the platform's interactions, [num_users, num_listed]. Parts that hold user
                vectors do not read it; their rows are those of the same users.
        """
        ...


class Part(Scorer, Protocol):
    """A scorer that is fitted as a whole and can be stored."""

    def arrays(self) -> Arrays:
        """The part as named arrays, from which :func:`unpack_parts` makes it again."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ItemScores:
    """The same scores for every user."""

    values: np.ndarray
    """[num_listed] float32."""

    def __post_init__(self) -> None:
        if self.values.ndim != 1:
            raise ValueError(
                f"item scores have shape {self.values.shape}, expected one number each"
            )

    def scores(self, users: np.ndarray, history: csr_matrix) -> np.ndarray:
        """See :class:`Scorer`."""
        del history
        return np.tile(self.values, (len(users), 1))

    def arrays(self) -> Arrays:
        """See :class:`Part`."""
        return {"values": self.values}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ItemWeights:
    """Scores from what a user bought: ``history @ weights``."""

    weights: csr_matrix
    """[num_listed, num_listed] float32: what having bought the row says about the column."""

    def scores(self, users: np.ndarray, history: csr_matrix) -> np.ndarray:
        """See :class:`Part`."""
        scores = np.empty((len(users), self.weights.shape[1]), dtype=np.float32)
        for first in range(0, len(users), _BLOCK):
            block = slice(first, first + _BLOCK)
            scores[block] = (history[users[block]] @ self.weights).toarray()
        return scores

    def arrays(self) -> Arrays:
        """See :class:`Part`."""
        return {
            "data": self.weights.data,
            "indices": self.weights.indices.astype(np.int32),
            "indptr": self.weights.indptr.astype(np.int64),
        }

    @classmethod
    def from_arrays(cls, *, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray) -> Self:
        """Undo :meth:`arrays`.

        Raises:
            ValueError: if they are not those of a square matrix.
        """
        size = len(indptr) - 1
        weights = csr_matrix((data, indices, indptr), shape=(size, size))
        weights.check_format(full_check=True)  # multiplying trusts the indices
        return cls(weights=weights)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Factors:
    """Scores as products of a user's and an item's vector."""

    users: np.ndarray
    """[num_users, dim] float32."""
    items: np.ndarray
    """[num_listed, dim] float32."""

    def __post_init__(self) -> None:
        if self.users.ndim != 2 or self.users.shape[1:] != self.items.shape[1:]:
            raise ValueError(
                f"users have shape {self.users.shape} and items {self.items.shape}, "
                "expected vectors of one length"
            )

    def scores(self, users: np.ndarray, history: csr_matrix) -> np.ndarray:
        """See :class:`Scorer`."""
        del history
        scores: np.ndarray = self.users[users] @ self.items.T
        return scores

    def arrays(self) -> Arrays:
        """See :class:`Part`."""
        return {"users": self.users, "items": self.items}


_KINDS: dict[str, tuple[type[Part], Any]] = {
    "item-scores": (ItemScores, ItemScores),
    "item-weights": (ItemWeights, ItemWeights.from_arrays),
    "factors": (Factors, Factors),
    "ncf": (PersonalNcf, PersonalNcf.from_arrays),
}
"""Name in a file -> the type, and what makes one from its arrays, or refuses them."""


def pack_parts(parts: Mapping[str, Part]) -> tuple[Arrays, str]:
    """Named arrays of all parts, and a text that says what they are.

    Raises:
        ValueError: if a name holds a slash, which separates it from the names of its arrays.
    """
    if any("/" in name for name in parts):
        raise ValueError(f"found {list(parts)}, expected names of parts without a slash")
    arrays = {
        f"{name}/{key}": array
        for name, part in parts.items()
        for key, array in part.arrays().items()
    }
    kinds = {
        name: next(kind for kind, (cls, _) in _KINDS.items() if isinstance(part, cls))
        for name, part in parts.items()
    }
    return arrays, json.dumps(kinds)


def unpack_parts(arrays: Mapping[str, np.ndarray], kinds: str) -> dict[str, Part]:
    """Undo :func:`pack_parts`; arrays of other names are left alone.

    Raises:
        StateError: if arrays are missing or damaged, or of a kind that this version does not know.
    """
    parts: dict[str, Part] = {}
    try:
        for name, kind in json.loads(kinds).items():
            prefix = f"{name}/"
            own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
            parts[name] = _KINDS[kind][1](**own)
    except (
        AttributeError,
        CrossRecError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        msg = (
            f"stored parts cannot be read ({type(error).__name__}: {error}); "
            "hand the shared model over again."
        )
        raise StateError(msg) from error
    return parts


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Blend:
    """A weighted sum of parts: what a platform can serve."""

    parts: Mapping[str, Part]
    """By name."""
    weights: Mapping[str, float]
    """By name of a part; parts without a weight are left out."""

    def scores(self, users: np.ndarray, history: csr_matrix) -> np.ndarray:
        """Scores for ``users``: float32 [B, num_listed]; arguments as in :meth:`Scorer.scores`."""
        total = np.zeros((len(users), history.shape[1]), dtype=np.float32)
        for name, weight in self.weights.items():
            total += np.float32(weight) * self.parts[name].scores(users, history)
        return total
