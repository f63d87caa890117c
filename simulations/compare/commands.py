"""The ``crossrec compare`` command: for whom does joining pay, and at which epsilon?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.command_line import (
    DATA,
    PRIVACY,
    RUN,
    CandidatesOption,
    CatalogueOption,
    ClippingNormOption,
    DataOption,
    DeltaOption,
    DimOption,
    EpochsOption,
    HiddenOption,
    ItemColumnOption,
    LocalStepsOption,
    LossOption,
    Model,
    ModelOption,
    NegativesOption,
    OverwriteOption,
    Plan,
    PlanOption,
    RatingColumnOption,
    RoundsOption,
    SamplingRateOption,
    ServerLearningRateOption,
    Strategy,
    StrategyOption,
    TimeColumnOption,
    Trust,
    UserColumnOption,
    given_options,
    model_config,
    num_candidates,
    trust_mode,
)

if TYPE_CHECKING:
    from rich.console import Console

    from common.privacy.mechanisms import TrustMode
    from simulations.compare.options import CompareOptions
    from simulations.compare.result import CompareResult

_MOST_WORKERS = 2
_PARALLEL_ONLY = {"resume", "workers"}


def compare(
    *,
    context: typer.Context,
    data: DataOption = None,
    newcomer: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME:FRACTION: also a federation in which this platform has that share of its "
            "users only. all:0.1 does so for every platform. May be repeated, or a comma list.",
            rich_help_panel=DATA,
        ),
    ] = None,
    only_newcomers: Annotated[
        bool,
        typer.Option(
            "--only-newcomers",
            help="Leave out the federation as it is.",
            rich_help_panel=DATA,
        ),
    ] = False,
    user_column: UserColumnOption = None,
    item_column: ItemColumnOption = None,
    rating_column: RatingColumnOption = None,
    time_column: TimeColumnOption = None,
    catalogue: CatalogueOption = None,
    candidates: CandidatesOption = "all",
    epsilon: Annotated[
        str, typer.Option(help="Budgets of a user to compare.", rich_help_panel=PRIVACY)
    ] = "1,2,4,8,16",
    delta: DeltaOption = 1e-5,
    trust: Annotated[
        str,
        typer.Option(
            help="Trust modes to compare, see crossrec simulate. A run without noise is always "
            "among them.",
            rich_help_panel=PRIVACY,
        ),
    ] = "secagg-simulated,local",
    clipping_norm: ClippingNormOption = 0.25,
    sampling_rate: SamplingRateOption = 1.0,
    model: ModelOption = Model.gmf,
    loss: LossOption = None,
    dim: DimOption = 32,
    hidden: HiddenOption = "32,16",
    negatives: NegativesOption = 200,
    plan: PlanOption = Plan.pairs,
    rounds: RoundsOption = 30,
    local_steps: LocalStepsOption = 1,
    strategy: StrategyOption = Strategy.fedadam,
    server_learning_rate: ServerLearningRateOption = 0.06,
    epochs: EpochsOption = 40,
    seeds: Annotated[
        str,
        typer.Option(
            help="Repetitions: how many, or which (100-104, or 3,7,9).", rich_help_panel=RUN
        ),
    ] = "5",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes. \\[default: one per core, at most 2]",
            rich_help_panel=RUN,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the comparison. \\[default: runs/compare-NAME]", rich_help_panel=RUN
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with an interrupted comparison; its options are kept. The same command "
            "goes on, too.",
            rich_help_panel=RUN,
        ),
    ] = None,
) -> None:
    """Compare joining with going alone: for whom does it pay, and at which epsilon?

    Simulates the federation many times: as it is and with newcomers that have few users, for each
    epsilon and trust mode and without noise, with several seeds. Says for each platform of interest
    whether joining pays, with standard errors over users and seeds; compare.json, figures and a
    self-contained report.html are written beside it.

    Examples:
        crossrec compare --data markets/ --newcomer shop-a:0.1
        crossrec compare --data markets/ --newcomer all:0.1 --only-newcomers --epsilon 2,8
        crossrec compare --data markets/ --trust local --seeds 100-104 --out runs/compare-local
        crossrec compare --resume runs/compare-markets
    """
    from rich.console import Console

    from common.errors import ConfigError
    from simulations.compare.comparison import Comparison
    from simulations.compare.options import CompareOptions, parse_epsilons, parse_seeds
    from simulations.options import SimulationOptions

    console = Console()
    if resume is not None:
        others = given_options(context) - _PARALLEL_ONLY
        if others:
            msg = (
                "--resume keeps the comparison's own options; leave out "
                f"{', '.join(sorted(others))}."
            )
            raise ConfigError(msg)
        comparison = Comparison.reopen(resume)
    else:
        options = CompareOptions(
            base=SimulationOptions(
                data=None if data is None else data.absolute(),
                user_column=user_column,
                item_column=item_column,
                rating_column=rating_column,
                time_column=time_column,
                catalogue=None if catalogue is None else catalogue.absolute(),
                delta=delta,
                plan=plan.value,
                rounds=rounds,
                sampling_rate=sampling_rate,
                local_steps=local_steps,
                clipping_norm=clipping_norm,
                strategy=strategy.value,
                server_learning_rate=server_learning_rate,
                epochs=epochs,
                candidates=num_candidates(candidates),
                model=model_config(model, loss, dim=dim, hidden=hidden, negatives=negatives),
            ),
            newcomers=tuple(
                part.strip() for text in newcomer or () for part in text.split(",") if part.strip()
            ),
            full=not only_newcomers,
            epsilons=parse_epsilons(epsilon),
            trusts=_trusts(trust),
            seeds=parse_seeds(seeds),
        )
        comparison = Comparison.open(options, out or _folder(options), overwrite=overwrite)
    result = comparison.finished()
    if result is None:
        result = comparison.execute(console, workers=workers or _num_workers())
    else:
        console.print(f"{comparison.folder} holds this comparison already; this is what it found.")
    _show(console, result, comparison.folder)
    if any(cell.status == "failed" for cell in result.cells):
        raise typer.Exit(1)
    if result.status == "partial":
        raise typer.Exit(130)


def _trusts(text: str) -> tuple[TrustMode, ...]:
    from common.errors import ConfigError

    known = {choice.value: choice for choice in Trust}
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            msg = f"--trust: found {word!r}, expected some of secagg-simulated, local."
            raise ConfigError(msg)
    return tuple(trust_mode(known[word]) for word in words)


def _num_workers() -> int:
    import os

    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)))


def _folder(options: CompareOptions) -> Path:
    """The first that is free, or holds this very comparison."""
    from simulations.compare.comparison import is_same

    data = options.base.data
    name = f"compare-{'marketplace' if data is None else data.name}"
    folder, number = Path("runs") / name, 1
    while folder.exists() and not is_same(options, folder):
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _show(console: Console, result: CompareResult, folder: Path) -> None:
    from simulations.compare.tables import epsilon_table, quality_table
    from simulations.compare.verdict import SIMULATED_SECAGG, headline, verdicts

    failed = [cell for cell in result.cells if cell.status == "failed"]
    if result.status == "partial":
        left = sum(cell.status == "missing" for cell in result.cells)
        console.print(
            f"[bold]Partial[/bold]: of {len(result.cells)} runs {len(failed)} failed and {left} "
            f"are missing. Go on with: {result.resume_command}",
            soft_wrap=True,
        )
    console.print(quality_table(result))
    if len(result.epsilons) > 1:
        console.print(epsilon_table(result))
    for text in [verdict.text for verdict in verdicts(result)] or [headline(result)]:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if "secagg-simulated" in result.trusts:
        console.print(SIMULATED_SECAGG, markup=False, highlight=False, soft_wrap=True)
    for cell in failed:
        noise = "without noise" if cell.epsilon is None else f"{cell.trust} {cell.epsilon:g}"
        console.print(
            f"Failed: {cell.scenario}, seed {cell.seed}, {noise}: {cell.reason}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Result: {folder / 'compare.json'}", soft_wrap=True)
    console.print(f"Report: {(folder / 'report.html').absolute()}", soft_wrap=True)
