"""The ``crossrec benchmark`` commands: tables of ratios that anybody can measure again."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.command_line import Model

if TYPE_CHECKING:
    from rich.table import Table

    from common.privacy.engines import ClippingEngine
    from simulations.benchmarks.engine import EngineTiming

app = typer.Typer(no_args_is_help=True)


class Engine(StrEnum):
    """Choices of ``--engine``."""

    opacus_hooks = "opacus-hooks"
    opacus_ghost = "opacus-ghost"
    fast = "fast"


class Device(StrEnum):
    """Choices of ``--device``."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@app.callback()
def benchmark() -> None:
    """Measure speed and memory side by side, in one run on this machine.

    Example:
        crossrec benchmark engine
    """


@app.command()
def engine(
    model: Annotated[
        list[Model] | None, typer.Option(help="May be repeated. Default: gmf and neumf.")
    ] = None,
    items: Annotated[
        list[int] | None,
        typer.Option(min=100, help="Catalogue; may be repeated. Default: 12,015 and 100,000."),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="May be repeated. Default: 1 and 2.")
    ] = None,
    engines: Annotated[
        list[Engine] | None,
        typer.Option("--engine", help="Compared with plain; may be repeated. Default: all."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of all engines.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each measurement.")] = 2.0,
    device: Annotated[Device, typer.Option(help="Where the model is; auto takes a GPU.")] = (
        Device.cpu
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file, too.")
    ] = None,
) -> None:
    """Compare a private training step with plain SGD: speed, and peak memory of a process.

    A step trains the shared parameters on 256 users with 40 interactions each. Ratios are medians
    over the repeats; each compares neighbours in time. Most of the time, and of the memory,
    goes to Opacus' hooks with many items.

    Examples:
        crossrec benchmark engine
        crossrec benchmark engine --model gmf --items 12015 --threads 2 --engine fast
    """
    import json

    from rich.console import Console
    from rich.progress import track

    from client.devices import resolve_device
    from common.storage import FOR_ALL, write_durably
    from simulations.benchmarks.engine import EngineCase, compare

    console = Console()
    where = resolve_device(device.value)
    cases = [
        EngineCase(model=kind.value, num_items=num_items, threads=count, device=where)
        for kind in model or (Model.gmf, Model.neumf)
        for num_items in items or (12_015, 100_000)
        for count in threads or (1, 2)
    ]
    engine_names: list[ClippingEngine] = [choice.value for choice in engines or Engine]
    rows = []
    for case in track(cases, "Measuring", console=Console(stderr=True), transient=True):
        timings = compare(case, engine_names, repeats=repeats, seconds=seconds)
        console.print(_engine_table(timings))
        rows += [timing.to_dict() for timing in timings]
        if json_file is not None:
            write_durably(json_file, (json.dumps(rows, indent=1) + "\n").encode(), mode=FOR_ALL)


def _engine_table(timings: list[EngineTiming]) -> Table:
    from rich.table import Table

    case = timings[0].case
    threads = "1 thread" if case.threads == 1 else f"{case.threads} threads"
    table = Table(
        title=f"{case.model}, {case.num_items:,} items, {threads}, {case.device}",
        title_justify="left",
    )
    table.add_column("engine")
    for name in ("ms/step", "interactions/s", "x plain", "peak MiB", "x plain"):
        table.add_column(name, justify="right")
    for timing in timings:
        table.add_row(
            timing.subject,
            f"{1e3 * timing.step_seconds:,.1f}",
            f"{timing.interactions_per_second:,.0f}",
            f"{timing.ratio_to_plain:.3f}",
            f"{timing.peak_mebibytes:,.0f}",
            f"{timing.memory_ratio_to_plain:.2f}",
        )
    return table
