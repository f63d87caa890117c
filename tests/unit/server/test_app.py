from __future__ import annotations

import pytest
from flwr.app import Context, RecordDict

import server.app
from common.errors import ConfigError
from simulations.engines.in_process import InProcessGrid


def test_a_run_that_names_no_configuration_is_told_how_to() -> None:
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(ConfigError, match="federation-config"):
        server.app.app(InProcessGrid([]), context)
