"""One simulated run from its options to its result: lay out, run, measure, write down."""

from __future__ import annotations

import math
import resource
import shlex
import shutil
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from client.config import PlatformConfig
from common.config import dump_config, load_config
from common.data.readers import read_marketplace
from common.data.schema import Columns
from common.data.synthetic import MarketplaceConfig, generate_marketplace
from common.errors import ConfigError, RunFailed
from common.models.partition import SumQuantity, shared_shapes
from common.privacy.accounting import epsilon_spent
from common.privacy.ledger import LEDGER_FILE, Ledger
from common.privacy.plan import PLANS
from common.storage import FOR_ALL, write_durably
from server.config import FederationConfig
from server.journal import journal_size, read_journal
from server.progress import JournalProgress
from server.sums import shared_items
from simulations.federation import is_adapting, lay_out, plan_budget
from simulations.measure import Measured, measure_platform
from simulations.newcomers import Newcomer, draw_newcomer, require_platforms
from simulations.options import SimulationOptions
from simulations.per_user import per_user_table, write_per_user
from simulations.plots import save_figures
from simulations.report import write_report
from simulations.result import (
    DataStatement,
    PlatformResult,
    PrivacyStatement,
    RoundRecord,
    RunResult,
    SumRecord,
    finite_or_none,
    read_result,
    write_result,
)
from simulations.warm_start import copy_local_models

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from common.data.marketplace import Marketplace
    from common.data.schema import PlatformTable
    from common.privacy.account import Spend
    from common.privacy.plan import BudgetPlan
    from simulations.federation import SimulatedFederation, SimulatedPlatform

OPTIONS_FILE = "simulation.toml"
RESULT_FILE = "result.json"
REPORT_FILE = "report.html"
PER_USER_FILE = "per_user.parquet"
BUILT_IN = "built-in synthetic marketplace"

