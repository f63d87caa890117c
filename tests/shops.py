"""Small federations on disk, and runs on them that take a second."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from client import adaptation
from common.models.ncf import NcfConfig
from simulations import simulate
from simulations.options import SimulationOptions
from simulations.result import without_timing
from simulations.simulate import RESULT_FILE, SimulationRun

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SIZES = {"north": 18, "south": 14}
NUM_ITEMS = 22


def purchases(name: str, num_users: int, *, per_user: int = 6, seed: int = 0) -> pd.DataFrame:
    """Columns user_id, item_id, timestamp; no pair twice."""
    rng = np.random.default_rng([seed, *name.encode()])
    rows = [
        (f"{name}-u{user:02d}", f"i{item:02d}", 1_600_000_000 + 1000 * user + place)
        for user in range(num_users)
        for place, item in enumerate(rng.choice(NUM_ITEMS, size=per_user, replace=False))
    ]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])


def write_shops(folder: Path, sizes: Mapping[str, int] = SIZES) -> Path:
    """One CSV file per platform."""
    folder.mkdir(parents=True)
    for name, num_users in sizes.items():
        purchases(name, num_users).to_csv(folder / f"{name}.csv", index=False)
    return folder


def options(data: Path | None, **changes: Any) -> SimulationOptions:  # noqa: ANN401 - any field
    quick = {"plan": "both", "rounds": 2, "epochs": 2, "model": NcfConfig(dim=4)}
    return SimulationOptions(data=data, **{**quick, **changes})


def tune_little(patch: pytest.MonkeyPatch) -> None:
    """Try one setting of each local model: tuning takes most of a small run's time.

    Runs in processes of their own are not reached.
    """
    for name, values in {
        "_SHRINKS": (10.0,),
        "_RIDGES": (10.0,),
        "_RIDGES_IF_SLOW": (10.0,),
        "_ALS_CHOICES": ((0.01, 0.1),),
        "_ALS_EPOCHS": 1,
        "_LOCAL_WEIGHTS": (0.2, 1.0),
    }.items():
        patch.setattr(adaptation, name, values)


def execute(
    run: SimulationRun, *, with_report: bool = False, tuned: bool = False
) -> dict[str, Any]:
    """Execute ``run`` and return what it wrote to ``result.json``, without timing.

    Figures, report and tuning take most of a small run's time: most tests do without.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not tuned:
            tune_little(patch)
        if not with_report:
            for name in ("save_figures", "write_report"):
                patch.setattr(simulate, name, lambda *_: None)
        run.execute()
    return read_document(run.folder)


def run_all(asked: SimulationOptions, folder: Path, *, tuned: bool = False) -> dict[str, Any]:
    """A whole run in ``folder``: its result without timing."""
    return execute(SimulationRun.open(asked, folder), tuned=tuned)


def read_document(folder: Path) -> dict[str, Any]:
    text = (folder / RESULT_FILE).read_text(encoding="utf-8")
    return without_timing(json.loads(text, parse_constant=pytest.fail))
