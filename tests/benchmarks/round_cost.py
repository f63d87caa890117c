"""What a round costs over real processes: ``crossrec client run`` beside Flower's own SuperNode.

The same federation of two platforms twice, on loopback with TLS; the work of a round is a fraction
of a second. Prints the seconds from the request to the end of each round:

    python -m tests.benchmarks.round_cost --data markets/ --rounds 6
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from common.processes import free_port, script
from tests.e2e.deployed import Deployment, Program, change

USERS = {"t1": 300, "s3": 300}


def start_stock(deployment: Deployment, name: str) -> None:
    """Flower's SuperNode as it is: a new process for each message, waits of three seconds."""
    home = deployment.home(name)
    command = [
        script("flower-supernode"),
        *("--superlink", f"127.0.0.1:{deployment.port}"),
        *("--root-certificates", str(home / "ca.crt")),
        *("--auth-supernode-private-key", str(home / "node.key")),
        *("--host", "127.0.0.1", "--port", str(free_port())),
        *("--node-config", f"platform-config={json.dumps(str(deployment.toml(name)))}"),
    ]
    log = deployment.folder / f"{name}.log"
    environment = {
        "FLWR_HOME": str(home / "flower"),
        "PATH": f"{Path(script('x')).parent}:/usr/bin:/bin",
    }
    deployment.programs[name] = Program(log, command, **environment)


def seconds_of_rounds(folder: Path, data: Path, rounds: int, *, is_stock: bool) -> list[float]:
    """One federation from nothing; the duration of each of its rounds."""
    folder.mkdir()
    with Deployment(folder, data, USERS, plan="ncf", rounds=rounds, epsilon=30) as deployment:
        change(deployment.config_file, run_id="stock" if is_stock else "ours")
        deployment.start_server()
        for name in USERS:
            if is_stock:
                start_stock(deployment, name)
            else:
                deployment.start_platform(name)
        deployment.wait_for_event("round-closed", round=rounds)
        begun = {e["round"]: e["time"] for e in deployment.events("round-started")}
        closed = {e["round"]: e["time"] for e in deployment.events("round-closed")}
    return [closed[number] - begun[number] for number in sorted(closed)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    medians = {}
    for name in ("ours", "stock"):
        with tempfile.TemporaryDirectory() as folder:
            seconds = seconds_of_rounds(
                Path(folder) / "federation",
                arguments.data,
                arguments.rounds,
                is_stock=name == "stock",
            )
        medians[name] = float(np.median(seconds))
        print(f"{name}: {' '.join(f'{s:.2f}' for s in seconds)}; median {medians[name]:.2f} s")
    print(f"stock / ours: {medians['stock'] / medians['ours']:.1f}")


if __name__ == "__main__":
    main()
