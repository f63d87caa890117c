"""Flower 1.41's own SecAgg+, as it comes: ``secaggplus_mod`` and ``SecAggPlusWorkflow``.

They work with Flower's legacy workflow only, and stand here to compare their cost, not their
protection, which is less than that of :mod:`common.secagg`:

- masks come from ``pseudo_rand_gen``: MT19937 with a seed of 32 bits, of which pairwise seeds vary
  in 28, so that masks can be found by trying;
- public keys are not signed: a coordinator may put in its own;
- a platform that is called active and dead at once reveals both shares;
- numbers are rounded after the noise, and nothing is stated about what that costs.

Each round is measured with one trait that favours it: the strategy takes the mean as it is, where
FedAvg would add up one copy of it for each platform.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.compat.common import recorddict_compat as compat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.task_identity import TaskIdentity

from common.models.partition import flatten
from common.privacy.noise import add_gaussian_noise_
from common.privacy.randomness import SystemRandom
from simulations.benchmarks.secagg.grid import Found
from simulations.benchmarks.secagg.platforms import UPDATE, Releases, mean_of

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.common import Parameters
    from flwr.server.client_proxy import ClientProxy

    from common.models.partition import Arrays
    from simulations.benchmarks.secagg.costs import SecaggCase, Subject
    from simulations.benchmarks.secagg.grid import CountingGrid, Spent

_RUN_ID = 1
_WEIGHT = 1000
"""Examples of each platform; also the greatest weight, so that updates are not scaled."""
_TOLERANCE = 1e-5
"""Flower's defaults round to steps of 4e-6."""


class FlowerPlatforms:
    """Noise as without secure aggregation, then Flower's mod."""

    def __init__(self, case: SecaggCase, folder: Path, noise_std: float, scale: float) -> None:
        """Name the place.

        Args:
            case: the workload.
            folder: for releases.
            noise_std: of one platform.
            scale: of an update, over the noised sum.
        """
        self._releases = Releases(case, folder)
        self._noise_std, self._scale = noise_std, scale
        self._sums = torch.empty(0)
        self._update = np.zeros(0, dtype=np.float32)
        self._contexts: dict[int, Context] = {}
        TaskIdentity.run_id, TaskIdentity.task_id = _RUN_ID, 0

    def prepare(self, node: int, stage: str) -> None:
        """Sums for the stage that sends them."""
        if stage == "collect_masked_vectors":
            self._sums = self._releases.sums(node)

    def answer(self, node: int, stage: str, record: RecordDict) -> RecordDict:
        """One stage."""
        context = self._contexts.setdefault(
            node,
            Context(
                run_id=_RUN_ID, node_id=node, node_config={}, state=RecordDict(), run_config={}
            ),
        )
        TaskIdentity.node_id = 0
        message = Message(record, node, "train", group_id="1")
        message.metadata.__dict__["_message_id"] = f"{node} {stage}"
        TaskIdentity.node_id = node
        return secaggplus_mod(message, context, self._train).content

    def _train(self, message: Message, context: Context) -> Message:
        del context
        fit = compat.recorddict_to_fitins(message.content, keep_input=True)
        parameters_to_ndarrays(fit.parameters)
        add_gaussian_noise_(self._sums, self._noise_std, SystemRandom())
        self._update = self._sums.mul_(self._scale).float().numpy()
        result = FitRes(
            status=Status(code=Code.OK, message=""),
            parameters=ndarrays_to_parameters([self._update]),
            num_examples=_WEIGHT,
            metrics={},
        )
        content = compat.fitres_to_recorddict(result, keep_input=False)
        return Message(content, reply_to=message)

    def keep(self, node: int, stage: str) -> None:
        """The update, to check the mean."""
        if stage == "collect_masked_vectors":
            self._releases.save(node, {UPDATE: self._update})

    def expected(self, survivors: list[int]) -> np.ndarray:
        """The mean."""
        return mean_of(self._releases, survivors)


class _TakeTheMean(FedAvg):
    """Asks everybody, and keeps the mean that the workflow found."""

    def __init__(self, nodes: list[int]) -> None:
        super().__init__()
        self._nodes = nodes

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: object
    ) -> list[tuple[ClientProxy, FitIns]]:
        del server_round, client_manager
        return [
            (cast("ClientProxy", SimpleNamespace(node_id=node)), FitIns(parameters, {}))
            for node in self._nodes
        ]

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: object
    ) -> tuple[Parameters | None, dict[str, bool | bytes | float | int | str]]:
        del server_round, failures
        return results[0][1].parameters, {}


def coordinate(
    case: SecaggCase, subject: Subject, grid: CountingGrid, shared: Arrays
) -> tuple[Found, Spent]:
    """Run Flower's workflow over the grid; what it found, and the coordinator's own time."""
    # Its own share is one of a platform's.
    num_shares = 1 + case.sparse_neighbours if "sparse" in subject else case.platforms
    nodes = list(grid.get_node_ids())
    context = LegacyContext(
        Context(run_id=_RUN_ID, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        strategy=_TakeTheMean(nodes),
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    before = grid.own_time()
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        ndarrays_to_parameters([flatten(shared)]), keep_input=False
    )
    workflow = SecAggPlusWorkflow(
        num_shares=num_shares,
        reconstruction_threshold=num_shares - case.drops if case.drops else 1.0,
        max_weight=float(_WEIGHT),
    )
    workflow(grid, context)
    mean = compat.arrayrecord_to_parameters(
        context.state.array_records[MAIN_PARAMS_RECORD], keep_input=True
    )
    (numbers,) = parameters_to_ndarrays(mean)
    spent = grid.own_time().since(before)
    survivors = [node for node in nodes if node not in grid.dropped]
    found = Found(numbers=numbers, survivors=survivors, tolerance=_TOLERANCE)
    return found, spent
