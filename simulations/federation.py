"""A federation on one machine: from a data set to the folders that server and platforms work in.

Layout of a run::

    runs/NAME/catalogue.csv                      the shared catalogue
    runs/NAME/federation.toml                    what the server reads
    runs/NAME/platform-keys/PLATFORM.pub         with secure aggregation: what platforms sign with
    runs/NAME/federation-state/RUN/              its journal and checkpoint
    runs/NAME/platforms/PLATFORM/platform.toml   what the platform reads
    runs/NAME/platforms/PLATFORM/train.parquet   its interactions, without the test pairs
    runs/NAME/platforms/PLATFORM/state/          its ledger, releases and models

Test pairs are never written there: no client, tuning or gate can reach them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import client.config
import server.config
from common.config import dump_config
from common.data.catalogue import write_catalogue
from common.data.interactions import UserItems, encode_held_out
from common.data.splits import split_marketplace
from common.errors import ConfigError
from common.keys import new_key_pair
from common.privacy.plan import PLANS, plan_noise, plan_without_noise
from common.storage import FOR_ALL, write_durably

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from scipy.sparse import csr_matrix

    from common.data.marketplace import Marketplace
    from common.privacy.plan import BudgetPlan
    from simulations.options import SimulationOptions

KEYS_FOLDER = "platform-keys"
_JOIN_SECONDS = 5.0
_PLATFORM_NAME = re.compile(r"[^\s/\\\x00-\x1f][^/\\\x00-\x1f]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedPlatform:
    """One platform of a simulated federation, with what only the simulation knows."""

    name: str
    """Its name."""
    config_file: Path
    """Its ``platform.toml``."""
    train: UserItems
    """All interactions it trains on; test users without any have an empty row."""
    test: csr_matrix
    """Held-out pairs in the same shape; on no platform's disk."""
    num_interactions: int
    """Distinct pairs of user and item in its data, test pairs of leave-one-out included."""
    test_origin: str
    """``held-out file`` or ``leave-one-out``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedFederation:
    """A federation laid out on disk."""

    config_file: Path
    """Its ``federation.toml``."""
    run_folder: Path
    """The server's journal, sums and checkpoint."""
    platforms: tuple[SimulatedPlatform, ...]
    """Sorted by name."""


def plan_budget(options: SimulationOptions) -> BudgetPlan:
    """What the run releases, and with how much noise; everything together costs epsilon.

    Raises:
        ConfigError: if no noise is enough for it.
    """
    shares, steps = PLANS[options.plan], options.rounds * options.local_steps
    if options.trust == "none":
        return plan_without_noise(shares, steps=steps, sampling_rate=options.sampling_rate)
    return plan_noise(
        options.epsilon,
        options.delta,
        shares=shares,
        steps=steps,
        sampling_rate=options.sampling_rate,
    )


def public_population(num_users: int) -> int:
    """A declared size: ``num_users`` to two significant digits, as a platform might print it."""
    digits = max(0, math.floor(math.log10(num_users)) - 1)
    return int(round(num_users, -digits))


def is_adapting(options: SimulationOptions, platform: str) -> bool:
    """Whether ``platform`` fits models of its own and is measured."""
    return options.adapting is None or platform in options.adapting


