"""Runs of the real pipeline that are attacked, as `crossrec audit attack` does it.

Everything is seeded. A lower bound that right code keeps to with a probability of 95 % can be
passed by bad luck: these seeds are not such. A perfect attacker with g guesses proves no more than
the logit of .05^(1/g), so what is accounted is small where all noise is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.data.synthetic import MarketplaceConfig, generate_marketplace
from common.models.ncf import NcfConfig
from simulations.attacks.membership.audits import audit_users
from simulations.options import SimulationOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SMALL = MarketplaceConfig(
    num_users=(30, 40), num_items=400, mean_interactions=6, min_interactions=4
)
_CANARIES = 150


def attack(**options: Any) -> Callable[[Path], None]:  # noqa: ANN401 - any option of a run
    """A check that 150 canary users prove no more than what their platform's ledger says."""

    def check(folder: Path) -> None:
        found = audit_users(
            generate_marketplace(_SMALL, 0).marketplace,
            SimulationOptions(model=NcfConfig(dim=4), rounds=4, **options),
            folder / "attacked",
            seed=1,
            num_canaries=_CANARIES,
        )
        accounted = found.epsilon_accounted
        assert accounted is not None
        assert found.epsilon_lower <= accounted, (
            f"epsilon {accounted:.2f} is accounted and {found.epsilon_lower:.2f} proved: "
            f"{found.num_correct} of {found.num_guesses} guesses are right"
        )

    return check


on_sums = attack(plan="pairs", epsilon=1.0)
on_rounds = attack(plan="ncf", epsilon=1.0, clipping_norm=0.03)
on_charges = attack(plan="ncf", epsilon=8.0)
