"""How far a promotion attack gets: exposure and quality at the other platforms, by defence."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np

from client.config import PlatformConfig
from client.data import load_platform_data
from client.parts import Blend
from client.state import PlatformState
from common.config import dump_config, load_config
from common.errors import ConfigError, StateError
from common.evaluation.metrics import evaluate
from common.evaluation.ranking import rank_top_k
from common.rng import derived_generator
from common.storage import write_durably
from server.config import AggregationName, FederationConfig, ValidationSection
from server.journal import read_journal
from simulations.attacks.promotion.false_releases import PoisonedGrid, Promotion
from simulations.engines.in_process import run_in_process
from simulations.federation import lay_out
from simulations.measure import personal_scorer
from simulations.warm_start import copy_local_models

if TYPE_CHECKING:
    from pathlib import Path

    from client.data import PlatformData
    from client.model_files import PlatformModels, ServedName
    from client.parts import Scorer
    from common.data.marketplace import Marketplace
    from simulations.federation import SimulatedFederation, SimulatedPlatform
    from simulations.options import SimulationOptions

Defence = Literal["none", "bound", "median", "trimmed-mean", "krum"]

NUM_POPULAR = 20
CUTOFF = 10
FEDERATED_PARTS = ("pairs", "ncf_items")
WEIGHT = 1.0
"""Of a federated part in ``ungated``, in units of its spread over that of the scores alone."""
_UNBOUNDED = ValidationSection(population_slack=1e30, max_failures=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One run of the study."""

    strength: float
    """Of the attack; 0 is honest."""
    defence: Defence
    """Of the server; every platform has its gate besides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one run did to the users of the other platforms, all taken together."""

    case: Case
    """The run."""
    left_out: int
    """Releases of the attacker that the server did not take."""
    gates_open: int
    """Platforms that serve what joining brought."""
    exposure: dict[str, float]
    """By model: share of the users with the target among their first ten."""
    ndcg: dict[str, float]
    """By model: mean NDCG@10 on held-out items."""

    def to_dict(self) -> dict[str, object]:
        """JSON values."""
        return asdict(self)


def defences_of(plan: str) -> tuple[Defence, ...]:
    """Sums have no robust aggregation: platforms' counts differ as their users do."""
    return ("none", "bound") if plan == "pairs" else get_args(Defence)


