"""How a run stands, as metrics: what the journal says, counted. Nothing else is read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, StateSetMetricFamily
from prometheus_client.registry import Collector

from common.metrics import serve_metrics
from server.journal import read_journal
from server.status import RunSummary, summarise

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from prometheus_client import Metric

_STATES = get_args(get_type_hints(RunSummary)["state"])
_REQUESTS = {"reply": "round", "handed-over": "hand-over"}  # a sum is named by its quantity


def metrics_of(events: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    """The metrics of a run, from its whole journal, resumptions included.

    Args:
        events: as :func:`server.journal.read_journal` yields them, oldest first.
    """
    events = list(events)
    run = summarise(events)
    states = {state: state == run.state for state in _STATES}
    yield StateSetMetricFamily("crossrec_run_state", "Where the run stands", value=states)
    joined = sum(platform.joined for platform in run.platforms.values())
    for name, text, value in (
        ("rounds_planned", "Rounds that the run is to have", run.rounds),
        ("rounds_done", "Rounds that are finished", run.rounds_done),
        ("sums_done", "Private sums that are there", len(run.sums_done)),
        ("platforms_joined", "Platforms that take part since the last start", joined),
        ("nodes_refused", "Nodes that were not let in", len(run.refused)),
        ("last_round_seconds", "Duration of the last finished round", _last_round_seconds(events)),
        ("last_event_timestamp_seconds", "When the journal was last written", run.updated),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"crossrec_{name}", text, value=value)
    replies = CounterMetricFamily(
        "crossrec_replies",
        "Replies of platforms, by what was asked and what came of it",
        labels=["platform", "request", "outcome"],
    )
    for labels, count in sorted(Counter(_replies(events)).items()):
        replies.add_metric(labels, count)
    yield replies


def _replies(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    for event in events:
        if event["event"] in {"reply", "sum-reply", "handed-over"}:
            request = _REQUESTS.get(event["event"]) or event["quantity"]
            # A platform's own words follow the colon: as labels they would be without number.
            outcome = event["outcome"].partition(":")[0].replace(" ", "-")
            yield event["platform"], request, outcome


def _last_round_seconds(events: Iterable[Mapping[str, Any]]) -> float | None:
    started: dict[int, float] = {}
    seconds = None
    for event in events:
        if event["event"] == "round-started":
            started[event["round"]] = event["time"]
        elif event["event"] == "round-closed":
            seconds = event["time"] - started[event["round"]]
    return seconds


class RunCollector(Collector):
    """Reads a run's journal at every scrape."""

    def __init__(self, folder: Path) -> None:
        """Name the run's folder; it need not be there yet."""
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        """The metrics as of now."""
        return metrics_of(event for _, event in read_journal(self._folder))

    def problem(self) -> str | None:
        """Why the run stands still, if it failed; None otherwise."""
        run = summarise(event for _, event in read_journal(self._folder))
        return f"the run failed: {run.reason}" if run.state == "failed" else None


def serve_run_metrics(address: str, folder: Path) -> AbstractContextManager[int]:
    """Serve the metrics of the run in ``folder``; see :func:`common.metrics.serve_metrics`."""
    collector = RunCollector(folder)
    return serve_metrics(address, collector, collector.problem)
