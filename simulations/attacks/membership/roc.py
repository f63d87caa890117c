"""How well scores tell who was in, at every threshold. Pure."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from simulations.attacks.membership.result import Roc

RATES = (0.001, 0.01, 0.1)
"""False positive rates at which the true positive rate is reported."""
_MOST_POINTS = 200


def roc_of(scores: np.ndarray, is_in: np.ndarray) -> Roc:
    """The receiver operating characteristic of ``score >= threshold`` for ``in``.

    Equal scores are called alike. With n out, a false positive rate below 1/n means none at all.

    Args:
        scores: [m], higher for in.
        is_in: [m] bool, some of each.

    Raises:
        ValueError: if all are in, or none.
    """
    num_in = int(is_in.sum())
    num_out = len(is_in) - num_in
    if not (num_in and num_out):
        raise ValueError("a ROC needs some that are in and some that are out")
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    true = np.append(0.0, np.cumsum(is_in[order])[last_of_equals] / num_in)
    false = np.append(0.0, np.cumsum(~is_in[order])[last_of_equals] / num_out)
    ranks = float(rankdata(scores)[is_in].sum())  # Mann and Whitney 1947
    return Roc(
        auc=(ranks - num_in * (num_in + 1) / 2) / (num_in * num_out),
        tpr_at_fpr={f"{rate:g}": float(true[false <= rate].max()) for rate in RATES},
        curve=_thinned(false, true),
    )


def _thinned(false: np.ndarray, true: np.ndarray) -> tuple[tuple[float, float], ...]:
    """At most ``_MOST_POINTS`` points, ends included, spread along the curve."""
    length = false + true
    wanted = np.searchsorted(length, np.linspace(0.0, 2.0, _MOST_POINTS))
    places = np.unique(np.minimum(wanted, len(length) - 1))
    return tuple((float(false[place]), float(true[place])) for place in places)
