"""``report.html``: one file that a decision maker can read and that needs no network.

Everything in it is computed from a `RunResult`; figures are inlined. Jinja2 escapes every value.
"""

from __future__ import annotations

import base64
import io
import json
import math
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from common.storage import FOR_ALL, write_durably
from simulations.drawing import metric_label, model_colour
from simulations.plots import epsilon_text, figures, model_names, privacy_line
from simulations.result import PRIMARY_METRIC
from simulations.verdict import CONFIDENT_STDERRS, headline, platform_verdict

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from simulations.result import ModelResult, PlatformResult, PrivacyStatement, RunResult

METRICS = (PRIMARY_METRIC, "hr@10")
MAX_SENTENCES = 20

_CAPTIONS = {
    "quality": "Ranking quality of each model on each platform. Higher is better.",
    "epsilon": "Epsilon spent after each release. Lower is more private.",
    "gain": "Served minus local. Above the line joining helps, below it harms.",
    "overlap": "How much of each platform's catalogue the others list.",
}

_SUM_NAMES = {"item-counts": "item counts", "item-pairs": "item pairs"}

_TRUST = {
    "secagg": "Secure aggregation: the server sees only the sum over platforms. Each platform adds "
    "a share of the noise, so that whoever knows the parts of those that may collude still faces "
    "all of it.",
    "secagg-simulated": "The sums and the noise are those of secure aggregation, but they were "
    "added up in the clear: the server could see every platform's part. With secure aggregation it "
    "would see only the sum, to the same bit.",
    "local": "Each platform adds all of the noise itself; the server may see every release.",
    "none": "No noise was added. Nothing here is private; the run shows what noise costs.",
}


def render_report(result: RunResult) -> str:
    """Return the report as one HTML document without external resources."""
    environment = template_environment()
    environment.filters.update(epsilon=_epsilon, measured=_measured)
    names = sorted(result.platforms, key=lambda name: (-result.platforms[name].num_users, name))
    models = model_names(result.platforms)
    return environment.get_template("report.html").render(
        result=result,
        privacy=result.privacy,
        platforms=[(name, result.platforms[name]) for name in names],
        verdicts=[platform_verdict(name, result.platforms[name]) for name in names],
        headline=headline(result),
        confident=CONFIDENT_STDERRS,
        models=[(model, model_colour(model, models)) for model in models],
        metrics=METRICS,
        privacy_line=privacy_line(result.privacy),
        meaning=_meaning(result.privacy),
        trust_meaning=_TRUST.get(result.privacy.trust, result.privacy.trust),
        figures=[
            (_CAPTIONS[name], _alternative(name, result), inlined(figure))
            for name, figure in figures(result).items()
        ],
        declined=_declined(result),
        shows_broken=any(p.epsilon_if_secagg_broken is not None for p in result.platforms.values()),
        configuration=json.dumps(dict(result.configuration), indent=2, sort_keys=True, default=str),
    )


def template_environment() -> Environment:
    """Templates of reports; every value is escaped, an unknown name is an error."""
    environment = Environment(
        loader=PackageLoader("simulations"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(metric_label=metric_label, thousands=_thousands)
    return environment


def inlined(figure: Figure) -> str:
    """A figure as an address that holds all of it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def write_report(path: Path, result: RunResult) -> None:
    """Write `render_report` to ``path``, whole or not at all.

    Raises:
        StateError: if the folder cannot be written; ``path`` is untouched.
    """
    write_durably(path, render_report(result).encode(), mode=FOR_ALL)


def _meaning(privacy: PrivacyStatement) -> str:
    """Say in words what epsilon bounds, without calling any value safe."""
    if privacy.planned_epsilon is None:
        return "This run gives no privacy guarantee."
    epsilon = privacy.planned_epsilon
    odds = f"{math.exp(epsilon):,.{1 if epsilon < 4 else 0}f}" if epsilon < 14 else "over a million"
    return (
        f"Whoever sees all releases can tell apart two data sets that differ by one {privacy.unit} "
        f"only so far: the odds of one against the other change by a factor of at most "
        f"e^epsilon ({odds}), up to a probability of delta = {privacy.delta:g}. "
        "This is a worst case over all adversaries and data. An epsilon below about 1 is a strong "
        "promise, one near 10 a weak one."
    )


def _declined(result: RunResult) -> list[str]:
    """Sentences on sums and rounds that a platform sat out."""
    sentences = []
    for name in sorted(result.platforms):
        for total in result.sums:
            state = total.platforms.get(name, "absent")
            if state != "released":
                what = _SUM_NAMES.get(total.quantity, total.quantity)
                sentences.append(f"{name}: {state} for the {what}.")
        missed: dict[str, list[int]] = {}
        for record in result.rounds:
            state = record.platforms.get(name, "absent")
            if state != "released":
                missed.setdefault(state, []).append(record.round)
        for state, rounds in missed.items():
            sentences.append(
                f"{name}: {state} in {len(rounds)} of {len(result.rounds)} rounds "
                f"(first: round {rounds[0]})."
            )
    hidden = len(sentences) - MAX_SENTENCES
    if hidden > 0:
        return [*sentences[:MAX_SENTENCES], f"{hidden} more such remarks: see result.json."]
    return sentences


def _alternative(name: str, result: RunResult) -> str:
    """Text for those who do not see the figure: what it shows and where its numbers stand."""
    where = {
        "quality": "The numbers are in the table of platforms.",
        "gain": "The numbers are in the verdicts.",
    }.get(name, "The numbers are in result.json.")
    return f"{_CAPTIONS[name]} {len(result.platforms)} platforms. {where}"


def _measured(platform: PlatformResult, model: str, metric: str) -> str:
    """``0.2311 ± 0.0040``, or a dash where the model was not measured."""
    measured: ModelResult | None = platform.models.get(model)
    value = None if measured is None else measured.metrics.get(metric)
    if measured is None or value is None:
        return "\N{EN DASH}"
    stderr = measured.stderr.get(metric)
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def _epsilon(value: float | None) -> str:
    return "no guarantee" if value is None else epsilon_text(value)


def _thousands(value: int) -> str:
    return f"{value:,}"
