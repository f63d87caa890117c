"""Rounds of training: ask, add up, step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message

from common.errors import RunFailed
from common.messages import TRAIN, TrainRequest
from common.models.partition import shared_shapes, unflatten
from common.wire import encode
from server.aggregation import StreamingSum
from server.membership import sample_platforms
from server.records import asked_mechanism, note_release
from server.releases import check_update, norm_of, release_bytes
from server.robust import RobustMean, releases_needed
from server.strategy import ServerState, apply_update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from common.data.catalogue import Catalogue
    from common.models.partition import Arrays
    from server.config import FederationConfig
    from server.exchange import Exchange
    from server.journal import Journal
    from server.membership import Membership
    from server.secure_sum import SecureSums
    from server.standing import Standing


class TrainingRounds:
    """Closes rounds, one after the other."""

    def __init__(
        self,
        config: FederationConfig,
        catalogue: Catalogue,
        exchange: Exchange,
        secure: SecureSums,
        journal: Journal,
        members: Membership,
        standing: Standing,
    ) -> None:
        """Take what the run has; nothing is asked yet."""
        self._config = config
        self._catalogue, self._catalogue_digest = catalogue, catalogue.digest
        self._exchange = exchange
        self._secure = secure
        self._journal = journal
        self._members = members
        self._standing = standing

    def close_next(self, state: ServerState, nodes: Mapping[str, int]) -> ServerState:
        """Ask every platform for a release, and step along what they release together.

        Args:
            state: before the round.
            nodes: address of each platform that takes part.

        Raises:
            RunFailed: if too few platforms answer, or the parameters overflow.
        """
        number, federation = state.rounds_done + 1, self._config.federation
        asked = self._standing.remaining(nodes)
        participants = None
        if self._config.is_summed:
            # Those who are asked are part of the request, so they are the same at every start.
            participants = self._sample(self._members.founders, number)
            asked = {name: asked[name] for name in participants if name in asked}
        elif federation.platforms_per_round is not None:
            asked = {name: asked[name] for name in self._sample(asked, number)}
        requests = self._requests(number, asked, participants)
        self._journal.write(
            "round-started", round=number, platforms=list(asked), **asked_mechanism(requests)
        )
        messages = {
            name: Message(
                encode(request, state.parameters), asked[name], TRAIN, group_id=str(number)
            )
            for name, request in requests.items()
        }

        def report(name: str, outcome: str) -> None:
            self._journal.write("reply", round=number, platform=name, outcome=outcome)

        training = self._config.training
        if participants is None:
            update, count = self._mean_release(number, messages, requests, report)
        else:
            update, count = self._summed_release(messages, requests, state.parameters, report)
        with np.errstate(over="ignore", invalid="ignore"):
            state = apply_update(state, update, training, self._config.federation.rounds)
        arrays = [*state.parameters.values(), *state.second_moment.values()]
        if not all(np.isfinite(array).all() for array in arrays):
            msg = (
                f"round {number}: the mean of the releases is so large that the parameters "
                "overflow. Finished rounds are kept; leave out the platform that sent it."
            )
            raise RunFailed(msg)
        # Before the checkpoint: a crash in between repeats the round, and its entry here.
        self._journal.write(
            "round-closed", round=number, releases=count, update_norm=norm_of(update)
        )
        return state

    @property
    def _num_asked(self) -> int:
        return self._members.num_asked(self._config.federation.platforms_per_round)

    def _sample(self, names: Iterable[str], number: int) -> tuple[str, ...]:
        seed = self._config.federation.seed
        return tuple(sample_platforms(names, self._num_asked, seed=seed, round_number=number))

    def _requests(
        self, number: int, names: Iterable[str], participants: tuple[str, ...] | None
    ) -> dict[str, TrainRequest]:
        """What each of ``names`` is asked in a round."""
        members = self._members
        mechanism, training = self._config.mechanism, self._config.training
        noise_multiplier = mechanism.per_round().noise_multiplier
        most_users = self._config.validation.population_slack * members.largest_population
        terms = participants and self._config.secagg.terms(
            participants,
            noise_std=noise_multiplier * mechanism.clipping_norm,
            largest_sum=most_users * mechanism.clipping_norm,
        )
        return {
            name: TrainRequest(
                run_id=self._config.federation.run_id,
                round_number=number,
                platform=name,
                catalogue_digest=self._catalogue_digest,
                model=self._config.model,
                trust=mechanism.trust,
                num_platforms=self._num_asked,
                noise_multiplier=noise_multiplier,
                secagg=terms or None,
                clipping_norm=mechanism.clipping_norm,
                sampling_rate=mechanism.sampling_rate,
                local_steps=mechanism.local_steps,
                denominator=mechanism.sampling_rate * members.mean_population,
                learning_rate=training.local_learning_rate,
                user_steps=training.user_steps,
                dropout=training.dropout,
            )
            for name in names
        }

    def _mean_release(
        self,
        number: int,
        messages: Mapping[str, Message],
        requests: Mapping[str, TrainRequest],
        report: Callable[[str, str], None],
    ) -> tuple[Arrays, int]:
        """What is taken of the releases that platforms send, and how many they are."""
        validation, training = self._config.validation, self._config.training

        def check(name: str, arrays: Arrays) -> Arrays:
            return check_update(
                arrays,
                requests[name],
                num_items=self._catalogue.num_items,
                num_users=validation.population_slack * self._members.populations[name],
                max_norm=validation.max_update_norm,
            )

        releases = (
            StreamingSum()
            if training.aggregation == "mean"
            else RobustMean(training.aggregation, training.max_hostile)
        )
        shapes = shared_shapes(self._config.model, self._catalogue.num_items)
        for name, release, outcome in self._exchange.ask(
            messages,
            number=number,
            wanted="released",
            check=check,
            max_bytes=release_bytes(shapes),
        ):
            if release is not None:
                note_release(self._journal, requests[name], release)
                releases.add(release)
            report(name, outcome)
        self._exchange.check_quorum(
            f"round {number}",
            releases.count,
            self._num_asked,
            at_least=releases_needed(training.aggregation, training.max_hostile),
        )
        return releases.mean(), releases.count

    def _summed_release(
        self,
        messages: Mapping[str, Message],
        requests: Mapping[str, TrainRequest],
        parameters: Arrays,
        report: Callable[[str, str], None],
    ) -> tuple[Arrays, int]:
        """The mean update that secure aggregation shows, and of how many platforms it is."""
        shapes = shared_shapes(self._config.model, self._catalogue.num_items)
        size = sum(math.prod(shape) for shape in shapes.values())
        summed = self._secure.collect(messages, requests, parameters, size=size, report=report)
        request = next(iter(requests.values()))
        count = len(summed.platforms)
        # What a platform does with its own noisy sum where it sends it by itself.
        step = -request.learning_rate / request.denominator / count
        return unflatten((summed.numbers * step).astype(np.float32), shapes), count
