"""How a platform stands, as metrics for its own operators: from ledger and state folder, read only.

These are never exposed to the coordinator. What is served and when it was adopted follow from the
platform's users without noise; the rest would tell which requests it declined. So they are served
on this machine only unless an operator says otherwise, and nothing here is part of any reply.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, StateSetMetricFamily
from prometheus_client.registry import Collector

from client.ledger_view import rounds_like_the_last
from client.model_files import ModelFiles, ServedName
from client.state import STOPPED_FILE
from common.errors import StateError
from common.metrics import serve_metrics
from common.privacy.account import account_of
from common.privacy.ledger import LEDGER_FILE, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from prometheus_client import Metric

    from client.config import PlatformConfig
    from common.privacy.account import Budget, Entry

# How a declined request's reason begins in the ledger.
_CAUSES = ("budget", "refused")


@lru_cache(maxsize=1)  # the tight accountant takes its time, and entries change once a round
def _ledger_metrics(entries: tuple[Entry, ...], budget: Budget) -> tuple[Metric, ...]:
    """What the entries of a checked ledger add up to; ``budget`` is what platform.toml says."""
    account = account_of(entries)
    grant = account.grant
    requests = CounterMetricFamily(
        "crossrec_requests",
        "Requests of all runs: released, or declined for the budget or the platform's own rules",
        labels=["outcome"],
    )
    causes = Counter(_cause(entry) for entry in entries if entry.kind == "decline")
    requests.add_metric(["released"], len(account.releases))
    for cause in _CAUSES:
        requests.add_metric([f"declined-{cause}"], causes[cause])
    if grant is None:
        return (requests,)
    values = {
        "epsilon_spent": ("Epsilon spent in the running period", account.epsilon(grant.delta)),
        "epsilon_budget": (
            "Epsilon that binds: granted, or less by platform.toml",
            min(grant.epsilon, budget.epsilon),
        ),
        "delta": ("Delta that both are stated at", grant.delta),
        "rounds_left": (
            "Rounds like the last one that the budget pays for",
            rounds_like_the_last(account, budget),
        ),
        "period_end_timestamp_seconds": (
            "When the grant ends",
            datetime.fromisoformat(end).timestamp() if (end := account.period_end()) else None,
        ),
    }
    gauges = [
        GaugeMetricFamily(f"crossrec_{name}", text, value=value)
        for name, (text, value) in values.items()
        if value is not None
    ]
    return (*gauges, requests)


def _cause(entry: Entry) -> str:
    reason = str(json.loads(entry.body).get("reason", ""))
    return reason.partition(":")[0]


class PlatformCollector(Collector):
    """Reads a platform's ledger and state folder at every scrape; changes neither."""

    def __init__(self, config: PlatformConfig) -> None:
        """Take the platform's own configuration; nothing is read yet."""
        self._folder = config.state.folder
        self._budget = config.privacy.budget()

    def collect(self) -> Iterator[Metric]:
        """The metrics as of now; where the state cannot be read, that is the one thing they say."""
        try:
            metrics = [*_ledger_metrics(self._entries(), self._budget), *self._model_metrics()]
        except StateError:
            metrics = []
        state = "Whether ledger and models can be read (1), or are damaged (0)"
        yield GaugeMetricFamily("crossrec_state_readable", state, value=bool(metrics))
        text = "Whether the platform stopped after a failure, until its operator has looked"
        yield GaugeMetricFamily("crossrec_stopped", text, value=self._stopped().exists())
        yield from metrics

    def problem(self) -> str | None:
        """Why the platform answers no request; None if it does."""
        if self._stopped().exists():
            return f"stopped after a failure; {STOPPED_FILE} in the state folder has the cause"
        try:
            self._entries()
        except StateError:
            return "the ledger cannot be read; crossrec client ledger verify says why"
        return None

    def _stopped(self) -> Path:
        return self._folder / STOPPED_FILE

    def _entries(self) -> tuple[Entry, ...]:
        """Every entry, checked; none before the first request."""
        path = self._folder / LEDGER_FILE
        if not path.exists() and not path.with_name(f"{path.name}.head").exists():
            return ()
        with closing(Ledger(path, read_only=True)) as ledger:
            return tuple(ledger.entries())

    def _model_metrics(self) -> Sequence[Metric]:
        models = ModelFiles(self._folder / "model")
        served = models.served()
        states = {name: name == served for name in get_args(ServedName)}
        found: list[Metric] = [
            StateSetMetricFamily("crossrec_served", "Which model is served, if any", value=states)
        ]
        adopted = models.adopted_at()
        if adopted is not None:
            text = "When a run was last handed over and adapted to"
            found.append(
                GaugeMetricFamily("crossrec_adopted_timestamp_seconds", text, value=adopted)
            )
        return found


def serve_platform_metrics(address: str, config: PlatformConfig) -> AbstractContextManager[int]:
    """Serve a platform's metrics to its operators; see :func:`common.metrics.serve_metrics`."""
    collector = PlatformCollector(config)
    return serve_metrics(address, collector, collector.problem)
