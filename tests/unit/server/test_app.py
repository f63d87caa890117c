from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from flwr.app import Context, RecordDict

import server.app
from common.errors import ConfigError
from simulations.engines.in_process import InProcessGrid

if TYPE_CHECKING:
    from pathlib import Path


def test_a_run_that_names_no_configuration_is_told_how_to() -> None:
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(ConfigError, match="federation-config"):
        server.app.app(InProcessGrid([]), context)


def test_a_file_that_names_another_run_than_was_started_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(
        '[federation]\nrun_id = "two"\nrounds = 0\nplatforms = ["a", "b"]\n'
        "[catalogue]\nagree = true\n"
        "[sums]\ncounts_noise_multiplier = 1.0\npairs_noise_multiplier = 1.0\n"
    )
    settings: dict[str, bool | float | int | str] = {
        "federation-config": str(path),
        "run-id": "one",
    }
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings)
    with pytest.raises(ConfigError, match="run_id was changed to 'two' while run 'one'"):
        server.app.app(InProcessGrid([]), context)
    assert not (tmp_path / "federation-state").exists()
