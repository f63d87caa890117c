"""The ``crossrec attack`` commands: what one hostile platform gets done, measured."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from simulations.attacks.promotion.study import Outcome

app = typer.Typer(no_args_is_help=True)


class Plan(StrEnum):
    """Choices of ``--plan``."""

    pairs = "pairs"
    ncf = "ncf"


@app.callback()
def attack() -> None:
    """Attack a simulated federation from within, and measure what defends it.

    Example:
        crossrec attack promotion
    """


@app.command()
def promotion(
    plan: Annotated[Plan, typer.Option(help="pairs: false pair counts; ncf: false updates.")] = (
        Plan.pairs
    ),
    data: Annotated[
        Path | None, typer.Option(help="As of simulate; left out: the built-in marketplace.")
    ] = None,
    attacker: Annotated[
        str | None, typer.Option(help="The hostile platform; left out: the one of middle size.")
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(min=0, help="In units of what its users could say; repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of plan ncf.")] = 30,
    epsilon: Annotated[float, typer.Option(help="Budget of a user; delta is 1e-5.")] = 8.0,
    epochs: Annotated[int, typer.Option(min=1, help="Of each platform's own fitting.")] = 40,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    out: Annotated[Path, typer.Option(help="A new folder: promotion.json, promotion.png.")] = Path(
        "runs/promotion"
    ),
) -> None:
    """One platform of several pushes an item that hardly anybody buys.

    Runs the deployed server and client apps once for each strength and defence, and shows how many
    users of the other platforms then find the item among their first ten, and what became of
    NDCG@10: `alone`; `ungated`, which believes the federation as much as the platform's own models;
    `served`, which is what the platform's own gate chose; with ncf `shared`, the federation's model
    itself.

    Examples:
        crossrec attack promotion
        crossrec attack promotion --plan ncf --strength 0 --strength 1 --strength 10
    """
    import json
    import shutil

    from rich.console import Console
    from rich.progress import track

    from common.errors import ConfigError
    from common.storage import FOR_ALL, write_durably
    from simulations.attacks.promotion.plot import save_plot
    from simulations.attacks.promotion.study import Case, choose_attacker, defences_of, run_case
    from simulations.options import SimulationOptions
    from simulations.simulate import load_marketplace

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another --out.")
    options = SimulationOptions(
        data=data, plan=plan.value, rounds=rounds, epsilon=epsilon, epochs=epochs, seed=seed
    )
    marketplace = load_marketplace(options)
    hostile = attacker or choose_attacker(marketplace)
    others = tuple(p.name for p in marketplace.platforms if p.name != hostile)
    options = SimulationOptions(
        data=data,
        plan=plan.value,
        rounds=rounds,
        epsilon=epsilon,
        epochs=epochs,
        seed=seed,
        adapting=others,
    )
    cases = [
        Case(strength=one, defence=defence)
        for one in strength or (0.0, 1.0, 10.0)
        for defence in defences_of(plan.value)
    ]
    outcomes: list[Outcome] = []
    warm: Path | None = None
    for number, case in enumerate(
        track(cases, "Attacking", console=Console(stderr=True), transient=True)
    ):
        home = out / f"case-{number}"
        outcomes.append(
            run_case(marketplace, options, home, case, attacker=hostile, warm_from=warm)
        )
        if warm is None:
            warm = home
        else:
            shutil.rmtree(home)
        content = {
            "attacker": hostile,
            "plan": plan.value,
            "epsilon": epsilon,
            "seed": seed,
            "cases": [outcome.to_dict() for outcome in outcomes],
        }
        write_durably(
            out / "promotion.json", (json.dumps(content, indent=1) + "\n").encode(), mode=FOR_ALL
        )
    if warm is not None:
        shutil.rmtree(warm)
    save_plot(outcomes, out)
    Console().print(_table(outcomes, f"{hostile} against {', '.join(others)}, plan {plan.value}"))


def _table(outcomes: list[Outcome], title: str) -> Table:
    from rich.table import Table

    models = list(outcomes[0].exposure)
    table = Table(title=title, title_justify="left")
    for column in ("strength", "defence", "left out", "gates open"):
        table.add_column(column, justify="left" if column == "defence" else "right")
    for what in ("exposure", "NDCG@10"):
        for name in models:
            table.add_column(f"{what} {name}", justify="right")
    for outcome in outcomes:
        table.add_row(
            f"{outcome.case.strength:g}",
            outcome.case.defence,
            str(outcome.left_out),
            str(outcome.gates_open),
            *(f"{outcome.exposure[name]:.1%}" for name in models),
            *(f"{outcome.ndcg[name]:.4f}" for name in models),
        )
    return table