def lay_out(
    marketplace: Marketplace, options: SimulationOptions, folder: Path
) -> SimulatedFederation:
    """Write every file that server and platforms read, and keep the test pairs in memory.

    Laying out the same options again writes the same files, so a run can be resumed.

    Raises:
        ConfigError: if a platform's name cannot be a folder, or no noise is enough for epsilon.
        StateError: if the folder cannot be written.
    """
    budget = plan_budget(options)
    catalogue_file = folder / "catalogue.csv"
    folder.mkdir(parents=True, exist_ok=True)
    write_catalogue(marketplace.catalogue, catalogue_file)
    splits = split_marketplace(marketplace, options.seed)
    platforms = []
    for table in sorted(marketplace.platforms, key=lambda platform: platform.name):
        if not _PLATFORM_NAME.fullmatch(table.name) or table.name in {".", ".."}:
            msg = f"platform name {table.name!r} cannot be the name of a folder; rename it."
            raise ConfigError(msg)
        split = splits[table.name]
        home = folder / "platforms" / table.name
        train_file = home / "train.parquet"
        write_durably(train_file, split.train.to_parquet(index=False))
        num_users = int(split.train["user_id"].nunique())
        config = client.config.PlatformConfig(
            platform=client.config.PlatformSection(
                name=table.name, population=public_population(num_users)
            ),
            data=client.config.DataSection(source=train_file.absolute()),
            catalogue=client.config.CatalogueSection(file=catalogue_file.absolute()),
            privacy=client.config.PrivacySection(
                epsilon=math.inf if options.trust == "none" else options.epsilon,
                delta=options.delta,
                trust=options.trust,
                # A simulated platform agrees to what the run was asked for, whatever that is.
                max_clipping_norm=options.clipping_norm,
                min_noise_multiplier=min(m.noise_multiplier for m in budget.mechanisms),
                max_rounds=max(1, options.num_rounds),
            ),
            state=client.config.StateSection(folder=(home / "state").absolute()),
            adaptation=client.config.AdaptationSection(
                enabled=is_adapting(options, table.name), max_epochs=options.epochs
            ),
            secagg=_secagg(home, folder / KEYS_FOLDER, table.name, options),
            simulation=client.config.SimulationSection(seed=options.seed),
        )
        config_file = home / "platform.toml"
        write_durably(config_file, dump_config(config).encode())
        train, test = _encode(split.train, split.test, marketplace, table.name)
        platforms.append(
            SimulatedPlatform(
                name=table.name,
                config_file=config_file,
                train=train,
                test=test,
                num_interactions=len(table.interactions),
                test_origin=split.origin,
            )
        )
    federation = server.config.FederationConfig(
        federation=server.config.FederationSection(
            run_id=options.run_id,
            rounds=options.num_rounds,
            platforms=tuple(platform.name for platform in platforms),
            quorum=1,
            seed=options.seed,
            # All nodes are there from the start, and a slow machine must not change a result.
            join_timeout_seconds=_JOIN_SECONDS,
            round_timeout_seconds=math.inf,
        ),
        catalogue=server.config.CatalogueSection(file=catalogue_file.absolute()),
        mechanism=server.config.MechanismSection(
            noise_multiplier=budget.rounds.noise_multiplier if budget.rounds else None,
            clipping_norm=options.clipping_norm,
            sampling_rate=options.sampling_rate,
            local_steps=options.local_steps,
            trust=options.trust,
        ),
        sums=_sums(budget),
        secagg=server.config.SecaggSection(
            max_dropped=options.max_dropped, max_colluding=options.max_colluding
        ),
        model=options.model,
        training=server.config.TrainingSection(
            strategy=options.strategy, server_learning_rate=options.server_learning_rate
        ),
        state=server.config.StateSection(folder=(folder / "federation-state").absolute()),
    )
    config_file = folder / "federation.toml"
    write_durably(config_file, dump_config(federation).encode())
    return SimulatedFederation(
        config_file=config_file, run_folder=federation.run_folder, platforms=tuple(platforms)
    )


def _secagg(
    home: Path, keys: Path, name: str, options: SimulationOptions
) -> client.config.SecaggSection | None:
    """Keys of a platform, made once: nothing that a run reports depends on them."""
    if options.trust != "secagg":
        return None
    private_key, public_key = home / "node.key", keys / f"{name}.pub"
    if not (private_key.exists() and public_key.exists()):
        private, public = new_key_pair(name)
        write_durably(private_key, private)
        write_durably(public_key, public, mode=FOR_ALL)
    return client.config.SecaggSection(
        private_key=private_key.absolute(), platform_keys=keys.absolute(), min_summed=2
    )


def _sums(budget: BudgetPlan) -> server.config.SumsSection | None:
    if budget.counts is None or budget.pairs is None:
        return None
    return server.config.SumsSection(
        counts_noise_multiplier=budget.counts.noise_multiplier,
        pairs_noise_multiplier=budget.pairs.noise_multiplier,
    )


def _encode(
    train: pd.DataFrame, test: pd.DataFrame, marketplace: Marketplace, name: str
) -> tuple[UserItems, csr_matrix]:
    users = UserItems.from_table(
        train, marketplace.catalogue, name, extra_users=test["user_id"].tolist()
    )
    held_out = encode_held_out(
        test, user_ids=users.user_ids, catalogue=marketplace.catalogue, platform=name
    )
    return users, held_out
