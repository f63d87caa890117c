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
    """Recompute everything by other code, and hold all records against each other.

    Hash chains, noise, epsilon by three other accountants, budgets, releases on disk, and what
    ledgers, the coordinator's journal and result.json say of one another. Read-only.

    Leaves with exit code 0 if nothing failed, 1 if something did (a line for each on standard
    output), 2 if it was asked for in a wrong way. What cannot be told is listed, and is no failure.

    Examples:
        crossrec audit verify --runs runs/demo
        crossrec audit verify --ledger platform.toml
        crossrec audit verify --ledger a/platform.toml --ledger b/state --runs federation.toml
        crossrec audit verify --ledger platform.toml --since audit/verify.json --out audit
    """
    from rich.console import Console

    with Console(stderr=True).status("Reading...") as status:  # accountants take long to load
        from common.errors import ConfigError, StateError
        from simulations.audit.evidence import gather
        from simulations.audit.findings import SCHEMA_VERSION, VERIFY_FILE, Verification
        from simulations.audit.tables import (
            compositions_table,
            findings_table,
            prices_table,
            summary,
        )
        from simulations.audit.verify import verify as verify_all
        from simulations.documents import read_document, write_document

        earlier = None
        if since is not None:
            try:
                earlier = read_document(since, Verification, SCHEMA_VERSION)
            except StateError as error:
                raise ConfigError(f"--since: {error}") from error
        evidence = gather(ledger or [], runs or [])
        found = verify_all(
            evidence, earlier, progress=lambda what: status.update(f"Checking {what}...")
        )
    if out is not None:
        write_document(out / VERIFY_FILE, found)
    console = Console()
    console.print(findings_table(found.findings))
    for table in (prices_table(found), compositions_table(found)):
        if table.row_count:
            console.print()
            console.print(table)
    console.print()
    console.print(summary(found), highlight=False)
    if out is not None:
        console.print(f"Verification: {out / VERIFY_FILE}", soft_wrap=True, highlight=False)
    for one in found.failed:
        line = f"failed: {one.check} ({one.subject}): {one.detail}"
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    if found.failed:
        raise typer.Exit(1)


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
