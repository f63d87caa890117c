"""Laws of a whole platform: what leaves it has the noise that its ledger charges, and is charged.

Each check lets real platforms answer real requests in a folder of its own, and looks only at what
leaves, at the ledger's file and at what is public. It raises an AssertionError where the law is
broken; a platform that declines what it should answer is another error, so that a planted bug that
merely crashes is not taken for one that was caught.

Everything is seeded but where it says so.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import client.platform
from client.platform import Platform
from common.messages import SumRequest, TrainRequest
from common.models.pairs import num_pairs
from common.models.partition import LATTICE, shared_shapes, unflatten
from common.privacy.randomness import SeededRandom
from common.storage import pack_arrays
from tests.laws.training import check_gaussian, check_uncorrelated
from tests.terms import secagg_terms
from tests.unit.client.homes import (
    MODEL,
    NUM_ITEMS,
    NUM_LISTED,
    NUM_USERS,
    asked_arrays,
    durable_entries,
    move_in,
    shared_arrays,
    sum_request,
    train_request,
    true_sum,
)
from tests.unit.secagg_homes import Coordinator, settle

if TYPE_CHECKING:
    from pathlib import Path

    from client.config import PlatformConfig
    from common.messages import Reply
    from common.models.partition import Arrays, SumQuantity
    from tests.unit.secagg_homes import Market

QUANTITIES: tuple[SumQuantity, ...] = ("item-counts", "item-pairs")
PLENTY = 1e9
"""A budget that these checks do not reach."""
WIDE = replace(MODEL, dim=32)
"""Many numbers in few releases."""
SILENT: dict[str, Any] = {"trust": "none", "epsilon": math.inf, "min_noise_multiplier": 0.0}


def home(folder: Path, name: str, **changes: Any) -> PlatformConfig:  # noqa: ANN401 - any field
    (folder / name).mkdir(parents=True)
    return move_in(folder / name, **changes)


def taken(answer: tuple[Reply, Arrays | None]) -> Arrays:
    reply, arrays = answer
    if arrays is None:
        raise RuntimeError(f"the platform does not answer: {reply.reason}")
    return arrays


def round_of(config: PlatformConfig, **changes: Any) -> Arrays:  # noqa: ANN401 - any field
    request = train_request(config, **changes)
    return taken(Platform(config).train(request, shared_arrays(request.model)))


def sum_of(
    config: PlatformConfig,
    quantity: SumQuantity,
    asked: Arrays | None = None,
    **changes: Any,  # noqa: ANN401 - any field
) -> Arrays:
    request = sum_request(config, quantity=quantity, **changes)
    return taken(Platform(config).sum_up(request, asked or asked_arrays(quantity)))


def charged(config: PlatformConfig, request_id: str) -> dict[str, Any]:
    """What the ledger's file says of a release."""
    for kind, found, body in durable_entries(config):
        if (kind, found) == ("reserve", request_id):
            return body
    raise AssertionError(f"{request_id} was never charged")


# --- Noise --------------------------------------------------------------------------------------


def check_rounds_have_the_noise_that_is_charged(folder: Path, *, repeats: int = 6) -> None:
    """On every array of a round and on every listed row, by the ledger's noise multiplier."""
    noisy, silent = home(folder, "noisy", epsilon=PLENTY), home(folder, "silent", **SILENT)
    draws: dict[str, list[np.ndarray]] = {}
    for number in range(repeats):
        asked: dict[str, Any] = {"run_id": f"run-{number}", "model": WIDE}
        found = round_of(noisy, noise_multiplier=20.0, **asked)
        exact = round_of(silent, noise_multiplier=0.0, **asked)
        for name, array in found.items():
            noise = (array - exact[name])[:NUM_LISTED]
            assert (noise != 0).all(), f"a row of {name} without noise"
            draws.setdefault(name, []).append(noise)
    request = train_request(noisy, run_id="run-0")
    multiplier = charged(noisy, request.request_id)["mechanism"]["noise_multiplier"]
    std = multiplier * request.clipping_norm * request.learning_rate / request.denominator
    _check_each_and_all(draws, std)


