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
from typing import TYPE_CHECKING, Any

import numpy as np

from client.config import PlatformConfig
from common.config import dump_config, load_config
from common.data.readers import read_marketplace
from common.data.schema import Columns
from common.data.synthetic import MarketplaceConfig, generate_marketplace
from common.errors import ConfigError, RunFailed
from common.models.partition import shared_shapes
from common.privacy.accounting import epsilon_spent
from common.privacy.ledger import LEDGER_FILE, Ledger
from common.storage import write_durably
from server.config import FederationConfig
from server.journal import read_journal
from simulations.federation import lay_out, plan_noise_multiplier
from simulations.measure import measure_platform
from simulations.options import SimulationOptions
from simulations.plots import save_figures
from simulations.progress import JournalProgress
from simulations.report import write_report
from simulations.result import (
    DataStatement,
    PlatformResult,
    PrivacyStatement,
    RoundRecord,
    RunResult,
    finite_or_none,
    read_result,
    write_result,
)

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from common.data.marketplace import Marketplace
    from common.privacy.account import Spend
    from simulations.federation import SimulatedFederation, SimulatedPlatform

OPTIONS_FILE = "simulation.toml"
RESULT_FILE = "result.json"
REPORT_FILE = "report.html"
BUILT_IN = "built-in synthetic marketplace"

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

    def execute(self, console: Console | None = None) -> RunResult:
        """Run to the end, or until Ctrl-C, and write result, figures and report.

        An interrupted run gives a valid partial result; executing it again goes on where it
        stopped and ends with the result that an undisturbed run has.

        Raises:
            RunFailed: if the federation could not go on; a partial result is written first.
        """
        began = time.monotonic()
        # Everything that can be wrong is found before the first file is written.
        if self.options.engine == "ray":
            from simulations.engines.ray import require_ray  # noqa: PLC0415 - Ray is optional

            require_ray()
        plan_noise_multiplier(self.options)
        marketplace = load_marketplace(self.options)
        if self.overwrite and self.folder.exists():
            shutil.rmtree(self.folder)
        write_durably(self.folder / OPTIONS_FILE, dump_config(self.options).encode())
        federation = lay_out(marketplace, self.options, self.folder)
        journal = self.folder / "federation-state"
        progress = (
            nullcontext()
            if console is None
            else JournalProgress(journal, console, start=_journal_size(journal))
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
        result = self._result(marketplace, federation, began, complete=complete)
        write_result(self.folder / RESULT_FILE, result)
        save_figures(result, self.folder / "figures")
        write_report(self.folder / REPORT_FILE, result)
        if failure is not None:
            raise failure
        return result

    def _result(
        self,
        marketplace: Marketplace,
        federation: SimulatedFederation,
        began: float,
        *,
        complete: bool,
    ) -> RunResult:
        options = self.options
        config = load_config(federation.config_file, FederationConfig)
        rounds = _round_records(self.folder / "federation-state")
        platforms = {p.name: self._platform_result(p, config) for p in federation.platforms}
        command = shlex.join(["crossrec", "simulate", "--resume", str(self.folder)])
        return RunResult(
            status="complete" if complete else "partial",
            configuration=_plain(asdict(options)),
            seed=options.seed,
            versions=_versions(),
            command=_command(options),
            resume_command=None if complete else command,
            wall_seconds=time.monotonic() - began,
            peak_memory_mb=_peak_memory_mb(),
            data=_data_statement(marketplace, options, federation),
            privacy=_privacy_statement(options, config, marketplace.catalogue.num_items),
            rounds_planned=options.rounds,
            rounds_completed=len(rounds),
            rounds=rounds,
            platforms=platforms,
        )

    def _platform_result(
        self, platform: SimulatedPlatform, federation: FederationConfig
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
        measured = measure_platform(
            platform, config, candidates=options.candidates, seed=options.seed
        )
        is_private = options.trust != "none"
        return PlatformResult(
            num_users=int(np.count_nonzero(np.diff(platform.train.matrix.indptr))),
            num_items=platform.train.num_items,
            num_interactions=platform.num_interactions,
            num_test_users=int(np.count_nonzero(np.diff(platform.test.indptr))),
            epsilon=finite_or_none(history[-1] if history else 0.0),
            epsilon_if_secagg_broken=(
                finite_or_none(broken) if options.trust == "secagg-simulated" else None
            ),
            epsilon_budget=options.epsilon if is_private else None,
            delta=options.delta,
            privacy_unit=options.privacy_unit,
            trust=options.trust,
            epsilon_history=tuple(finite_or_none(value) for value in history),
            noise_multiplier=federation.mechanism.noise_multiplier,
            sampling_rate=federation.mechanism.sampling_rate,
            models=measured.models,
            gain=measured.gain,
            joined_gain=measured.joined_gain,
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


def _run_engine(options: SimulationOptions, federation: SimulatedFederation) -> None:
    configs = [platform.config_file for platform in federation.platforms]
    if options.engine == "ray":
        from simulations.engines.ray import run_on_ray  # noqa: PLC0415 - Ray is optional

        run_on_ray(federation.config_file, configs)
    else:
        from simulations.engines.in_process import run_in_process  # noqa: PLC0415

        run_in_process(federation.config_file, configs)


def _round_records(folder: Path) -> tuple[RoundRecord, ...]:
    """Closed rounds from the journal; of a round that was begun twice, the last."""
    replies: dict[str, str] = {}
    records: dict[int, RoundRecord] = {}
    began = 0.0
    for _, event in read_journal(folder):
        if event["event"] == "round-started":
            replies, began = {}, event["time"]
        elif event["event"] == "reply":
            replies[event["platform"]] = event["outcome"]
        elif event["event"] == "round-closed":
            records[event["round"]] = RoundRecord(
                round=event["round"],
                seconds=event["time"] - began,
                platforms=replies,
                update_norm=event["update_norm"],
            )
    return tuple(records[number] for number in sorted(records))


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


def _privacy_statement(
    options: SimulationOptions, config: FederationConfig, num_items: int
) -> PrivacyStatement:
    mechanism = config.mechanism.per_round()
    planned, bound = (
        epsilon_spent([mechanism] * options.rounds, options.delta, name) for name in ("prv", "rdp")
    )
    looser = f" (by RDP, the looser bound: {bound:.4g})" if math.isfinite(bound) else ""
    sampling = "every user in every step"
    if mechanism.sampling_rate < 1:
        sampling = f"Poisson, each user with probability {mechanism.sampling_rate:g} in each step"
    return PrivacyStatement(
        unit=options.privacy_unit,
        delta=options.delta,
        trust=options.trust,
        mechanism=(
            "Gaussian noise on sums of clipped per-user gradients, divided by a public constant; "
            f"{options.rounds} rounds of {options.local_steps} noisy step(s), "
            f"noise multiplier {mechanism.noise_multiplier:.4g}"
        ),
        accountant=_ACCOUNTANT + looser,
        planned_epsilon=finite_or_none(planned),
        clipping_norm=options.clipping_norm,
        sampling=sampling,
        noise_source="seeded: this is a simulation, whoever knows the seed can remove the noise",
        released=tuple(
            f"{name} {list(shape)}"
            for name, shape in shared_shapes(options.model, num_items).items()
        ),
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """JSON values of a configuration."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _command(options: SimulationOptions) -> str:
    """The command that repeats the run, naming only what differs from the defaults."""
    defaults, words = SimulationOptions(), ["crossrec", "simulate"]
    for name, value in asdict(options).items():
        if name != "model" and value != getattr(defaults, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    for name, value in asdict(options.model).items():
        if value != getattr(defaults.model, name):
            flag = {"kind": "model", "num_negatives": "negatives"}.get(name, name)
            words += [f"--{flag}", ",".join(map(str, value)) if name == "hidden" else str(value)]
    return shlex.join(words)


def _versions() -> dict[str, str]:
    names = ("crossrec", "flwr", "numpy", "opacus", "pandas", "torch")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}


def _peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _journal_size(folder: Path) -> int:
    return max((offset for offset, _ in read_journal(folder)), default=0)
