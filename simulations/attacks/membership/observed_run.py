"""One run of the real pipeline with canaries in its data, and what adversaries see of it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from client.config import PlatformConfig
from client.data import load_platform_data
from common.config import dump_config, load_config
from common.data.interactions import UserItems
from common.privacy.ledger import LEDGER_FILE, Ledger
from common.rng import derive_seed
from common.storage import write_durably
from simulations.attacks.membership.canaries import is_canary, plant
from simulations.attacks.membership.observer import ObservingGrid
from simulations.engines.in_process import run_in_process
from simulations.federation import lay_out

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from common.data.marketplace import Marketplace
    from common.privacy.account import Spend
    from simulations.attacks.membership.canaries import Canaries
    from simulations.attacks.membership.observer import Handed, Seen
    from simulations.federation import SimulatedFederation
    from simulations.options import SimulationOptions

_SEEDS = 2**31


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ObservedRun:
    """What an adversary has, and nothing of who is in."""

    seen: tuple[Seen, ...]
    """Every release, or sum of releases, that it sees."""
    handed: Handed
    """What the run made."""
    known: Marketplace
    """The data without the canaries that are in: it knows everybody else."""
    spends: Mapping[str, tuple[Spend, ...]]
    """What each platform's ledger charged."""
    federation: SimulatedFederation
    """Where the run lies."""


def observe(
    marketplace: Marketplace,
    groups: Sequence[Canaries],
    options: SimulationOptions,
    folder: Path,
    *,
    seed: int,
    adapting: Collection[str] = (),
) -> ObservedRun:
    """Run once, with the apps that are deployed.

    Secure aggregation is simulated: its sums are the same to the last bit.

    Args:
        marketplace: data as :func:`canaries.with_test_set_aside` gives them.
        groups: canaries, at most one group on each platform; those that are in are put in.
        options: of the run; its seed is replaced.
        folder: an empty one.
        seed: of the noise and whatever else the run draws.
        adapting: platforms that fit models of their own, which takes most of a run's time.
    """
    trust = "secagg-simulated" if options.trust == "secagg" else options.trust
    options = replace(
        options, seed=derive_seed(seed, "attacked-run") % _SEEDS, trust=trust, adapting=None
    )
    planted = known = marketplace
    for group in groups:
        planted, known = plant(planted, group), plant(known, group.all_out())
    federation = lay_out(planted, options, folder)
    for platform in federation.platforms:
        if platform.name not in adapting:
            _stop_adapting(platform.config_file)
    configs = [platform.config_file for platform in federation.platforms]
    watched = {group.platform for group in groups}
    grid = ObservingGrid(configs, watched=watched, colluding=options.max_colluding)
    run_in_process(federation.config_file, configs, grid)
    assert grid.handed is not None
    return ObservedRun(
        seen=grid.seen,
        handed=grid.handed,
        known=known,
        spends={platform.name: _spends(platform.config_file) for platform in federation.platforms},
        federation=federation,
    )


def histories(federation: SimulatedFederation) -> dict[str, UserItems]:
    """By platform, what everybody but canaries trains with in rounds.

    What a platform keeps back for its gate follows from each user's own rows, which the adversary
    knows.
    """
    found = {}
    for platform in federation.platforms:
        data = load_platform_data(load_config(platform.config_file, PlatformConfig))
        kept = [not is_canary(user) for user in data.users.user_ids]
        found[platform.name] = UserItems(
            user_ids=tuple(user for user in data.users.user_ids if not is_canary(user)),
            listing=data.users.listing,
            matrix=data.folds[0].history[np.flatnonzero(kept)],
        )
    return found


def _stop_adapting(config_file: Path) -> None:
    config = load_config(config_file, PlatformConfig)
    config = replace(config, adaptation=replace(config.adaptation, enabled=False))
    write_durably(config_file, dump_config(config).encode())


def _spends(config_file: Path) -> tuple[Spend, ...]:
    config = load_config(config_file, PlatformConfig)
    with closing(Ledger(config.state.folder / LEDGER_FILE, read_only=True)) as ledger:
        return ledger.account().spends
