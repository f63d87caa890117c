"""``crossrec client status``: what a platform answered, spent and serves. Read-only."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from client.model_files import ModelFiles
from client.node import is_running
from client.state import STOPPED_FILE
from common.privacy.ledger import LEDGER_FILE, Ledger

if TYPE_CHECKING:
    from client.config import PlatformConfig

_LATEST = 10


def describe(config: PlatformConfig) -> list[str]:
    """What ``crossrec client status`` says, line by line.

    Raises:
        StateError: if ledger or models are damaged.
    """
    name, state = config.platform.name, config.state.folder
    running = "runs" if is_running(state) else "does not run: crossrec client run"
    lines = [f"{name}: {running}"]
    served = {
        None: "no model yet: nothing was handed over",
        "alone": "its own model, fitted without the federation's part",
        "joined": "its own model joined with what the federation brought",
    }[ModelFiles(state / "model").served()]
    lines.append(f"serves: {served}")
    path = state / LEDGER_FILE
    if not path.exists():
        lines.append(f"budget: epsilon {config.privacy.epsilon:g}, nothing spent yet")
        return lines
    with closing(Ledger(path, read_only=True)) as ledger:
        spent, entries = ledger.account().epsilon(config.privacy.delta), ledger.entries()
    lines.append(f"budget: epsilon {spent:.4f} of {config.privacy.epsilon:g} spent")
    if (state / STOPPED_FILE).exists():
        lines.append(f"stopped: {(state / STOPPED_FILE).read_text(encoding='utf-8').strip()}")
    answered = [e for e in entries if e.kind in {"commit", "decline"}][-_LATEST:]
    lines += [
        f"{entry.time} {'released' if entry.kind == 'commit' else 'declined'} {entry.request_id}"
        for entry in answered
    ]
    return lines
