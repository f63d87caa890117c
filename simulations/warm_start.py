"""Hand the models that a platform fitted alone from one run to another on the same data.

They depend neither on epsilon nor on trust, so the runs of a comparison that differ in these only
need not fit them again. The platform decides whether it takes them: it checks what they were fitted
to.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from client.state import PlatformState

if TYPE_CHECKING:
    from pathlib import Path

LOCAL_MODELS = "local*"
"""Names of the files and folders in ``state/model`` that hold models without the federation."""


def copy_local_models(source_home: Path, target_home: Path) -> int:
    """Copy the local models of the platform in ``source_home``; the number of files copied.

    Both are a platform's folder ``platforms/NAME``. A model that the target has already stays.

    Raises:
        StateError: if the target's state cannot be used.
    """
    source, target = (home / "state" / "model" for home in (source_home, target_home))
    files = [
        path
        for found in sorted(source.glob(LOCAL_MODELS))
        for path in (sorted(found.rglob("*")) if found.is_dir() else [found])
        if path.is_file() and not (target / path.relative_to(source)).exists()
    ]
    if files:
        # Models without a ledger would look like a platform that forgot what it has spent.
        PlatformState(target_home / "state", keep_releases=1).close()
    for path in files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    return len(files)
