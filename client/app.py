"""The ClientApp that runs at a platform: decode, call :class:`client.platform.Platform`, encode.

The SuperNode names the platform's own configuration file::

    flower-supernode ... --node-config 'platform-config="/etc/crossrec/platform.toml"'
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.config import PlatformConfig
from client.platform import Platform
from common.config import load_config
from common.errors import ConfigError
from common.messages import AdoptRequest, TrainRequest
from common.wire import decode, encode

app = ClientApp()


@app.query("profile")
def profile(message: Message, context: Context) -> Message:
    """Answer with the platform's public facts."""
    return Message(encode(_platform(context).profile()), reply_to=message)


@app.train("round")
def train(message: Message, context: Context) -> Message:
    """Answer one round of private training."""
    request, arrays = decode(message.content, TrainRequest)
    reply, release = _platform(context).train(request, arrays)
    return Message(encode(reply, release), reply_to=message)


@app.query("adopt")
def adopt(message: Message, context: Context) -> Message:
    """Keep and privately adapt the finished shared model."""
    request, arrays = decode(message.content, AdoptRequest)
    return Message(encode(_platform(context).adopt(request, arrays)), reply_to=message)


def _platform(context: Context) -> Platform:
    path = context.node_config.get("platform-config")
    if not isinstance(path, str):
        msg = (
            "node-config: 'platform-config' is missing. Start the SuperNode with "
            "--node-config 'platform-config=\"/path/to/platform.toml\"'."
        )
        raise ConfigError(msg)
    return Platform(load_config(Path(path), PlatformConfig))
