from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from common.errors import ConfigError
from common.metrics import serve_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric


class Rising(Collector):
    def __init__(self) -> None:
        self.value = 0

    def collect(self) -> Iterator[Metric]:
        self.value += 1
        yield GaugeMetricFamily("rising", "Scrapes", value=self.value)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_every_scrape_is_fresh_and_nothing_else_is_served(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with serve_metrics("127.0.0.1:0", Rising(), lambda: None) as port:
        assert "rising 1.0" in get(port, "/metrics")[1].splitlines()
        status, text = get(port, "/metrics")
        assert status == 200
        assert "rising 2.0" in text.splitlines()
        assert "python_" not in text
        assert get(port, "/health") == (200, "ok\n")
        assert get(port, "/")[0] == 404
        assert get(port, "/state/ledger.sqlite")[0] == 404
    assert capfd.readouterr().err == ""


def test_health_says_what_the_problem_is_for_as_long_as_there_is_one() -> None:
    problems = ["stopped", None]
    with serve_metrics("127.0.0.1:0", Rising(), lambda: problems.pop(0)) as port:
        assert get(port, "/health") == (503, "stopped\n")
        assert get(port, "/health") == (200, "ok\n")


def test_the_address_is_free_again_afterwards() -> None:
    with serve_metrics("127.0.0.1:0", Rising(), lambda: None) as port:
        pass
    with pytest.raises(urllib.error.URLError):
        get(port, "/health")
    with serve_metrics(f"127.0.0.1:{port}", Rising(), lambda: None) as again:
        assert again == port


@pytest.mark.parametrize(
    "address", ["", "9464", ":9464", "127.0.0.1:", "127.0.0.1:http", "192.0.2.1:9464"]
)
def test_an_address_that_is_not_one_of_ours_is_refused(address: str) -> None:
    with (
        pytest.raises(ConfigError, match="expected host:port"),
        serve_metrics(address, Rising(), lambda: None),
    ):
        pass
