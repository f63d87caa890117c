"""The ledger's commands show what is there, find what is wrong, and change nothing."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import pytest
from typer.testing import CliRunner

from client.commands import app
from client.config import PlatformConfig
from client.ledger_view import sparkline, status_of
from common.config import dump_config, load_config
from common.errors import ConfigError, StateError
from common.keys import fingerprint, read_public_key
from common.messages import sum_request_id
from common.models.partition import SumQuantity
from common.privacy.account import Spend
from common.privacy.accounting import epsilon_spent
from common.privacy.ledger import LEDGER_FILE, Ledger
from common.privacy.mechanisms import SampledGaussian

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

PLATFORM_TOML = """
[platform]
name = "north"
population = 1000
[data]
source = "orders.csv"
[catalogue]
file = "catalogue.csv"
[privacy]
epsilon = 3.0
delta = 1e-5
[state]
folder = "state"
"""
STEP = SampledGaussian(noise_multiplier=4.0, sampling_rate=1.0, steps=1)
RELEASE = b"a release"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160"})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A platform after three rounds, of which one crashed, and a declined request."""
    file = tmp_path / "platform.toml"
    file.write_text(PLATFORM_TOML)
    platform = load_config(file, PlatformConfig)
    releases = platform.state.folder / "releases"
    releases.mkdir(parents=True)
    with closing(Ledger(platform.state.folder / LEDGER_FILE)) as ledger:
        for number in (1, 2, 3):
            spend = Spend(
                request_id=f"spring/{number}/north",
                request_digest=str(number),
                description=f"run spring, round {number}",
                mechanism=STEP,
                mechanism_if_broken=STEP,
            )
            ledger.reserve(spend, platform.privacy.budget())
            if number != 2:
                ledger.commit(spend.request_id, hashlib.sha256(RELEASE).hexdigest())
        ledger.decline("spring/4/north", "refused: too little noise")
    (releases / "latest.safetensors").write_bytes(RELEASE)
    return file


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("command", ["status", "history", "verify", "export"])
def test_reading_changes_nothing(config: Path, command: str) -> None:
    before = all_bytes(config.parent)
    done = run("ledger", command, config)
    assert done.exit_code == 0, done.output
    assert all_bytes(config.parent) == before


@pytest.mark.parametrize("command", ["status", "history", "verify", "export"])
def test_a_ledger_file_is_enough(config: Path, command: str) -> None:
    done = run("ledger", command, config.parent / "state" / LEDGER_FILE)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("command", ["status", "history", "verify", "export"])
def test_a_ledger_that_is_not_there_is_not_made(tmp_path: Path, command: str) -> None:
    done = run("ledger", command, tmp_path / LEDGER_FILE)
    assert isinstance(done.exception, StateError)
    assert not list(tmp_path.iterdir())


def test_status_computes_what_it_shows(config: Path) -> None:
    shown = run("ledger", "status", config).output
    spent = epsilon_spent([STEP] * 3, 1e-5)
    assert f"epsilon {spent:.4f}" in shown
    assert f"epsilon {3.0 - spent:.4f}" in shown
    assert "2; 1 without" in shown
    assert "1 requests" in shown
    assert "add or remove one user" in shown
    left = next(n for n in range(50) if epsilon_spent([STEP] * (4 + n), 1e-5) > 3.0)
    assert f"{left} like the last one" in shown


@pytest.mark.parametrize("rounds_before", [0, 3])
def test_rounds_left_are_of_the_last_round_and_never_of_sums(
    config: Path, rounds_before: int
) -> None:
    path = config.parent / "state" / LEDGER_FILE
    if rounds_before == 0:
        for file in path.parent.glob(f"{LEDGER_FILE}*"):
            file.unlink()
    pairs = replace(STEP, noise_multiplier=8.0)
    with closing(Ledger(path)) as ledger:
        for quantity in get_args(SumQuantity):
            spend = Spend(
                request_id=sum_request_id("summer", quantity, "north"),
                request_digest=quantity,
                description=f"run summer, {quantity}",
                mechanism=pairs,
                mechanism_if_broken=pairs,
            )
            ledger.reserve(spend, load_config(config, PlatformConfig).privacy.budget())
    shown = run("ledger", "status", config).output
    if rounds_before == 0:
        assert "rounds left" not in shown
    else:
        spent = [STEP] * rounds_before + [pairs] * 2
        left = next(n for n in range(50) if epsilon_spent([*spent, *[STEP] * (n + 1)], 1e-5) > 3.0)
        assert f"{left} like the last one" in shown


def test_status_says_which_number_binds(config: Path) -> None:
    text = config.read_text()
    config.write_text(text.replace("epsilon = 3.0", "epsilon = 2.5"))
    assert "epsilon 2.5: lower than granted" in run("ledger", "status", config).output
    config.write_text(text.replace("epsilon = 3.0", "epsilon = 9.0"))
    assert "epsilon 9: not granted yet" in run("ledger", "status", config).output


def test_a_grant_is_written_down_and_binds(config: Path) -> None:
    config.write_text(config.read_text().replace("epsilon = 3.0", "epsilon = 4.0"))
    done = run("grant", config, "--by", "the officer")
    assert done.exit_code == 0, done.output
    assert "north: granted epsilon 4" in done.output
    with closing(Ledger(config.parent / "state" / LEDGER_FILE, read_only=True)) as ledger:
        assert json.loads(ledger.entries()[-1].body)["by"] == "the officer"
        status = status_of(ledger.account())
    assert (status.granted, status.num_reserved) == (4.0, 3)


