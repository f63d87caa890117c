"""The ``crossrec simulate`` command: options in, a table, ``result.json`` and a report out."""

from __future__ import annotations

from enum import StrEnum
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
    from rich.table import Table

    from simulations.options import SimulationOptions
    from simulations.result import PlatformResult, RunResult


class Engine(StrEnum):
    """Choices of ``--engine``."""

    in_process = "in-process"
    ray = "ray"


class Split(StrEnum):
    """Choices of ``--split``."""

    leave_one_out = "leave-one-out"


class Unit(StrEnum):
    """Choices of ``--privacy-unit``."""

    user = "user"


_SHORT = {"popularity": "popular", "federated": "served"}
_METRICS = ("ndcg@10", "hr@10")


def simulate(
    *,
    context: typer.Context,
    data: DataOption = None,
    user_column: UserColumnOption = None,
    item_column: ItemColumnOption = None,
    rating_column: RatingColumnOption = None,
    time_column: TimeColumnOption = None,
    catalogue: CatalogueOption = None,
    split: Annotated[
        Split,
        typer.Option(
            help="How a platform without a held-out file of its own is tested.",
            rich_help_panel=DATA,
        ),
    ] = Split.leave_one_out,
    candidates: CandidatesOption = "all",
    epsilon: Annotated[
        float, typer.Option(help="Budget of a user for the whole run.", rich_help_panel=PRIVACY)
    ] = 8.0,
    delta: DeltaOption = 1e-5,
    privacy_unit: Annotated[
        Unit, typer.Option(help="What the guarantee protects.", rich_help_panel=PRIVACY)
    ] = Unit.user,
    trust: Annotated[
        Trust,
        typer.Option(
            help="local: each platform adds all its noise. secagg: the server sees only sums, so "
            "each adds a share. secagg-simulated: the same sums, added up in the clear. none: no "
            "noise, no guarantee.",
            rich_help_panel=PRIVACY,
        ),
    ] = Trust.local,
    max_dropped: Annotated[
        int,
        typer.Option(
            min=0,
            help="With secagg: platforms that may drop out of a sum; each one costs noise.",
            rich_help_panel=PRIVACY,
        ),
    ] = 0,
    max_colluding: Annotated[
        int,
        typer.Option(
            min=1,
            help="With secagg: platforms that may tell the server all they know.",
            rich_help_panel=PRIVACY,
        ),
    ] = 1,
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
    engine: Annotated[
        Engine,
        typer.Option(help="What runs the deployed apps on this machine.", rich_help_panel=RUN),
    ] = Engine.in_process,
    seed: Annotated[
        int, typer.Option(help="Everything random follows from it.", rich_help_panel=RUN)
    ] = 0,
    newcomer: Annotated[
        str | None,
        typer.Option(
            help="NAME:FRACTION: this platform has that share of its users only.",
            rich_help_panel=DATA,
        ),
    ] = None,
    adapting: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this platform fits models of its own and is measured; may be repeated.",
            rich_help_panel=RUN,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run. \\[default: the first free runs/NAME]", rich_help_panel=RUN
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with an interrupted run; its options are kept.", rich_help_panel=RUN
        ),
    ] = None,
) -> None:
    """Simulate a whole federation on this machine: does joining pay, and what does it cost?

    Every platform trains privately with the client and the server that are deployed. The closing
    table compares what each can do alone with what it gets by joining; result.json and a
    self-contained report.html are written beside it.

    Example:
        crossrec simulate
        crossrec simulate --data markets/ --epsilon 8 --out runs/markets
        crossrec simulate --data markets/ --trust none --out runs/no-privacy
        crossrec simulate --data shops/ --user-column customer_id --item-column sku
        crossrec simulate --resume runs/markets
    """
    from rich.console import Console

    from common.errors import ConfigError
    from simulations.options import SimulationOptions
    from simulations.simulate import SimulationRun

    del split  # one choice; a platform's own held-out file always comes first
    console = Console()
    if resume is not None:
        others = given_options(context) - {"resume"}
        if others:
            msg = f"--resume keeps the run's own options; leave out {', '.join(sorted(others))}."
            raise ConfigError(msg)
        run = SimulationRun.reopen(resume)
    else:
        options = SimulationOptions(
            data=None if data is None else data.absolute(),
            user_column=user_column,
            item_column=item_column,
            rating_column=rating_column,
            time_column=time_column,
            catalogue=None if catalogue is None else catalogue.absolute(),
            epsilon=epsilon,
            delta=delta,
            privacy_unit=privacy_unit.value,
            trust=trust_mode(trust),
            max_dropped=max_dropped,
            max_colluding=max_colluding,
            plan=plan.value,
            rounds=rounds,
            sampling_rate=sampling_rate,
            local_steps=local_steps,
            clipping_norm=clipping_norm,
            strategy=strategy.value,
            server_learning_rate=server_learning_rate,
            epochs=epochs,
            candidates=num_candidates(candidates),
            engine=engine.value,
            seed=seed,
            newcomer=newcomer,
            adapting=tuple(adapting) if adapting else None,
            model=model_config(model, loss, dim=dim, hidden=hidden, negatives=negatives),
        )
        folder = out or _free_folder(options)
        run = SimulationRun.open(options, folder, overwrite=overwrite)
    result = run.finished()
    if result is None:
        console.print(_introduction(run.options), highlight=False, soft_wrap=True)
        result = run.execute(console)
    else:
        console.print(f"{run.folder} holds this run already; here is what it found.")
    _show(console, result, run.folder)
    if result.status == "partial":
        raise typer.Exit(130)


