"""``report.html`` of a comparison: one file that needs no network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from common.storage import FOR_ALL, write_durably
from simulations.compare.plots import figures
from simulations.compare.tables import p_text
from simulations.compare.verdict import (
    SERVED,
    SIMULATED_SECAGG,
    cases,
    gain_over_local,
    headline,
    verdicts,
)
from simulations.drawing import in_order
from simulations.report import inlined, template_environment
from simulations.result import PRIMARY_METRIC
from simulations.verdict import CONFIDENT_STDERRS

if TYPE_CHECKING:
    from pathlib import Path

    from simulations.compare.result import CompareResult, Setting
    from simulations.compare.statistics import SeededGain

METRICS = (PRIMARY_METRIC, "hr@10")

_CAPTIONS = {
    "gain-by-epsilon": "What joining adds for each platform of interest. More epsilon: less noise.",
    "models": "Models side by side. Pooled is what all raw data in one place would give.",
    "gain-by-popularity": "Who gains: users by how often the platform sold their held-out item.",
    "gain-by-activity": "Who gains: users by how much they bought themselves.",
}


def render_report(result: CompareResult) -> str:
    """Return the report as one HTML document without external resources."""
    environment = template_environment()
    environment.filters.update(measured=_measured, gained=_gained, p_text=p_text)
    return environment.get_template("compare.html").render(
        result=result,
        headline=headline(result),
        verdicts=verdicts(result),
        confident=CONFIDENT_STDERRS,
        cases=list(cases(result)),
        models=_model_names(result),
        metrics=METRICS,
        served_gain=lambda setting: gain_over_local(setting, SERVED),
        groups=[
            (title, attribute)
            for title, attribute in (
                ("purchases of the held-out item", "by_popularity"),
                ("own purchases", "by_activity"),
            )
        ],
        secagg=SIMULATED_SECAGG if "secagg-simulated" in result.trusts else None,
        figures=[(_CAPTIONS[name], inlined(figure)) for name, figure in figures(result).items()],
        trouble=[cell for cell in result.cells if cell.status != "finished"],
        configuration=json.dumps(dict(result.configuration), indent=2, sort_keys=True),
    )


def write_report(path: Path, result: CompareResult) -> None:
    """Write `render_report` to ``path``, whole or not at all.

    Raises:
        StateError: if the folder cannot be written; ``path`` is untouched.
    """
    write_durably(path, render_report(result).encode(), mode=FOR_ALL)


def _model_names(result: CompareResult) -> list[str]:
    return in_order(
        model
        for case in cases(result)
        for setting in case.platform.settings
        for model in setting.models
    )


def _measured(setting: Setting, model: str, metric: str) -> str:
    """``0.2311 ± 0.0040`` over seeds, or a dash where the model was not measured."""
    found = setting.models.get(model)
    value = None if found is None else found.metrics[metric]
    if value is None or value.mean is None:
        return "\N{EN DASH}"
    return f"{value.mean:.4f}" if value.sd is None else f"{value.mean:.4f} ± {value.sd:.4f}"


def _gained(gain: SeededGain | None) -> str:
    """Mean and standard error, then those of users and of seeds."""
    if gain is None or gain.mean is None:
        return "\N{EN DASH}"
    if gain.stderr is None or gain.stderr_users is None:
        return f"{gain.mean:+.4f}"
    seeds = "" if gain.stderr_seeds is None else f", seeds {gain.stderr_seeds:.4f}"
    return f"{gain.mean:+.4f} ± {gain.stderr:.4f} (users {gain.stderr_users:.4f}{seeds})"