NUM_SUMS = len(get_args(SumQuantity))
_ACCOUNTANT = "Opacus PRV (upper bound of its error interval), never above Opacus RDP"


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationRun:
    """A run and the folder it lives in."""

    options: SimulationOptions
    """What it does."""
    folder: Path
    """Where everything of it is written."""
    overwrite: bool = False
    """Replace the run in ``folder``, once the new one is known to be able to start."""

    @classmethod
    def open(
        cls, options: SimulationOptions, folder: Path, *, overwrite: bool = False
    ) -> SimulationRun:
        """Start a run in ``folder``, or find there the same run, finished or not.

        Raises:
            ConfigError: if the folder holds a run with other options and is not to be
                overwritten, or something that is no run.
        """
        path = folder / OPTIONS_FILE
        if folder.exists() and not path.exists() and (folder.is_file() or any(folder.iterdir())):
            msg = (
                f"{folder} holds something that is no run; it is not deleted: choose another --out."
            )
            raise ConfigError(msg)
        if (
            not overwrite
            and path.exists()
            and path.read_text(encoding="utf-8") != dump_config(options)
        ):
            msg = (
                f"{folder} holds a run with other options ({path}). "
                "Choose another --out, or replace that run with --overwrite."
            )
            raise ConfigError(msg)
        return cls(options=options, folder=folder, overwrite=overwrite)

    @classmethod
    def reopen(cls, folder: Path) -> SimulationRun:
        """Find the run in ``folder``.

        Raises:
            ConfigError: if there is none.
        """
        path = folder / OPTIONS_FILE
        if not path.exists():
            msg = f"{folder} holds no run to resume: {path} is missing."
            raise ConfigError(msg)
        return cls(options=load_config(path, SimulationOptions), folder=folder)

    def finished(self) -> RunResult | None:
        """The result, if the run is complete."""
        path = self.folder / RESULT_FILE
        if self.overwrite or not path.exists():
            return None
        result = read_result(path)
        return result if result.status == "complete" else None

    def execute(
        self,
        console: Console | None = None,
        *,
        warm_from: Path | None = None,
        in_comparison: bool = False,
        pooled: bool = False,
    ) -> RunResult:
        """Run to the end, or until Ctrl-C, and write result, figures and report.

        An interrupted run gives a valid partial result; executing it again goes on where it
        stopped and ends with the result that an undisturbed run has.

        Args:
            console: shows progress.
            warm_from: folder of a run on the same data, whose local models need not be fitted
                again.
            in_comparison: write neither figures nor report.
            pooled: measure what all raw data in one place would give, too.

        Raises:
            ConfigError: if the options and the data do not go together, before anything is
                written.
            RunFailed: if the federation could not go on; a partial result is written first.
        """
        began = time.monotonic()
        # Everything that can be wrong is found before the first file is written.
        if self.options.engine == "ray":
            from simulations.engines.ray import require_ray  # noqa: PLC0415 - Ray is optional

            require_ray()
        plan_budget(self.options)
        whole = load_marketplace(self.options)
        marketplace = _with_newcomer(whole, self.options)
        _require_common_items(marketplace, self.options)
        if self.overwrite and self.folder.exists():
            shutil.rmtree(self.folder)
        write_durably(self.folder / OPTIONS_FILE, dump_config(self.options).encode(), mode=FOR_ALL)
        federation = lay_out(marketplace, self.options, self.folder)
        if warm_from is not None:
            for platform in federation.platforms:
                home = platform.config_file.parent
                copy_local_models(warm_from / home.relative_to(self.folder), home)
        journal = federation.run_folder
        progress = (
            nullcontext()
            if console is None
            else JournalProgress(journal, console, start=journal_size(journal))
        )
        failure: RunFailed | None = None
        complete = False
        try:
            with progress:
                _run_engine(self.options, federation)
            complete = True
        except KeyboardInterrupt:
            pass
        except RunFailed as error:
            failure = error
        measured = self._measure(federation, pooled=pooled and complete)
        if complete:
            self._write_per_user(whole, federation, measured)
        result = self._result(marketplace, federation, measured, began, complete=complete)
        write_result(self.folder / RESULT_FILE, result)
        if not in_comparison:
            save_figures(result, self.folder / "figures")
            write_report(self.folder / REPORT_FILE, result)
        if failure is not None:
            raise failure
        return result

    def _measure(self, federation: SimulatedFederation, *, pooled: bool) -> dict[str, Measured]:
        return {
            platform.name: measure_platform(
                platform,
                load_config(platform.config_file, PlatformConfig),
                candidates=self.options.candidates,
                seed=self.options.seed,
                others=[p for p in federation.platforms if p is not platform] if pooled else (),
            )
            if is_adapting(self.options, platform.name)
            else Measured.nothing()
            for platform in federation.platforms
        }

    def _write_per_user(
        self,
        whole: Marketplace,
        federation: SimulatedFederation,
        measured: dict[str, Measured],
    ) -> None:
        """Number users by their place on the whole platform, whoever of them was drawn."""
        tables = [
            per_user_table(
                platform, measured[platform.name].rankings, _user_ids(whole.platform(platform.name))
            )
            for platform in federation.platforms
            if measured[platform.name].rankings
        ]
        write_per_user(self.folder / PER_USER_FILE, pd.concat(tables, ignore_index=True))

    def _result(
        self,
        marketplace: Marketplace,
        federation: SimulatedFederation,
        measured: dict[str, Measured],
        began: float,
        *,
        complete: bool,
    ) -> RunResult:
        options = self.options
        config = load_config(federation.config_file, FederationConfig)
        sums, rounds = _records(federation.run_folder)
        platforms = {
            p.name: self._platform_result(p, config, measured[p.name]) for p in federation.platforms
        }
        command = shlex.join(["crossrec", "simulate", "--resume", str(self.folder)])
        return RunResult(
            status="complete" if complete else "partial",
            configuration=plain_values(asdict(options)),
            seed=options.seed,
            versions=_versions(),
            command=_command(options),
            resume_command=None if complete else command,
            wall_seconds=time.monotonic() - began,
            peak_memory_mb=_peak_memory_mb(),
            data=_data_statement(marketplace, options, federation),
            privacy=_privacy_statement(options, marketplace.catalogue.num_items),
            rounds_planned=options.num_rounds,
            rounds_completed=len(rounds),
            rounds=rounds,
            platforms=platforms,
            sums_planned=NUM_SUMS if PLANS[options.plan].pairs > 0 else 0,
            sums=sums,
        )

    def _platform_result(
        self, platform: SimulatedPlatform, federation: FederationConfig, measured: Measured
    ) -> PlatformResult:
        options = self.options
        config = load_config(platform.config_file, PlatformConfig)
        spends: tuple[Spend, ...] = ()
        if config.state.folder.exists():
            with closing(Ledger(config.state.folder / LEDGER_FILE, read_only=True)) as ledger:
                spends = ledger.account().spends
        mechanisms = [spend.mechanism for spend in spends]
        history = [epsilon_spent(mechanisms[:n], options.delta) for n in range(1, len(spends) + 1)]
        broken = epsilon_spent([spend.mechanism_if_broken for spend in spends], options.delta)
        is_private = options.trust != "none"
        return PlatformResult(
            num_users=int(np.count_nonzero(np.diff(platform.train.matrix.indptr))),
            num_items=platform.train.num_items,
            num_interactions=platform.num_interactions,
            num_test_users=int(np.count_nonzero(np.diff(platform.test.indptr))),
            epsilon=finite_or_none(history[-1] if history else 0.0),
            epsilon_if_secagg_broken=(
                finite_or_none(broken) if options.trust.startswith("secagg") else None
            ),
            epsilon_budget=options.epsilon if is_private else None,
            delta=options.delta,
            privacy_unit=options.privacy_unit,
            trust=options.trust,
            epsilon_history=tuple(finite_or_none(value) for value in history),
            noise_multiplier=min((m.noise_multiplier for m in mechanisms), default=None),
            sampling_rate=federation.mechanism.sampling_rate,
            models=measured.models,
            gain=measured.gain,
            unfinished=measured.unfinished,
            gate=measured.gate,
        )