def test_history_tells_each_entry_in_words(config: Path) -> None:
    shown = run("ledger", "history", config, "--last", "3").output
    assert "too little noise" in shown
    assert "round 3" in shown
    assert "round 1" not in shown


def test_exports_hold_every_entry(config: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("ledger", "export", config).output)))
    assert [row["kind"] for row in rows] == [
        "grant", "reserve", "commit", "reserve", "reserve", "commit", "decline",
    ]  # fmt: skip
    out = tmp_path / "ledger.json"
    assert run("ledger", "export", config, "--format", "json", "--out", out).exit_code == 0
    exported = json.loads(out.read_text())
    assert [row["digest"] for row in exported] == [row["digest"] for row in rows]
    assert exported[1]["body"]["mechanism"] == STEP.to_dict()


def test_verify_finds_a_release_that_was_changed(config: Path) -> None:
    (config.parent / "state/releases/latest.safetensors").write_bytes(b"another")
    done = run("ledger", "verify", config)
    assert done.exit_code == 1
    assert "latest.safetensors: this release was never recorded" in done.output


def test_verify_finds_an_epsilon_that_its_mechanisms_do_not_cost(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = load_config(config, PlatformConfig)
    monkeypatch.setattr("common.privacy.account.epsilon_spent", lambda *_: 0.5)
    with closing(Ledger(platform.state.folder / LEDGER_FILE)) as ledger:
        spend = Spend(
            request_id="spring/5/north",
            request_digest="5",
            description="run spring, round 5",
            mechanism=replace(STEP, noise_multiplier=0.1),
            mechanism_if_broken=STEP,
        )
        ledger.reserve(spend, platform.privacy.budget())
    monkeypatch.undo()
    done = run("ledger", "verify", config)
    assert done.exit_code == 1
    assert "wrote down epsilon 0.5" in done.output
    assert "is beyond the granted 3" in done.output


def test_verify_stops_at_a_broken_chain(config: Path) -> None:
    with closing(sqlite3.connect(config.parent / "state" / LEDGER_FILE)) as db, db:
        db.execute("DROP TRIGGER append_only_u")
        db.execute("UPDATE entry SET body = replace(body, '4.0', '9.0') WHERE sequence = 2")
    done = run("ledger", "verify", config)
    assert isinstance(done.exception, StateError)
    assert "entry 2 (reserve) was changed" in str(done.exception)


def test_a_sparkline_is_full_at_the_top() -> None:
    assert sparkline((0.0, 4.0, 8.0, 9.0), 8.0) == " ▄██"
    assert sparkline((1.0,), float("inf")) == ""


def test_before_the_first_round_there_is_nothing_to_show(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / LEDGER_FILE)):
        pass
    done = run("ledger", "status", tmp_path / LEDGER_FILE)
    assert isinstance(done.exception, StateError)
    assert "nothing was granted yet" in str(done.exception)


def test_dumped_configurations_keep_the_period(config: Path) -> None:
    platform = load_config(config, PlatformConfig)
    yearly = replace(platform, privacy=replace(platform.privacy, period_days=365))
    config.write_text(dump_config(yearly))
    assert load_config(config, PlatformConfig).privacy.budget().period_days == 365


def test_an_export_overwrites_nothing(config: Path) -> None:
    before = all_bytes(config.parent)
    for place in (config, config.parent / "state" / LEDGER_FILE):
        done = run("ledger", "export", config, "--out", place)
        assert isinstance(done.exception, ConfigError)
    assert all_bytes(config.parent) == before


def test_nobody_grants_anonymously(config: Path) -> None:
    done = run("grant", config, "--by", " ")
    assert isinstance(done.exception, ConfigError)


def test_status_shows_what_makes_rounds_fail(config: Path) -> None:
    config.write_text(config.read_text().replace("delta = 1e-5", "delta = 1e-6"))
    (config.parent / "state/stopped.txt").write_text("ValueError: a cause")
    shown = run("ledger", "status", config).output
    assert "not what was granted" in shown
    assert "a cause" in shown


def test_a_platform_is_made_for_secure_sums_and_told_what_to_do(tmp_path: Path) -> None:
    for name in ("shop-a", "shop-b"):
        (tmp_path / "ca.crt").write_text("certificate")
        done = run(
            *("init", tmp_path / name, "--name", name, "--server", "localhost:8000"),
            *("--root-certificate", tmp_path / "ca.crt", "--data", tmp_path / "orders.csv"),
            *("--assortment", tmp_path / "items.csv", "--population", 500, "--trust", "secagg"),
        )
        assert done.exit_code == 0, done.output
        assert "to every other platform, not through the coordinator" in done.output
    config = tmp_path / "shop-a/platform.toml"
    key = tmp_path / "shop-b/node.pub"
    done = run("trust", "shop-b", key, config)
    assert done.exit_code == 0, done.output
    assert f"shop-b: trusted, fingerprint {fingerprint(read_public_key(key))}." in done.output
    assert "what shop-b itself reads out to you" in done.output
    assert "not with anything that the coordinator says" in done.output
    again = run("trust", "shop-b", tmp_path / "shop-a/node.pub", config, "--replace")
    assert isinstance(again.exception, ConfigError)
    assert (tmp_path / "shop-a/platforms/shop-b.pub").read_bytes() == key.read_bytes()
    assert "crossrec client trust shop-b shop-b/node.pub platform.toml" in (
        run("trust", "--help").output
    )
