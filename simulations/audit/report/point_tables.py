"""Tables of the points of a report, as words and rows. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulations.audit.report.strength import percent_text, shown_epsilon

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from simulations.audit.report.parts import PlatformPart
    from simulations.audit.report.statement import AuditStatement

DASH = "\N{EN DASH}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One table."""

    caption: str
    """What it has."""
    header: tuple[str, ...]
    """Names of columns."""
    rows: tuple[tuple[str, ...], ...]
    """Cells as text."""

    @property
    def words(self) -> tuple[bool, ...]:
        """For each column, whether most of its cells are words; the others are numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.header)
        return tuple(2 * sum(map(_is_word, cells)) > len(cells) for cells in columns)


def _is_word(cell: str) -> bool:
    return cell[:1].isalpha() or sum(letter.isalpha() for letter in cell) > 4


_BROKEN = ("if secure aggregation broke",)


def _has_secagg(statement: AuditStatement) -> bool:
    """Whether some platform's releases were added up so that nobody sees a single one."""
    return any((part.trust or "").startswith("secagg") for part in statement.platforms.values())


def _if_broken(part: PlatformPart) -> str:
    return "not known" if part.delta is None else shown_epsilon(part.epsilon_if_secagg_broken)


def _guarantee(statement: AuditStatement) -> Sequence[Table]:
    if_broken = _has_secagg(statement)
    return (
        Table(
            caption="Epsilon and delta of each platform; the number for life is of everything.",
            header=(
                *("platform", "population declared", "epsilon, running period", "granted"),
                *("epsilon for life", "delta", *(_BROKEN if if_broken else ())),
                *("50 % becomes at most", "best guess about everybody is right in"),
            ),
            rows=tuple(
                (
                    name,
                    "not known" if part.population is None else f"{part.population:,}",
                    shown_epsilon(part.epsilon) if part.delta is not None else "not known",
                    DASH if part.budget is None else f"{part.budget:g}",
                    shown_epsilon(part.epsilon_for_life) if part.delta is not None else "not known",
                    DASH if part.delta is None else f"{part.delta:g}",
                    *((_if_broken(part),) if if_broken else ()),
                    *(
                        DASH if value is None else percent_text(value)
                        for value in (part.posterior_from_half, part.best_guess)
                    ),
                )
                for name, part in statement.platforms.items()
            ),
        ),
    )


def _mechanisms(statement: AuditStatement) -> Sequence[Table]:
    return (
        Table(
            caption="Kinds of charges. Noise: over the clipping norm, as an observer faces it; own "
            "noise: standard deviation of what the platform added itself.",
            header=(
                *("platform", "run", "what", "times", "noise", "noise of one release alone"),
                *("clipping norm", "own noise", "denominator", "sampling rate", "steps"),
            ),
            rows=tuple(
                (
                    use.platform,
                    use.run,
                    use.what,
                    f"{use.times:,}",
                    f"{use.noise_multiplier:.4g}",
                    f"{use.noise_multiplier_if_broken:.4g}",
                    _number(use.clipping_norm),
                    _number(use.own_noise_std),
                    "none" if use.what != "rounds" else _number(use.denominator),
                    f"{use.sampling_rate:g}",
                    str(use.steps),
                )
                for use in statement.mechanisms.uses
            ),
        ),
    )


def _accounting(statement: AuditStatement) -> Sequence[Table]:
    if_broken = _has_secagg(statement)
    names = ("recorded", "product", "opacus_prv", "opacus_rdp", "dp_accounting")
    return (
        Table(
            caption="Epsilon of everything reserved, by each accountant. Opacus PRV and RDP are "
            "looser upper bounds of the same spend: above the budget they are no overspending.",
            header=(
                *("platform", "written down", "this software", "Opacus PRV", "Opacus RDP"),
                *("dp-accounting", "no less than", *(_BROKEN if if_broken else ())),
            ),
            rows=tuple(
                (
                    name,
                    *(_number(getattr(prices, field)) for field in names),
                    _number(prices.dp_accounting_least),
                    *((_number(prices.if_secagg_broken),) if if_broken else ()),
                )
                for name, prices in statement.accounting.prices.items()
            ),
        ),
        Table(
            caption="Versions.",
            header=("library", "version"),
            rows=tuple(sorted(statement.accounting.versions.items())),
        ),
        Table(
            caption="Orders of the Renyi bound.",
            header=("orders",),
            rows=((", ".join(f"{order:g}" for order in statement.accounting.orders),),),
        ),
    )