def _free_folder(options: SimulationOptions) -> Path:
    name = "marketplace" if options.data is None else options.data.name
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _introduction(options: SimulationOptions) -> str:
    """What is about to be released, and its price before anything runs."""
    from simulations.federation import plan_budget

    data = "the built-in synthetic marketplace" if options.data is None else str(options.data)
    if options.trust == "none":
        return f"Simulating {data} without noise, plan {options.plan}: no privacy guarantee."
    budget = plan_budget(options)
    named = (
        ("item counts", budget.counts),
        ("item pairs", budget.pairs),
        (f"{options.rounds} rounds", budget.rounds),
    )
    releases = ", ".join(
        f"{name} (noise {mechanism.noise_multiplier:.3g})" for name, mechanism in named if mechanism
    )
    return (
        f"Simulating {data}: epsilon {options.epsilon:g}, delta {options.delta:g} per "
        f"{options.privacy_unit}, trust {options.trust}.\n"
        f"Plan {options.plan}: {releases}, together epsilon {budget.epsilon(options.delta):.3g}."
    )


def _show(console: Console, result: RunResult, folder: Path) -> None:
    from simulations.verdict import headline

    if result.status == "partial":
        console.print(
            f"[bold]Interrupted[/bold] after {result.progress}. "
            f"Go on with: {result.resume_command}",
            soft_wrap=True,
        )
    console.print(_table(result))
    console.print(headline(result), highlight=False, soft_wrap=True)
    console.print(f"Result: {folder / 'result.json'}", soft_wrap=True)
    console.print(f"Report: {(folder / 'report.html').absolute()}", soft_wrap=True)


def _table(result: RunResult) -> Table:
    from rich.table import Table

    from simulations.plots import epsilon_text

    has_federated = any("federated" in p.models for p in result.platforms.values())
    columns = [("ndcg@10", "popularity")]
    if has_federated:
        columns += [(metric, model) for metric in _METRICS for model in ("local", "federated")]
    table = Table(
        title="Held-out items: going alone (local), and what is served (federated)",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        min_width=70,
    )
    table.add_column("\nplatform")
    table.add_column("\nusers", justify="right")
    table.add_column("eps.\nspent", justify="right")
    for metric, model in columns:
        table.add_column(f"{metric.upper()}\n{_SHORT.get(model, model)}", justify="right")
    if has_federated:
        table.add_column("served-\nlocal", justify="right")
        table.add_column("\nserves", justify="right")
    for name, platform in result.platforms.items():
        epsilon = "none" if platform.epsilon is None else epsilon_text(platform.epsilon)
        row = [name, f"{platform.num_users:,}", epsilon]
        row += [_cell(platform, model, metric) for metric, model in columns]
        if has_federated:
            row += [_gain(platform), platform.gate or "-"]
        table.add_row(*row)
    return table


def _cell(platform: PlatformResult, model: str, metric: str) -> str:
    found = platform.models.get(model)
    value = None if found is None else found.metrics.get(metric)
    return "-" if value is None else f"{value:.4f}"


def _gain(platform: PlatformResult) -> str:
    gain = platform.gain.get("ndcg@10")
    return "-" if gain is None or gain.mean is None else f"{gain.mean:+.4f}"
