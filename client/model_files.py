"""A platform's models as files: what it fitted alone, what joining added, and which it serves.

Layout of the folder::

    local.safetensors        parts that were fitted alone, their weights, and how they were judged
    federated.safetensors    parts that a run brought, and the weights with them
    served.txt               which of both is served, written last

The second belongs to the first, by its digest. A file that was fitted to other data or with other
settings counts as missing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

from client.adaptation import Adapted
from client.parts import Blend, pack_parts, unpack_parts
from common.errors import StateError
from common.storage import (
    pack_arrays,
    read_arrays,
    read_content,
    sha256,
    unpack_arrays,
    write_durably,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from client.data import PlatformData
    from client.parts import Part
    from common.models.ncf import NcfConfig

ServedName = Literal["alone", "joined"]
"""What a platform may serve; the gate chooses."""

LOCAL_FILE = "local.safetensors"

_ALGORITHM = "2"
"""Changes with the code that fits models alone: what another version fitted is fitted again."""

_VALIDATION = "validation"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlatformModels:
    """All that a platform can score with."""

    alone: Blend
    """The best without anybody else."""
    joined: Blend | None
    """The same with what a run brought, served or not; None before the first hand-over."""

    @property
    def parts(self) -> Mapping[str, Part]:
        """Every part, by name."""
        return (self.joined or self.alone).parts


def fitted_to(data: PlatformData, model: NcfConfig, *, max_epochs: int, seed: int) -> str:
    """Digest of everything that models alone depend on."""
    digest = hashlib.sha256()
    shape = list(data.users.matrix.shape)
    settings = [_ALGORITHM, data.users_digest, shape, asdict(model), max_epochs, seed]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    held_out = [fold.held_out for fold in data.folds]
    for matrix in (data.users.matrix, *held_out):
        digest.update(matrix.indptr.tobytes())
        digest.update(matrix.indices.tobytes())
    return digest.hexdigest()


class ModelFiles:
    """Reads and writes the folder; the platform's state guards that one process does."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is read yet."""
        self._local = folder / LOCAL_FILE
        self._federated = folder / "federated.safetensors"
        self._served = folder / "served.txt"

    def save_alone(self, alone: Adapted, digest: str, users_digest: str) -> None:
        """Write what was fitted alone.

        Args:
            alone: the models.
            digest: of :func:`fitted_to`.
            users_digest: of the users and items in the order of rows and columns, to which models
                belong.
        """
        arrays, kinds = pack_parts(alone.blend.parts)
        arrays |= {f"{_VALIDATION}/{fold}": block for fold, block in enumerate(alone.scores)}
        metadata = {
            "kinds": kinds,
            "weights": json.dumps(dict(alone.blend.weights)),
            "fitted_to": digest,
            "users": users_digest,
            "folds": str(len(alone.scores)),
        }
        write_durably(self._local, pack_arrays(arrays, metadata))

    def load_alone(self, digest: str) -> Adapted | None:
        """What was fitted alone to the same data with the same settings, or None.

        Raises:
            StateError: if the file is damaged.
        """
        if not self._local.exists():
            return None
        arrays, metadata = read_arrays(self._local)
        if metadata.get("fitted_to") != digest:
            return None
        return Adapted(
            blend=self._blend(self._local, arrays, metadata),
            scores=self._validation(arrays, metadata),
        )

    def save_joined(self, blend: Blend, serve: ServedName) -> None:
        """Write what joining added to the parts that were fitted alone, then which is served."""
        content = read_content(self._local)
        _, metadata = unpack_arrays(content, self._local)
        known = json.loads(metadata["kinds"])
        arrays, kinds = pack_parts({k: v for k, v in blend.parts.items() if k not in known})
        metadata = {
            "kinds": kinds,
            "weights": json.dumps(dict(blend.weights)),
            "beside": sha256(content),
        }
        write_durably(self._federated, pack_arrays(arrays, metadata))
        write_durably(self._served, serve.encode())

    def load(self, users_digest: str) -> PlatformModels | None:
        """All models, or None before the first hand-over, or if they are for other users or items.

        Args:
            users_digest: of the users and items in the order of rows and columns.

        Raises:
            StateError: if a file is damaged.
        """
        if not self._local.exists():
            return None
        content = read_content(self._local)
        arrays, metadata = unpack_arrays(content, self._local)
        if metadata.get("users") != users_digest:
            return None
        alone = self._blend(self._local, arrays, metadata)
        joined = None
        if self._federated.exists():
            arrays, metadata = read_arrays(self._federated)
            if metadata.get("beside") == sha256(content):
                joined = self._blend(self._federated, arrays, metadata, beside=alone.parts)
        return PlatformModels(alone=alone, joined=joined)

    def served(self) -> ServedName | None:
        """Which model is served, or None before the first hand-over.

        Where a hand-over was cut short, what joining added may belong to models that are gone:
        then the platform serves alone.

        Raises:
            StateError: if the record, or what joining added, is damaged.
        """
        if not self._served.exists():
            return None
        name = self._served.read_text(encoding="utf-8", errors="replace")
        if name not in get_args(ServedName):
            msg = f"{self._served}: names no model that can be served; run the hand-over again."
            raise StateError(msg)
        if name == "joined" and not self._belongs():
            return "alone"
        return cast("ServedName", name)

    def adopted_at(self) -> float | None:
        """When a hand-over was last completed, in seconds since 1970; None before the first."""
        return self._served.stat().st_mtime if self._served.exists() else None

    def _belongs(self) -> bool:
        """Whether what joining added is there, and was added to the models that are there."""
        if not (self._local.exists() and self._federated.exists()):
            return False
        _, metadata = read_arrays(self._federated)
        return metadata.get("beside") == sha256(read_content(self._local))

    @staticmethod
    def _blend(
        path: Path,
        arrays: Mapping[str, np.ndarray],
        metadata: Mapping[str, str],
        beside: Mapping[str, Part] | None = None,
    ) -> Blend:
        try:
            parts = {**(beside or {}), **unpack_parts(arrays, metadata["kinds"])}
            weights = {str(k): float(v) for k, v in json.loads(metadata["weights"]).items()}
            if not weights.keys() <= parts.keys():
                raise KeyError(*sorted(weights.keys() - parts.keys()))  # noqa: TRY301
        except StateError as error:
            raise StateError(f"{path}: {error}") from error
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            msg = f"{path}: not a platform's models ({error}); run the hand-over again."
            raise StateError(msg) from error
        return Blend(parts=parts, weights=weights)

    def _validation(
        self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
    ) -> tuple[np.ndarray, ...]:
        try:
            return tuple(arrays[f"{_VALIDATION}/{fold}"] for fold in range(int(metadata["folds"])))
        except (KeyError, ValueError) as error:
            msg = f"{self._local}: not a platform's models ({error}); run the hand-over again."
            raise StateError(msg) from error
