"""The ``crossrec simulate`` command: options in, a table, ``result.json`` and a report out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from common.privacy.mechanisms import TrustMode
    from simulations.options import SimulationOptions
    from simulations.result import PlatformResult, RunResult


class Trust(StrEnum):
    """Choices of ``--trust``."""

    local = "local"
    secagg = "secagg"
    secagg_simulated = "secagg-simulated"
    none = "none"


class Engine(StrEnum):
    """Choices of ``--engine``."""

    in_process = "in-process"
    ray = "ray"


class Model(StrEnum):
    """Choices of ``--model``."""

    gmf = "gmf"
    mlp = "mlp"
    neumf = "neumf"


class Loss(StrEnum):
    """Choices of ``--loss``."""

    softmax = "softmax"
    sampled_softmax = "sampled-softmax"
    bce = "bce"


class Strategy(StrEnum):
    """Choices of ``--strategy``."""

    fedadam = "fedadam"
    fedavg = "fedavg"


class Unit(StrEnum):
    """Choices of ``--privacy-unit``."""

    user = "user"


class Split(StrEnum):
    """Choices of ``--split``."""

    leave_one_out = "leave-one-out"


_DATA, _PRIVACY, _TRAINING, _RUN = "Data", "Privacy", "Training", "Run"
_SHORT = {"popularity": "popular"}
_METRICS = ("ndcg@10", "hr@10")


def simulate(
    *,
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with one file or sub-folder per platform. "
            "Without it, a built-in synthetic marketplace.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    user_column: Annotated[
        str | None, typer.Option(help="Column of user ids.", rich_help_panel=_DATA)
    ] = None,
    item_column: Annotated[
        str | None, typer.Option(help="Column of item ids.", rich_help_panel=_DATA)
    ] = None,
    rating_column: Annotated[
        str | None, typer.Option(help="Column of ratings.", rich_help_panel=_DATA)
    ] = None,
    time_column: Annotated[
        str | None, typer.Option(help="Column of times.", rich_help_panel=_DATA)
    ] = None,
    catalogue: Annotated[
        Path | None,
        typer.Option(
            help="Public catalogue: item_id and platform. Without it, derived from the data.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    split: Annotated[
        Split,
        typer.Option(
            help="How a platform without a held-out file of its own is tested.",
            rich_help_panel=_DATA,
        ),
    ] = Split.leave_one_out,
    candidates: Annotated[
        str,
        typer.Option(
            help="'all' ranks the whole catalogue, a number ranks among that many sampled items.",
            rich_help_panel=_DATA,
        ),
    ] = "all",
    epsilon: Annotated[
        float, typer.Option(help="Budget of a user for the whole run.", rich_help_panel=_PRIVACY)
    ] = 8.0,
    delta: Annotated[
        float, typer.Option(help="Delta of the guarantee.", rich_help_panel=_PRIVACY)
    ] = 1e-5,
    privacy_unit: Annotated[
        Unit, typer.Option(help="What the guarantee protects.", rich_help_panel=_PRIVACY)
    ] = Unit.user,
    trust: Annotated[
        Trust,
        typer.Option(
            help="local: each platform adds all its noise. secagg-simulated: noise as under "
            "secure aggregation, which is not performed. none: no noise, no guarantee.",
            rich_help_panel=_PRIVACY,
        ),
    ] = Trust.local,
    clipping_norm: Annotated[
        float, typer.Option(help="Bound on one user's gradient.", rich_help_panel=_PRIVACY)
    ] = 0.25,
    sampling_rate: Annotated[
        float,
        typer.Option(help="Poisson sampling rate of users per step.", rich_help_panel=_PRIVACY),
    ] = 1.0,
    model: Annotated[
        Model, typer.Option(help="Which NCF model.", rich_help_panel=_TRAINING)
    ] = Model.gmf,
    loss: Annotated[
        Loss | None,
        typer.Option(
            help="Training loss. \\[default: softmax for gmf, else sampled-softmax]",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    dim: Annotated[
        int, typer.Option(help="Length of item vectors.", rich_help_panel=_TRAINING)
    ] = 32,
    hidden: Annotated[
        str, typer.Option(help="Widths of the tower, for mlp, neumf.", rich_help_panel=_TRAINING)
    ] = "32,16",
    negatives: Annotated[
        int,
        typer.Option(help="Sampled items, for sampled-softmax, bce.", rich_help_panel=_TRAINING),
    ] = 200,
    rounds: Annotated[
        int, typer.Option(help="Rounds of private training.", rich_help_panel=_TRAINING)
    ] = 30,
    local_steps: Annotated[
        int, typer.Option(help="Noisy steps per round.", rich_help_panel=_TRAINING)
    ] = 1,
    strategy: Annotated[
        Strategy, typer.Option(help="How the server steps.", rich_help_panel=_TRAINING)
    ] = Strategy.fedadam,
    server_learning_rate: Annotated[
        float, typer.Option(help="Step length of the server.", rich_help_panel=_TRAINING)
    ] = 0.02,
    epochs: Annotated[
        int,
        typer.Option(
            help="Most epochs of a platform's own, private fitting.", rich_help_panel=_TRAINING
        ),
    ] = 40,
    engine: Annotated[
        Engine,
        typer.Option(help="What runs the deployed apps on this machine.", rich_help_panel=_RUN),
    ] = Engine.in_process,
    seed: Annotated[
        int, typer.Option(help="Everything random follows from it.", rich_help_panel=_RUN)
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run. \\[default: the first free runs/NAME]", rich_help_panel=_RUN
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.", rich_help_panel=_RUN)
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with an interrupted run; its options are kept.", rich_help_panel=_RUN
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
    from common.models.ncf import NcfConfig
    from simulations.options import SimulationOptions
    from simulations.simulate import SimulationRun

    del split  # one choice; a platform's own held-out file always comes first
    console = Console()
    if resume is not None:
        others = _given(context) - {"resume"}
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
            trust=_trust(trust),
            rounds=rounds,
            sampling_rate=sampling_rate,
            local_steps=local_steps,
            clipping_norm=clipping_norm,
            strategy=strategy.value,
            server_learning_rate=server_learning_rate,
            epochs=epochs,
            candidates=_candidates(candidates),
            engine=engine.value,
            seed=seed,
            model=NcfConfig(
                kind=model.value,
                dim=dim,
                hidden=_widths(hidden),
                loss=(loss or (Loss.softmax if model is Model.gmf else Loss.sampled_softmax)).value,
                num_negatives=negatives,
            ),
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


def _given(context: typer.Context) -> set[str]:
    """Names of the options that stand on the command line."""
    return {
        name.replace("_", "-")
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }


def _trust(trust: Trust) -> TrustMode:
    from common.errors import ConfigError

    modes: dict[Trust, TrustMode] = {
        Trust.local: "local",
        Trust.secagg_simulated: "secagg-simulated",
        Trust.none: "none",
    }
    if trust not in modes:
        msg = (
            "--trust secagg: secure aggregation is not part of this version. Use "
            "--trust local, or --trust secagg-simulated to see what it would bring."
        )
        raise ConfigError(msg)
    return modes[trust]


def _candidates(text: str) -> int | None:
    from common.errors import ConfigError

    if text == "all":
        return None
    if not text.isdecimal():
        msg = f"--candidates: found {text!r}, expected 'all' or a number such as 100."
        raise ConfigError(msg)
    return int(text)


def _widths(text: str) -> tuple[int, ...]:
    from common.errors import ConfigError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        msg = f"--hidden: found {text!r}, expected widths such as 32,16."
        raise ConfigError(msg)
    return tuple(int(part) for part in parts)


def _free_folder(options: SimulationOptions) -> Path:
    name = "marketplace" if options.data is None else options.data.name
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _introduction(options: SimulationOptions) -> str:
    data = "the built-in synthetic marketplace" if options.data is None else str(options.data)
    if options.trust == "none":
        return f"Simulating {data} without noise: no privacy guarantee."
    return (
        f"Simulating {data}: epsilon {options.epsilon:g}, delta {options.delta:g} per "
        f"{options.privacy_unit}, trust {options.trust}."
    )


def _show(console: Console, result: RunResult, folder: Path) -> None:
    from simulations.verdict import headline

    if result.status == "partial":
        console.print(
            f"[bold]Interrupted[/bold] after {result.rounds_completed} of "
            f"{result.rounds_planned} rounds. Go on with: {result.resume_command}",
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
        title="Held-out items: alone (local), joined, and what is served (federated)",
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
        table.add_column("joined-\nlocal", justify="right")
        table.add_column("\nserves", justify="right")
    for name, platform in result.platforms.items():
        epsilon = "none" if platform.epsilon is None else epsilon_text(platform.epsilon)
        row = [name, f"{platform.num_users:,}", epsilon]
        row += [_cell(platform, model, metric) for metric, model in columns]
        if has_federated:
            row += [_gain(platform), {"alone": "local"}.get(platform.gate or "-", "joined")]
        table.add_row(*row)
    return table


def _cell(platform: PlatformResult, model: str, metric: str) -> str:
    found = platform.models.get(model)
    value = None if found is None else found.metrics.get(metric)
    return "-" if value is None else f"{value:.4f}"


def _gain(platform: PlatformResult) -> str:
    gain = platform.joined_gain.get("ndcg@10")
    return "-" if gain is None or gain.mean is None else f"{gain.mean:+.4f}"
