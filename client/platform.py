"""What a platform does with each request, in the order that keeps its promise.

Train and sum: validate -> price and reserve durably -> touch data -> compute -> store the release
-> record it -> reply. A repeated request gets the stored release, byte for byte.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from client.adaptation import fit_alone, join
from client.assortment import read_assortment
from client.data import catalogue_digest, load_catalogue, load_platform_data
from client.devices import resolve_device
from client.model_files import fitted_to
from client.parts import Blend
from client.personal_ncf import fit_user_vectors
from client.secure_sum import SecureSum, check_terms
from client.similarity import similarity_of_pairs, similarity_of_vectors
from client.state import PlatformState
from client.sums import count_sum, noisy, on_items, pair_sum
from client.trainer import TrainingPlan, clipped_sums, train_round
from client.user_vectors import UserVectors
from common.data.agreement import check_assortment, pack_keys
from common.errors import (
    BudgetExhausted,
    ConfigError,
    CrossRecError,
    InvalidRelease,
    RequestRefused,
    StateError,
)
from common.messages import (
    AdoptRequest,
    Agreement,
    AssortmentRequest,
    Profile,
    ReleaseRequest,
    Reply,
    SecaggStage,
    SumRequest,
    TrainRequest,
    sum_request_id,
)
from common.models.pairs import PairSum, num_pairs
from common.models.partition import (
    LATTICE,
    PAIRS,
    check_asked,
    check_pairs,
    check_shared,
    check_sum,
    flatten,
    put_rows,
    take_rows,
)
from common.privacy.account import Spend
from common.privacy.randomness import SeededRandom, SystemRandom
from common.rng import derive_seed
from common.secagg.lattice import noisy_lattice
from common.storage import pack_arrays, sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from client.adaptation import Adapted
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
            StateError: if what was agreed on is damaged.
        """
        return Profile(
            platform=self.name,
            population=self._config.platform.population,
            catalogue_digest=catalogue_digest(self._config),
            trust=self._config.privacy.trust,
            unit=self._config.privacy.unit,
            delta=self._config.privacy.delta,
        )

    def report(self, request: AssortmentRequest) -> tuple[Reply, Arrays | None]:
        """Answer with the keys of the platform's items: a public input, so nothing is spent."""
        try:
            self._check_name(request.platform)
            assortment = read_assortment(self._config.catalogue, self.name)
            with _refused():
                keys = check_assortment(pack_keys(assortment.keys), max_items=request.max_items)
            with self._state() as state:
                state.catalogue.keep_report(assortment)
        except Exception as error:  # noqa: BLE001 - no exception text may cross the boundary
            return self._declined(error, request.run_id, 0), None
        return self._done(request.run_id, "listed"), keys

    def agree(self, request: Agreement, arrays: Arrays) -> Reply:
        """Make the rows that the server sent for the platform's items its catalogue."""
        try:
            self._check_name(request.platform)
            with self._state() as state:
                state.catalogue.agree(request, arrays)
        except Exception as error:  # noqa: BLE001 - no exception text may cross the boundary
            return self._declined(error, request.run_id, 0)
        return self._done(request.run_id, "agreed")

    def train(self, request: TrainRequest, shared: Arrays) -> tuple[Reply, Arrays | None]:
        """Answer one round: a release and its reply, or a reply that declines."""
        return self._answer(
            request,
            check=lambda: self._check_training(request, shared),
            make=partial(self._train, request),
        )

    def sum_up(self, request: SumRequest, asked: Arrays) -> tuple[Reply, Arrays | None]:
        """Answer one request for a sum: a release and its reply, or a reply that declines."""
        return self._answer(
            request,
            check=lambda: self._check_asked(request, asked),
            make=partial(self._sum, request),
        )

    def secagg(self, request: SecaggStage, arrays: Arrays) -> tuple[Reply, Arrays | None]:
        """Answer one stage of a secure sum of releases; no data are touched."""
        try:
            self._check_name(request.platform)
            with self._state() as state:
                state.check_running()
                outcome, answer = self._take_stage(request, arrays, state)
        except Exception as error:  # noqa: BLE001 - no exception text may cross the boundary
            return self._declined(error, request.run_id, request.round_number), None
        reply = Reply(
            platform=self.name,
            run_id=request.run_id,
            round_number=request.round_number,
            outcome=outcome,
        )
        return reply, answer

    def adopt(self, request: AdoptRequest, arrays: Arrays) -> Reply:
        """Keep what the run made, fit models privately with and without it; nothing is released.

        The reply depends on public facts alone: whether the fitting succeeded is the platform's
        own business, and a failure leaves the model of before in service.
        """
        try:
            shared, pairs = self._check_adopted(request, arrays)
        except Exception as error:  # noqa: BLE001 - no exception text may cross the boundary
            return self._declined(error, request.run_id, 0)
        try:
            with self._state() as state:
                state.check_running()
                state.begin_handover()
                if pairs is not None:
                    pairs = self._of_others(request, pairs, state)
                self._adapt(request, shared, pairs, state)
        except Exception:
            log.exception("%s could not adapt to the run; it serves what it had", self.name)
        return self._done(request.run_id, "adopted")

    def _answer(
        self,
        request: TrainRequest | SumRequest,
        *,
        check: Callable[[], Arrays],
        make: Callable[[Arrays, PlatformState], Arrays],
    ) -> tuple[Reply, Arrays | None]:
        """The one way to a release.

        Args:
            request: what is asked for.
            check: refuses what the platform did not agree to, or returns the request's arrays.
            make: touches the data, makes the release, stores and records it.
        """
        outcome: Literal["released", "prepared"] = "released"
        try:
            arrays = check()
            release = self._release(request, arrays, make)
            if request.trust == "secagg" and request.secagg is not None:
                digest = request.common_digest(sha256(pack_arrays(arrays, {})))
                with self._state() as state:
                    secure = self._secure_sum(state)
                    release = secure.advertise(request.request_id, digest, request.secagg)
                outcome = "prepared"
        except Exception as error:  # noqa: BLE001 - no exception text may cross the boundary
            declined = self._declined(error, request.run_id, request.round_number)
            if isinstance(error, (BudgetExhausted, RequestRefused)):
                self._write_down(request, declined.reason)
            return declined, None
        reply = Reply(
            platform=self.name,
            run_id=request.run_id,
            round_number=request.round_number,
            outcome=outcome,
        )
        return reply, release

    def _take_stage(
        self, request: SecaggStage, arrays: Arrays, state: PlatformState
    ) -> tuple[Literal["shared", "masked", "confirmed", "unmasked"], Arrays]:
        secure = self._secure_sum(state)
        with _refused():
            if request.stage == "share":
                return "shared", secure.share(request, arrays)
            if request.stage == "mask":
                release = state.load_release(request.request_id)
                if release is None:
                    msg = "secagg: this platform has no release in such a sum."
                    raise RequestRefused(msg)
                return "masked", secure.mask(request, arrays, release)
            if request.stage == "confirm":
                return "confirmed", secure.confirm(request)
            return "unmasked", secure.unmask(request, arrays)

    def _secure_sum(self, state: PlatformState) -> SecureSum:
        """What speaks for this platform in secure sums.

        Raises:
            RequestRefused: if the platform takes part in none.
        """
        if self._config.privacy.trust != "secagg" or self._config.secagg is None:
            msg = "secagg: this platform takes part in no secure sums."
            raise RequestRefused(msg)
        return SecureSum(self.name, self._config.secagg, state.sessions, state.ledger)

    def _release(
        self,
        request: ReleaseRequest,
        arrays: Arrays,
        make: Callable[[Arrays, PlatformState], Arrays],
    ) -> Arrays:
        arrays_digest = sha256(pack_arrays(arrays, {}))
        spend = Spend(
            request_id=request.request_id,
            request_digest=request.digest(arrays_digest),
            description=f"run {request.run_id}, {request.what}",
            mechanism=request.mechanism(),
            mechanism_if_broken=request.mechanism_if_broken(),
            request=asdict(request),
            arrays_digest=arrays_digest,
        )
        with self._state() as state:
            state.check_running()
            state.ledger.reserve(spend, self._config.privacy.budget())
            stored = state.load_release(request.request_id)
            if stored is not None:
                return stored
            state.start_training()
            try:
                return make(arrays, state)
            except Exception as error:
                state.stop(error)
                raise

    def _train(self, request: TrainRequest, shared: Arrays, state: PlatformState) -> Arrays:
        """Touch the data and make one release; whatever fails from here on stops the platform."""
        data = load_platform_data(self._config)
        source = self._random_source(request.run_id, request.round_number)
        fresh = UserVectors.initial(data.users.num_users, request.model.user_dim, source.split())
        inputs = (
            request.model,
            take_rows(shared, data.users.listing),
            state.load_vectors(request.run_id, data.users.user_ids, fresh),
            # Not what the first fold gives up: it judges what the run brings.
            data.folds[0].history,
            _plan(request),
            source,
        )
        engine = self._config.training.engine
        device = resolve_device(self._config.training.device)
        if request.secagg is None:
            update, vectors = train_round(*inputs, engine=engine, device=device)
            release = put_rows(update, data.users.listing, data.num_catalogue_items)
            release = check_shared(release, request.model, data.num_catalogue_items)
        else:
            # Noise on every row, listed or not: others' users hide in it as well.
            sums, vectors = clipped_sums(*inputs, engine=engine, device=device)
            own = {name: total.numpy() for name, total in sums.items()}
            total = flatten(put_rows(own, data.users.listing, data.num_catalogue_items))
            release = _on_lattice(total, request, source)
        state.store_release(request.request_id, release, vectors, data.users.user_ids)
        return release

    def _sum(self, request: SumRequest, asked: Arrays, state: PlatformState) -> Arrays:
        """Touch the data and sum all of it."""
        data = load_platform_data(self._config)
        own = on_items(data.users.matrix, data.users.listing, asked["items"])
        is_counts = request.quantity == "item-counts"
        total = count_sum(own) if is_counts else pair_sum(own, asked["weights"])
        source = self._random_source(request.run_id, request.quantity)
        if request.secagg is None:
            release = {"sum": noisy(total, request.noise_std, source)}
            release = check_sum(release, request.quantity, len(asked["items"]))
        else:
            release = _on_lattice(total, request, source)
        state.store_release(request.request_id, release)
        return release

    def _of_others(
        self, request: AdoptRequest, pairs: PairSum, state: PlatformState
    ) -> PairSum | None:
        """The sum without the platform's own release, which it knows better; None if that is all.

        Raises:
            RequestRefused: if the platform's release is of another size.
            StateError: if the release was made and is no longer there.
        """
        if not request.own_included:
            return pairs
        own = state.load_release(sum_request_id(request.run_id, "item-pairs", self.name))
        if own is None:
            return pairs
        summed = request.lattice
        known = own["sum"] if summed is None else summed.values(own[LATTICE])
        if known.shape != pairs.total.shape:
            msg = "pairs: the sum is not of the items that this platform was asked for."
            raise RequestRefused(msg)
        num_others = request.num_sums - 1
        if num_others == 0:
            return None
        return replace(
            pairs,
            total=(pairs.total.astype(np.float64) - known).astype(np.float32),
            noise_std=request.noise_std * math.sqrt(num_others),
        )

    def _adapt(
        self,
        request: AdoptRequest,
        shared: Arrays | None,
        pairs: PairSum | None,
        state: PlatformState,
    ) -> None:
        if not self._config.adaptation.enabled:
            return
        simulation = self._config.simulation
        seed = derive_seed(simulation.seed if simulation else 0, "adaptation", self.name)
        state.start_training()
        data = load_platform_data(self._config)
        max_epochs = self._config.adaptation.max_epochs
        digest = fitted_to(data, request.model, max_epochs=max_epochs, seed=seed)
        known = self._fitted_before(state, digest)
        alone = known or fit_alone(
            data.users.matrix, data.folds, request.model, max_epochs=max_epochs, seed=seed
        )
        joined = alone
        if pairs is not None:
            similar = similarity_of_pairs(pairs, data.users.listing)
            joined = join(joined, {"pairs": similar}, data.users.matrix, data.folds)
        parts = dict(joined.blend.parts)
        if shared is not None:
            local = take_rows(shared, data.users.listing)
            # Rounds have seen what the other folds give up: only the first one can judge them.
            similar = similarity_of_vectors(local[request.model.item_vectors])
            joined = join(joined, {"ncf_items": similar}, data.users.matrix, data.folds[:1])
            fresh = UserVectors.initial(
                data.users.num_users, request.model.user_dim, SeededRandom(seed)
            )
            vectors = state.load_vectors(request.run_id, data.users.user_ids, fresh)
            parts = {
                **joined.blend.parts,
                "shared": fit_user_vectors(
                    request.model, local, vectors, data.users.matrix, seed=seed
                ),
            }
        pays = joined.blend.weights != alone.blend.weights
        blend = Blend(parts=parts, weights=joined.blend.weights)
        # Only now: a failure before this leaves in service what was.
        if known is None:
            state.models.save_alone(alone, digest, data.users_digest)
        state.models.save_joined(blend, "joined" if pays else "alone")
        state.finish_training()

    def _fitted_before(self, state: PlatformState, digest: str) -> Adapted | None:
        """The best without anybody else, if nothing that it depends on has changed."""
        try:
            return state.models.load_alone(digest)
        except StateError as error:
            log.warning("%s: %s It is fitted again.", self.name, error)
            return None

    def _check_training(self, request: TrainRequest, shared: Arrays) -> Arrays:
        """Hold a request for a round against the platform's own configuration.

        Raises:
            RequestRefused: naming the first thing the platform does not accept.
        """
        self._check_policy(request)
        privacy = self._config.privacy
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
        shared = self._check_shared(request, shared)
        _check_lattice(request, sum(array.size for array in shared.values()))
        return shared

    def _check_asked(self, request: SumRequest, asked: Arrays) -> Arrays:
        """Hold a request for a sum against the platform's own configuration.

        Any items and weights are safe: a user's part is divided by its norm after it is restricted
        to them.

        Raises:
            RequestRefused: naming the first thing the platform does not accept.
        """
        self._check_policy(request)
        num_items = self._check_addressed(request)
        with _refused():
            asked = check_asked(asked, request.quantity, num_items)
        size = len(asked["items"])
        _check_lattice(request, size if request.quantity == "item-counts" else num_pairs(size))
        return asked

    def _check_adopted(
        self, request: AdoptRequest, arrays: Arrays
    ) -> tuple[Arrays | None, PairSum | None]:
        """Take apart what is handed over.

        Raises:
            RequestRefused: if it is not exactly what the request says.
        """
        num_items = self._check_addressed(request)
        shared = {name: array for name, array in arrays.items() if not name.startswith(PAIRS)}
        rest = {k.removeprefix(PAIRS): v for k, v in arrays.items() if k.startswith(PAIRS)}
        if (shared and request.rounds_done == 0) or (rest and request.num_sums == 0):
            msg = f"arrays: found {sorted(arrays)}, more than what the request says."
            raise RequestRefused(msg)
        pairs = None
        if request.num_sums > 0:
            noise_std = request.noise_std * math.sqrt(request.num_sums)
            with _refused():
                pairs = PairSum(**check_pairs(rest, num_items), noise_std=noise_std)
        return (self._check_shared(request, shared) if request.rounds_done > 0 else None), pairs

    def _check_policy(self, request: ReleaseRequest) -> None:
        privacy = self._config.privacy
        if request.trust != privacy.trust:
            msg = f"trust: asked for {request.trust!r}, this platform accepts {privacy.trust!r}."
            raise RequestRefused(msg)
        if privacy.trust != "none" and request.noise_multiplier < privacy.min_noise_multiplier:
            msg = (
                f"noise_multiplier: asked for {request.noise_multiplier}, this platform accepts "
                f"at least {privacy.min_noise_multiplier}."
            )
            raise RequestRefused(msg)
        if privacy.trust == "secagg" and request.secagg and self._config.secagg:
            check_terms(self.name, self._config.secagg, request.secagg)

    def _check_addressed(self, request: ReleaseRequest | AdoptRequest) -> int:
        """Refuse what is for another platform or catalogue; return the number of its items."""
        self._check_name(request.platform)
        if request.catalogue_digest != catalogue_digest(self._config):
            msg = "catalogue: the request's rows belong to another version of the catalogue."
            raise RequestRefused(msg)
        return load_catalogue(self._config).num_items

    def _check_name(self, asked: str) -> None:
        if asked != self.name:
            msg = f"platform: the request is for {asked!r}, this is {self.name!r}."
            raise RequestRefused(msg)

    def _check_shared(self, request: TrainRequest | AdoptRequest, shared: Arrays) -> Arrays:
        num_items = self._check_addressed(request)
        with _refused():
            shared = check_shared(shared, request.model, num_items)
        if any(np.abs(array).max(initial=0.0) > MAX_PARAMETER for array in shared.values()):
            msg = f"shared arrays: a value is beyond {MAX_PARAMETER:g}, which no honest run needs."
            raise RequestRefused(msg)
        return shared

    def _done(self, run_id: str, outcome: Literal["adopted", "listed", "agreed"]) -> Reply:
        return Reply(platform=self.name, run_id=run_id, round_number=0, outcome=outcome)

    def _random_source(self, run_id: str, what: int | str) -> RandomSource:
        if self._config.simulation is None:
            return SystemRandom()
        seed = self._config.simulation.seed
        return SeededRandom(derive_seed(seed, "release", run_id, self.name, what))

    def _declined(self, error: Exception, run_id: str, round_number: int) -> Reply:
        """Say in public only what follows from public facts; the rest goes to the own log."""
        if isinstance(error, BudgetExhausted):
            reason = f"budget: {error}"
        elif isinstance(error, RequestRefused):
            reason = f"refused: {error}"
        else:
            reason = "failed: the cause is in the platform's own log."
        # The text of any other error may quote a row: see common.logs.
        expected = isinstance(error, CrossRecError)
        log.warning(
            "%s declined a request of run %s (round %d): %s",
            self.name,
            run_id,
            round_number,
            error if expected else type(error).__name__,
            exc_info=None if expected else error,
        )
        return Reply(
            platform=self.name,
            run_id=run_id,
            round_number=round_number,
            outcome="declined",
            reason=reason,
        )

    def _write_down(self, request: ReleaseRequest, reason: str) -> None:
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


