"""Where tensors live while a platform trains: on the processor, or on a GPU."""

from __future__ import annotations

from typing import Literal

import torch

from common.errors import ConfigError

DeviceName = Literal["auto", "cpu", "cuda"]


def resolve_device(name: DeviceName) -> str:
    """``auto`` is a GPU where torch sees one, else the processor.

    Raises:
        ConfigError: if ``cuda`` is asked for and torch sees no GPU.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        msg = "device 'cuda': torch sees no GPU here. Use 'auto' or 'cpu'."
        raise ConfigError(msg)
    return name
