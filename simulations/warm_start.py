"""Hand the models that a platform fitted alone from one run to another on the same data.

They depend neither on epsilon nor on trust, so the runs of a comparison that differ in these only
need not fit them again. The platform decides whether it takes them: it checks what they were fitted
to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.model_files import LOCAL_FILE
from client.state import PlatformState
from common.storage import write_durably

if TYPE_CHECKING:
    from pathlib import Path


def copy_local_models(source_home: Path, target_home: Path) -> None:
    """Copy the local models of the platform in ``source_home``, if there are any.

    Both are a platform's folder ``platforms/NAME``. Models that the target has already stay.

    Raises:
        StateError: if the target's state cannot be used.
    """
    source, target = (home / "state" / "model" / LOCAL_FILE for home in (source_home, target_home))
    if not source.exists() or target.exists():
        return
    # Models without a ledger would look like a platform that forgot what it has spent.
    PlatformState(target_home / "state", keep_releases=1).close()
    write_durably(target, source.read_bytes())
