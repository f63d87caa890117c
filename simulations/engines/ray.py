"""Flower's own simulation engine on Ray: many cores or a cluster, the same apps.

Ray schedules platforms in any order, so results agree with the in-process engine up to
floating-point rounding of the order of sums.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

import client.app
import server.app
from common.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from flwr.app import Context, Message


class _PlatformsByPartition(ClientApp):
    """The deployed ClientApp; Flower's partition number chooses the platform."""

    def __init__(self, platform_configs: Sequence[str]) -> None:
        super().__init__()
        self._platform_configs = list(platform_configs)

    def __call__(self, message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        context.node_config[client.app.SIMULATION_MARKER] = True
        context.node_config["platform-config"] = self._platform_configs[partition]
        return client.app.app(message, context)


def require_ray() -> None:
    """Check that Ray is installed.

    Raises:
        ConfigError: if it is not, with the command that installs it.
    """
    if importlib.util.find_spec("ray") is None:
        msg = "--engine ray needs Ray: pip install -c constraints.txt -e '.[ray]'."
        raise ConfigError(msg)


def run_on_ray(
    federation_config: Path, platform_configs: Sequence[Path], *, cpus_per_platform: int = 1
) -> None:
    """Run the deployed ServerApp and ClientApp on Flower's Ray engine.

    Raises:
        ConfigError: if Ray is not installed.
        RunFailed: if the run did not reach its end.
        KeyboardInterrupt: if it was interrupted; the server has then stopped too.
    """
    require_ray()
    from flwr.simulation import run_simulation  # noqa: PLC0415 - imports Ray

    server_app = ServerApp()
    failures: list[BaseException] = []
    interrupted, began, ended = (threading.Event() for _ in range(3))

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        began.set()
        context.run_config["federation-config"] = str(federation_config)
        _stop_when(interrupted, grid)
        try:
            server.app.app(grid, context)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            failures.append(error)
        finally:
            ended.set()

    try:
        with _quiet_flower():
            run_simulation(
                server_app=server_app,
                client_app=_PlatformsByPartition([str(path) for path in platform_configs]),
                num_supernodes=len(platform_configs),
                backend_config={
                    "client_resources": {"num_cpus": cpus_per_platform, "num_gpus": 0.0},
                    "init_args": {"logging_level": "ERROR", "log_to_driver": False},
                },
            )
    except KeyboardInterrupt:
        # Flower leaves its server thread behind, and Python would wait for it at exit.
        interrupted.set()
        if began.is_set():
            ended.wait()
        raise
    except Exception as error:
        if not failures:
            msg = f"Flower's Ray engine stopped: {error}"
            raise RunFailed(msg) from error
    if failures:
        raise failures[0]


def _stop_when(interrupted: threading.Event, grid: Grid) -> None:
    """Make the server's next wait for replies end once ``interrupted`` is set."""
    pull = grid.pull_messages

    def pull_or_stop(message_ids: Iterable[str]) -> Iterable[Message]:
        if interrupted.is_set():
            raise KeyboardInterrupt
        return pull(message_ids)

    grid.pull_messages = pull_or_stop  # type: ignore[method-assign]


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """Keep Flower's notes about its own workings off the screen; errors stay."""
    flower_log = logging.getLogger("flwr")
    level = flower_log.level
    flower_log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        flower_log.setLevel(level)