def check_sums_have_the_noise_that_is_charged(folder: Path, *, repeats: int = 12) -> None:
    """On every number of both sums; what is summed is recomputed from the purchases."""
    config = home(folder, "noisy", epsilon=PLENTY)
    for quantity in QUANTITIES:
        exact, draws = true_sum(config, quantity), []
        for number in range(repeats):
            found = sum_of(config, quantity, run_id=f"run-{number}", noise_multiplier=200.0)
            draws.append(found["sum"] - exact)
        request = sum_request(config, run_id="run-0", quantity=quantity)
        spent = charged(config, request.request_id)
        _check_each_and_all({quantity: draws}, spent["mechanism"]["noise_multiplier"])


def check_a_platforms_share_of_noise_is_on_every_row(folder: Path, *, repeats: int = 6) -> None:
    """Of five platforms in a secure sum one may collude: each adds 1/sqrt(5 - 1) of the noise.

    On rows that the platform does not list as well: others' users hide in it.
    """
    summed = home(folder, "summed", trust="secagg-simulated", epsilon=PLENTY)
    silent = home(folder, "silent", **SILENT)
    terms = secagg_terms(5, noise_std=20.0 * 0.25)
    draws: dict[str, list[np.ndarray]] = {}
    for number in range(repeats):
        asked: dict[str, Any] = {"run_id": f"run-{number}", "model": WIDE}
        in_sum = {"noise_multiplier": 20.0, "num_platforms": 5, "secagg": terms}
        found = round_of(summed, **asked, **in_sum)[LATTICE]
        sums = unflatten(terms.lattice.values(found), shared_shapes(WIDE, NUM_ITEMS))
        exact = round_of(silent, noise_multiplier=0.0, **asked)
        for name, array in sums.items():
            # The step's length is 1, and NUM_USERS what an update is divided by.
            noise = array + exact[name].astype(float) * NUM_USERS
            assert (np.abs(noise) > terms.lattice.step).all(), f"a row of {name} without noise"
            draws.setdefault(name, []).append(noise)
    spent = charged(summed, "run-0/1/north")
    _check_each_and_all(draws, spent["mechanism"]["noise_multiplier"] * 0.25 / math.sqrt(5 - 1))


def check_secure_sums_have_the_noise_that_is_charged(folder: Path, *, repeats: int = 8) -> None:
    """Of five platforms one may drop out and one collude: any three add all that is charged."""
    market = settle(folder)
    three, draws = market.names[1:4], []
    exact, places = np.zeros(num_pairs(NUM_ITEMS)), np.triu_indices(NUM_ITEMS, 1)
    for user in range(8, 32):  # theirs, as settle has it: all pairs of five items for everybody
        owned = np.zeros(NUM_ITEMS)
        owned[np.random.default_rng(user).choice(NUM_LISTED, size=5, replace=False)] = 1
        exact += np.outer(owned, owned)[places] / math.sqrt(10)
    beside: Arrays = {
        "items": np.arange(NUM_ITEMS),
        "weights": np.ones(NUM_ITEMS, dtype=np.float32),
    }
    for number in range(repeats):
        counts = market.counts_request(run_id=f"run-{number}")
        request = replace(counts, quantity="item-pairs")
        Coordinator(market, request, beside).advertise(three)
        assert request.secagg is not None
        draws.append(request.secagg.lattice.values(market.plain_sum(request, three)) - exact)
    spent = charged(market.configs[three[0]], request.id_for(three[0]))
    check_gaussian(np.array(draws), spent["mechanism"]["noise_multiplier"])


def check_rounding_comes_after_the_noise() -> None:
    """Under the same noise two sums that differ by .3 steps round apart at .3 of the places.

    What is rounded before differs nowhere or everywhere: rounding then moves a sum of d numbers by
    up to sqrt(d) steps beyond a user's part, which nothing pays for.
    """
    terms, size = secagg_terms(5), 20_000
    request = SumRequest(
        run_id="spring",
        platform="north",
        catalogue_digest="",
        trust="secagg-simulated",
        num_platforms=5,
        noise_multiplier=1.0,
        secagg=terms,
        quantity="item-counts",
    )
    released = [
        client.platform._on_lattice(
            np.full(size, start * terms.lattice.step), request, SeededRandom(4)
        )
        for start in (0.3, 0.6)
    ]
    first, second = (terms.lattice.values(release[LATTICE]) for release in released)
    moved = (second - first).mean() / terms.lattice.step
    assert abs(moved - 0.3) < 5 * math.sqrt(0.3 * 0.7 / size), f"rounding moves a sum by {moved}"


