"""The ``crossrec audit`` commands: what was spent, whether the records hold, what attackers get."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

app = typer.Typer(no_args_is_help=True)

LedgersOption: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        "--ledger", help="A platform.toml, a state folder or a ledger.sqlite; repeatable."
    ),
]
RunsOption: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        "--runs",
        help="A simulated run's folder (its platforms' ledgers are read as well), or the "
        "coordinator's federation.toml; repeatable.",
    ),
]


@app.callback()
def audit() -> None:
    """Audit the privacy budget: read-only, and with nothing but what platforms may show.

    Examples:
        crossrec audit verify --runs runs/demo
        crossrec audit attack --runs runs/demo --out audit
        crossrec audit report --runs runs/demo --out audit
    """


@app.command()
def verify(
    ledger: LedgersOption = None,
    runs: RunsOption = None,
    since: Annotated[
        Path | None, typer.Option(help="verify.json of an earlier audit: ledgers must go on there.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for verify.json.")] = None,
) -> None:
    """Recompute everything by other code, and hold all records against each other."""
    raise NotImplementedError


@app.command()
def attack(
    runs: Annotated[
        Path | None, typer.Option(help="Attack what this simulated run did; else the options.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for attack.json.")] = Path("audit"),
) -> None:
    """Attack a simulation of the real pipeline, and bound epsilon from below."""
    raise NotImplementedError


@app.command()
def report(
    ledger: LedgersOption = None,
    runs: RunsOption = None,
    out: Annotated[
        Path, typer.Option(help="Folder; verify.json and attack.json there are used.")
    ] = Path("audit"),
) -> None:
    """Write the audit report: report.html, report.json, report.md.

    Checks everything unless --out has findings on the same records (`verify`), and tells what an
    attacker got if --out has that (`attack`). The exit code is 0 whatever it finds, for the report
    says it; a pipeline asks `verify`.

    Examples:
        crossrec audit report --runs runs/demo --out audit
        crossrec audit report --ledger shop-1/platform.toml --ledger shop-2/platform.toml
    """
    from rich.console import Console

    from simulations.audit.making import make_report
    from simulations.audit.report import HTML_FILE

    console = Console()
    with console.status("reading") as status:
        statement = make_report(ledger or [], runs or [], out, progress=status.update)
    conclusion = statement.conclusion
    colour = {"green": "green", "amber": "yellow", "red": "red"}[conclusion.light]
    console.print(
        conclusion.line, style=f"bold {colour}", markup=False, highlight=False, soft_wrap=True
    )
    for reason in conclusion.reasons[1:]:
        console.print(f"  {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Report: {(out / HTML_FILE).absolute()}", soft_wrap=True, highlight=False)
