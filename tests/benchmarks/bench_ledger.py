"""What the ledger costs, printed; no time is checked. `make benchmark` runs it."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from common.messages import TrainRequest
from common.models.ncf import NcfConfig
from common.privacy.account import Budget, Entry, Price, Spend, reserve_body
from common.privacy.accounting import epsilon_spent
from common.privacy.ledger import LEDGER_FILE, Ledger, _entry_after, _insert
from common.privacy.mechanisms import SampledGaussian

if TYPE_CHECKING:
    from pathlib import Path

BUDGET = Budget(epsilon=8.0, delta=1e-5)
MECHANISM = SampledGaussian(noise_multiplier=1000.0, sampling_rate=1.0, steps=1)
NUM_ROUNDS = 50_000
REQUEST = TrainRequest(
    run_id="run",
    platform="north",
    catalogue_digest="c" * 64,
    trust="local",
    num_platforms=5,
    noise_multiplier=MECHANISM.noise_multiplier,
    round_number=1,
    model=NcfConfig(),
    clipping_norm=0.25,
    sampling_rate=MECHANISM.sampling_rate,
    local_steps=MECHANISM.steps,
    denominator=3000.0,
    learning_rate=1.0,
    user_steps=5,
    dropout=0.5,
)


def spend(number: int) -> Spend:
    return Spend(
        request_id=f"run/{number}/north",
        request_digest="d" * 64,
        description=f"run run, round {number}",
        mechanism=MECHANISM,
        mechanism_if_broken=MECHANISM,
        request=asdict(REQUEST),
        arrays_digest="b" * 64,
    )


def test_overhead_of_a_round(tmp_path: Path) -> None:
    """Open, reserve and record, as a round does: three hundred of them."""
    seconds = []
    for number in range(300):
        started = time.perf_counter()
        with closing(Ledger(tmp_path / LEDGER_FILE)) as ledger:
            assert ledger.reserve(spend(number), BUDGET)
            ledger.commit(spend(number).request_id, "a" * 64)
        seconds.append(time.perf_counter() - started)
    worst = sorted(seconds)[-3]
    print(f"\na round: median {1e3 * statistics.median(seconds):.1f} ms, 99 % {1e3 * worst:.1f} ms")


def test_a_ledger_of_100_000_entries(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / LEDGER_FILE)) as ledger:
        ledger.grant(BUDGET, "the benchmark")
        last = ledger.entries()[-1]
        entries: list[Entry] = []
        price = Price(before=0.0, after=0.0, accountant="rdp")
        for number in range(NUM_ROUNDS):
            request_id, body = spend(number).request_id, reserve_body(spend(number), price)
            entries.append(_entry_after(last, "reserve", request_id, body, last.time))
            entries.append(
                _entry_after(entries[-1], "commit", request_id, {"sha256": "a" * 64}, last.time)
            )
            last = entries[-1]
        with ledger._writing():
            _insert(ledger._db, entries)
        ledger.account()
        ledger._write_head()
    started = time.perf_counter()
    with closing(Ledger(tmp_path / LEDGER_FILE)) as ledger:
        opened = time.perf_counter()
        epsilon = ledger.account().epsilon(BUDGET.delta)
        priced = time.perf_counter()
    print(
        f"\n{len(entries) + 1:,} entries: opened and checked in {opened - started:.2f} s, "
        f"priced in {priced - opened:.2f} s"
    )
    assert epsilon == epsilon_spent([MECHANISM] * NUM_ROUNDS, BUDGET.delta)
