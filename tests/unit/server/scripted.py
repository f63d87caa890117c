"""A Flower grid of platforms that follow a script, honest or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Error, Message, RecordDict

from common.data.agreement import pack_keys
from common.data.catalogue import read_catalogue
from common.messages import (
    AGREEMENT,
    ASSORTMENT,
    PROFILE,
    SUM,
    TRAIN,
    AdoptRequest,
    Agreement,
    AssortmentRequest,
    Profile,
    Reply,
    SumRequest,
    TrainRequest,
)
from common.models.ncf import NcfConfig
from common.models.pairs import num_pairs
from common.models.partition import LATTICE, flatten, shared_shapes
from common.rng import derived_generator
from common.wire import decode, encode
from server.config import (
    CatalogueSection,
    FederationConfig,
    FederationSection,
    MechanismSection,
    StateSection,
    SumsSection,
    TrainingSection,
    ValidationSection,
)
from server.journal import read_journal
from simulations.engines.in_process import InProcessGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from common.messages import ReleaseRequest
    from common.models.partition import Arrays, SumQuantity

MODEL = NcfConfig(dim=3)
NUM_ITEMS = 6
POPULATION = 100
RUN_ID = "spring"
AVERAGING = TrainingSection(strategy="fedavg", server_learning_rate=1.0, momentum=0.0)
"""With it, a round adds the mean of the releases to the parameters and does nothing else."""

Answer = RecordDict | Error | None
"""What a platform sends; None is silence."""


def release(name: str, round_number: int) -> Arrays:
    rng = derived_generator(0, "scripted-release", name, round_number)
    # As small as an update of POPULATION users is: what is larger is left out.
    return {
        key: (0.04 * rng.standard_normal(shape)).astype(np.float32)
        for key, shape in shared_shapes(MODEL, NUM_ITEMS).items()
    }


def reply(name: str, round_number: int, **changes: Any) -> Reply:  # noqa: ANN401 - any field
    fields = {"platform": name, "run_id": RUN_ID, "round_number": round_number}
    return Reply(**{**fields, "outcome": "released", **changes})


def honest_release(request: TrainRequest) -> Answer:
    name, number = request.platform, request.round_number
    arrays = release(name, number)
    if request.secagg is not None:
        # Without the step that the server takes for it.
        arrays = on_lattice(flatten(arrays) * -request.denominator / request.learning_rate, request)
    return encode(reply(name, number, run_id=request.run_id), arrays)


def on_lattice(numbers: np.ndarray, request: ReleaseRequest) -> Arrays:
    assert request.secagg is not None
    lattice = request.secagg.lattice
    steps = np.round(numbers.astype(np.float64) / lattice.step).astype(np.int64)
    return {LATTICE: steps.astype(lattice.dtype)}


def sum_release(name: str, quantity: SumQuantity, num_asked: int) -> Arrays:
    size = num_asked if quantity == "item-counts" else num_pairs(num_asked)
    rng = derived_generator(0, "scripted-sum", name, quantity)
    return {"sum": rng.normal(20.0, 5.0, size).astype(np.float32)}


def honest_sum(request: SumRequest, asked: Arrays) -> Answer:
    name = request.platform
    sums = sum_release(name, request.quantity, len(asked["items"]))
    if request.secagg is not None:
        sums = on_lattice(sums["sum"], request)
    return encode(reply(name, 0, run_id=request.run_id), sums)


def honest_adoption(request: AdoptRequest) -> Answer:
    return encode(done(request, "adopted"))


def done(request: AdoptRequest | AssortmentRequest | Agreement, outcome: str) -> Reply:
    return reply(request.platform, 0, run_id=request.run_id, outcome=outcome)


def listing(*keys: str) -> Callable[[AssortmentRequest], Answer]:
    """A platform that reports ``keys``."""
    return lambda request: encode(done(request, "listed"), pack_keys(keys))


EVERYTHING = listing(*(f"i{k}" for k in range(NUM_ITEMS)))


def honest_agreement(request: Agreement, _: Arrays) -> Answer:
    return encode(done(request, "agreed"))


@dataclass(kw_only=True)
class Shop:
    """A platform: what it says of itself and how it answers; honest unless changed."""

    profile: Profile | Answer
    report: Callable[[AssortmentRequest], Answer] = EVERYTHING
    agree: Callable[[Agreement, Arrays], Answer] = honest_agreement
    train: Callable[[TrainRequest], Answer] = honest_release
    sum_up: Callable[[SumRequest, Arrays], Answer] = honest_sum
    adopt: Callable[[AdoptRequest], Answer] = honest_adoption


def profile(name: str, catalogue: Path, **changes: Any) -> Profile:  # noqa: ANN401 - any field
    fields: dict[str, Any] = {
        "platform": name,
        "population": POPULATION,
        "catalogue_digest": read_catalogue(catalogue, platforms=[name]).digest,
        "trust": "local",
        "unit": "user",
        "delta": 1e-5,
    }
    return Profile(**{**fields, **changes})


class ScriptedGrid(InProcessGrid):
    """Delivers messages to shops; keeps what was asked."""

    def __init__(self, shops: Iterable[Shop], *, copies: int = 1) -> None:
        self._shops = dict(enumerate(shops, start=1))
        super().__init__([Path("unused")] * len(self._shops))
        self._copies = copies
        self.requests: list[TrainRequest] = []
        self.shared: list[Arrays] = []
        self.reported: list[AssortmentRequest] = []
        self.agreed: list[tuple[Agreement, Arrays]] = []
        self.sums: list[tuple[SumRequest, Arrays]] = []
        self.adopted: list[tuple[AdoptRequest, Arrays]] = []
        self.unreachable_after_meeting: set[int] = set()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = list(super().push_messages(messages := list(messages)))
        for place, message in enumerate(messages):
            is_late = message.metadata.message_type != PROFILE
            if is_late and message.metadata.dst_node_id in self.unreachable_after_meeting:
                del self._waiting[ids[place]]
                ids[place] = ""  # as Flower's grids say it
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = []
        for message_id in message_ids:
            message = self._waiting.pop(message_id, None)
            answer = None if message is None else self._answer(message)
            if message is not None and answer is not None:
                replies += [Message(answer, reply_to=message) for _ in range(self._copies)]
        return replies

    def _answer(self, message: Message) -> Answer:
        shop = self._shops[message.metadata.dst_node_id]
        if message.metadata.message_type == PROFILE:
            return encode(shop.profile) if isinstance(shop.profile, Profile) else shop.profile
        if message.metadata.message_type == ASSORTMENT:
            asked, _ = decode(message.content, AssortmentRequest)
            self.reported.append(asked)
            return shop.report(asked)
        if message.metadata.message_type == AGREEMENT:
            self.agreed.append(decode(message.content, Agreement))
            return shop.agree(*self.agreed[-1])
        if message.metadata.message_type == TRAIN:
            request, arrays = decode(message.content, TrainRequest)
            self.requests.append(request)
            self.shared.append(arrays)
            return shop.train(request)
        if message.metadata.message_type == SUM:
            self.sums.append(decode(message.content, SumRequest))
            return shop.sum_up(*self.sums[-1])
        self.adopted.append(decode(message.content, AdoptRequest))
        return shop.adopt(self.adopted[-1][0])


def write_catalogue_file(folder: Path, num_items: int = NUM_ITEMS) -> Path:
    path = folder / "catalogue.csv"
    path.write_text("item_id\n" + "".join(f"i{k}\n" for k in range(num_items)))
    return path


def federation(
    folder: Path,
    names: Iterable[str],
    *,
    quorum: int = 2,
    rounds: int = 1,
    training: TrainingSection = AVERAGING,
    model: NcfConfig = MODEL,
    sums: SumsSection | None = None,
    validation: ValidationSection = ValidationSection(),  # noqa: B008 - a frozen value
    **mechanism: Any,  # noqa: ANN401 - any field of the mechanism
) -> FederationConfig:
    return FederationConfig(
        federation=FederationSection(
            run_id=RUN_ID,
            rounds=rounds,
            platforms=tuple(names),
            quorum=quorum,
            join_timeout_seconds=0.01,
            round_timeout_seconds=0.3,
        ),
        catalogue=CatalogueSection(file=folder / "catalogue.csv"),
        mechanism=MechanismSection(**{"noise_multiplier": 1.0, **mechanism}),
        model=model,
        training=training,
        state=StateSection(folder=folder / "state"),
        sums=sums,
        validation=validation,
    )


def events(config: FederationConfig, kind: str) -> list[dict[str, Any]]:
    """Journal entries of one kind, without their times."""
    return [
        {key: value for key, value in event.items() if key not in {"event", "time"}}
        for _, event in read_journal(config.run_folder)
        if event["event"] == kind
    ]


def outcomes(config: FederationConfig) -> dict[str, str]:
    """What became of each platform in the last round."""
    last = max((event["round"] for event in events(config, "reply")), default=0)
    return {
        event["platform"]: event["outcome"]
        for event in events(config, "reply")
        if event["round"] == last
    }


def with_json(**fields: object) -> RecordDict:
    """A reply record with any JSON object in it."""
    record = encode(reply("evil", 1), release("evil", 1))
    record.config_records["message"]["json"] = json.dumps(fields)
    return record
