"""From which population does joining pay a newcomer? Population against gain, for both plans.

A shop with 300 users joins five others of the synthetic marketplace. What it gains in NDCG@10 over
the best it can do alone is measured with ``crossrec simulate``'s own code, as a function of all
users together. Takes from minutes to hours:

    python -m tests.benchmarks.scaling --populations 1000,10000,100000 --seeds 3 --out scaling.jsonl
    python -m tests.benchmarks.scaling --draw scaling.jsonl    # scaling.png

Points are appended to the file, so that several calls make one figure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import matplotlib.pyplot as plt
import numpy as np

from common.data.catalogue import write_catalogue
from common.data.synthetic import MarketplaceConfig, generate_marketplace
from simulations.options import SimulationOptions
from simulations.simulate import SimulationRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.privacy.mechanisms import TrustMode
    from common.privacy.plan import PlanName

NEWCOMER_USERS, NUM_OTHERS, NUM_ITEMS = 300, 5, 2000
NEWCOMER = f"shop-{NUM_OTHERS + 1}"
SETTINGS: tuple[tuple[TrustMode, float], ...] = (
    ("none", 8.0),
    ("secagg-simulated", 8.0),
    ("secagg-simulated", 2.0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One run."""

    population: int
    plan: PlanName
    setting: str
    seed: int
    local: float
    gain: float
    seconds: float


def write_data(folder: Path, population: int, seed: int) -> None:
    """One Parquet file per shop, and the public catalogue."""
    others = max(20, (population - NEWCOMER_USERS) // NUM_OTHERS)
    config = MarketplaceConfig(
        num_users=(*[others] * NUM_OTHERS, NEWCOMER_USERS), num_items=NUM_ITEMS
    )
    marketplace = generate_marketplace(config, seed).marketplace
    folder.mkdir(parents=True)
    for platform in marketplace.platforms:
        platform.interactions.to_parquet(folder / f"{platform.name}.parquet", index=False)
    write_catalogue(marketplace.catalogue, folder / "catalogue.csv")


def measure(
    population: int,
    seed: int,
    plans: Sequence[PlanName],
    scratch: Path,
    *,
    rounds: int,
    sampling_rate: float,
) -> list[Point]:
    """All runs on one marketplace; models that the newcomer fits alone are fitted once."""
    shutil.rmtree(scratch, ignore_errors=True)
    write_data(scratch / "data", population, seed)
    points, first = [], None
    for plan in plans:
        for trust, epsilon in SETTINGS:
            began = time.monotonic()
            options = SimulationOptions(
                data=scratch / "data",
                adapting=(NEWCOMER,),
                plan=plan,
                trust=trust,
                epsilon=epsilon,
                seed=seed,
                rounds=rounds,
                sampling_rate=sampling_rate if plan == "ncf" else 1.0,
            )
            setting = "no noise" if trust == "none" else f"epsilon {epsilon:g}"
            folder = scratch / f"{plan}-{setting}".replace(" ", "-")
            result = SimulationRun.open(options, folder).execute(
                warm_from=first, in_comparison=True
            )
            first = first or folder
            newcomer = result.platforms[NEWCOMER]
            points.append(
                Point(
                    population=population,
                    plan=plan,
                    setting=setting,
                    seed=seed,
                    local=float(newcomer.models["local"].metrics["ndcg@10"] or 0.0),
                    gain=float(newcomer.gain["ndcg@10"].mean or 0.0),
                    seconds=time.monotonic() - began,
                )
            )
            print(points[-1], flush=True)
    shutil.rmtree(scratch, ignore_errors=True)
    return points


def table(points: Sequence[Point]) -> str:
    """Means over seeds, as Markdown."""
    populations = sorted({point.population for point in points})
    lines = [
        "| plan | noise | " + " | ".join(f"{size:,}" for size in populations) + " |",
        "|---|---|" + "---|" * len(populations),
    ]
    for plan, setting in dict.fromkeys((point.plan, point.setting) for point in points):
        cells = []
        for size in populations:
            gains = [
                point.gain
                for point in points
                if (point.plan, point.setting, point.population) == (plan, setting, size)
            ]
            cells.append(f"{np.mean(gains):+.4f} ({len(gains)})" if gains else "-")
        lines.append(f"| {plan} | {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(points: Sequence[Point], path: Path) -> None:
    """Population against gain, a line for each plan and noise, with the standard error of seeds."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for plan, setting in dict.fromkeys((point.plan, point.setting) for point in points):
        gains: dict[int, list[float]] = {}
        for point in points:
            if (point.plan, point.setting) == (plan, setting):
                gains.setdefault(point.population, []).append(point.gain)
        sizes = sorted(gains)
        axes.errorbar(
            sizes,
            [np.mean(gains[size]) for size in sizes],
            [np.std(gains[size]) / np.sqrt(len(gains[size])) for size in sizes],
            label=f"{plan}, {setting}",
            linestyle={"pairs": "-", "ncf": "--"}.get(plan, ":"),
            marker="o",
            capsize=3,
        )
    axes.axhline(0, color="0.7", linewidth=1)
    axes.set(
        xscale="log", xlabel="users of all shops together", ylabel="gain in NDCG@10 over alone"
    )
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--populations", default="1000,10000,100000")
    parser.add_argument("--plans", default="pairs,ncf")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sampling-rate", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draw", type=Path)
    arguments = parser.parse_args()
    if arguments.draw:
        lines = arguments.draw.read_text(encoding="utf-8").splitlines()
        points = [Point(**json.loads(line)) for line in lines]
        draw(points, arguments.draw.with_suffix(".png"))
        print(table(points))
        return
    points = []
    plans = cast("list[PlanName]", arguments.plans.split(","))
    with tempfile.TemporaryDirectory() as scratch:
        for population in map(int, arguments.populations.split(",")):
            for seed in range(arguments.seeds):
                found = measure(
                    population,
                    seed,
                    plans,
                    Path(scratch) / "run",
                    rounds=arguments.rounds,
                    sampling_rate=arguments.sampling_rate,
                )
                points += found
                if arguments.out:
                    with arguments.out.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(asdict(point)) + "\n" for point in found)
                print(table(points), flush=True)


if __name__ == "__main__":
    main()
