from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

import client.platform
from client.metrics import PlatformCollector, serve_platform_metrics
from client.platform import Platform
from client.state import STOPPED_FILE
from common.privacy.ledger import LEDGER_FILE, Ledger
from tests.unit.client.homes import (
    adopt_request,
    asked_arrays,
    fit_quickly,
    move_in,
    shared_arrays,
    sum_request,
    train_request,
)

if TYPE_CHECKING:
    from pathlib import Path

    from client.config import PlatformConfig


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlatformConfig:
    monkeypatch.setattr(client.platform, "fit_alone", fit_quickly)
    return move_in(tmp_path, period_days=30, epsilon=2.0)


def samples(config: PlatformConfig) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in PlatformCollector(config).collect()
        for sample in metric.samples
    }


def live(config: PlatformConfig) -> None:
    """Two releases, three declined requests, one adoption."""
    platform = Platform(config)
    assert platform.sum_up(sum_request(config), asked_arrays())[0].outcome == "released"
    train = train_request(config, noise_multiplier=20.0)
    assert platform.train(train, shared_arrays())[0].outcome == "released"
    for number, noise in ((2, 0.31), (3, 0.01), (4, 0.02)):
        request = train_request(config, round_number=number, noise_multiplier=noise)
        assert platform.train(request, shared_arrays())[0].outcome == "declined"
    assert platform.adopt(adopt_request(config), shared_arrays()).outcome == "adopted"


def test_the_metrics_are_those_of_ledger_and_models(config: PlatformConfig) -> None:
    live(config)
    found = samples(config)
    account = Ledger(config.state.folder / LEDGER_FILE, read_only=True).account()
    assert found["crossrec_epsilon_spent",] == pytest.approx(account.epsilon(1e-5))
    assert 0 < found["crossrec_epsilon_spent",] < 2
    assert found["crossrec_epsilon_budget",] == 2.0
    assert found["crossrec_delta",] == 1e-5
    assert found["crossrec_rounds_left",] > 0
    assert found["crossrec_requests_total", "released"] == 2
    assert found["crossrec_requests_total", "declined-budget"] == 1
    assert found["crossrec_requests_total", "declined-refused"] == 2
    served = config.state.folder / "model/served.txt"
    assert found["crossrec_served", served.read_text()] == 1
    assert found["crossrec_served", "alone"] + found["crossrec_served", "joined"] == 1
    assert found["crossrec_adopted_timestamp_seconds",] == pytest.approx(served.stat().st_mtime)
    days = (found["crossrec_period_end_timestamp_seconds",] - served.stat().st_mtime) / 86400
    assert days == pytest.approx(30, abs=0.1)
    assert found["crossrec_state_readable",] == 1
    assert found["crossrec_stopped",] == 0


def test_a_later_release_is_seen(config: PlatformConfig) -> None:
    live(config)
    before = samples(config)
    request = train_request(config, round_number=7, noise_multiplier=20.0)
    assert Platform(config).train(request, shared_arrays())[0].outcome == "released"
    after = samples(config)
    assert after["crossrec_requests_total", "released"] == 3
    assert after["crossrec_epsilon_spent",] > before["crossrec_epsilon_spent",]


def test_scraping_changes_nothing_and_makes_nothing(config: PlatformConfig) -> None:
    assert samples(config)["crossrec_requests_total", "released"] == 0
    assert ("crossrec_epsilon_spent",) not in samples(config)
    assert not config.state.folder.exists()
    live(config)
    files = {path: path.read_bytes() for path in config.state.folder.rglob("*") if path.is_file()}
    samples(config)
    assert files == {p: p.read_bytes() for p in config.state.folder.rglob("*") if p.is_file()}


def test_scraping_needs_no_user_data_and_names_nobody(config: PlatformConfig) -> None:
    live(config)
    (config.state.folder.parent / "purchases.csv").unlink()
    with serve_platform_metrics("127.0.0.1:0", config) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
            assert answer.read() == b"ok\n"
    assert "u0" not in text
    assert "i0" not in text
    # An allow-list: a new metric is a decision.
    assert {family.name for family in text_string_to_metric_families(text)} == {
        "crossrec_state_readable",
        "crossrec_stopped",
        "crossrec_epsilon_spent",
        "crossrec_epsilon_budget",
        "crossrec_delta",
        "crossrec_rounds_left",
        "crossrec_period_end_timestamp_seconds",
        "crossrec_requests",
        "crossrec_served",
        "crossrec_adopted_timestamp_seconds",
    }


@pytest.mark.parametrize("harm", ["stopped", "damaged", "lost"])
def test_a_platform_that_cannot_answer_says_so(config: PlatformConfig, harm: str) -> None:
    live(config)
    ledger = config.state.folder / LEDGER_FILE
    if harm == "stopped":
        (config.state.folder / STOPPED_FILE).write_text("ValueError: alice\n")
    elif harm == "damaged":
        ledger.write_bytes(b"no ledger")
    else:
        ledger.unlink()
    found = samples(config)
    assert found["crossrec_stopped",] == (harm == "stopped")
    assert found["crossrec_state_readable",] == (harm == "stopped")
    with (
        serve_platform_metrics("127.0.0.1:0", config) as port,
        pytest.raises(urllib.error.HTTPError) as caught,
    ):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60)
    assert caught.value.code == 503
    assert b"alice" not in caught.value.read()
