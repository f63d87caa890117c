"""A run from its first round to the last: ask, check, add up, step, write down.

Every reply is checked before it is added; a bad one is left out with a named cause and the round
goes on. Platforms are known by name: node ids are only addresses.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import Message, RecordDict

from common.data.catalogue import read_catalogue
from common.errors import CrossRecError, InvalidRelease, RequestRefused, RunFailed, StateError
from common.messages import ADOPT, PROFILE, TRAIN, AdoptRequest, Profile, Reply, TrainRequest
from common.models.ncf import initialise
from common.models.partition import check_shared
from common.rng import derive_seed
from common.wire import decode, encode
from server.aggregation import StreamingMean
from server.checkpoint import Checkpoints
from server.journal import Journal
from server.strategy import ServerState, apply_update, initial_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flwr.serverapp import Grid

    from common.models.partition import Arrays
    from server.config import FederationConfig

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
_LARGEST_POPULATION = 10**10
_LONGEST_REASON = 500


class FederationRun:
    """One run over a Flower grid, resumed from its checkpoint if there is one."""

    def __init__(self, config: FederationConfig, grid: Grid) -> None:
        """Open catalogue, checkpoint and journal of the run.

        Raises:
            CrossRecError: if one of them cannot be used.
        """
        self._config = config
        self._grid = grid
        catalogue = read_catalogue(
            config.catalogue.file, platforms=list(config.federation.platforms)
        )
        self._catalogue_digest = catalogue.digest
        self._num_items = catalogue.num_items
        self._checkpoints = Checkpoints(config.state.folder, config.federation.run_id)
        self._journal = Journal(config.state.folder)

    def run(self) -> ServerState:
        """Run the remaining rounds, then hand the shared model to every platform.

        Raises:
            RunFailed: if fewer platforms than the quorum answer a round.
        """
        planned = self._config.federation.rounds
        try:
            state = self._load_state()
            self._journal.write("run-started", rounds=planned, rounds_done=state.rounds_done)
            nodes, profiles = self._meet()
            while state.rounds_done < planned:
                state = self._round(state, nodes, profiles)
            self._hand_over(state, nodes)
        except CrossRecError as error:
            self._journal.write("run-failed", reason=str(error))
            raise
        else:
            self._journal.write("run-finished", rounds_done=state.rounds_done)
        finally:
            self._journal.close()
        return state

    def _load_state(self) -> ServerState:
        state = self._checkpoints.load()
        if state is None:
            return initial_state(self._initial_parameters())
        try:
            for arrays in (state.parameters, state.first_moment, state.second_moment):
                check_shared(arrays, self._config.model, self._num_items)
        except InvalidRelease as error:
            msg = f"{self._config.state.folder}: the checkpoint belongs to another model. {error}"
            raise StateError(msg) from error
        return state

    def _initial_parameters(self) -> Arrays:
        seed = derive_seed(self._config.federation.seed, "initial-parameters")
        model = initialise(self._config.model, self._num_items, torch.Generator().manual_seed(seed))
        return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}

    def _meet(self) -> tuple[dict[str, int], dict[str, Profile]]:
        """Ask every node who it is; keep the platforms of this federation."""
        expected = set(self._config.federation.platforms)
        nodes: dict[str, int] = {}
        profiles: dict[str, Profile] = {}
        give_up = time.monotonic() + self._config.federation.join_timeout_seconds
        asked: set[int] = set()
        while len(nodes) < len(expected):
            new = [node for node in self._grid.get_node_ids() if node not in asked]
            if not new:
                if time.monotonic() > give_up:
                    break
                time.sleep(POLL_SECONDS)
                continue
            asked.update(new)
            messages = {node: Message(RecordDict(), node, PROFILE) for node in new}
            for node, content, cause in self._exchange(messages):
                try:
                    if content is None:
                        raise RequestRefused(cause)
                    found, _ = decode(content, Profile)
                    self._check_profile(found, nodes)
                except CrossRecError as error:
                    reason = _shortened(error)
                    self._journal.write("platform-refused", node=str(node), reason=reason)
                    log.warning("node %d was refused: %s", node, reason)
                    continue
                nodes[found.platform], profiles[found.platform] = node, found
                self._journal.write("platform-joined", platform=found.platform)
        if len(nodes) < self._config.federation.quorum:
            msg = (
                f"{len(nodes)} of {len(expected)} platforms joined, the quorum is "
                f"{self._config.federation.quorum}; missing: {sorted(expected - nodes.keys())}."
            )
            raise RunFailed(msg)
        names = sorted(nodes)
        return {name: nodes[name] for name in names}, {name: profiles[name] for name in names}

    def _check_profile(self, found: Profile, nodes: Mapping[str, int]) -> None:
        if found.platform not in self._config.federation.platforms:
            msg = f"platform {found.platform!r} is not part of this federation."
            raise RequestRefused(msg)
        if found.platform in nodes:
            msg = f"platform {found.platform!r} joined twice; the first one stays."
            raise RequestRefused(msg)
        if found.catalogue_digest != self._catalogue_digest:
            msg = f"platform {found.platform!r} holds another version of the catalogue."
            raise RequestRefused(msg)
        mechanism = self._config.mechanism
        if (found.trust, found.unit) != (mechanism.trust, mechanism.unit):
            msg = (
                f"platform {found.platform!r} accepts trust {found.trust!r} per {found.unit}; "
                f"this run is {mechanism.trust!r} per {mechanism.unit}."
            )
            raise RequestRefused(msg)
        if not 1 <= found.population <= _LARGEST_POPULATION:
            msg = f"platform {found.platform!r} declares population {found.population}."
            raise RequestRefused(msg)

    def _round(
        self, state: ServerState, nodes: Mapping[str, int], profiles: Mapping[str, Profile]
    ) -> ServerState:
        number = state.rounds_done + 1
        self._journal.write("round-started", round=number, platforms=list(nodes))
        # One public denominator for all makes the mean of releases the pooled gradient.
        population = sum(profile.population for profile in profiles.values()) / len(profiles)
        mechanism, training = self._config.mechanism, self._config.training
        messages: dict[int, Message] = {}
        for name, node in nodes.items():
            request = TrainRequest(
                run_id=self._config.federation.run_id,
                round_number=number,
                platform=name,
                catalogue_digest=self._catalogue_digest,
                model=self._config.model,
                trust=mechanism.trust,
                num_platforms=len(nodes),
                noise_multiplier=mechanism.noise_multiplier,
                clipping_norm=mechanism.clipping_norm,
                sampling_rate=mechanism.sampling_rate,
                local_steps=mechanism.local_steps,
                denominator=mechanism.sampling_rate * population,
                learning_rate=training.local_learning_rate,
                user_steps=training.user_steps,
            )
            record = encode(request, state.parameters)
            messages[node] = Message(record, node, TRAIN, group_id=str(number))
        names = {node: name for name, node in nodes.items()}
        mean = StreamingMean()
        for node, content, cause in self._exchange(messages):
            release, outcome = self._read(names[node], number, "released", content, cause)
            if release is not None:
                mean.add(release)
            self._journal.write("reply", round=number, platform=names[node], outcome=outcome)
        # Under secure aggregation each platform adds a share of the noise: all are needed.
        is_summed = mechanism.trust == "secagg-simulated"
        needed = len(nodes) if is_summed else self._config.federation.quorum
        if mean.count < needed:
            msg = (
                f"round {number}: {mean.count} of {len(nodes)} platforms released, {needed} are "
                f"needed{' for all of the noise' if is_summed else ''}. Finished rounds are kept; "
                "see the journal for each platform's reason, then start the same run again."
            )
            raise RunFailed(msg)
        update = mean.result()
        with np.errstate(over="ignore", invalid="ignore"):
            state = apply_update(state, update, training)
        arrays = [*state.parameters.values(), *state.second_moment.values()]
        if not all(np.isfinite(array).all() for array in arrays):
            msg = (
                f"round {number}: the mean of the releases is so large that the parameters "
                "overflow. Finished rounds are kept; leave out the platform that sent it."
            )
            raise RunFailed(msg)
        norm = float(
            np.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in update.values()))
        )
        # Before the checkpoint: a crash in between repeats the round, and its entry here.
        self._journal.write("round-closed", round=number, releases=mean.count, update_norm=norm)
        self._checkpoints.save(state)
        return state

    def _read(
        self, name: str, number: int, wanted: str, content: RecordDict | None, cause: str
    ) -> tuple[Arrays | None, str]:
        """Take one reply: its arrays if the platform did what was asked, and what it did."""
        if content is None:
            return None, _shortened(f"no answer: {cause}")
        try:
            reply, arrays = decode(content, Reply)
            run_id = self._config.federation.run_id
            if (reply.platform, reply.run_id, reply.round_number) != (name, run_id, number):
                msg = (
                    f"answers for {reply.platform!r}, run {reply.run_id!r}, round "
                    f"{reply.round_number}; expected {name!r}, {run_id!r}, {number}."
                )
                raise InvalidRelease(msg)
            if reply.outcome == "declined":
                return None, _shortened(f"declined: {reply.reason}")
            if reply.outcome != wanted:
                msg = f"outcome {reply.outcome!r}, expected {wanted!r}."
                raise InvalidRelease(msg)
            if wanted == "released":
                arrays = check_shared(arrays, self._config.model, self._num_items)
        except CrossRecError as error:
            outcome = _shortened(f"left out: {error}")
            log.warning("reply of %s %s", name, outcome)
            return None, outcome
        return arrays, wanted

    def _hand_over(self, state: ServerState, nodes: Mapping[str, int]) -> None:
        self._journal.write("handing-over", platforms=list(nodes))
        messages: dict[int, Message] = {}
        for name, node in nodes.items():
            request = AdoptRequest(
                run_id=self._config.federation.run_id,
                platform=name,
                catalogue_digest=self._catalogue_digest,
                model=self._config.model,
            )
            messages[node] = Message(encode(request, state.parameters), node, ADOPT)
        names = {node: name for name, node in nodes.items()}
        for node, content, cause in self._exchange(messages):
            _, outcome = self._read(names[node], 0, "adopted", content, cause)
            self._journal.write("handed-over", platform=names[node], outcome=outcome)

    def _exchange(
        self, messages: Mapping[int, Message]
    ) -> Iterator[tuple[int, RecordDict | None, str]]:
        """Send one message to each node; yield (node, content or None, cause) as replies arrive."""
        deadline = time.monotonic() + self._config.federation.round_timeout_seconds
        waiting: dict[str, int] = {}
        for node, message in messages.items():
            # One at a time: push_messages leaves out unreachable nodes without saying which.
            sent = list(self._grid.push_messages([message]))
            if not sent or not sent[0]:
                yield node, None, "the node could not be reached"
            else:
                waiting[sent[0]] = node
        while waiting and time.monotonic() < deadline:
            arrived = False
            for reply in self._grid.pull_messages(list(waiting)):
                node_id = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node_id is None:
                    continue
                arrived = True
                if reply.has_error():
                    yield node_id, None, str(reply.error.reason)
                else:
                    yield node_id, reply.content, ""
            if waiting and not arrived:
                time.sleep(POLL_SECONDS)
        for node in waiting.values():
            yield node, None, "the round closed before it answered"


def _shortened(reason: object) -> str:
    """A platform's own words, of a length that the journal can hold."""
    text = str(reason)
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
