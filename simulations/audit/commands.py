"""The ``crossrec audit`` commands: what was spent, whether the records hold, what attackers get."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from simulations.command_line import (
    PRIVACY,
    ClippingNormOption,
    DataOption,
    DeltaOption,
    LocalStepsOption,
    Plan,
    PlanOption,
    RoundsOption,
    SamplingRateOption,
    Trust,
    given_options,
    trust_mode,
)

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
                msg = f"--since: not a {VERIFY_FILE} of this version: {error}"
                raise ConfigError(msg) from error
        evidence = gather(ledger or [], runs or [])
        found = verify_all(
            evidence, earlier, progress=lambda what: status.update(f"Checking {what}...")
        )
    if out is not None:
        write_document(out / VERIFY_FILE, found)
    console = Console()
    console.print(findings_table(found.findings))
    if found.prices:
        console.print()
        console.print(prices_table(found))
    if len(found.compositions) > 1:
        console.print()
        console.print(compositions_table(found))
    console.print()
    console.print(summary(found), highlight=False)
    if out is not None:
        console.print(f"Verification: {out / VERIFY_FILE}", soft_wrap=True, highlight=False)
    else:
        console.print(
            f"Keep the result for the next audit: --out FOLDER, then --since FOLDER/{VERIFY_FILE}",
            soft_wrap=True,
            highlight=False,
        )
    for one in found.failed:
        line = f"failed: {one.check} ({one.subject}): {one.detail}"
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    if found.failed:
        raise typer.Exit(1)


@app.command()
def attack(
    *,
    context: typer.Context,
    runs: Annotated[
        Path | None,
        typer.Option(help="Attack what this simulated run did; else what the options below say."),
    ] = None,
    thorough: Annotated[
        bool,
        typer.Option(
            "--thorough/--quick",
            help="More canaries and runs, and what another platform recommends: ten minutes or "
            "more.",
        ),
    ] = False,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Of each lower bound.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Of canaries, coins and noise.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for attack.json.")] = Path("audit"),
    data: DataOption = None,
    epsilon: Annotated[
        float, typer.Option(help="Budget of a user for the whole run.", rich_help_panel=PRIVACY)
    ] = 8.0,
    delta: DeltaOption = 1e-5,
    trust: Annotated[
        Trust, typer.Option(help="As of crossrec simulate.", rich_help_panel=PRIVACY)
    ] = Trust.local,
    clipping_norm: ClippingNormOption = 0.25,
    sampling_rate: SamplingRateOption = 1.0,
    plan: PlanOption = Plan.pairs,
    rounds: RoundsOption = 30,
    local_steps: LocalStepsOption = 1,
) -> None:
    """Attack a simulation of the real pipeline, and bound epsilon from below.

    Canaries are put into the data, each in or out by a coin, and an attacker guesses which are in,
    from every release, from what the run makes, or from recommendations. How often it is right
    proves how large epsilon is at least. Exit code 1: a bound exceeds what is accounted, so the
    guarantee is broken.

    Examples:
        crossrec audit attack --runs runs/demo --out audit
        crossrec audit attack --epsilon 2 --trust secagg
    """
    import tempfile

    from rich.console import Console
    from rich.progress import Progress

    from common.errors import ConfigError
    from simulations.attacks.membership.effort import (
        QUICK,
        THOROUGH,
        attack_command,
        attacked_marketplace,
    )
    from simulations.attacks.membership.result import ATTACK_FILE
    from simulations.attacks.membership.study import Study
    from simulations.attacks.membership.verdict import proofs, sentences, table_of
    from simulations.documents import write_document
    from simulations.options import SimulationOptions
    from simulations.simulate import OPTIONS_FILE, SimulationRun

    if runs is not None:
        others = given_options(context) - {"runs", "thorough", "confidence", "seed", "out"}
        if others:
            msg = f"--runs keeps the run's own options; leave out {', '.join(sorted(others))}."
            raise ConfigError(msg)
        if not (runs / OPTIONS_FILE).exists():
            msg = f"{runs} is no simulated run: expected the --out of a crossrec simulate."
            raise ConfigError(msg)
        options = SimulationRun.reopen(runs).options
    else:
        options = SimulationOptions(
            data=None if data is None else data.absolute(),
            epsilon=epsilon,
            delta=delta,
            trust=trust_mode(trust),
            clipping_norm=clipping_norm,
            sampling_rate=sampling_rate,
            plan=plan.value,
            rounds=rounds,
            local_steps=local_steps,
        )
    console, effort = Console(), THOROUGH if thorough else QUICK
    with (
        tempfile.TemporaryDirectory(prefix="crossrec-attack-") as folder,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("reading the data", total=None)
        study = Study(
            attacked_marketplace(options),
            options,
            Path(folder),
            effort=effort,
            seed=seed,
            confidence=confidence,
            step=lambda what: progress.update(task, advance=1, description=what),
        )
        progress.update(task, total=study.num_steps + 1)
        command = attack_command(options, effort, runs=runs, seed=seed, confidence=confidence)
        result = study.result(command)
    write_document(out / ATTACK_FILE, result)
    console.print(table_of(result))
    for sentence in sentences(result):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print(f"Result: {out / ATTACK_FILE}", soft_wrap=True)
    if proofs(result):
        raise typer.Exit(1)


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

    from simulations.audit.report.making import make_report
    from simulations.audit.report.rendering import HTML_FILE

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
