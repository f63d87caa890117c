"""What each test user got from each model, as a table without ids.

A comparison pairs models user by user, and one user over several seeds. The table is as private as
the data: it is for those who may see the data, and leaves the folder of its run with them only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from common.errors import StateError
from common.storage import FOR_ALL, write_durably

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scipy.sparse import csr_matrix

    from common.evaluation.metrics import RankingMetrics
    from simulations.federation import SimulatedPlatform

PER_USER_METRICS = ("ndcg@10", "hr@10")
COLUMNS = ("platform", "model", "user", *PER_USER_METRICS, "interactions", "item_purchases")


def per_user_table(
    platform: SimulatedPlatform,
    rankings: Mapping[str, RankingMetrics],
    everyone: Sequence[str],
) -> pd.DataFrame:
    """One row per model and test user.

    Columns: ``platform``, ``model``, ``user`` (her place in ``everyone``: the same person in every
    run on the same data), each of ``PER_USER_METRICS``, ``interactions`` (of hers, to train on),
    ``item_purchases`` (users of the platform who have her held-out item in their training data; of
    several items, the least bought one's).

    Args:
        platform: its training data and test pairs.
        rankings: what each model did, by name; all measured on the same users.
        everyone: user ids of the whole platform, sorted; holds all ids of ``platform.train``.
    """
    rows = np.unique(platform.test.nonzero()[0])
    users = np.searchsorted(
        np.asarray(everyone, dtype=object),
        np.asarray(platform.train.user_ids, dtype=object)[rows],
    )
    frames = [
        pd.DataFrame(
            {
                "platform": platform.name,
                "model": model,
                "user": users.astype(np.int32),
                **{metric: ranking.per_user[metric] for metric in PER_USER_METRICS},
                "interactions": np.diff(platform.train.matrix.indptr)[rows].astype(np.int32),
                "item_purchases": _least_bought(platform.test, platform.train.matrix)[rows],
            }
        )
        for model, ranking in rankings.items()
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*COLUMNS])


def _least_bought(test: csr_matrix, train: csr_matrix) -> np.ndarray:
    """Purchases in ``train`` of the least bought held-out item of each row of ``test``."""
    purchases = np.asarray(train.sum(axis=0)).ravel().astype(np.int32)
    rows, items = test.nonzero()
    least = np.full(test.shape[0], np.iinfo(np.int32).max, dtype=np.int32)
    np.minimum.at(least, rows, purchases[items])
    return least


def write_per_user(path: Path, table: pd.DataFrame) -> None:
    """Write ``table`` whole or not at all.

    Raises:
        StateError: if the folder cannot be written.
    """
    write_durably(path, table.to_parquet(index=False), mode=FOR_ALL)


def read_per_user(path: Path) -> pd.DataFrame:
    """Read what `write_per_user` wrote.

    Raises:
        StateError: if the file is missing or is no such table.
    """
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise StateError(f"{path}: cannot be read as a table: {error}. Run again.") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise StateError(f"{path}: has no column {missing[0]!r}. Run again.")
    return table