def load_marketplace(options: SimulationOptions) -> Marketplace:
    """Read the data set that the options name, or make the built-in one.

    Raises:
        DataError: if the data cannot be used.
    """
    if options.data is None:
        return generate_marketplace(MarketplaceConfig(), options.seed).marketplace
    columns = Columns(
        user=options.user_column,
        item=options.item_column,
        rating=options.rating_column,
        time=options.time_column,
    )
    return read_marketplace(options.data, columns=columns, catalogue=options.catalogue)


def _with_newcomer(marketplace: Marketplace, options: SimulationOptions) -> Marketplace:
    """The marketplace that the run is about.

    Raises:
        ConfigError: if an option names a platform that is not there.
    """
    require_platforms(options.adapting or (), marketplace)
    if options.newcomer is None:
        return marketplace
    return draw_newcomer(marketplace, Newcomer.parse(options.newcomer), options.seed)


def _require_common_items(marketplace: Marketplace, options: SimulationOptions) -> None:
    """Check that there is something to add up, if that is the plan.

    Raises:
        ConfigError: if no two items are listed by two platforms or more.
    """
    names = tuple(platform.name for platform in marketplace.platforms)
    num_items = len(shared_items(marketplace.catalogue, names))
    if PLANS[options.plan].pairs > 0 and num_items < 2:
        msg = (
            f"plan: found {options.plan!r}, but {num_items} items are listed by two platforms or "
            "more, at least 2 are needed. Check that items have the same ids everywhere, or choose "
            "plan 'ncf'."
        )
        raise ConfigError(msg)


def _user_ids(table: PlatformTable) -> list[str]:
    """Everybody who occurs on a platform, sorted."""
    frames = [table.interactions, *(() if table.held_out is None else (table.held_out,))]
    return sorted({user for frame in frames for user in frame["user_id"].unique()})


def _run_engine(options: SimulationOptions, federation: SimulatedFederation) -> None:
    configs = [platform.config_file for platform in federation.platforms]
    if options.engine == "ray":
        from simulations.engines.ray import run_on_ray  # noqa: PLC0415 - Ray is optional

        run_on_ray(federation.config_file, configs)
    else:
        from simulations.engines.in_process import run_in_process  # noqa: PLC0415

        run_in_process(federation.config_file, configs)


def _records(folder: Path) -> tuple[tuple[SumRecord, ...], tuple[RoundRecord, ...]]:
    """Closed sums and rounds from the journal; of one that was begun twice, the last."""
    replies: dict[str, str] = {}
    sums: dict[str, SumRecord] = {}
    rounds: dict[int, RoundRecord] = {}
    began = 0.0
    for _, event in read_journal(folder):
        kind = event["event"]
        if kind in {"sum-started", "round-started"}:
            replies, began = {}, event["time"]
        elif kind in {"sum-reply", "reply"}:
            replies[event["platform"]] = event["outcome"]
        elif kind == "sum-closed":
            sums[event["quantity"]] = SumRecord(
                quantity=event["quantity"], seconds=event["time"] - began, platforms=replies
            )
        elif kind == "round-closed":
            rounds[event["round"]] = RoundRecord(
                round=event["round"],
                seconds=event["time"] - began,
                platforms=replies,
                update_norm=event["update_norm"],
            )
    return tuple(sums.values()), tuple(rounds[number] for number in sorted(rounds))


