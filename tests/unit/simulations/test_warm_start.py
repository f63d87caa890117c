from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from client.state import PlatformState
from simulations.simulate import SimulationRun
from simulations.warm_start import copy_local_models
from tests.shops import options, write_shops

if TYPE_CHECKING:
    from pathlib import Path

FILE = "model/local.safetensors"
OTHERS = (
    *("model/federated.safetensors", "model/served.txt", "model/local/als.safetensors"),
    *("releases/r.safetensors", "private/p"),
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in (FILE, *OTHERS):
        path = tmp_path / "source/state" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "source"


def test_local_models_are_copied_and_nothing_else(source: Path, tmp_path: Path) -> None:
    copy_local_models(source, tmp_path / "target")
    state = tmp_path / "target/state"
    assert (state / FILE).read_text() == FILE
    assert not any((state / name).exists() for name in OTHERS)


def test_the_target_works_on_as_a_platform_that_has_spent_nothing(
    source: Path, tmp_path: Path
) -> None:
    copy_local_models(source, tmp_path / "target")
    state = PlatformState(tmp_path / "target/state", keep_releases=1)
    assert state.ledger.account().spends == ()
    state.close()


def test_what_the_target_has_stays(source: Path, tmp_path: Path) -> None:
    copy_local_models(source, tmp_path / "target")
    kept = tmp_path / "target/state" / FILE
    kept.write_text("own")
    copy_local_models(source, tmp_path / "target")
    assert kept.read_text() == "own"


def test_without_local_models_nothing_is_made(tmp_path: Path) -> None:
    copy_local_models(tmp_path / "nowhere", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_run_starts_with_the_local_models_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_shops(tmp_path / "shops")
    first = SimulationRun.open(options(data, trust="none"), tmp_path / "first")
    cold = first.execute(in_comparison=True)

    def fit_again(*_: Any, **__: Any) -> Any:  # noqa: ANN401
        raise AssertionError("the local models are there")

    monkeypatch.setattr("client.platform.fit_alone", fit_again)
    second = SimulationRun.open(options(data), tmp_path / "second")
    warm = second.execute(warm_from=first.folder, in_comparison=True)
    for name, platform in warm.platforms.items():
        assert platform.models["local"] == cold.platforms[name].models["local"]
        assert "federated" in platform.models, "a failed hand-over would leave it out"
        assert platform.epsilon is not None
