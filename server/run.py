"""A run from meeting its platforms to handing over: sums, then rounds.

Where no file gives the catalogue, its platforms agree on one first (:mod:`server.agreement`).

Every reply is checked before it is used; a bad one is left out with a named cause and the run goes
on (:mod:`server.exchange`).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch
from flwr.app import Message

from common.data.catalogue import read_catalogue
from common.errors import CrossRecError, InvalidRelease, RequestRefused, RunFailed, StateError
from common.messages import ADOPT, PROFILE, AdoptRequest, Profile
from common.models.ncf import initialise
from common.models.partition import PAIRS, check_shared
from common.rng import derive_seed
from common.wire import decode, encode, question
from server.agreement import CatalogueAgreement
from server.checkpoint import Checkpoints
from server.exchange import LARGEST_MESSAGE, POLL_SECONDS, Exchange, shortened
from server.journal import Journal, read_journal
from server.membership import settle_membership
from server.registrations import REGISTRATIONS_FILE, check_speaker, read_registrations
from server.rounds import TrainingRounds
from server.secure_sum import SecureSums
from server.standing import Standing, set_aside_in
from server.strategy import ServerState, initial_state
from server.sums import PrivateSums

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.serverapp import Grid

    from common.data.catalogue import Catalogue
    from common.models.partition import Arrays
    from server.checkpoint import CollectedSum
    from server.config import FederationConfig
    from server.membership import Membership

log = logging.getLogger(__name__)

PROFILE_SECONDS = 120.0
"""How long a node has to say who it is, also where the run would begin without it: an engine may
need to start a process for it."""
ASK_AGAIN_SECONDS = 5.0
"""Pause before a node that did not answer is asked again who it is."""


def initial_parameters(config: FederationConfig, num_items: int) -> Arrays:
    """Shared parameters before the first round: the same for the same configuration."""
    seed = derive_seed(config.federation.seed, "initial-parameters")
    model = initialise(config.model, num_items, torch.Generator().manual_seed(seed))
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


class FederationRun:
    """One run over a Flower grid, resumed from its checkpoint if there is one."""

    def __init__(self, config: FederationConfig, grid: Grid) -> None:
        """Open catalogue, checkpoint and journal of the run.

        Raises:
            CrossRecError: if one of them cannot be used.
        """
        self._config = config
        file, platforms = config.catalogue.file, list(config.federation.platforms)
        if file is not None:
            self._use(read_catalogue(file, platforms=platforms))
        self._checkpoints = Checkpoints(config.run_folder, config.federation.run_id)
        self._journal = Journal(config.run_folder)
        self._standing = Standing(
            self._journal,
            config.validation.max_failures,
            set_aside_in(event for _, event in read_journal(config.run_folder)),
        )
        self._exchange = Exchange(config, grid, self._standing)
        self._secure = SecureSums(config, self._exchange, self._journal)
        # Without a network there are no keys: a simulation's platforms are who they say.
        self._registered = (
            None
            if config.network is None
            else read_registrations(config.state.folder / REGISTRATIONS_FILE)
        )

    def run(self) -> ServerState:
        """Collect the sums, run the remaining rounds, then hand everything to every platform.

        Raises:
            RunFailed: if fewer platforms than the quorum answer a round, or for a sum.
        """
        planned = self._config.federation.rounds
        try:
            stored = self._checkpoints.load()
            rounds_done = 0 if stored is None else stored.rounds_done
            self._journal.write("run-started", rounds=planned, rounds_done=rounds_done)
            nodes, profiles = self._meet()
            if self._config.catalogue.agree:
                nodes, profiles = self._agree(nodes, profiles)
            state = self._starting_from(stored)
            members = settle_membership(
                self._config.run_folder,
                self._config.federation.run_id,
                {name: profile.population for name, profile in profiles.items()},
                at_least=self._config.secagg.least_participants if self._config.is_summed else 1,
            )
            pairs = self._collect_sums(nodes, members)
            rounds = TrainingRounds(
                self._config,
                self._catalogue,
                self._exchange,
                self._secure,
                self._journal,
                members,
                self._standing,
            )
            while state.rounds_done < planned:
                state = rounds.close_next(state, nodes)
                self._checkpoints.save(state)
            self._hand_over(state, pairs, nodes)
        except CrossRecError as error:
            self._journal.write("run-failed", reason=str(error))
            raise
        else:
            self._journal.write("run-finished", rounds_done=state.rounds_done)
        finally:
            self._journal.close()
        return state

    def _use(self, catalogue: Catalogue) -> None:
        self._catalogue, self._catalogue_digest = catalogue, catalogue.digest

    def _agree(
        self, nodes: Mapping[str, int], profiles: Mapping[str, Profile]
    ) -> tuple[dict[str, int], dict[str, Profile]]:
        """Use the catalogue that the run's platforms agree on; keep those who hold it."""
        agreement = CatalogueAgreement(self._config, self._exchange, self._journal)
        catalogue, held_by = agreement.settle(nodes)
        self._use(catalogue)
        return {name: nodes[name] for name in held_by}, {name: profiles[name] for name in held_by}

    def _starting_from(self, state: ServerState | None) -> ServerState:
        if state is None:
            return initial_state(initial_parameters(self._config, self._catalogue.num_items))
        try:
            for arrays in (state.parameters, state.first_moment, state.second_moment):
                self._check_shared(arrays)
        except InvalidRelease as error:
            msg = f"{self._config.run_folder}: the checkpoint belongs to another model. {error}"
            raise StateError(msg) from error
        return state

    def _collect_sums(self, nodes: Mapping[str, int], members: Membership) -> CollectedSum | None:
        config = self._config
        if config.sums is None:
            return None
        sums = PrivateSums(
            config,
            config.sums,
            self._catalogue,
            self._exchange,
            self._secure,
            self._journal,
            members,
            self._standing,
        )
        return sums.collect(nodes)

    def _meet(self) -> tuple[dict[str, int], dict[str, Profile]]:
        """Ask every node who it is; keep the platforms of this federation."""
        expected = set(self._config.federation.platforms) - self._standing.set_aside.keys()
        nodes: dict[str, int] = {}
        profiles: dict[str, Profile] = {}
        give_up = time.monotonic() + self._config.federation.join_timeout_seconds
        asked: set[int] = set()
        not_before: dict[int, float] = {}
        while len(nodes) < len(expected):
            now = time.monotonic()
            new = [
                node
                for node in self._exchange.nodes()
                if node not in asked and not_before.get(node, now) <= now
            ]
            if not new:
                if now > give_up:
                    break
                time.sleep(POLL_SECONDS)
                continue
            asked.update(new)
            messages = {node: Message(question(), node, PROFILE) for node in new}
            patience = max(PROFILE_SECONDS, give_up - time.monotonic())
            for node, content, cause in self._exchange.send(messages, patience):
                try:
                    if content is None:  # not there yet, or no longer: it is asked again
                        asked.discard(node)
                        not_before[node] = time.monotonic() + ASK_AGAIN_SECONDS
                        raise RequestRefused(cause)
                    found, _ = decode(content, Profile, max_bytes=LARGEST_MESSAGE)
                    self._check_profile(found, node, nodes)
                except CrossRecError as error:
                    reason = shortened(error)
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

    def _check_profile(self, found: Profile, node: int, nodes: Mapping[str, int]) -> None:
        if found.platform not in self._config.federation.platforms:
            msg = f"platform {found.platform!r} is not part of this federation."
            raise RequestRefused(msg)
        if self._registered is not None:
            check_speaker(self._registered, found.platform, node)
        if found.platform in self._standing.set_aside:
            cause = self._standing.set_aside[found.platform]
            msg = f"platform {found.platform!r} was set aside in this run: {cause}"
            raise RequestRefused(msg)
        if found.platform in nodes:
            msg = f"platform {found.platform!r} joined twice; the first one stays."
            raise RequestRefused(msg)
        is_given = not self._config.catalogue.agree
        if is_given and found.catalogue_digest != self._catalogue_digest:
            msg = f"platform {found.platform!r} holds another version of the catalogue."
            raise RequestRefused(msg)
        mechanism = self._config.mechanism
        if (found.trust, found.unit) != (mechanism.trust, mechanism.unit):
            msg = (
                f"platform {found.platform!r} accepts trust {found.trust!r} per {found.unit}; "
                f"this run is {mechanism.trust!r} per {mechanism.unit}."
            )
            raise RequestRefused(msg)
        if not 1 <= found.population <= self._config.validation.max_population:
            msg = f"platform {found.platform!r} declares population {found.population}."
            raise RequestRefused(msg)

    def _check_shared(self, arrays: Arrays) -> Arrays:
        return check_shared(arrays, self._config.model, self._catalogue.num_items)

    def _hand_over(
        self, state: ServerState, pairs: CollectedSum | None, nodes: Mapping[str, int]
    ) -> None:
        nodes = self._standing.remaining(nodes)
        self._journal.write("handing-over", platforms=list(nodes))
        arrays = state.parameters if state.rounds_done > 0 else {}
        if pairs is not None:
            handed = {**pairs.asked, "sum": pairs.total}
            arrays = arrays | {f"{PAIRS}{name}": array for name, array in handed.items()}
        messages: dict[str, Message] = {}
        for name, node in nodes.items():
            request = AdoptRequest(
                run_id=self._config.federation.run_id,
                platform=name,
                catalogue_digest=self._catalogue_digest,
                model=self._config.model,
                rounds_done=state.rounds_done,
                num_sums=len(pairs.platforms) if pairs else 0,
                own_included=pairs is not None and name in pairs.platforms,
                noise_std=pairs.noise_std if pairs else 0.0,
                lattice=pairs.lattice if pairs else None,
            )
            messages[name] = Message(encode(request, arrays), node, ADOPT)
        for name, _, outcome in self._exchange.ask(messages, number=0, wanted="adopted"):
            self._journal.write("handed-over", platform=name, outcome=outcome)
