"""The ``crossrec client`` commands, for the engineer at a platform."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.cli import LogStyleName, MetricsOption, StyleOption

if TYPE_CHECKING:
    from common.privacy.account import Budget
    from common.privacy.ledger import Ledger

app = typer.Typer(no_args_is_help=True)
ledger_app = typer.Typer(no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")

_PLACE = typer.Argument(
    help="The platform's platform.toml, or its ledger.sqlite.", show_default=True
)
Place = Annotated[Path, _PLACE]
Config = Annotated[Path, typer.Argument(help="The platform's platform.toml.")]
_DEFAULT = Path("platform.toml")


class Trust(StrEnum):
    """Choices of ``--trust``."""

    local = "local"
    secagg = "secagg"


class Format(StrEnum):
    """Choices of ``--format``."""

    csv = "csv"
    json = "json"


@app.callback()
def client() -> None:
    """Run a platform: its side of the federation, and its own privacy budget.

    Example:
        crossrec client ledger status platform.toml
    """


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder for the platform.")],
    name: Annotated[str, typer.Option(help="The platform's name in the federation.")],
    server: Annotated[str, typer.Option(help="HOST:PORT of the coordinator.")],
    root_certificate: Annotated[Path, typer.Option(help="The coordinator's ca.crt.")],
    data: Annotated[
        str, typer.Option(help="Interactions: a file, or a database's URL (see the README).")
    ],
    assortment: Annotated[Path, typer.Option(help="File with the items that it lists.")],
    population: Annotated[
        int, typer.Option(min=1, help="About how many users it has; a public, round number.")
    ],
    epsilon: Annotated[
        float, typer.Option(help="The whole budget of a user, over the federation's life.")
    ] = 8.0,
    delta: Annotated[float, typer.Option(help="Of the guarantee; below 1 / users.")] = 1e-5,
    *,
    trust: Annotated[
        Trust,
        typer.Option(help="As the federation's: local, or secagg, so that it shows sums only."),
    ] = Trust.local,
) -> None:
    """Make a platform: its key pair, and its platform.toml with comments. Reads no user data.

    Example:
        crossrec client init shop-a --name shop-a --server coordinator.example:8000
        --root-certificate ca.crt --data orders.parquet --assortment items.csv --population 5000
    """
    from rich.console import Console

    from client.config import PrivacySection
    from client.joining import CONFIG_FILE, PUBLIC_KEY, make_platform

    fingerprint = make_platform(
        folder,
        name=name,
        server=server,
        root_certificate=root_certificate,
        source=data,
        assortment=assortment,
        population=population,
        privacy=PrivacySection(epsilon=epsilon, delta=delta, trust=trust.value),
    )
    secure = ""
    if trust is Trust.secagg:
        secure = (
            f"   And to every other platform, not through the coordinator. With the node.pub of "
            f"each of them: crossrec client trust NAME node.pub {folder / CONFIG_FILE}\n"
        )
    Console().print(
        f"{folder}: platform {name}, fingerprint {fingerprint}.\n"
        f"1. Send {folder / PUBLIC_KEY} to the coordinator, and tell the fingerprint another way.\n"
        f"{secure}"
        f"2. crossrec client check {folder / CONFIG_FILE}\n"
        f"3. crossrec client run {folder / CONFIG_FILE}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


@app.command()
def trust(
    name: Annotated[str, typer.Argument(help="The other platform's name in the federation.")],
    key: Annotated[Path, typer.Argument(help="Its public key: the node.pub that it sent.")],
    config: Config = _DEFAULT,
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="It has a new key; the known one is forgotten.")
    ] = False,
) -> None:
    """Trust another platform's public key in secure sums; counts at once.

    The key comes from that platform: whoever could put keys here, the coordinator for one, could
    pose as every other platform, and see this one's releases.

    Example:
        crossrec client trust shop-b shop-b/node.pub platform.toml
    """
    from client.config import PlatformConfig
    from client.joining import trust_platform
    from common.config import load_config

    platform = load_config(config, PlatformConfig)
    fingerprint = trust_platform(name, key, config, platform, replace=replace)
    typer.echo(
        f"{name}: trusted, fingerprint {fingerprint}.\n"
        f"Compare it with what {name} itself reads out to you, by telephone for example, and not "
        "with anything that the coordinator says."
    )


@app.command()
def check(config: Config = _DEFAULT) -> None:
    """Check what a run will need, and say what would leave the platform.

    Looks at data, catalogue, budget, certificates and the way to the coordinator. Changes nothing,
    sends nothing of the platform. Exit code 1 if something is missing.

    Example:
        crossrec client check platform.toml
    """
    from rich.console import Console
    from rich.text import Text

    from client.check import check_platform, what_would_leave
    from client.config import PlatformConfig
    from common.config import load_config

    platform = load_config(config, PlatformConfig)
    console = Console()
    is_ready = True
    for finding in check_platform(config, platform):
        is_ready &= finding.is_fine
        sign = Text("ok     ", "green") if finding.is_fine else Text("problem", "red")
        console.print(sign, Text(f"{finding.subject}: {finding.text}"), soft_wrap=True)
    console.print("\nWhat would leave the platform:")
    for line in what_would_leave(platform):
        console.print(Text(f"- {line}"), soft_wrap=True)
    if not is_ready:
        raise typer.Exit(1)


@app.command()
def run(
    config: Config = _DEFAULT,
    *,
    log_style: StyleOption = LogStyleName.text,
    metrics: MetricsOption = None,
) -> None:
    """Take part in the federation until stopped: answer what the platform's own budget allows.

    Starts Flower's SuperNode, and starts it again when it ends or the coordinator is away. Only the
    installed CrossRec is executed, whatever the coordinator sends.

    Example:
        crossrec client run platform.toml
    """
    import os
    import signal
    from contextlib import nullcontext

    from client.config import PlatformConfig
    from client.metrics import serve_platform_metrics
    from client.node import Node
    from common.config import load_config
    from common.logs import LOG_STYLE_VARIABLE, configure_logging

    platform = load_config(config, PlatformConfig)
    os.environ[LOG_STYLE_VARIABLE] = log_style.value  # for the programs that it starts
    configure_logging(log_style.value, names={"platform": platform.platform.name})
    node = Node(config, platform)
    server = platform.server
    assert server is not None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with serve_platform_metrics(metrics, platform) if metrics else nullcontext():
            node.run(
                lambda: typer.echo(f"{platform.platform.name}: connecting to {server.address}")
            )
    except KeyboardInterrupt:
        typer.echo("Stopped. Nothing is lost; start it again with the same command.", err=True)


@app.command(name="status")
def platform_status(config: Config = _DEFAULT) -> None:
    """Show what the platform answered lately, what it spent, and which model it serves.

    Example:
        crossrec client status platform.toml
    """
    from client.config import PlatformConfig
    from client.status import describe
    from common.config import load_config

    for line in describe(load_config(config, PlatformConfig)):
        typer.echo(line)


@app.command()
def grant(
    by: Annotated[str, typer.Option(help="Who decided it; written into the ledger.")],
    config: Config = _DEFAULT,
) -> None:
    """Grant the budget that platform.toml states: the only way to more than was granted before.

    Within a running period this changes the limit and forgets nothing. After its end it begins a
    new period, in which users are charged anew.

    Example:
        crossrec client grant platform.toml --by "data protection officer"
    """
    from contextlib import closing

    from rich.console import Console

    from client.config import PlatformConfig
    from client.state import PlatformState
    from common.config import load_config
    from common.errors import ConfigError

    if not by.strip():
        msg = "--by: say who decided it; the ledger keeps the name."
        raise ConfigError(msg)
    platform = load_config(config, PlatformConfig)
    budget = platform.privacy.budget()
    with closing(PlatformState(platform.state.folder, platform.state.keep_releases)) as state:
        before = state.ledger.account()
        state.ledger.grant(budget, by)
        after, path = state.ledger.account(), state.ledger.path
    was = "" if before.grant is None else f" (was {before.grant.epsilon:g})"
    spent = after.epsilon(budget.delta)
    Console().print(
        f"{platform.platform.name}: granted epsilon {budget.epsilon:g}{was} at delta "
        f"{budget.delta:g} for a {budget.unit}, in the period that began on {after.period_start}. "
        f"Spent in it: {spent:.4f}, left: {max(0.0, budget.epsilon - spent):.4f}. Ledger: {path}",
        soft_wrap=True,
        markup=False,
    )


@ledger_app.callback()
def ledger() -> None:
    """Read the platform's privacy ledger. None of these commands changes it.

    PLACE is the platform's platform.toml (the default: the one in this folder), or a ledger.sqlite.

    Example:
        crossrec client ledger verify platform.toml
    """


@ledger_app.command()
def status(place: Place = _DEFAULT) -> None:
    """Show what is granted, spent and left, and how many rounds that is.

    Example:
        crossrec client ledger status platform.toml
    """
    from contextlib import closing

    from rich.console import Console
    from rich.table import Table

    from client.ledger_view import sparkline, status_of
    from client.state import STOPPED_FILE
    from common.privacy.ledger import utc_now

    opened, budget = _open(place)
    with closing(opened) as found:
        now, path = status_of(found.account(), budget), found.path
    limit = min(now.granted, budget.epsilon) if budget else now.granted
    table = Table(show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("privacy unit", f"{now.unit}: neighbours {now.neighbouring}")
    table.add_row("granted", f"epsilon {now.granted:g} at delta {now.delta:g}")
    if limit < now.granted:
        table.add_row("platform.toml", f"epsilon {limit:g}: lower than granted, so it binds")
    elif budget and (budget.delta, budget.period_days) != (now.delta, now.period_days):
        table.add_row(
            "platform.toml",
            f"delta {budget.delta:g}, period_days {budget.period_days}: not what was granted "
            f"({now.delta:g}, {now.period_days}), so rounds are refused; put it back",
        )
    elif budget and budget.epsilon > now.granted:
        table.add_row("platform.toml", f"epsilon {budget.epsilon:g}: not granted yet")
    end = now.period_end or "the end of the federation"
    if now.period_end and now.period_end <= utc_now():
        end += " (over: crossrec client grant begins a new one)"
    table.add_row("period", f"{now.period_start} to {end}")
    table.add_row(
        "spent", f"epsilon {now.spent:.4f} (by RDP, which does not bind: {now.spent_rdp:.4f})"
    )
    if now.spent_if_broken > now.spent:
        table.add_row("if aggregation broke", f"epsilon {now.spent_if_broken:.4f}")
    table.add_row("left", f"epsilon {max(0.0, limit - now.spent):.4f}")
    if now.spent_for_life > now.spent:
        table.add_row("over all periods", f"epsilon {now.spent_for_life:.4f}")
    without = now.num_reserved - now.num_released
    lost = f"; {without} without (a crash, or in progress), charged all the same" if without else ""
    table.add_row("releases", f"{now.num_released}{lost}")
    table.add_row("declined", f"{now.num_declined} requests")
    stopped = path.parent / STOPPED_FILE
    if stopped.exists():
        table.add_row("stopped", f"{stopped.read_text().strip()} (delete {stopped} to go on)")
    if now.rounds_left is not None:
        table.add_row("rounds left", f"{now.rounds_left} like the last one")
    if now.curve:
        table.add_row("epsilon so far", f"{sparkline(now.curve, limit)}| {limit:g}")
    Console().print(table)


@ledger_app.command()
def history(
    place: Place = _DEFAULT,
    last: Annotated[int, typer.Option(min=1, help="How many entries, from the end.")] = 20,
) -> None:
    """List the latest entries: grants, reservations, releases, declined requests, notes.

    Example:
        crossrec client ledger history platform.toml --last 50
    """
    from contextlib import closing

    from rich.console import Console
    from rich.table import Table

    opened, _ = _open(place)
    with closing(opened) as found:
        entries = found.entries()
    table = Table()
    for name in ("", "time", "entry", "request", "what"):
        table.add_column(name)
    for entry in entries[-last:]:
        table.add_row(
            str(entry.sequence), entry.time, entry.kind, entry.request_id, _in_words(entry.body)
        )
    Console().print(table)


@ledger_app.command()
def export(
    place: Place = _DEFAULT,
    form: Annotated[Format, typer.Option("--format", help="File format.")] = Format.csv,
    out: Annotated[
        Path | None, typer.Option(help="Write to this file, else to the screen.")
    ] = None,
) -> None:
    """Write every entry, for a spreadsheet or another program.

    Example:
        crossrec client ledger export platform.toml --format json --out ledger.json
    """
    from contextlib import closing

    from client.ledger_view import export_csv, export_json
    from common.errors import ConfigError
    from common.storage import write_durably

    opened, _ = _open(place)
    with closing(opened) as found:
        entries = found.entries()
    text = export_csv(entries) if form is Format.csv else export_json(entries)
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists():
        msg = f"{out}: is there already, and is not overwritten. Choose another name."
        raise ConfigError(msg)
    write_durably(out, text.encode())
    typer.echo(f"{out}: {len(entries)} entries.")


@ledger_app.command()
def verify(place: Place = _DEFAULT) -> None:
    """Check the whole ledger: its chain, its epsilons, and the releases that are still kept.

    Leaves with exit code 0 if everything holds, 1 with the reasons if not.

    Example:
        crossrec client ledger verify platform.toml
    """
    from contextlib import closing

    from rich.console import Console

    from client.ledger_view import MOST_RECOMPUTED, check_ledger

    console = Console()
    opened, _ = _open(place)
    with closing(opened) as found:
        entries, file = found.entries(), found.path
    findings = check_ledger(entries, file.parent / "releases")
    rounds = sum(entry.kind == "reserve" for entry in entries)
    kept = len(list((file.parent / "releases").glob("*.safetensors")))
    for finding in findings:
        console.print(f"wrong: {finding}", style="red", markup=False)
    if findings:
        raise typer.Exit(1)
    console.print(
        f"{file}: {len(entries)} entries, an unbroken chain up to its head; the epsilons of "
        f"{min(rounds, MOST_RECOMPUTED)} of {rounds} reservations were recomputed and lie within "
        f"their grants; {kept} kept releases are as recorded.",
        markup=False,
    )


def _open(place: Path) -> tuple[Ledger, Budget | None]:
    from client.config import PlatformConfig
    from common.config import load_config
    from common.errors import StateError
    from common.privacy.ledger import LEDGER_FILE, Ledger

    if place.suffix != ".toml":
        path, budget = place, None
    else:
        platform = load_config(place, PlatformConfig)
        path, budget = platform.state.folder / LEDGER_FILE, platform.privacy.budget()
    if not path.is_file():
        head = path.with_name(f"{path.name}.head")
        msg = (
            f"{path}: is missing, and {head.name} shows that it was there; restore it."
            if head.exists()
            else f"{path}: there is no ledger. The first round makes one, or crossrec client grant."
        )
        raise StateError(msg)
    return Ledger(path, read_only=True), budget


def _in_words(body: str) -> str:
    import json

    found = json.loads(body)
    if "epsilon_after" in found:
        before, after = (
            "inf" if found[name] is None else f"{found[name]:.4f}"
            for name in ("epsilon_before", "epsilon_after")
        )
        return f"{found['description']}: epsilon {before} to {after} ({found['accountant']})"
    if "sha256" in found:
        return f"release {found['sha256'][:12]}..."
    return ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)
