"""Engines by name; only those that need Opacus load it."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

from common.privacy.clipping import add_clipped_gradients_
from common.privacy.engines import clipping_engine
from tests.laws.training import ENGINES, MODELS, clipped_sum, norm, random_case

if TYPE_CHECKING:
    import pytest


def test_fast_is_the_engine_itself() -> None:
    engine = clipping_engine("fast")
    assert isinstance(engine, partial)
    assert engine.func is add_clipped_gradients_


def test_the_others_go_through_opacus_in_their_own_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    from common.privacy import opacus_clipping

    modes = []
    monkeypatch.setattr(
        opacus_clipping,
        "add_clipped_gradients_by_opacus_",
        lambda *_, mode: modes.append(mode),
    )
    case = random_case(MODELS[0], 3, 0)
    for engine in ENGINES:
        found = clipped_sum(case.model, case.user_vectors, case.batch, 1.0, engine)
        assert (norm(found) > 0) == (engine == "fast")
    assert modes == ["ghost", "hooks"]


def test_the_fast_engine_loads_no_opacus() -> None:
    code = "import sys, common.privacy.engines as e; e.clipping_engine('fast')"
    code += "; assert 'common.privacy.clipping' in sys.modules; assert 'opacus' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
