"""Who is served how well: means over groups of test users. Pure: tables in, rows out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from simulations.audit.report.parts import GroupUtility
from simulations.compare.collect import ACTIVITY_GROUPS, ALONE, POPULARITY_GROUPS, SERVED
from simulations.result import PRIMARY_METRIC
from simulations.verdict import gain_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from simulations.result import RunResult

_TRAITS = (
    ("item popularity", "item_purchases", POPULARITY_GROUPS, "others bought their held-out item"),
    ("user activity", "interactions", ACTIVITY_GROUPS, "own purchases"),
)


def groups_of(run: str, result: RunResult, table: pd.DataFrame | None) -> list[GroupUtility]:
    """Rows by platform; with a table of users also by size of the platform, item and activity.

    Args:
        run: what to call the run.
        result: its result.
        table: its users, see :mod:`simulations.per_user`; None if there is none.
    """
    order = sorted(result.platforms, key=lambda name: (-result.platforms[name].num_users, name))
    rows = [_of_platform(run, name, result) for name in order]
    paired = None if table is None else _paired(table)
    if paired is None:
        return rows
    half = (len(order) + 1) // 2
    for label, names in (("larger half", order[:half]), ("smaller half", order[half:])):
        here = paired[paired["platform"].isin(names)]
        if len(here):
            group = f"{label} of the platforms ({', '.join(names)})"
            rows.append(_of_users(run, "platform size", group, here))
    for by, column, fewest, what in _TRAITS:
        places = np.searchsorted(list(fewest.values()), paired[column], side="right") - 1
        rows += [
            _of_users(run, by, f"{label} {what}", paired[places == place])
            for place, label in enumerate(fewest)
            if (places == place).any()
        ]
    return rows


def _of_platform(run: str, name: str, result: RunResult) -> GroupUtility:
    platform = result.platforms[name]
    gain = gain_of(platform, PRIMARY_METRIC)

    def metric(model: str) -> float | None:
        measured = platform.models.get(model)
        return None if measured is None else measured.metrics.get(PRIMARY_METRIC)

    return GroupUtility(
        run=run,
        by="platform",
        group=name,
        num_users=platform.num_test_users,
        local=metric(ALONE),
        served=metric(SERVED),
        gain=None if gain is None else gain.mean,
        stderr=None if gain is None else gain.stderr,
    )


def _paired(table: pd.DataFrame) -> pd.DataFrame | None:
    """One row for each user whom both models were measured on."""
    keys = ["platform", "user", "interactions", "item_purchases"]
    alone, served = (
        table.loc[table["model"] == model, [*keys, PRIMARY_METRIC]] for model in (ALONE, SERVED)
    )
    paired = alone.merge(served, on=keys, suffixes=("_local", "_served"))
    return paired if len(paired) else None


def _of_users(run: str, by: str, group: str, rows: pd.DataFrame) -> GroupUtility:
    local, served = (rows[f"{PRIMARY_METRIC}_{name}"].to_numpy() for name in ("local", "served"))
    fields: Mapping[str, float | None] = {
        "local": float(local.mean()),
        "served": float(served.mean()),
        "gain": float((served - local).mean()),
        "stderr": (
            float((served - local).std(ddof=1) / math.sqrt(len(rows))) if len(rows) > 1 else None
        ),
    }
    return GroupUtility(run=run, by=by, group=group, num_users=len(rows), **fields)  # type: ignore[arg-type]
