"""What the coordinator writes down of releases, to be held against the platforms' own ledgers.

A release's digest is the one that its platform records: two ledgers for one platform cannot both
hold it. Under secure aggregation no release is seen, and the list of who is in the sum takes
its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.storage import pack_arrays, sha256

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.messages import ReleaseRequest
    from common.models.partition import Arrays
    from server.journal import Journal

RELEASE_TAKEN = "release-taken"
SURVIVORS_CONFIRMED = "survivors-confirmed"


def asked_mechanism(requests: Mapping[str, ReleaseRequest]) -> dict[str, Any]:
    """What each release that is asked for costs, the same for everybody; nothing if nobody is."""
    for request in requests.values():
        return {
            "mechanism": request.mechanism().to_dict(),
            "mechanism_if_broken": request.mechanism_if_broken().to_dict(),
        }
    return {}


def note_release(journal: Journal, request: ReleaseRequest, release: Arrays) -> None:
    """Write down that a release arrived, and which.

    Raises:
        StateError: if the disk is full.
    """
    digest = sha256(pack_arrays(release, {"request": request.request_id}))
    journal.write(
        RELEASE_TAKEN, platform=request.platform, request_id=request.request_id, sha256=digest
    )


def note_confirmed(
    journal: Journal, request: ReleaseRequest, statement: bytes, survivors: tuple[str, ...]
) -> None:
    """Write down whose releases are in a sum that is about to be opened, as they confirmed it.

    Raises:
        StateError: if the disk is full.
    """
    journal.write(
        SURVIVORS_CONFIRMED,
        request_ids=[request.id_for(name) for name in survivors],
        survivors=list(survivors),
        sha256=statement.hex(),
    )
