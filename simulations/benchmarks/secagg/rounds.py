"""One measured round: the coordinator in this process, the platforms in another."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import Message

from common.errors import RunFailed
from common.keys import new_key_pair
from common.messages import TRAIN, TrainRequest
from common.models.partition import flatten, shared_shapes, unflatten
from common.wire import encode
from server.aggregation import StreamingSum
from server.config import (
    CatalogueSection,
    FederationConfig,
    FederationSection,
    MechanismSection,
    NetworkSection,
    SecaggSection,
    StateSection,
)
from server.exchange import Exchange
from server.journal import Journal
from server.releases import release_bytes
from server.secure_sum import SecureSums
from server.standing import Standing
from simulations.benchmarks.engine import peak_mebibytes
from simulations.benchmarks.secagg import flower
from simulations.benchmarks.secagg.costs import RoundCost
from simulations.benchmarks.secagg.grid import (
    CountingGrid,
    Found,
    from_bytes,
    platform_name,
    to_bytes,
)
from simulations.benchmarks.secagg.platforms import (
    CLIPPING_NORM,
    DENOMINATOR,
    KEYS,
    NOISE_MULTIPLIER,
    PlainPlatforms,
    SecurePlatforms,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.connection import Connection

    from common.models.partition import Arrays
    from simulations.benchmarks.secagg.costs import SecaggCase, Subject
    from simulations.benchmarks.secagg.grid import Spent
    from simulations.benchmarks.secagg.platforms import Platforms

_MOST_USERS = 10_000  # of the largest platform: 32 bits are enough for 100 platforms


def run_round(case: SecaggCase, subject: Subject, folder: Path) -> RoundCost:
    """One round: this process is the coordinator's, another the platforms'.

    Raises:
        RunFailed: if the sum is wrong.
    """
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    if subject.startswith("secagg"):
        _write_keys(case, folder / KEYS)
    context = get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=serve, args=(other, case, subject, str(folder)))
    process.start()
    other.close()
    try:
        drops = case.drops if subject.endswith("-drops") else 0
        # Spread out, so that neighbours of the same platform are among them.
        dropped = frozenset(1 + place * case.platforms // drops for place in range(drops))
        is_flower = subject.startswith("flower")
        stage = "collect_masked_vectors" if is_flower else "mask"
        grid = CountingGrid(pipe, case.platforms, dropped, stage)
        # All round parameters are there before the clock starts, as after any other round.
        shapes = shared_shapes(case.model, case.num_items)
        size = sum(int(np.prod(shape)) for shape in shapes.values())
        shared = unflatten(np.linspace(-1.0, 1.0, size, dtype=np.float32), shapes)
        if is_flower:
            found, spent = flower.coordinate(case, subject, grid, shared)
        else:
            found, spent = _coordinate(case, subject, folder, grid, shared)
        server_peak = peak_mebibytes()
        pipe.send((found.survivors, ""))
        platform_peak: float = pipe.recv()
        expected = np.frombuffer(pipe.recv_bytes(), dtype=np.float64)
        _check(case, subject, found, expected)
    finally:
        pipe.close()
        process.kill()
        process.join()
    return RoundCost(
        case=case,
        subject=subject,
        stages=grid.costs(),
        server_seconds=spent.seconds,
        server_cpu_seconds=spent.cpu_seconds,
        messages=grid.messages,
        lattice_bits=found.lattice_bits,
        platform_mebibytes=platform_peak,
        server_mebibytes=server_peak,
    )


def _coordinate(
    case: SecaggCase, subject: Subject, folder: Path, grid: CountingGrid, shared: Arrays
) -> tuple[Found, Spent]:
    config, requests = _config(case, subject, folder), _requests(case, subject, folder)
    shapes = {name: array.shape for name, array in shared.items()}
    journal = Journal(config.run_folder)
    exchange = Exchange(config, grid, Standing(journal, 0))
    before, lattice_bits, tolerance = grid.own_time(), 32, 1e-9
    messages = {
        name: Message(encode(request, shared), node, TRAIN, group_id="1")
        for node, (name, request) in enumerate(requests.items(), start=1)
    }
    if subject == "plain":
        releases, names = StreamingSum(), []
        for name, release, outcome in exchange.ask(
            messages, number=1, wanted="released", max_bytes=release_bytes(shapes)
        ):
            if release is None:
                raise RunFailed(f"benchmark: {name}: {outcome}.")
            releases.add(release)
            names.append(name)
        mean = releases.mean()
        spent = grid.own_time().since(before)
        numbers = flatten(mean).astype(np.float64)
    else:
        request = next(iter(requests.values()))
        assert request.secagg is not None
        size = sum(array.size for array in shared.values())
        summed = SecureSums(config, exchange, journal).collect(
            messages, requests, shared, size=size, report=lambda *_: None
        )
        scale = -request.learning_rate / request.denominator / len(summed.platforms)
        unflatten((summed.numbers * scale).astype(np.float32), shapes)
        spent = grid.own_time().since(before)
        numbers, names = summed.numbers, list(summed.platforms)
        lattice_bits, tolerance = request.secagg.lattice.bits, 0.0
    journal.close()
    nodes = {platform_name(node): node for node in grid.get_node_ids()}
    found = Found(
        numbers=numbers,
        survivors=[nodes[name] for name in names],
        tolerance=tolerance,
        lattice_bits=lattice_bits,
    )
    return found, spent


def _requests(case: SecaggCase, subject: Subject, folder: Path) -> Mapping[str, TrainRequest]:
    config = _config(case, subject, folder)
    names, mechanism = config.federation.platforms, config.mechanism
    terms = None
    if config.is_summed:
        terms = config.secagg.terms(
            names,
            noise_std=NOISE_MULTIPLIER * CLIPPING_NORM,
            largest_sum=_MOST_USERS * CLIPPING_NORM,
        )
    return {
        name: TrainRequest(
            run_id=config.federation.run_id,
            round_number=1,
            platform=name,
            catalogue_digest="0" * 64,
            model=config.model,
            trust=mechanism.trust,
            num_platforms=len(names),
            noise_multiplier=NOISE_MULTIPLIER,
            secagg=terms,
            clipping_norm=mechanism.clipping_norm,
            sampling_rate=1.0,
            local_steps=1,
            denominator=DENOMINATOR,
            learning_rate=1.0,
            user_steps=1,
            dropout=0.0,
        )
        for name in names
    }


def _config(case: SecaggCase, subject: Subject, folder: Path) -> FederationConfig:
    unused = folder / "unused"
    return FederationConfig(
        federation=FederationSection(
            run_id="benchmark",
            rounds=1,
            platforms=tuple(platform_name(node) for node in range(1, case.platforms + 1)),
        ),
        catalogue=CatalogueSection(agree=True),
        mechanism=MechanismSection(
            noise_multiplier=NOISE_MULTIPLIER,
            clipping_norm=CLIPPING_NORM,
            trust="local" if subject == "plain" else "secagg",
        ),
        model=case.model,
        state=StateSection(folder=folder / "server"),
        network=NetworkSection(
            address="localhost:1",
            root_certificate=unused,
            certificate=unused,
            private_key=unused,
            platform_keys=folder / KEYS,
        ),
        secagg=SecaggSection(
            max_dropped=case.drops,
            max_colluding=case.colluding,
            neighbours=case.sparse_neighbours if "sparse" in subject else None,
        ),
    )


def _write_keys(case: SecaggCase, folder: Path) -> None:
    folder.mkdir()
    for node in range(1, case.platforms + 1):
        name = platform_name(node)
        private, public = new_key_pair(name)
        (folder / f"{name}.key").write_bytes(private)
        (folder / f"{name}.pub").write_bytes(public)


def _check(case: SecaggCase, subject: Subject, found: Found, expected: np.ndarray) -> None:
    drops = case.drops if subject.endswith("-drops") else 0
    off = float(np.abs(found.numbers - expected).max())
    if len(found.survivors) != case.platforms - drops or not off <= found.tolerance:
        msg = (
            f"benchmark: {subject}: the sum of {len(found.survivors)} platforms is off by "
            f"{off:g}, expected at most {found.tolerance:g} of {case.platforms - drops}."
        )
        raise RunFailed(msg)


def serve(pipe: Connection, case: SecaggCase, subject: Subject, folder: str) -> None:
    """Answer messages until the pipe is closed: the body of the platforms' process.

    A message is (node, stage) and then its bytes; the answer is the time that it took, on the clock
    and of the processor, and then its bytes. Nodes instead of one node ask for the process's peak
    memory and for their sum. A closed pipe ends it.
    """
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    platforms: Platforms
    if subject.startswith("flower"):
        platforms = flower.FlowerPlatforms(
            case,
            Path(folder),
            noise_std=NOISE_MULTIPLIER * CLIPPING_NORM,
            scale=-1.0 / DENOMINATOR,
        )
    elif subject == "plain":
        platforms = PlainPlatforms(case, Path(folder))
    else:
        platforms = SecurePlatforms(case, Path(folder))
    with suppress(EOFError):
        while True:
            node, stage = pipe.recv()
            if isinstance(node, list):
                pipe.send(peak_mebibytes())
                pipe.send_bytes(platforms.expected(node).tobytes())
                continue
            record = from_bytes(pipe.recv_bytes())
            platforms.prepare(node, stage)
            started, worked = time.perf_counter(), time.process_time()
            reply = platforms.answer(node, stage, record)
            spent = time.perf_counter() - started, time.process_time() - worked
            platforms.keep(node, stage)
            content = to_bytes(reply)
            del record, reply
            pipe.send(spent)
            pipe.send_bytes(content)
            del content
