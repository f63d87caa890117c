"""The ClientApp that runs at a platform: decode, call :class:`client.platform.Platform`, encode.

Who starts it names the platform's own configuration file in the node configuration: in a deployment
:mod:`client.launcher`, in a simulation the engine.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.config import PlatformConfig
from client.platform import Platform
from common.config import load_config
from common.errors import ConfigError
from common.messages import (
    AdoptRequest,
    Agreement,
    AssortmentRequest,
    SecaggStage,
    SumRequest,
    TrainRequest,
)
from common.wire import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

app = ClientApp()
log = logging.getLogger(__name__)

PLATFORM_CONFIG = "platform-config"
"""Key of the node configuration that names the platform's configuration file."""
SIMULATION_MARKER = "crossrec-simulation"
"""Key of the node configuration by which a simulation engine says that it is one."""


@app.query("profile")
def profile(message: Message, context: Context) -> Message:
    """Answer with the platform's public facts."""
    with _own_log():
        answer = encode(_platform(context).profile())
    return Message(answer, reply_to=message)


@app.query("assortment")
def report(message: Message, context: Context) -> Message:
    """Answer with the keys of the platform's items."""
    with _own_log():
        request, _ = decode(message.content, AssortmentRequest)
        answer = encode(*_platform(context).report(request))
    return Message(answer, reply_to=message)


@app.query("agreement")
def agree(message: Message, context: Context) -> Message:
    """Take over the rows of the platform's items."""
    with _own_log():
        request, arrays = decode(message.content, Agreement)
        answer = encode(_platform(context).agree(request, arrays))
    return Message(answer, reply_to=message)


@app.train("round")
def train(message: Message, context: Context) -> Message:
    """Answer one round of private training."""
    with _own_log():
        request, arrays = decode(message.content, TrainRequest)
        answer = encode(*_platform(context).train(request, arrays))
    return Message(answer, reply_to=message)


@app.train("sum")
def sum_up(message: Message, context: Context) -> Message:
    """Answer one request for a private sum."""
    with _own_log():
        request, arrays = decode(message.content, SumRequest)
        answer = encode(*_platform(context).sum_up(request, arrays))
    return Message(answer, reply_to=message)


@app.query("secagg")
def secagg(message: Message, context: Context) -> Message:
    """Answer one stage of a secure sum."""
    with _own_log():
        request, arrays = decode(message.content, SecaggStage)
        answer = encode(*_platform(context).secagg(request, arrays))
    return Message(answer, reply_to=message)


@app.query("adopt")
def adopt(message: Message, context: Context) -> Message:
    """Keep and privately adapt what the run made."""
    with _own_log():
        request, arrays = decode(message.content, AdoptRequest)
        answer = encode(_platform(context).adopt(request, arrays))
    return Message(answer, reply_to=message)


def _platform(context: Context) -> Platform:
    path = context.node_config.get(PLATFORM_CONFIG)
    if not isinstance(path, str):
        msg = (
            f"node-config: {PLATFORM_CONFIG!r} is missing. Start the platform with "
            "`crossrec client run`."
        )
        raise ConfigError(msg)
    config = load_config(Path(path), PlatformConfig)
    if config.simulation is not None and context.node_config.get(SIMULATION_MARKER) is not True:
        msg = f"{path}: [simulation] makes the noise predictable; remove it in a deployment."
        raise ConfigError(msg)
    return Platform(config)


@contextmanager
def _own_log() -> Iterator[None]:
    """Keep the text of an exception on the platform: Flower would send it to the server."""
    try:
        yield
    except Exception as error:
        log.exception("a request could not be answered")
        msg = "the request could not be answered; the cause is in the platform's own log."
        raise RuntimeError(msg) from error