def _on_lattice(total: np.ndarray, request: ReleaseRequest, source: RandomSource) -> Arrays:
    """Make a sum a release that others are added to; under secure aggregation it stays here."""
    terms = request.secagg
    if terms is None:
        raise ValueError("no secure sum was asked for")
    number = len(terms.participants)
    tensor = torch.from_numpy(total)
    return {LATTICE: noisy_lattice(tensor, request.noise_std, terms.lattice, number, source)}


def _check_lattice(request: ReleaseRequest, size: int) -> None:
    """Refuse a lattice that would show the data, or leave nothing of them."""
    terms = request.secagg
    if terms is not None:
        try:
            terms.lattice.check_noise(request.noise_std, len(terms.participants), size)
        except ConfigError as error:
            raise RequestRefused(str(error)) from error


@contextmanager
def _refused() -> Iterator[None]:
    """What is no valid release is no valid request, either."""
    try:
        yield
    except InvalidRelease as error:
        raise RequestRefused(str(error)) from error


def _plan(request: TrainRequest) -> TrainingPlan:
    return TrainingPlan(
        clipping_norm=request.clipping_norm,
        noise_std=request.noise_std,
        sampling_rate=request.sampling_rate,
        local_steps=request.local_steps,
        denominator=request.denominator,
        learning_rate=request.learning_rate,
        user_steps=request.user_steps,
        dropout=request.dropout,
    )
