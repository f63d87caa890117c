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
    from simulations.benchmarks.secagg.costs import RoundCost

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


@app.command()
def secagg(
    platforms: Annotated[
        list[int] | None,
        typer.Option(min=3, max=1000, help="May be repeated. Default: 5, 10, 20 and 100."),
    ] = None,
    parameters: Annotated[
        list[int] | None,
        typer.Option(min=25, help="May be repeated. Default: 100,000, 1 and 5 million."),
    ] = None,
    drops: Annotated[
        int | None,
        typer.Option(min=0, help="Platforms that may drop out. Default: 3 of 10, 10 % of more."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of everything.")] = 3,
    quick: Annotated[
        bool, typer.Option(help="One tiny round of each, to see that everything runs.")
    ] = False,
    with_flower: Annotated[
        bool, typer.Option("--flower/--no-flower", help="Measure Flower's SecAgg+ as well.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "--json", help="Write the figures to this file, too.")
    ] = None,
) -> None:
    """Compare a round with secure aggregation with one without: time, bytes and memory.

    A round is everything but the gradients. Seconds are one platform's own work, and the
    coordinator's; "x plain" compares with a plain round in the same repeat, "both" the sum of the
    two on the clock, and "CPU" in processor time. Bytes are those of one platform, as they are
    encoded. The sum of every round is checked. 100 platforms with 5 million parameters take a
    quarter of an hour for each repeat.

    Examples:
        crossrec benchmark secagg --platforms 10 --parameters 5000000
        crossrec benchmark secagg --quick
    """
    import json

    from rich.console import Console
    from rich.progress import Progress

    from common.storage import FOR_ALL, write_durably
    from simulations.benchmarks.secagg.compare import compare
    from simulations.benchmarks.secagg.costs import SecaggCase, allowed_drops

    console = Console()
    numbers = platforms or ([4] if quick else [5, 10, 20, 100])
    sizes = parameters or ([1000] if quick else [100_000, 1_000_000, 5_000_000])
    rounds = 1 if quick else repeats
    cases = [
        SecaggCase(
            platforms=number,
            parameters=size,
            drops=allowed_drops(number) if drops is None else drops,
            with_flower=with_flower,
        )
        for number in numbers
        for size in sizes
    ]
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=rounds * sum(len(case.subjects) for case in cases))
        for case in cases:
            title = f"{case.platforms} platforms, {case.parameters:,} parameters"

            def begin(subject: str, title: str = title) -> None:
                progress.update(task, description=f"{title}: {subject}")

            def done(_: str) -> None:
                progress.advance(task)

            costs = compare(case, repeats=rounds, begin=begin, done=done)
            console.print(_round_table(title, costs), _stage_table(costs), sep="\n")
            rows += [cost.to_dict() for cost in costs]
            if out is not None:
                write_durably(out, (json.dumps(rows, indent=1) + "\n").encode(), mode=FOR_ALL)
    if with_flower:
        console.print(
            "flower: Flower's own secaggplus_mod and SecAggPlusWorkflow (legacy workflow). They "
            "protect less: pairwise seeds of 28 bits, keys that nobody signed."
        )


def _round_table(title: str, costs: list[RoundCost]) -> Table:
    from rich.table import Table

    def times(ratio: float | None) -> str:
        return "-" if ratio is None else f"{ratio:.2f}"

    case = costs[0].case
    table = Table(title=f"{title}, {case.drops} may drop out", title_justify="left")
    table.add_column("round")
    for name in (
        "platform s",
        "x plain",
        "server s",
        "both x plain",
        "CPU",
        "sent MiB",
        "got MiB",
        "x plain",
        "peak MiB",
        "server",
        "messages",
    ):
        table.add_column(name, justify="right")
    for cost in costs:
        size = cost.case.parameters
        table.add_row(
            cost.subject if size == case.parameters else f"{cost.subject}, only {size:,}",
            f"{cost.platform_seconds:.3f}",
            times(cost.platform_ratio_to_plain),
            f"{cost.server_seconds:.3f}",
            times(cost.ratio_to_plain),
            times(cost.cpu_ratio_to_plain),
            f"{cost.sent_bytes / 2**20:.3f}",
            f"{cost.received_bytes / 2**20:.3f}",
            times(cost.bytes_ratio_to_plain),
            f"{cost.platform_mebibytes:,.0f}",
            f"{cost.server_mebibytes:,.0f}",
            f"{cost.messages}",
        )
    return table


def _stage_table(costs: list[RoundCost]) -> Table:
    from rich.table import Table

    table = Table("round", "stage", title="One platform, by stage", title_justify="left")
    for name in ("ms", "CPU ms", "bytes sent", "bytes received"):
        table.add_column(name, justify="right")
    for cost in costs:
        if cost.subject.endswith("-drops"):
            continue
        for stage in cost.stages:
            table.add_row(
                cost.subject,
                stage.stage,
                f"{1e3 * stage.seconds:,.1f}",
                f"{1e3 * stage.cpu_seconds:,.1f}",
                f"{stage.sent_bytes:,.0f}",
                f"{stage.received_bytes:,.0f}",
            )
    return table


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