def _composition(statement: AuditStatement) -> Sequence[Table]:
    return (
        Table(
            caption="What each run cost by itself.",
            header=("run", "platform", "charges", "epsilon of it alone"),
            rows=tuple(
                (run.run, run.platform, f"{run.num_charges:,}", shown_epsilon(run.epsilon))
                for run in statement.composition.runs
            ),
        ),
        Table(
            caption="The promise to a person with accounts at m platforms is only this epsilon.",
            header=("m", "epsilon", "delta", "where it is most"),
            rows=tuple(
                (
                    str(c.num_platforms),
                    shown_epsilon(c.epsilon),
                    f"{c.delta:g}",
                    ", ".join(c.platforms),
                )
                for c in statement.composition.across_platforms
            ),
        ),
    )


def _lower_bound(statement: AuditStatement) -> Sequence[Table]:
    attack = statement.lower_bound.attack
    if attack is None:
        return ()
    return (
        Table(
            caption=f"Attacks ({attack.mode}; {attack.command}).",
            header=(
                *("canaries are a", "attacker sees", "canaries", "guesses", "right"),
                *("epsilon proved", "of any Gaussian", "confidence", "estimate"),
                *("accounted", "AUC"),
            ),
            rows=tuple(
                (
                    a.unit,
                    a.adversary,
                    f"{a.num_canaries:,}",
                    f"{a.num_guesses:,}",
                    f"{a.num_correct:,}",
                    f"{a.epsilon_lower:.2f}",
                    DASH if a.epsilon_lower_gaussian is None else f"{a.epsilon_lower_gaussian:.2f}",
                    f"{a.confidence:.0%}",
                    _number(a.epsilon_estimate),
                    shown_epsilon(a.epsilon_accounted),
                    f"{a.roc.auc:.3f}",
                )
                for a in attack.audits
            ),
        ),
        Table(
            caption="Likelihood-ratio membership inference.",
            header=(
                "whose",
                "attacker sees",
                "runs",
                "records",
                "AUC",
                "found at 0.1 % false alarms",
            ),
            rows=tuple(
                (
                    m.target,
                    m.adversary,
                    f"{m.num_runs:,}",
                    f"{m.num_records:,}",
                    f"{m.roc.auc:.3f}",
                    f"{m.roc.tpr_at_fpr['0.001']:.2%}" if "0.001" in m.roc.tpr_at_fpr else DASH,
                )
                for m in attack.memberships
            ),
        ),
    )


def _utility(statement: AuditStatement) -> Sequence[Table]:
    return (
        Table(
            caption="NDCG@10 by group of test users.",
            header=("by", "group", "users", "alone", "served", "gain", "run"),
            rows=tuple(
                (
                    g.by,
                    g.group,
                    f"{g.num_users:,}",
                    DASH if g.local is None else f"{g.local:.4f}",
                    DASH if g.served is None else f"{g.served:.4f}",
                    DASH
                    if g.gain is None
                    else f"{g.gain:+.4f}" + ("" if g.stderr is None else f" ± {g.stderr:.4f}"),
                    g.run,
                )
                for g in statement.utility.groups
            ),
        ),
    )


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"


TABLES: Mapping[str, Callable[[AuditStatement], Sequence[Table]]] = {
    "guarantee": _guarantee,
    "mechanisms": _mechanisms,
    "accounting": _accounting,
    "composition": _composition,
    "lower_bound": _lower_bound,
    "utility": _utility,
}
"""Field of a point -> its tables, if it has any."""
