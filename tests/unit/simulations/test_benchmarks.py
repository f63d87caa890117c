"""The benchmark measures what it says: real steps, every engine, plain as the measure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import pytest
import torch
from typer.testing import CliRunner

from common.errors import ConfigError
from common.models.ncf import initialise
from common.privacy.engines import ClippingEngine
from simulations.benchmarks import commands, engine
from simulations.benchmarks.engine import EngineCase, EngineTiming, Subject

if TYPE_CHECKING:
    from pathlib import Path

CASE = EngineCase(model="gmf", num_items=300, threads=1, num_users=6, interactions=10)
ENGINES: tuple[ClippingEngine, ...] = get_args(ClippingEngine)


@pytest.mark.parametrize("subject", ["plain", *ENGINES])
@pytest.mark.parametrize("model", ["gmf", "neumf"])
def test_a_step_changes_every_shared_parameter(
    model: str, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def remember(*arguments: object) -> torch.nn.Module:
        built.append(initialise(*arguments))  # type: ignore[arg-type]
        return built[-1]

    monkeypatch.setattr(engine, "initialise", remember)
    step = engine.build_step(replace(CASE, model=model), subject)  # type: ignore[arg-type]
    before = [p.detach().clone() for p in built[0].parameters()]
    step()
    after = list(built[0].parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_users_are_as_busy_as_the_table_says() -> None:
    neumf = replace(CASE, model="neumf", interactions=40).config()
    assert (neumf.num_negatives, neumf.loss) == (32, "bce")


def test_ratios_compare_with_plain_in_the_same_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"plain": iter([1.0, 10.0, 3.0]), "fast": iter([2.0, 20.0, 4.0])}
    mebibytes = {"plain": 100.0, "fast": 80.0}

    def measured(case: EngineCase, subject: Subject, _: float) -> EngineTiming:
        took = next(seconds[subject])
        return EngineTiming(
            case=case,
            subject=subject,
            step_seconds=took,
            interactions_per_second=60 / took,
            peak_mebibytes=mebibytes[subject],
        )

    monkeypatch.setattr(engine, "measure", measured)
    plain, fast = engine.compare(CASE, ["fast"], repeats=3, seconds=0.0)
    assert (plain.step_seconds, plain.ratio_to_plain, plain.memory_ratio_to_plain) == (
        3.0,
        1.0,
        1.0,
    )
    assert (fast.step_seconds, fast.ratio_to_plain) == (4.0, 0.5)
    assert fast.memory_ratio_to_plain == 0.8


def test_the_command_measures_each_engine_in_its_own_process(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    arguments = ["--model", "gmf", "--items", "300", "--threads", "1", "--repeats", "1"]
    arguments += ["--seconds", "0", "--engine", "fast", "--json", str(file)]
    done = CliRunner().invoke(commands.app, ["engine", *arguments], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert "gmf, 300 items, 1 thread" in done.output
    rows = json.loads(file.read_text())
    assert [row["subject"] for row in rows] == ["plain", "fast"]
    assert rows[0]["ratio_to_plain"] == rows[0]["memory_ratio_to_plain"] == 1.0
    for row in rows:
        assert row["interactions_per_second"] == pytest.approx(256 * 40 / row["step_seconds"])
        assert 50 < row["peak_mebibytes"] < 2000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    done = CliRunner().invoke(commands.app, ["engine", "--device", "cuda"])
    assert isinstance(done.exception, ConfigError)
    assert "torch sees no GPU" in str(done.exception)
