"""The closing tables of ``crossrec compare`` on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from simulations.compare.verdict import (
    ALONE,
    POPULARITY,
    SERVED,
    cases,
    gain_over_local,
    value_of,
)

if TYPE_CHECKING:
    from simulations.compare.result import ComparedPlatform, CompareResult, Setting
    from simulations.compare.statistics import SeededGain

POOLED = "pooled"
SHORT_TRUST = {"secagg": "secagg", "secagg-simulated": "secagg", "local": "local", "none": "none"}
_COLUMNS = (POPULARITY, ALONE, SERVED)
_SHORT_MODEL = {POPULARITY: "popular", SERVED: "served"}
_DASH = "-"


def quality_table(result: CompareResult) -> Table:
    """NDCG@10 of each case at the main epsilon, and what joining adds."""
    table = _table(f"NDCG@10 at epsilon {result.main_epsilon:g}; gain: served minus local")
    for name in ("platform", "trust"):
        table.add_column(name, no_wrap=True)
    for model in (*_COLUMNS, POOLED):
        table.add_column(_SHORT_MODEL.get(model, model), justify="right")
    for name in ("gain", "stderr", "p", "joins"):
        table.add_column(name, justify="right")
    for case in cases(result):
        for trust in result.trusts:
            setting = case.platform.setting(trust, result.main_epsilon)
            if setting is None:
                continue
            gain = gain_over_local(setting, SERVED)
            table.add_row(
                case.label,
                SHORT_TRUST.get(trust, trust),
                *(_value(setting, model) for model in _COLUMNS),
                _pooled(case.platform),
                _DASH if gain is None else f"{gain.mean:+.4f}",
                _DASH if gain is None or gain.stderr is None else f"{gain.stderr:.4f}",
                p_text(gain),
                f"{setting.times_joined}/{setting.num_seeds}",
            )
    return table


def epsilon_table(result: CompareResult) -> Table:
    """Gain in NDCG@10 by epsilon, beside that without noise."""
    table = _table("Gain in NDCG@10 (served minus local) by epsilon; * beyond two standard errors")
    for name in ("platform", "trust"):
        table.add_column(name, no_wrap=True)
    for epsilon in result.epsilons:
        table.add_column(f"{epsilon:g}", justify="right")
    table.add_column("no noise", justify="right")
    for case in cases(result):
        for trust in result.trusts:
            settings = [case.platform.setting(trust, epsilon) for epsilon in result.epsilons]
            if any(settings):
                settings.append(case.platform.setting("none", None))
                table.add_row(
                    case.label, SHORT_TRUST.get(trust, trust), *(_gain(s) for s in settings)
                )
    return table


def p_text(gain: SeededGain | None) -> str:
    """A p value as people write it."""
    if gain is None or gain.p_value is None:
        return _DASH
    return "<.001" if gain.p_value < 0.001 else f"{gain.p_value:.3f}".removeprefix("0")


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        min_width=len(title),
    )


def _value(setting: Setting, model: str) -> str:
    value = value_of(setting, model)
    return _DASH if value is None else f"{value:.4f}"


def _pooled(platform: ComparedPlatform) -> str:
    setting = platform.setting("none", None)  # it depends neither on noise nor on trust
    return _DASH if setting is None else _value(setting, POOLED)


def _gain(setting: Setting | None) -> str:
    gain = None if setting is None else gain_over_local(setting, SERVED)
    if gain is None or gain.mean is None:
        return _DASH
    is_clear = gain.stderr is not None and abs(gain.mean) > 2 * gain.stderr
    return f"{gain.mean:+.4f}{'*' if is_clear else ' '}"
