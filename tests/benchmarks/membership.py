"""How near the white-box attack comes to what is accounted, and how often it goes beyond.

    python -m tests.benchmarks.membership DATA [--seeds 20] [--canaries 2000] [--plot FILE.png]

DATA is a folder as of ``crossrec simulate --data``. Prints the tables of membership.md; the plot is
of the first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from simulations.attacks.membership.audits import audit_users
from simulations.drawing import INK, LINE_COLOURS, MARKERS, style_axes
from simulations.options import SimulationOptions
from simulations.simulate import load_marketplace

EPSILONS = (1.0, 2.0, 4.0, 8.0, 16.0)
SWEEP_SEEDS = 3


def save_plot(swept: np.ndarray, path: Path) -> None:
    """Bounds and estimate over the accounted epsilon; columns as ``attack`` returns them."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    accounted = swept[:, 3]
    axes.plot(accounted, accounted, color=INK, label="accounted")
    lines = ("bound, any mechanism", "bound, Gaussian noise", "estimate")
    for name, values, colour, marker in zip(lines, swept.T, LINE_COLOURS, MARKERS, strict=False):
        style = "none" if name == "estimate" else "-"
        axes.plot(accounted, values, color=colour, marker=marker, linestyle=style, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("epsilon that the accountant states")
    axes.set_ylabel("epsilon that the attack finds")
    axes.legend(frameon=False)
    style_axes(axes, "both")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--canaries", type=int, default=2000)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    marketplace = load_marketplace(SimulationOptions(data=asked.data))

    def attack(epsilon: float, seed: int, canaries: int) -> tuple[float, ...]:
        options = SimulationOptions(data=asked.data, epsilon=epsilon)
        with tempfile.TemporaryDirectory() as folder:
            found = audit_users(
                marketplace, options, Path(folder), seed=seed, num_canaries=canaries
            )
        assert found.epsilon_lower_gaussian is not None
        assert found.epsilon_estimate is not None
        assert found.epsilon_accounted is not None
        return (
            found.epsilon_lower,
            found.epsilon_lower_gaussian,
            found.epsilon_estimate,
            found.epsilon_accounted,
            found.roc.auc,
            found.num_correct / found.num_guesses,
            found.num_guesses,
        )

    for canaries in (asked.canaries, 10 * asked.canaries):
        print(f"\n{canaries:,} canary users, mean of {SWEEP_SEEDS} seeds\n")
        print("| accounted | guesses | right | lower bound | if Gaussian | estimate | AUC |")
        print("|---|---|---|---|---|---|---|")
        swept = []
        for epsilon in EPSILONS:
            mean = np.mean([attack(epsilon, s, canaries) for s in range(SWEEP_SEEDS)], axis=0)
            swept.append(mean)
            lower, gaussian, estimate, accounted, auc, right, guesses = mean
            print(
                f"| {accounted:.2f} | {guesses:.0f} | {right:.1%} "
                f"| {lower:.2f} ({lower / accounted:.0%}) "
                f"| {gaussian:.2f} ({gaussian / accounted:.0%}) | {estimate:.2f} | {auc:.3f} |",
                flush=True,
            )
        if asked.plot and canaries == asked.canaries:
            save_plot(np.array(swept), asked.plot)
    began = time.monotonic()
    found = np.array([attack(8.0, seed, asked.canaries) for seed in range(asked.seeds)])
    seconds = (time.monotonic() - began) / asked.seeds
    print(f"\nepsilon 8, {asked.canaries:,} canaries, {asked.seeds} seeds, {seconds:.1f} s each\n")
    print("| bound | mean | least | largest | beyond what is accounted |")
    print("|---|---|---|---|---|")
    for name, values in zip(("any mechanism", "Gaussian", "estimate"), found.T, strict=False):
        beyond = int((values > found[:, 3]).sum())
        print(
            f"| {name} | {values.mean():.2f} | {values.min():.2f} | {values.max():.2f} "
            f"| {beyond} of {asked.seeds} |"
        )


if __name__ == "__main__":
    main()
