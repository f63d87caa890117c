"""A platform's home on disk: data, catalogue, configuration; and requests that fit it."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from client.adaptation import Adapted
from client.config import (
    AdaptationSection,
    CatalogueSection,
    DataSection,
    PlatformConfig,
    PlatformSection,
    PrivacySection,
    SimulationSection,
    StateSection,
)
from client.parts import Blend, ItemScores
from common.data.catalogue import read_catalogue
from common.messages import AdoptRequest, SumRequest, TrainRequest
from common.models.ncf import NcfConfig, initialise
from common.models.popularity import popularity_scores
from common.privacy.ledger import LEDGER_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scipy.sparse import csr_matrix

    from client.validation import Fold
    from common.models.partition import Arrays, SumQuantity
    from common.privacy.account import EntryKind

NAME = "north"
NUM_ITEMS, NUM_LISTED, NUM_USERS = 14, 12, 20
MODEL = NcfConfig(dim=4)


def write_users(path: Path, users: Iterable[int]) -> None:
    """Five purchases for each user; a user's rows do not depend on the other users."""
    lines = ["user_id,item_id,timestamp"]
    for user in users:
        items = np.random.default_rng(user).choice(NUM_LISTED, size=5, replace=False)
        lines += [f"u{user:03d},i{item:02d},{1000 + k}" for k, item in enumerate(items)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_catalogue_file(path: Path) -> None:
    lines = ["item_id,platform"]
    lines += [f"i{item:02d},{NAME}" for item in range(NUM_LISTED)]
    lines += [f"i{item:02d},south" for item in range(4, NUM_ITEMS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def move_in(folder: Path, *, simulation: bool = True, **privacy: Any) -> PlatformConfig:  # noqa: ANN401
    """Write data and catalogue of the platform ``north``; return its configuration."""
    write_users(folder / "purchases.csv", range(NUM_USERS))
    write_catalogue_file(folder / "catalogue.csv")
    return PlatformConfig(
        platform=PlatformSection(name=NAME, population=NUM_USERS),
        data=DataSection(source=folder / "purchases.csv"),
        catalogue=CatalogueSection(file=folder / "catalogue.csv"),
        privacy=PrivacySection(**{"epsilon": 8.0, **privacy}),
        state=StateSection(folder=folder / "state"),
        adaptation=AdaptationSection(max_epochs=2),
        simulation=SimulationSection(seed=3) if simulation else None,
    )


def purchases(config: PlatformConfig) -> Path:
    """The file that the platform's interactions are in."""
    assert isinstance(config.data.source, Path)
    return config.data.source


def shared_arrays(model: NcfConfig = MODEL, seed: int = 0) -> Arrays:
    generator = torch.Generator().manual_seed(seed)
    parameters = initialise(model, NUM_ITEMS, generator).named_parameters()
    return {name: parameter.detach().numpy().copy() for name, parameter in parameters}


def train_request(config: PlatformConfig, **changes: Any) -> TrainRequest:  # noqa: ANN401
    fields: dict[str, Any] = {
        "run_id": "spring",
        "round_number": 1,
        "platform": NAME,
        "catalogue_digest": catalogue_digest(config),
        "model": MODEL,
        "trust": config.privacy.trust,
        "num_platforms": 2,
        "noise_multiplier": 1.0,
        "clipping_norm": 0.25,
        "sampling_rate": 1.0,
        "local_steps": 1,
        "denominator": float(NUM_USERS),
        "learning_rate": 1.0,
        "user_steps": 2,
        "dropout": 0.5,
    }
    return TrainRequest(**{**fields, **changes})


def sum_request(config: PlatformConfig, **changes: Any) -> SumRequest:  # noqa: ANN401
    fields: dict[str, Any] = {
        "run_id": "spring",
        "platform": NAME,
        "catalogue_digest": catalogue_digest(config),
        "trust": config.privacy.trust,
        "num_platforms": 2,
        "noise_multiplier": 10.0,
        "quantity": "item-pairs",
    }
    return SumRequest(**{**fields, **changes})


def asked_arrays(quantity: SumQuantity = "item-pairs") -> Arrays:
    """All items but two; the last two of the catalogue are not listed by ``north``."""
    items = np.setdiff1d(np.arange(NUM_ITEMS), [1, 6])
    weights = np.linspace(0.1, 1.0, len(items), dtype=np.float32)
    return {"items": items} if quantity == "item-counts" else {"items": items, "weights": weights}


def true_sum(config: PlatformConfig, quantity: SumQuantity) -> np.ndarray:
    """From the file of purchases, in plain floats: all of them."""
    asked = asked_arrays(quantity)
    users: dict[str, set[int]] = {}
    with purchases(config).open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            users.setdefault(row["user_id"], set()).add(int(row["item_id"][1:]))
    owned = np.array([[item in own for item in asked["items"]] for own in users.values()])
    if quantity == "item-counts":
        parts = owned / np.sqrt(owned.sum(1, keepdims=True))
    else:
        places = np.triu_indices(len(asked["items"]), 1)
        parts = np.array([np.outer(y, y)[places] for y in owned * asked["weights"].astype(float)])
        parts /= np.linalg.norm(parts, axis=1, keepdims=True)
    total: np.ndarray = parts.sum(0)
    return total


def adopt_request(config: PlatformConfig, **changes: Any) -> AdoptRequest:  # noqa: ANN401
    request = AdoptRequest(
        run_id="spring",
        platform=NAME,
        catalogue_digest=catalogue_digest(config),
        model=MODEL,
        rounds_done=1,
        num_sums=0,
        own_included=False,
        noise_std=0.0,
    )
    return replace(request, **changes)


def fit_quickly(
    interactions: csr_matrix, folds: Sequence[Fold], *_: object, **__: object
) -> Adapted:
    """Stands in for :func:`client.adaptation.fit_alone`, with popularity only."""

    def scores(history: csr_matrix) -> np.ndarray:
        counted: np.ndarray = np.log1p(popularity_scores(history))
        return counted

    return Adapted(
        blend=Blend(
            parts={"popularity": ItemScores(values=scores(interactions))},
            weights={"popularity": 1.0},
        ),
        scores=tuple(np.tile(scores(fold.history), (len(fold.users), 1)) for fold in folds),
    )


def catalogue_digest(config: PlatformConfig) -> str:
    assert config.catalogue.file is not None
    return read_catalogue(config.catalogue.file, platforms=[NAME]).digest


def durable_rows(config: PlatformConfig, kind: EntryKind) -> int:
    """Entries of a kind on disk as a stranger to the ledger's connection sees them: committed."""
    return [entry_kind for entry_kind, _, _ in durable_entries(config)].count(kind)


def durable_entries(config: PlatformConfig) -> list[tuple[EntryKind, str, dict[str, Any]]]:
    """Kind, request and body of each entry that a stranger sees, oldest first."""
    path = config.state.folder / LEDGER_FILE
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        found = database.execute("SELECT kind, request_id, body FROM entry ORDER BY sequence")
        return [(kind, request_id, json.loads(body)) for kind, request_id, body in found]


def declined(config: PlatformConfig) -> list[tuple[str, str]]:
    """Request and reason of each request that the ledger says was declined, oldest first."""
    return [
        (request_id, body["reason"])
        for kind, request_id, body in durable_entries(config)
        if kind == "decline"
    ]
