"""The ServerApp that runs at the coordinator: read ``federation.toml``, run the rounds.

The run names the file: ``flwr run . --run-config 'federation-config="/etc/.../federation.toml"'``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flwr.serverapp import Grid, ServerApp

from common.config import load_config
from common.errors import ConfigError
from server.config import FederationConfig
from server.run import FederationRun

if TYPE_CHECKING:
    from flwr.app import Context

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation to its end, resuming it where its checkpoint stands."""
    path = context.run_config.get("federation-config")
    if not isinstance(path, str):
        msg = (
            "run-config: 'federation-config' is missing. Start the run with "
            "--run-config 'federation-config=\"/path/to/federation.toml\"'."
        )
        raise ConfigError(msg)
    config = load_config(Path(path), FederationConfig)
    wanted = context.run_config.get("run-id") or config.federation.run_id
    if wanted != config.federation.run_id:
        msg = (
            f"{path}: run_id was changed to {config.federation.run_id!r} while run {wanted!r} was "
            "started. Put it back, or stop `crossrec server run` and start it again."
        )
        raise ConfigError(msg)
    FederationRun(config, grid).run()
