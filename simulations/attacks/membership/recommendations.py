"""What probes learn from the recommendations that another platform shows them.

The adversary registers users at a platform of its choice: one for each canary, who does nothing
there but buy the first of the canary's items. If the canary was in, the sum of pairs says that the
second goes with it, and if the platform uses that sum, it moves up in what the probe is shown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from client.config import PlatformConfig
from client.data import load_platform_data
from client.state import PlatformState
from common.config import load_config
from common.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

    from client.model_files import ServedName
    from common.data.marketplace import Marketplace
    from simulations.attacks.membership.canaries import Canaries

_NAME = "canary-probe-{:06d}"


def with_probes(marketplace: Marketplace, platform: str, canaries: Canaries) -> Marketplace:
    """The data with one probe at ``platform`` for each canary, whether it is in or not."""
    table = marketplace.platform(platform)
    ids = np.asarray(marketplace.catalogue.item_ids, dtype=object)
    frame = pd.DataFrame(
        {
            "user_id": [_NAME.format(place) for place in range(canaries.number)],
            "item_id": ids[canaries.items[:, 0]],
        },
        dtype="str",
    )
    for column in table.interactions.columns.difference(frame.columns):
        frame[column] = 1.0
    larger = replace(table, interactions=pd.concat([table.interactions, frame], ignore_index=True))
    return replace(
        marketplace,
        platforms=tuple(larger if p is table else p for p in marketplace.platforms),
    )


def score_recommendations(
    canaries: Canaries, config_file: Path
) -> tuple[np.ndarray, ServedName | None]:
    """How far up each probe finds the second item, over how far up the other probes find it.

    Args:
        canaries: whose items the probes were made from.
        config_file: ``platform.toml`` of the platform that serves them, after the run.

    Returns:
        [m] float64, higher for in, and what the platform serves: ``alone`` does not depend on the
        federation at all.

    Raises:
        StateError: if it serves nothing.
    """
    config = load_config(config_file, PlatformConfig)
    data = load_platform_data(config)
    state = PlatformState(config.state.folder, config.state.keep_releases)
    try:
        models, gate = state.models.load(data.users_digest), state.models.served()
    finally:
        state.close()
    if models is None:
        msg = f"{config.platform.name} serves nothing that probes could see; see its log."
        raise StateError(msg)
    served = models.joined if gate == "joined" and models.joined is not None else models.alone
    rows = {user: row for row, user in enumerate(data.users.user_ids)}
    probes = np.array([rows[_NAME.format(place)] for place in range(canaries.number)])
    wanted = np.searchsorted(data.users.listing, canaries.items[:, 1])
    # Ranks, as shown: rows are probes, columns are what each of the second items gets from them.
    ranks = np.stack([rankdata(row)[wanted] for row in served.scores(probes, data.users.matrix)])
    spread = ranks.std(axis=0)
    scores: np.ndarray = (np.diag(ranks) - ranks.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return scores, gate
