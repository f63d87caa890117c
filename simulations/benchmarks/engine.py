"""What privacy costs in one training step: plain SGD, Opacus and the fast engine side by side.

Every measurement runs in a process of its own, so that peak memory is the engine's own, and all
engines of one repeat run one after the other, so that a ratio compares neighbours in time. A step
is what the trainer does with given user vectors: gradients of the shared parameters, clipping,
sum, noise from the operating system's generator, update. A plain step is backward and SGD.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix

from client.trainer import TrainingPlan, take_noisy_step_, user_batch
from common.models.losses import user_losses
from common.models.ncf import NcfConfig, initialise
from common.privacy.clipping import zero_sums
from common.privacy.engines import ClippingEngine, clipping_engine
from common.privacy.randomness import SystemRandom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from common.models.ncf import ModelKind

Subject = Literal["plain"] | ClippingEngine
"""What is compared: training without privacy, or one of the engines."""

_DIM = 32
_NEGATIVES_PER_POSITIVE = 4
_MIN_STEPS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineCase:
    """One workload."""

    model: ModelKind
    """``gmf`` with the full softmax; the others with BCE and four negatives per positive."""
    num_items: int
    """Items in the catalogue."""
    threads: int
    """Threads that torch may use."""
    num_users: int = 256
    """Users in the step."""
    interactions: int = 40
    """Interactions per user; with negatives, a fifth of them are her own."""
    device: str = "cpu"
    """Where the model is."""

    def config(self) -> NcfConfig:
        """The model and its loss."""
        if self.model == "gmf":
            return NcfConfig(kind="gmf", dim=_DIM, loss="softmax")
        negatives = self.interactions - self.interactions // (1 + _NEGATIVES_PER_POSITIVE)
        return NcfConfig(kind=self.model, dim=_DIM, loss="bce", num_negatives=negatives)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineTiming:
    """One measurement, or the medians of several."""

    case: EngineCase
    """The workload."""
    subject: Subject
    """What ran."""
    step_seconds: float
    """Median time of a step."""
    interactions_per_second: float
    """Interactions of all users in a step, over its time."""
    peak_mebibytes: float
    """Peak resident memory of the process, libraries included."""
    ratio_to_plain: float = 1.0
    """Speed over that of ``plain`` in the same repeat."""
    memory_ratio_to_plain: float = 1.0
    """Peak memory over that of ``plain`` in the same repeat."""

    def to_dict(self) -> dict[str, object]:
        """A plain form for JSON."""
        return asdict(self)


def measure(case: EngineCase, subject: Subject, seconds: float) -> EngineTiming:
    """Time steps for about ``seconds`` (at least two), in a fresh process."""
    context = get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_measure_here, case, subject, seconds).result()


def compare(
    case: EngineCase, engines: Iterable[ClippingEngine], *, repeats: int, seconds: float
) -> list[EngineTiming]:
    """Measure ``plain`` and ``engines`` in each repeat; return each one's medians, plain first.

    Ratios are medians of the ratios within each repeat.
    """
    subjects: tuple[Subject, ...] = ("plain", *engines)
    rounds = [
        {subject: measure(case, subject, seconds) for subject in subjects} for _ in range(repeats)
    ]
    return [
        _medians([(found[subject], found["plain"]) for found in rounds]) for subject in subjects
    ]


def _medians(pairs: list[tuple[EngineTiming, EngineTiming]]) -> EngineTiming:
    timings = [timing for timing, _ in pairs]
    return replace(
        timings[0],
        step_seconds=statistics.median(t.step_seconds for t in timings),
        interactions_per_second=statistics.median(t.interactions_per_second for t in timings),
        peak_mebibytes=statistics.median(t.peak_mebibytes for t in timings),
        ratio_to_plain=statistics.median(p.step_seconds / t.step_seconds for t, p in pairs),
        memory_ratio_to_plain=statistics.median(
            t.peak_mebibytes / p.peak_mebibytes for t, p in pairs
        ),
    )


def _measure_here(case: EngineCase, subject: Subject, seconds: float) -> EngineTiming:
    torch.set_num_threads(case.threads)
    step = build_step(case, subject)
    step()
    times: list[float] = []
    while len(times) < _MIN_STEPS or sum(times) < seconds:
        started = time.perf_counter()
        step()
        if case.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    median = statistics.median(times)
    return EngineTiming(
        case=case,
        subject=subject,
        step_seconds=median,
        interactions_per_second=case.num_users * case.interactions / median,
        peak_mebibytes=peak_mebibytes(),
    )


def build_step(case: EngineCase, subject: Subject) -> Callable[[], None]:
    """A function that trains one step on synthetic users; all subjects see the same ones."""
    config, rng = case.config(), np.random.default_rng(0)
    model = initialise(config, case.num_items, torch.Generator().manual_seed(0)).to(case.device)
    positives = case.interactions - (0 if config.loss == "softmax" else config.num_negatives)
    items = [
        np.sort(rng.choice(case.num_items, positives, replace=False)) for _ in range(case.num_users)
    ]
    matrix = csr_matrix(
        (
            np.ones(case.num_users * positives, dtype=np.float32),
            np.concatenate(items),
            np.arange(case.num_users + 1) * positives,
        ),
        shape=(case.num_users, case.num_items),
    )
    batch = user_batch(config, matrix, np.arange(case.num_users), rng).to(case.device)
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(case.num_users, config.user_dim, generator=generator) * 0.1
    vectors = vectors.to(case.device)
    plan = TrainingPlan(
        clipping_norm=0.25,
        noise_std=0.25,
        sampling_rate=1.0,
        local_steps=1,
        denominator=float(case.num_users),
        learning_rate=1e-3,
        user_steps=0,
        dropout=0.0,
    )
    if subject == "plain":

        def plain_step() -> None:
            model.zero_grad()
            user_losses(model, vectors, batch).sum().backward()
            with torch.no_grad():  # by hand: loading torch.optim takes 70 MiB of its own
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=plan.learning_rate / plan.denominator)

        return plain_step
    add_clipped_gradients_, source = clipping_engine(subject), SystemRandom()
    sums = zero_sums(model)

    def private_step() -> None:
        add_clipped_gradients_(sums, model, vectors, batch, plan.clipping_norm)
        take_noisy_step_(model, sums, plan, source)

    return private_step


def peak_mebibytes() -> float:
    """Peak resident memory of this process alone; `getrusage` would count its parent's too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1024
    raise OSError("/proc/self/status holds no VmHWM")
