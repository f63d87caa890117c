"""What the tests of the report audit: real ledgers of small platforms, and made-up findings."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import client.config as platform_config
from common.config import dump_config
from common.messages import SumRequest, TrainRequest
from common.models.ncf import NcfConfig
from common.privacy.account import Spend
from common.privacy.ledger import LEDGER_FILE, Ledger
from simulations.attacks.membership.result import AttackResult, Audit, Membership, Roc
from simulations.audit.evidence import gather
from simulations.audit.findings import Composition, Finding, Prices, Verification
from simulations.audit.report.compose import state_audit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from common.messages import ReleaseRequest
    from common.models.partition import SumQuantity
    from simulations.audit.evidence import Evidence
    from simulations.audit.report.statement import AuditStatement

DIGEST = "ab" * 32
NOW = "2026-03-01T12:00:00+00:00"


def sum_request(
    platform: str, quantity: SumQuantity = "item-counts", noise: float = 2.0, run: str = "run-1"
) -> SumRequest:
    return SumRequest(
        run_id=run,
        platform=platform,
        catalogue_digest=DIGEST,
        trust="none" if noise == 0 else "local",
        num_platforms=2,
        noise_multiplier=noise,
        quantity=quantity,
    )


def round_request(
    platform: str, number: int, noise: float = 1.5, run: str = "run-1", rate: float = 1.0
) -> TrainRequest:
    return TrainRequest(
        run_id=run,
        platform=platform,
        catalogue_digest=DIGEST,
        trust="local",
        num_platforms=2,
        noise_multiplier=noise,
        round_number=number,
        model=NcfConfig(),
        clipping_norm=0.25,
        sampling_rate=rate,
        local_steps=1,
        denominator=400.0 * rate,
        learning_rate=1.0,
        user_steps=2,
        dropout=0.5,
    )


class Clock:
    """A day for each look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> str:
        self.now += timedelta(days=1)
        return self.now.isoformat()


def write_platform(
    home: Path,
    name: str = "north",
    requests: Sequence[ReleaseRequest] | None = None,
    *,
    epsilon: float = 8.0,
    seed: int | None = None,
    period_days: int | None = None,
    clock: Clock | None = None,
) -> Path:
    """A platform.toml and a ledger with a release for each request; the file of the former."""
    if requests is None:
        requests = [sum_request(name), sum_request(name, "item-pairs")]
    state = home / "state"
    state.mkdir(parents=True, exist_ok=True)
    config = platform_config.PlatformConfig(
        platform=platform_config.PlatformSection(name=name, population=400),
        data=platform_config.DataSection(source=Path("orders.csv")),
        catalogue=platform_config.CatalogueSection(file=Path("catalogue.csv")),
        privacy=platform_config.PrivacySection(
            epsilon=epsilon,
            trust="none" if math.isinf(epsilon) else "local",
            period_days=period_days,
        ),
        state=platform_config.StateSection(folder=state.absolute()),
        simulation=None if seed is None else platform_config.SimulationSection(seed=seed),
    )
    (home / "platform.toml").write_text(dump_config(config))
    with closing(Ledger(state / LEDGER_FILE, clock=clock or Clock())) as ledger:
        for request in requests:
            reserve(ledger, request, config.privacy)
    return home / "platform.toml"


def reserve(
    ledger: Ledger, request: ReleaseRequest, privacy: platform_config.PrivacySection
) -> None:
    spend = Spend(
        request_id=request.request_id,
        request_digest=request.digest(DIGEST),
        description=f"run {request.run_id}, {request.what}",
        mechanism=request.mechanism(),
        mechanism_if_broken=request.mechanism_if_broken(),
        request=asdict(request),
        arrays_digest=DIGEST,
    )
    ledger.reserve(spend, privacy.budget())
    ledger.commit(request.request_id, DIGEST)


def verification(
    *failed: str, unknown: Sequence[str] = (), names: Sequence[str] = ()
) -> Verification:
    """Checks of which those named came out that way."""
    findings = [Finding(check="chain", subject="north", verdict="ok", detail="It is whole.")]
    findings += [
        Finding(check=name, subject="north", verdict="failed", detail=f"{name} is wrong.")
        for name in failed
    ]
    findings += [
        Finding(check=name, subject="north", verdict="unknown", detail=f"{name} is not there.")
        for name in unknown
    ]
    prices = Prices(
        delta=1e-5,
        recorded=2.8123,
        product=2.8124,
        opacus_prv=2.8125,
        opacus_rdp=3.1126,
        dp_accounting=2.8127,
        dp_accounting_least=2.8111,
        if_secagg_broken=2.8128,
    )
    return Verification(
        findings=tuple(findings),
        prices=dict.fromkeys(names or ("north",), prices),
        compositions=(
            Composition(num_platforms=1, platforms=("north",), epsilon=2.8131, delta=1e-5),
            Composition(num_platforms=2, platforms=("north", "south"), epsilon=4.2132, delta=1e-5),
        ),
        heads={},
        versions={"opacus": "1.6.0", "dp-accounting": "0.6.0"},
    )


def attack_result(
    lower: float = 1.25,
    accounted: float | None = 2.82,
    gaussian: float | None = 1.43,
    **changes: Any,  # noqa: ANN401  (any field of any type)
) -> AttackResult:
    roc = Roc(
        auc=0.7312,
        tpr_at_fpr={"0.001": 0.0123, "0.01": 0.05, "0.1": 0.3},
        curve=((0.0, 0.0), (0.001, 0.0123), (0.01, 0.05), (0.1, 0.3), (1.0, 1.0)),
    )
    fields: dict[str, Any] = {
        "command": "crossrec audit attack --seed 3",
        "configuration": {"epsilon": 8.0, "trust": "local"},
        "mode": "quick",
        "seed": 3,
        "epsilon": accounted,
        "delta": 1e-5,
        "audits": (
            Audit(
                unit="user",
                adversary="releases",
                num_canaries=1021,
                num_in=500,
                num_guesses=333,
                num_correct=222,
                epsilon_lower=lower,
                epsilon_lower_gaussian=gaussian,
                confidence=0.95,
                epsilon_estimate=1.75,
                epsilon_accounted=accounted,
                delta=1e-5,
                accounted_as="the ledger's own number",
                roc=roc,
                detail="Canaries own one rare item each.",
            ),
        ),
        "memberships": (
            Membership(
                target="canary users",
                adversary="releases",
                num_runs=16,
                num_records=512,
                roc=roc,
            ),
        ),
        "versions": {"crossrec": "0.1.0"},
        "wall_seconds": 12.0,
    }
    return AttackResult(**(fields | changes))


def state(
    evidence: Evidence | Sequence[Path],
    found: Verification | None = None,
    attack: AttackResult | None = None,
    tables: Mapping[Path, pd.DataFrame] | None = None,
) -> AuditStatement:
    """The statement on evidence, or on what is gathered from ledgers."""
    from simulations.audit.evidence import Evidence as Given

    return state_audit(
        evidence if isinstance(evidence, Given) else gather(evidence, []),
        found or verification(),
        attack,
        tables=tables or {},
        made_at=NOW,
        versions={"crossrec": "0.1.0"},
        commands=["crossrec audit report --ledger north/platform.toml --out audit"],
        show=lambda path: path.name,
    )