def _data_statement(
    marketplace: Marketplace, options: SimulationOptions, federation: SimulatedFederation
) -> DataStatement:
    origins = sorted({platform.test_origin for platform in federation.platforms})
    notes = [f"Test pairs: {' and '.join(origins)}."]
    for platform in marketplace.platforms:
        if platform.num_duplicates:
            notes.append(f"{platform.name}: {platform.num_duplicates} duplicate rows kept once.")
        if platform.num_unlisted:
            notes.append(
                f"{platform.name}: {platform.num_unlisted} rows left out, their item is not listed."
            )
    if options.newcomer is not None:
        newcomer = Newcomer.parse(options.newcomer)
        notes.append(
            f"{newcomer.platform} has {newcomer.fraction:.3g} of its users, drawn at random; "
            "it lists what it always lists."
        )
    if options.adapting is not None:
        notes.append(f"Measured: {', '.join(options.adapting)}; the others only train.")
    if options.candidates is not None:
        notes.append(f"Test items are ranked among {options.candidates} sampled candidates.")
    listings = {p.name: marketplace.catalogue.listing(p.name) for p in marketplace.platforms}
    return DataStatement(
        source=marketplace.source if options.data is not None else BUILT_IN,
        is_synthetic=marketplace.is_synthetic,
        catalogue_derived=marketplace.catalogue.derived,
        num_items=marketplace.catalogue.num_items,
        notes=tuple(notes),
        items_in_common={
            a: {b: len(np.intersect1d(listings[a], listings[b])) for b in listings}
            for a in listings
        },
    )


def _privacy_statement(options: SimulationOptions, num_items: int) -> PrivacyStatement:
    budget, rate = plan_budget(options), options.sampling_rate
    planned, bound = (
        epsilon_spent(budget.mechanisms, options.delta, name) for name in ("prv", "rdp")
    )
    looser = f" (by RDP, the looser bound: {bound:.4g})" if math.isfinite(bound) else ""
    sampling = "every user in every release"
    if rate < 1:
        sampling = f"Poisson, each user with probability {rate:g} in each step"
    return PrivacyStatement(
        unit=options.privacy_unit,
        delta=options.delta,
        trust=options.trust,
        mechanism=_mechanisms(options, budget),
        accountant=_ACCOUNTANT + looser,
        planned_epsilon=finite_or_none(planned),
        clipping_norm=1.0 if budget.rounds is None else options.clipping_norm,
        sampling=sampling,
        noise_source="seeded: this is a simulation, whoever knows the seed can remove the noise",
        released=_released(options, budget, num_items),
    )


def _mechanisms(options: SimulationOptions, budget: BudgetPlan) -> str:
    """Every kind of release with its noise, in words."""
    kinds = []
    if budget.counts is not None and budget.pairs is not None:
        kinds.append(
            "Gaussian noise on two sums over users, whose parts have an L2 norm of at most 1: item "
            f"counts (noise {budget.counts.noise_multiplier:.4g}), then item pairs (noise "
            f"{budget.pairs.noise_multiplier:.4g})"
        )
    if budget.rounds is not None:
        kinds.append(
            "Gaussian noise on sums of clipped per-user gradients, divided by a public constant; "
            f"{options.rounds} rounds of {options.local_steps} noisy step(s), "
            f"noise multiplier {budget.rounds.noise_multiplier:.4g}"
        )
    return "; ".join(kinds)


def _released(options: SimulationOptions, budget: BudgetPlan, num_items: int) -> tuple[str, ...]:
    sums = () if budget.pairs is None else ("item counts (sum)", "item pairs (sum)")
    if budget.rounds is None:
        return sums
    shapes = shared_shapes(options.model, num_items)
    return (*sums, *(f"{name} {list(shape)}" for name, shape in shapes.items()))


def plain_values(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """JSON values of a configuration."""
    if isinstance(value, dict):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain_values(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _command(options: SimulationOptions) -> str:
    """The command that repeats the run."""
    return shlex.join(["crossrec", "simulate", *option_words(options)])


def option_words(options: SimulationOptions) -> list[str]:
    """Options as on a command line, only those that differ from the defaults."""
    defaults, words = SimulationOptions(), list[str]()
    for name, value in asdict(options).items():
        if name != "model" and value != getattr(defaults, name):
            for one in value if isinstance(value, tuple) else (value,):
                words += [f"--{name.replace('_', '-')}", str(one)]
    for name, value in asdict(options.model).items():
        if value != getattr(defaults.model, name):
            flag = {"kind": "model", "num_negatives": "negatives"}.get(name, name)
            words += [f"--{flag}", ",".join(map(str, value)) if name == "hidden" else str(value)]
    return words


def _versions() -> dict[str, str]:
    names = ("crossrec", "flwr", "numpy", "opacus", "pandas", "torch")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}


def _peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
