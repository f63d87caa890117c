"""What a platform does with each request, in the order that keeps its promise.

Train: validate -> price and reserve durably -> touch data -> train -> store the release ->
record it -> reply. A repeated request gets the stored release, byte for byte.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.adaptation import fit_personal_model, fit_user_vectors, joining_pays
from client.data import load_catalogue, load_platform_data
from client.devices import resolve_device
from client.state import PlatformState
from client.trainer import TrainingPlan, train_round
from client.user_vectors import UserVectors
from common.errors import (
    BudgetExhausted,
    CrossRecError,
    InvalidRelease,
    RequestRefused,
    StateError,
)
from common.messages import AdoptRequest, Profile, Reply, TrainRequest
from common.models.partition import check_shared, put_rows, take_rows
from common.privacy.account import Spend
from common.privacy.randomness import SeededRandom, SystemRandom
from common.rng import derive_seed
from common.storage import pack_arrays, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.config import PlatformConfig
    from common.models.partition import Arrays
    from common.privacy.randomness import RandomSource

MAX_PARAMETER = 100.0
"""Largest shared parameter that is trained with: beyond, rounding could outgrow the clipping."""

log = logging.getLogger(__name__)


class Platform:
    """One platform's side of the federation; no Flower here."""

    def __init__(self, config: PlatformConfig) -> None:
        """Take the platform's own configuration; nothing is read yet."""
        self._config = config
        self.name = config.platform.name

    def profile(self) -> Profile:
        """Public facts about the platform; no user data is touched.

        Raises:
            DataError: if the catalogue cannot be used.
        """
        return Profile(
            platform=self.name,
            population=self._config.platform.population,
            catalogue_digest=load_catalogue(self._config).digest,
            trust=self._config.privacy.trust,
            unit=self._config.privacy.unit,
            delta=self._config.privacy.delta,
        )

    def train(self, request: TrainRequest, shared: Arrays) -> tuple[Reply, Arrays | None]:
        """Answer one round: a release and its reply, or a reply that declines."""
        try:
            release = self._release(request, shared)
        except Exception as error:  # noqa: BLE001 - no exception text may cross the boundary
            declined = self._declined(error, request.run_id, request.round_number)
            if isinstance(error, (BudgetExhausted, RequestRefused)):
                self._write_down(request, declined.reason)
            return declined, None
        reply = Reply(
            platform=self.name,
            run_id=request.run_id,
            round_number=request.round_number,
            outcome="released",
        )
        return reply, release

    def adopt(self, request: AdoptRequest, shared: Arrays) -> Reply:
        """Keep the shared model, fit it privately beside one without it; nothing is released.

        The reply depends on public facts alone: whether the fitting succeeded is the platform's
        own business, and a failure leaves the model of before in service.
        """
        try:
            shared = self._check_arrays(request, shared)
        except Exception as error:  # noqa: BLE001 - no exception text may cross the boundary
            return self._declined(error, request.run_id, 0)
        try:
            self._adapt(request, shared)
        except Exception:
            log.exception("%s could not adapt the shared model; it serves what it had", self.name)
        return Reply(platform=self.name, run_id=request.run_id, round_number=0, outcome="adopted")

    def _release(self, request: TrainRequest, shared: Arrays) -> Arrays:
        self._check_policy(request)
        shared = self._check_arrays(request, shared)
        digest = request.digest(sha256(pack_arrays(shared, {})))
        spend = Spend(
            request_id=request.request_id,
            request_digest=digest,
            description=f"run {request.run_id}, round {request.round_number}",
            mechanism=request.mechanism(),
            mechanism_if_broken=request.mechanism_if_broken(),
        )
        with self._state() as state:
            state.check_running()
            state.ledger.reserve(spend, self._config.privacy.budget())
            stored = state.load_release(request.request_id)
            if stored is not None:
                return stored
            state.start_training()
            try:
                return self._train(request, shared, state)
            except Exception as error:
                state.stop(error)
                raise

    def _train(self, request: TrainRequest, shared: Arrays, state: PlatformState) -> Arrays:
        """Touch the data and make one release; whatever fails from here on stops the platform."""
        data = load_platform_data(self._config)
        source = self._random_source(request)
        fresh = UserVectors.initial(
            data.users.num_users,
            request.model.user_dim,
            torch.Generator().manual_seed(source.seed()),
        )
        update, vectors = train_round(
            request.model,
            take_rows(shared, data.users.listing),
            state.load_vectors(request.run_id, data.users.user_ids, fresh),
            data.users.matrix,
            _plan(request),
            source,
            engine=self._config.training.engine,
            device=resolve_device(self._config.training.device),
        )
        release = put_rows(update, data.users.listing, data.num_catalogue_items)
        release = check_shared(release, request.model, data.num_catalogue_items)
        state.store_release(request.request_id, release, vectors, data.users.user_ids)
        return release

    def _adapt(self, request: AdoptRequest, shared: Arrays) -> None:
        simulation = self._config.simulation
        seed = derive_seed(simulation.seed if simulation else 0, "adaptation", self.name)
        with self._state() as state:
            state.check_running()
            state.start_training()
            data = load_platform_data(self._config)
            local = take_rows(shared, data.users.listing)
            fresh = UserVectors.initial(
                data.users.num_users, request.model.user_dim, torch.Generator().manual_seed(seed)
            )
            vectors = state.load_vectors(request.run_id, data.users.user_ids, fresh)
            fit = partial(
                fit_personal_model,
                request.model,
                data.users.matrix,
                data.validation,
                max_epochs=self._config.adaptation.max_epochs,
                seed=seed,
            )
            frozen = fit_user_vectors(
                request.model, local, vectors, data.users.matrix, data.validation, seed=seed
            )
            state.save_model("shared", frozen, data.users_digest)
            alone = fit()
            joined = fit(shared=local, user_vectors=frozen.user_vectors)
            state.save_model("alone", alone, data.users_digest)
            state.save_model("joined", joined, data.users_digest)
            pays = joining_pays(alone, joined, data.users.matrix, data.validation)
            state.save_served("joined" if pays else "alone")
            state.finish_training()

    def _check_policy(self, request: TrainRequest) -> None:
        """Hold a request against the platform's own configuration.

        Raises:
            RequestRefused: naming the first thing the platform does not accept.
        """
        privacy = self._config.privacy
        if request.trust != privacy.trust:
            msg = f"trust: asked for {request.trust!r}, this platform accepts {privacy.trust!r}."
            raise RequestRefused(msg)
        if request.clipping_norm > privacy.max_clipping_norm:
            msg = (
                f"clipping_norm: asked for {request.clipping_norm}, this platform accepts at "
                f"most {privacy.max_clipping_norm}."
            )
            raise RequestRefused(msg)
        if request.round_number > privacy.max_rounds:
            msg = (
                f"round: asked for {request.round_number}, this platform takes part in at most "
                f"{privacy.max_rounds} rounds of a run."
            )
            raise RequestRefused(msg)
        if privacy.trust != "none" and request.noise_multiplier < privacy.min_noise_multiplier:
            msg = (
                f"noise_multiplier: asked for {request.noise_multiplier}, this platform accepts "
                f"at least {privacy.min_noise_multiplier}."
            )
            raise RequestRefused(msg)

    def _check_arrays(self, request: TrainRequest | AdoptRequest, shared: Arrays) -> Arrays:
        if request.platform != self.name:
            msg = f"platform: the request is for {request.platform!r}, this is {self.name!r}."
            raise RequestRefused(msg)
        catalogue = load_catalogue(self._config)
        if request.catalogue_digest != catalogue.digest:
            msg = "catalogue: the request's rows belong to another version of the catalogue."
            raise RequestRefused(msg)
        try:
            shared = check_shared(shared, request.model, catalogue.num_items)
        except InvalidRelease as error:
            raise RequestRefused(str(error)) from error
        if any(np.abs(array).max(initial=0.0) > MAX_PARAMETER for array in shared.values()):
            msg = f"shared arrays: a value is beyond {MAX_PARAMETER:g}, which no honest run needs."
            raise RequestRefused(msg)
        return shared

    def _random_source(self, request: TrainRequest) -> RandomSource:
        if self._config.simulation is None:
            return SystemRandom()
        seed = self._config.simulation.seed
        place = (request.run_id, self.name, request.round_number)
        return SeededRandom(derive_seed(seed, "release", *place))

    def _declined(self, error: Exception, run_id: str, round_number: int) -> Reply:
        """Say in public only what follows from public facts; the rest goes to the own log."""
        if isinstance(error, BudgetExhausted):
            reason = f"budget: {error}"
        elif isinstance(error, RequestRefused):
            reason = f"refused: {error}"
        else:
            reason = "failed: the cause is in the platform's own log."
        expected = isinstance(error, CrossRecError)
        log.warning(
            "%s declined round %d: %s",
            self.name,
            round_number,
            error,
            exc_info=None if expected else error,
        )
        return Reply(
            platform=self.name,
            run_id=run_id,
            round_number=round_number,
            outcome="declined",
            reason=reason,
        )

    def _write_down(self, request: TrainRequest, reason: str) -> None:
        """Keep a declined request in the ledger; where that fails, the log has it."""
        try:
            with self._state() as state:
                state.ledger.decline(request.request_id, reason)
        except StateError as error:
            log.warning("%s: the ledger did not take a declined request: %s", self.name, error)

    @contextmanager
    def _state(self) -> Iterator[PlatformState]:
        state = PlatformState(self._config.state.folder, self._config.state.keep_releases)
        try:
            yield state
        finally:
            state.close()


def _plan(request: TrainRequest) -> TrainingPlan:
    return TrainingPlan(
        clipping_norm=request.clipping_norm,
        noise_std=request.noise_multiplier * request.noise_share * request.clipping_norm,
        sampling_rate=request.sampling_rate,
        local_steps=request.local_steps,
        denominator=request.denominator,
        learning_rate=request.learning_rate,
        user_steps=request.user_steps,
    )