def _check_each_and_all(draws: dict[str, list[np.ndarray]], std: float) -> None:
    for arrays in draws.values():
        check_gaussian(np.array(arrays), std)
    check_gaussian(np.concatenate([np.ravel(a) for arrays in draws.values() for a in arrays]), std)


def check_no_two_releases_share_noise(folder: Path) -> None:
    """Rounds, runs, platforms and quantities: neither the same noise twice, nor a part of it."""
    names, runs, numbers = ("east", "north"), ("autumn", "spring"), (1, 2)
    for name in ("noisy", "silent"):
        (folder / name).mkdir()
    noisy = settle(folder / "noisy", trust="local", epsilon=PLENTY)
    silent = settle(folder / "silent", **SILENT)
    grids: dict[str, list[np.ndarray]] = {"rounds": [], "sums": []}
    for name, run in product(names, runs):
        for number in numbers:
            request = noisy.round_request(
                run_id=run, round_number=number, platform=name, model=WIDE
            )
            grids["rounds"].append(_noise(request, 20.0, noisy, silent))
        for quantity in QUANTITIES:
            sums = replace(noisy.counts_request(), run_id=run, quantity=quantity, platform=name)
            grids["sums"].append(_noise(sums, 1e4, noisy, silent))
    for what, found in grids.items():
        grid = np.array(found).reshape(len(names), len(runs), 2, -1)
        for axis, which in enumerate(("platforms", "runs", what)):
            turned = np.moveaxis(grid, axis, 0)
            gap = np.abs(turned[1:] - turned[:-1]).max() / np.abs(grid).max()
            assert gap > 1e-3, f"{which} have the same noise"
            try:
                check_uncorrelated(turned[1:], turned[:-1])
            except AssertionError as error:
                raise AssertionError(f"{which} share noise: {error}") from error


def _noise(
    request: SumRequest | TrainRequest, multiplier: float, noisy: Market, silent: Market
) -> np.ndarray:
    in_clear = replace(request, trust="local", secagg=None, noise_multiplier=multiplier)
    without = replace(in_clear, trust="none", noise_multiplier=0.0)
    noise: np.ndarray = _numbers(noisy, in_clear) - _numbers(silent, without)
    return noise


def _numbers(market: Market, request: SumRequest | TrainRequest) -> np.ndarray:
    """Of counts ten, and of the pairs of five items as many."""
    platform = market.platform(request.platform)
    if isinstance(request, TrainRequest):
        arrays = taken(platform.train(request, shared_arrays(request.model)))
    elif request.quantity == "item-counts":
        arrays = taken(platform.sum_up(request, {"items": np.arange(10)}))
    else:
        beside: Arrays = {
            "items": np.arange(5),
            "weights": np.linspace(0.5, 1.0, 5, dtype=np.float32),
        }
        arrays = taken(platform.sum_up(request, beside))
    return np.concatenate([np.ravel(array) for array in arrays.values()]).astype(float)


def check_streams_are_unrelated(folder: Path, *, size: int = 20_000) -> None:
    """What a simulated platform's noise is drawn from, by platform, run and release."""
    market = settle(folder)
    draws = [
        market.platform(name)._random_source(run, what).gaussian(size, 1.0).numpy()
        for name, run in product(("east", "north"), ("autumn", "spring"))
        for what in (1, 2, *QUANTITIES)
    ]
    for one, other in combinations(draws, 2):
        check_uncorrelated(one, other)


def check_deployed_noise_is_the_operating_systems(folder: Path) -> None:
    """Two equal deployments differ; the noise is all in the 32 bytes that the system gives.

    Not seeded: that is what it is about.
    """
    asked: list[int] = []

    def system(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    releases = []
    for number in range(4):
        config = home(folder, f"home-{number}", simulation=False, epsilon=PLENTY)
        with pytest.MonkeyPatch.context() as patch:
            if number >= 2:
                patch.setattr("common.privacy.randomness.os.urandom", system)
            found = round_of(config), sum_of(config, "item-counts", noise_multiplier=200.0)
        releases.append([pack_arrays(arrays, {}) for arrays in found])
    for first, second, third, fourth in zip(*releases, strict=True):
        assert first != second, "noise that can be predicted"
        assert third == fourth, "noise that does not come from the operating system"
    assert asked, "nothing was asked of the operating system"
    assert min(asked) >= 32, "few keys: they can be gone through"
