"""Mistakes and cheats in what is charged, recorded, kept and said."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import MetricRecord

import client.app
import client.platform
import client.secure_sum
import client.state
from client import supernode
from client.data import load_platform_data
from client.platform import Platform
from client.state import PlatformState
from common.messages import ReleaseRequest, is_round
from common.privacy import accounting
from common.privacy.account import Account, Spend
from common.privacy.ledger import Ledger
from common.storage import read_content, unpack_arrays
from common.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pytest
    from flwr.app import RecordDict

    from common.messages import Profile, Reply
    from common.models.partition import Arrays
    from common.privacy.account import Budget, Price

    Plant = Callable[[pytest.MonkeyPatch], None]
    Counts = Callable[[Spend, Spend], bool]


# --- What is charged ----------------------------------------------------------------------------


def composed_with(counts: Counts) -> Plant:
    """The price of a release looks at some of the earlier ones only."""
    right = Account.price

    def price(self: Account, spend: Spend, budget: Budget, now: str) -> Price:
        some = tuple(earlier for earlier in self.spends if counts(earlier, spend))
        return right(replace(self, spends=some), spend, budget, now)

    return lambda patch: patch.setattr(Account, "price", price)


def _run_of(spend: Spend) -> str:
    return spend.request_id.partition("/")[0]


each_by_itself = composed_with(lambda *_: False)
each_run_by_itself = composed_with(lambda one, other: _run_of(one) == _run_of(other))
rounds_only = composed_with(lambda one, _: is_round(one.request_id))


def equal_releases_count_once(patch: pytest.MonkeyPatch) -> None:
    """Composition as a set: rounds with the same noise are taken for one."""
    right = accounting._history

    def history(steps: Mapping[tuple[float, float], int]) -> Any:  # noqa: ANN401 - its own type
        return right(dict.fromkeys(steps, 1))

    patch.setattr(accounting, "_history", history)


def new_ledger_at_each_start(patch: pytest.MonkeyPatch) -> None:
    """An old file is put aside, as logs are rotated: its spends are forgotten."""

    def opened(path: Path, **options: Any) -> Ledger:  # noqa: ANN401
        aside = len(list(path.parent.glob("old-*")))
        for file in path.parent.glob(f"{path.name}*"):
            file.rename(file.with_name(f"old-{aside}-{file.name}"))
        return Ledger(path, **options)

    patch.setattr(client.state, "Ledger", opened)


def more_noise_written_down(patch: pytest.MonkeyPatch) -> None:
    def spend(**fields: Any) -> Spend:  # noqa: ANN401
        for name in ("mechanism", "mechanism_if_broken"):
            mechanism = fields[name]
            more = 1.5 * mechanism.noise_multiplier
            fields[name] = replace(mechanism, noise_multiplier=more)
        return Spend(**fields)

    patch.setattr(client.platform, "Spend", spend)


def fewer_users_written_down(patch: pytest.MonkeyPatch) -> None:
    """A sampling rate of 1/100 is charged for rounds over everybody."""

    def spend(**fields: Any) -> Spend:  # noqa: ANN401
        for name in ("mechanism", "mechanism_if_broken"):
            fields[name] = replace(fields[name], sampling_rate=0.01)
        return Spend(**fields)

    patch.setattr(client.platform, "Spend", spend)


# --- In which order -----------------------------------------------------------------------------


def data_before_the_spend(patch: pytest.MonkeyPatch) -> None:
    """Data are loaded "in advance", and only then it is asked whether that is allowed."""
    right = Platform._release

    def release(self: Platform, *arguments: Any) -> Arrays:  # noqa: ANN401
        vars(client.platform)["load_platform_data"](self._config)
        return right(self, *arguments)

    patch.setattr(Platform, "_release", release)


def recorded_later(patch: pytest.MonkeyPatch) -> None:
    """The release leaves, and the ledger is told with the next one, if there is one."""
    waiting: dict[Path, tuple[str, str]] = {}
    right = Ledger.commit

    def commit(self: Ledger, request_id: str, sha256: str) -> None:
        if self.path in waiting:
            right(self, *waiting[self.path])
        waiting[self.path] = request_id, sha256

    patch.setattr(Ledger, "commit", commit)


# --- Once ---------------------------------------------------------------------------------------


def fresh_noise_when_asked_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PlatformState, "load_release", lambda *_: None)


def fresh_noise_and_nobody_looks(patch: pytest.MonkeyPatch) -> None:
    """The ledger would refuse a second release for one request: it is not told."""
    right = Ledger.commit

    def commit(self: Ledger, request_id: str, sha256: str) -> None:
        if request_id not in self.account().releases:
            right(self, request_id, sha256)

    fresh_noise_when_asked_again(patch)
    patch.setattr(Ledger, "commit", commit)


def requests_known_by_name_alone(patch: pytest.MonkeyPatch) -> None:
    """Another request under an old name is taken for the old one, and costs nothing."""

    def digest(self: ReleaseRequest, _: str) -> str:
        return hashlib.sha256(self.request_id.encode()).hexdigest()

    patch.setattr(ReleaseRequest, "digest", digest)


def files_are_believed(patch: pytest.MonkeyPatch) -> None:
    """Whatever lies where the release should be is sent."""

    def load(self: PlatformState, request_id: str) -> Arrays | None:
        if request_id not in self.ledger.account().releases:
            return None
        path = self._file("releases", request_id)
        arrays, _ = unpack_arrays(read_content(path), path)
        return arrays

    patch.setattr(PlatformState, "load_release", load)


def many_lists_of_survivors(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "confirm", lambda *_: None)


def masks_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client.secure_sum, "mask_", lambda *_: None)


# --- What is said -------------------------------------------------------------------------------


def told_in_words(patch: pytest.MonkeyPatch) -> None:
    right = Platform.train

    def train(self: Platform, *arguments: Any) -> tuple[Reply, Arrays | None]:  # noqa: ANN401
        reply, release = right(self, *arguments)
        users = load_platform_data(self._config).users
        return replace(reply, reason=f"trained on {users.num_users} users"), release

    patch.setattr(Platform, "train", train)


def told_in_an_array(patch: pytest.MonkeyPatch) -> None:
    right = Platform.train

    def train(self: Platform, *arguments: Any) -> tuple[Reply, Arrays | None]:  # noqa: ANN401
        reply, release = right(self, *arguments)
        if release is not None:
            loss = np.array([load_platform_data(self._config).users.matrix.mean()])
            release = {**release, "loss": loss.astype(np.float32)}
        return reply, release

    patch.setattr(Platform, "train", train)


def told_in_metrics(patch: pytest.MonkeyPatch) -> None:
    """As Flower's own strategies want it: "num-examples" beside the arrays."""

    def encoded(value: Any, arrays: Arrays | None = None) -> RecordDict:  # noqa: ANN401
        record = encode(value, arrays)
        record["metrics"] = MetricRecord({"num-examples": 5})
        return record

    patch.setattr(client.app, "encode", encoded)


def gate_told(patch: pytest.MonkeyPatch) -> None:
    """Whether joining pays was found on private data."""
    right = Platform.adopt

    def adopt(self: Platform, *arguments: Any) -> Reply:  # noqa: ANN401
        reply = right(self, *arguments)
        with self._state() as state:
            return replace(reply, reason=str(state.models.served()))

    patch.setattr(Platform, "adopt", adopt)


def population_counted(patch: pytest.MonkeyPatch) -> None:
    right = Platform.profile

    def profile(self: Platform) -> Profile:
        users = load_platform_data(self._config).users
        return replace(right(self), population=users.num_users)

    patch.setattr(Platform, "profile", profile)


def durations_told(patch: pytest.MonkeyPatch) -> None:
    """Flower's own SuperNode."""
    patch.setattr(supernode, "_change_flower", lambda: None)