def choose_attacker(marketplace: Marketplace) -> str:
    """The platform of middle size."""
    by_size = sorted(
        marketplace.platforms, key=lambda p: (p.interactions["user_id"].nunique(), p.name)
    )
    return by_size[len(by_size) // 2].name


def plan_attack(federation: SimulatedFederation, attacker: str, strength: float) -> Promotion:
    """Choose the item that is bought least of those that the attacker and most others list.

    Raises:
        ConfigError: if the attacker is no platform of the federation.
    """
    found = {platform.name: platform for platform in federation.platforms}
    if attacker not in found:
        msg = f"attacker: found {attacker!r}, expected one of {', '.join(found)}."
        raise ConfigError(msg)
    counts, listed_by = _counts(federation.platforms)
    own = found[attacker].train
    rows = own.listing
    # Listed by as many as possible, then bought least, then the first.
    target = int(rows[np.lexsort((rows, counts[rows], -listed_by[rows]))[0]])
    bought = np.asarray((own.matrix > 0).sum(axis=0)).ravel()
    popular = rows[np.argsort(-bought, kind="stable")[: NUM_POPULAR + 1]]
    config = load_config(found[attacker].config_file, PlatformConfig)
    return Promotion(
        target=target,
        popular=np.sort(popular[popular != target][:NUM_POPULAR]),
        population=config.platform.population,
        strength=strength,
    )


def run_case(
    marketplace: Marketplace,
    options: SimulationOptions,
    folder: Path,
    case: Case,
    *,
    attacker: str,
    warm_from: Path | None = None,
) -> Outcome:
    """Run one federation with an attacker in it, and measure everybody else.

    Args:
        marketplace: its data.
        options: of the run.
        folder: where it is laid out.
        case: strength and defence.
        attacker: name of the hostile platform.
        warm_from: folder of another case, whose local models are the same.
    """
    federation = lay_out(marketplace, options, folder)
    others = [p for p in federation.platforms if p.name != attacker]
    attack = plan_attack(federation, attacker, case.strength)
    _defend(federation.config_file, case.defence)
    if warm_from is not None:
        for platform in others:
            home = platform.config_file.parent
            copy_local_models(warm_from / home.relative_to(folder), home)
    configs = [platform.config_file for platform in federation.platforms]
    node = 1 + [platform.name for platform in federation.platforms].index(attacker)
    run_in_process(federation.config_file, configs, PoisonedGrid(configs, node, attack))
    shown: dict[str, list[np.ndarray]] = {}
    ranked: dict[str, list[np.ndarray]] = {}
    gates_open = 0
    for platform in others:
        data, models, gate = _result_of(platform)
        gates_open += gate == "joined"
        for name, scorer in _scorers(data, models, gate).items():
            shown.setdefault(name, []).append(
                _exposure(platform.name, data, scorer, attack.target, options.seed)
            )
            metrics = evaluate(
                personal_scorer(platform, scorer, data.users),
                platform.train.matrix,
                platform.test,
                cutoffs=(CUTOFF,),
                rng=derived_generator(options.seed, "evaluation", platform.name),
            )
            ranked.setdefault(name, []).append(metrics.per_user["ndcg@10"])
    return Outcome(
        case=case,
        left_out=_left_out(federation.run_folder, attacker),
        gates_open=gates_open,
        exposure={name: float(np.concatenate(found).mean()) for name, found in shown.items()},
        ndcg={name: float(np.concatenate(found).mean()) for name, found in ranked.items()},
    )


def _counts(platforms: tuple[SimulatedPlatform, ...]) -> tuple[np.ndarray, np.ndarray]:
    size = 1 + max(int(platform.train.listing.max()) for platform in platforms)
    counts, listed_by = np.zeros((2, size))
    for platform in platforms:
        listing = platform.train.listing
        counts[listing] += np.asarray((platform.train.matrix > 0).sum(axis=0)).ravel()
        listed_by[listing] += 1
    return counts, listed_by


def _defend(config_file: Path, defence: Defence) -> None:
    config = load_config(config_file, FederationConfig)
    if defence == "none":
        config = replace(config, validation=_UNBOUNDED)
    elif defence != "bound":
        training = replace(config.training, aggregation=cast("AggregationName", defence))
        config = replace(config, validation=_UNBOUNDED, training=training)
    write_durably(config_file, dump_config(config).encode())


def _result_of(
    platform: SimulatedPlatform,
) -> tuple[PlatformData, PlatformModels, ServedName | None]:
    config = load_config(platform.config_file, PlatformConfig)
    data = load_platform_data(config)
    state = PlatformState(config.state.folder, config.state.keep_releases)
    try:
        models, gate = state.models.load(data.users_digest), state.models.served()
    finally:
        state.close()
    if models is None or models.joined is None:
        msg = f"{platform.name} was not handed anything; see its log."
        raise StateError(msg)
    return data, models, gate


def _scorers(
    data: PlatformData, models: PlatformModels, gate: ServedName | None
) -> dict[str, Scorer]:
    """What the platform has alone, what it serves, and what it would serve without its gate."""
    alone, joined = models.alone, models.joined
    assert joined is not None
    users = np.arange(data.users.num_users)
    spread = float(alone.scores(users, data.users.matrix).std())
    brought = {
        name: WEIGHT * spread / (float(part.scores(users, data.users.matrix).std()) or 1.0)
        for name, part in joined.parts.items()
        if name in FEDERATED_PARTS
    }
    ungated = Blend(parts=joined.parts, weights={**alone.weights, **brought})
    scorers: dict[str, Scorer] = {
        "alone": alone,
        "ungated": ungated,
        "served": joined if gate == "joined" else alone,
    }
    if "shared" in joined.parts:
        scorers["shared"] = joined.parts["shared"]
    return scorers


def _exposure(
    platform: str, data: PlatformData, scorer: Scorer, target: int, seed: int
) -> np.ndarray:
    """For each user, whether the target is among the first ten that she has not had."""
    ranked = rank_top_k(
        scorer.scores(np.arange(data.users.num_users), data.users.matrix),
        data.users.matrix,
        CUTOFF,
        derived_generator(seed, "exposure", platform),
    )
    place = np.flatnonzero(data.users.listing == target)
    return np.asarray(np.isin(ranked, place).any(axis=1))


def _left_out(folder: Path, attacker: str) -> int:
    return sum(
        event["platform"] == attacker and event["outcome"].startswith("left out")
        for _, event in read_journal(folder)
        if event["event"] in {"reply", "sum-reply"}
    )
