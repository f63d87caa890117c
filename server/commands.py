"""The ``crossrec server`` commands, for the operator of a federation."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.cli import LogStyleName, MetricsOption, StyleOption

if TYPE_CHECKING:
    from rich.console import Console

    from server.config import FederationConfig
    from server.status import RunSummary

app = typer.Typer(no_args_is_help=True)

_DEFAULT = Path("federation.toml")
Config = Annotated[Path, typer.Argument(help="The federation's federation.toml.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Without a progress display.")]


class Trust(StrEnum):
    """Choices of ``--trust``."""

    local = "local"
    secagg = "secagg"


@app.callback()
def server() -> None:
    """Run a federation: its coordinator, which never sees what users did.

    Example:
        crossrec server init market --host coordinator.example --platform shop-a --platform shop-b
    """


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder for the federation.")],
    host: Annotated[
        list[str], typer.Option(help="Name or address under which platforms reach it; repeatable.")
    ],
    platform: Annotated[
        list[str], typer.Option(help="Name of a platform that may take part; repeatable.")
    ],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 8000,
    epsilon: Annotated[
        float, typer.Option(help="What one run costs a user of a platform, in all.")
    ] = 8.0,
    delta: Annotated[float, typer.Option(help="At which epsilon is stated.")] = 1e-5,
    plan: Annotated[
        str, typer.Option(help="What it is spent on: pairs, ncf or both; see the README.")
    ] = "pairs",
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds of training, where the plan has any.")
    ] = 30,
    *,
    trust: Annotated[
        Trust,
        typer.Option(
            help="local: each platform adds all the noise. secagg: the coordinator sees sums only."
        ),
    ] = Trust.local,
    max_dropped: Annotated[
        int,
        typer.Option(min=0, help="With secagg: platforms that may drop out of a sum; costs noise."),
    ] = 0,
    max_colluding: Annotated[
        int,
        typer.Option(min=1, help="With secagg: platforms that may help a curious coordinator."),
    ] = 1,
) -> None:
    """Make a federation: its certificate authority, its certificate, its federation.toml.

    With secure aggregation (--trust secagg) every platform holds the public keys of all others,
    and gets them from the platforms, never from the coordinator.

    Example:
        crossrec server init market --host coordinator.example --platform shop-a --platform shop-b
    """
    from rich.console import Console

    from server.config import SecaggSection
    from server.founding import found_federation

    secagg = None
    if trust is Trust.secagg:
        secagg = SecaggSection(max_dropped=max_dropped, max_colluding=max_colluding)
    config = found_federation(
        folder,
        hosts=host,
        port=port,
        platforms=platform,
        epsilon=epsilon,
        delta=delta,
        plan=plan,
        rounds=rounds,
        secagg=secagg,
    )
    secure, sends = "", "sends you its node.pub."
    if secagg:
        secure = " --trust secagg"
        sends = (
            "sends its node.pub to you and, not through you, to every other platform, "
            "which runs: crossrec client trust NAME node.pub"
        )
    Console().print(
        f"{folder}: a federation of {', '.join(platform)}. Its run costs a user epsilon "
        f"{epsilon:g} at delta {delta:g}.\n"
        f"1. Give every platform {folder / 'ca.crt'} (public; {folder / 'ca.key'} is not).\n"
        f"2. Each one runs: crossrec client init SHOP --name NAME --server {host[0]}:{port} "
        f"--root-certificate ca.crt{secure}, and {sends}\n"
        f"3. crossrec server register NAME node.pub {config}\n"
        f"4. crossrec server run {config}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="The platform's name, as in federation.toml.")],
    key: Annotated[Path, typer.Argument(help="Its public key: the node.pub that it sent.")],
    config: Config = _DEFAULT,
) -> None:
    """Accept a platform's public key.

    From the next start on, whoever holds its private key may answer as this platform. Check with
    the platform, by telephone for example, that the fingerprint is its own.

    Example:
        crossrec server register shop-a node.pub market/federation.toml
    """
    from server.founding import register_platform

    typer.echo(register_platform(name, key, config, _read(config)))


@app.command()
def run(
    config: Config = _DEFAULT,
    *,
    quiet: Quiet = False,
    log_style: StyleOption = LogStyleName.text,
    metrics: MetricsOption = None,
) -> None:
    """Run the federation to its end.

    Starts SuperLink and gateway, lets platforms in, asks, adds up, hands over, and stops. Whatever
    dies is started again. Stopped (Ctrl-C, SIGTERM, a power cut), the run goes on where it was when
    the same command, or `crossrec server resume`, is given again.

    Example:
        crossrec server run market/federation.toml
    """
    federation = _read(config)
    if _summary(federation).state == "finished":
        typer.echo(
            f"Run {federation.federation.run_id} is finished. For another one choose a new "
            f"run_id in {config}; `crossrec server resume` hands its result over once more."
        )
        return
    _run(config, federation, quiet=quiet, log_style=log_style, metrics=metrics)


@app.command()
def resume(
    config: Config = _DEFAULT,
    *,
    quiet: Quiet = False,
    log_style: StyleOption = LogStyleName.text,
    metrics: MetricsOption = None,
) -> None:
    """Go on with a run that was begun; as `run`, but refuses to begin a new one.

    Example:
        crossrec server resume market/federation.toml
    """
    from common.errors import ConfigError
    from server.journal import journal_size

    federation = _read(config)
    if journal_size(federation.run_folder) == 0:
        msg = (
            f"{federation.run_folder}: there is no run to resume. Begin it: "
            f"crossrec server run {config}"
        )
        raise ConfigError(msg)
    _run(config, federation, quiet=quiet, log_style=log_style, metrics=metrics)


@app.command()
def status(config: Config = _DEFAULT) -> None:
    """Show where the run stands, and what each platform last did.

    Example:
        crossrec server status market/federation.toml
    """
    from rich.console import Console

    federation = _read(config)
    _show(Console(), federation, _summary(federation))


@app.command()
def readmit(
    name: Annotated[str, typer.Argument(help="The platform's name, as in federation.toml.")],
    config: Config = _DEFAULT,
) -> None:
    """Ask a platform again that was set aside because it kept failing.

    Stop the run first; the next `crossrec server resume` asks it.

    Example:
        crossrec server readmit shop-a market/federation.toml
    """
    from common.errors import ConfigError
    from server.journal import Journal, read_journal
    from server.standing import READMITTED, set_aside_in

    folder = _read(config).run_folder
    set_aside = set_aside_in(event for _, event in read_journal(folder))
    if name not in set_aside:
        raise ConfigError(f"{name!r} is not set aside; these are: {', '.join(set_aside) or 'none'}")
    journal = Journal(folder)
    journal.write(READMITTED, platform=name)
    journal.close()
    typer.echo(f"{name} is asked again from the next start on. It had failed: {set_aside[name]}")


def _read(config: Path) -> FederationConfig:
    from common.config import load_config
    from server.config import FederationConfig

    return load_config(config, FederationConfig)


def _summary(federation: FederationConfig) -> RunSummary:
    from server.journal import read_journal
    from server.status import summarise

    return summarise(event for _, event in read_journal(federation.run_folder))


def _run(
    config: Path,
    federation: FederationConfig,
    *,
    quiet: bool,
    log_style: LogStyleName,
    metrics: str | None,
) -> None:
    import os
    import signal
    from contextlib import nullcontext

    from rich.console import Console

    from common.logs import LOG_STYLE_VARIABLE, configure_logging
    from server.coordinator import Coordinator
    from server.journal import journal_size
    from server.metrics import serve_run_metrics
    from server.progress import JournalProgress

    os.environ[LOG_STYLE_VARIABLE] = log_style.value  # for the programs that it starts
    configure_logging(log_style.value, names={"run": federation.federation.run_id})
    console = Console(stderr=True)
    coordinator = Coordinator(config, federation)
    network = federation.network
    assert network is not None

    missing = sorted(set(federation.federation.platforms) - set(coordinator.registered))
    if missing:
        typer.echo(
            f"Not registered, so they cannot join: {', '.join(missing)} "
            f"(crossrec server register NAME node.pub {config}).",
            err=True,
        )

    def ready() -> None:
        typer.echo(
            f"Run {federation.federation.run_id}: platforms connect to {network.address}; waiting "
            f"for {len(federation.federation.platforms)} of them (at least "
            f"{federation.federation.quorum})."
        )

    # SIGTERM ends the run as Ctrl-C does: programs are stopped, the checkpoint stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = federation.run_folder
    start = journal_size(folder)
    with (
        serve_run_metrics(metrics, folder) if metrics else nullcontext(),
        nullcontext() if quiet else JournalProgress(folder, console, start=start),
    ):
        try:
            coordinator.run(ready)
        except KeyboardInterrupt:
            typer.echo(f"Stopped. Go on with: crossrec server resume {config}", err=True)
            raise typer.Exit(130) from None
    _show(Console(), federation, _summary(federation))


def _show(console: Console, federation: FederationConfig, run: RunSummary) -> None:
    from datetime import UTC, datetime

    from rich.table import Table
    from rich.text import Text

    when = ""
    if run.updated is not None:
        when = f", last event {datetime.fromtimestamp(run.updated, UTC):%Y-%m-%d %H:%M:%S} UTC"
    rounds = f", {run.rounds_done} of {run.rounds} rounds" if run.rounds else ""
    sums = f", sums: {', '.join(run.sums_done)}" if run.sums_done else ""
    step = f", at: {run.step}" if run.step else ""
    console.print(
        f"Run {federation.federation.run_id}: {run.state}{rounds}{sums}{step}{when}; "
        f"started {run.num_starts} time(s).",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if run.reason:
        console.print(Text(f"Cause: {run.reason}", style="red"), soft_wrap=True)
    table = Table("platform", "joined", "releases", "left out", "result", "last reply")
    for name in federation.federation.platforms:
        found = run.platforms.get(name)
        if found is None:
            table.add_row(Text(name), "no", "", "", "", "")
            continue
        table.add_row(
            Text(name),
            "set aside" if found.set_aside else "yes" if found.joined else "no",
            str(found.num_releases),
            str(found.num_refusals),
            "yes" if found.has_result else "no",
            Text(found.last_outcome),
        )
    console.print(table)
    for cause in run.refused:
        console.print(Text(f"refused {cause}", style="yellow"), soft_wrap=True)
