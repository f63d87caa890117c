"""A federation on disk that auditors look at: what is kept of it has to hold together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from client.config import PlatformConfig
from common.config import dump_config, load_config
from common.data.readers import read_marketplace
from common.errors import RunFailed
from common.storage import write_durably
from server.config import FederationConfig
from simulations.audit.evidence import gather
from simulations.audit.verify import verify
from simulations.engines.in_process import run_in_process
from simulations.federation import lay_out
from tests.shops import options, write_shops

if TYPE_CHECKING:
    from pathlib import Path

    from simulations.federation import SimulatedFederation


def three_runs(folder: Path) -> list[bool]:
    """One that spends the whole budget, the same resumed, and one that is too much.

    Platforms fit nothing: it takes most of the time and is no part of what is released.

    Returns:
        which of them went through; right platforms have nothing left for the last one.
    """
    asked = options(write_shops(folder / "data"))
    federation = lay_out(read_marketplace(folder / "data"), asked, folder / "run")
    for platform in federation.platforms:
        config = load_config(platform.config_file, PlatformConfig)
        config = replace(config, adaptation=replace(config.adaptation, enabled=False))
        write_durably(platform.config_file, dump_config(config).encode())
    went_through = [_run(federation)]
    # As after a crash before anything was closed: platforms are asked for all of it again.
    for file in federation.run_folder.glob("*.safetensors"):
        file.unlink()
    went_through.append(_run(federation))
    server = load_config(federation.config_file, FederationConfig)
    server = replace(server, federation=replace(server.federation, run_id="autumn"))
    write_durably(federation.config_file, dump_config(server).encode())
    return [*went_through, _run(federation)]


def _run(federation: SimulatedFederation) -> bool:
    try:
        run_in_process(federation.config_file, [p.config_file for p in federation.platforms])
    except RunFailed:  # platforms decline
        return False
    return True


def check_records_hold_together(folder: Path) -> None:
    """As `crossrec audit verify` says after these runs."""
    three_runs(folder)
    failed = verify(gather([], [folder / "run"])).failed
    assert not failed, "; ".join(f"{one.check} of {one.subject}: {one.detail}" for one in failed)
