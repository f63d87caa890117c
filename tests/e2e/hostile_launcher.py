"""A platform that answers rounds with anything but what it was asked for. Run as a program."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message
from flwr.clientapp import ClientApp

import client.app as honest
from client import launcher
from common.messages import Reply
from common.wire import decode, encode

if TYPE_CHECKING:
    from flwr.app import Context

KINDS = ("keys", "shape", "nan", "huge", "round", "large", "nothing")
"""What is wrong with the reply of the first round, of the second, ..."""

app = ClientApp()
app.query("profile")(honest.profile)
app.query("assortment")(honest.report)
app.query("agreement")(honest.agree)
app.query("adopt")(honest.adopt)


@app.train("round")
def lie(message: Message, context: Context) -> Message:
    """Train as asked, then spoil the release."""
    answer = honest.train(message, context)
    reply, arrays = decode(answer.content, Reply)
    kind = KINDS[(reply.round_number - 1) % len(KINDS)]
    first = next(iter(arrays))
    if kind == "keys":
        arrays["raw.interactions"] = arrays.pop(first)
    elif kind == "shape":
        arrays[first] = arrays[first][:1]
    elif kind == "nan":
        arrays[first] = np.full_like(arrays[first], np.nan)
    elif kind == "huge":
        arrays[first] = np.full_like(arrays[first], 1e30)
    elif kind == "round":
        reply = replace(reply, round_number=reply.round_number + 1000)
    elif kind == "large":
        arrays[first] = np.zeros(25_000_000, dtype=np.float32)
    else:
        time.sleep(3600)
    return Message(encode(reply, arrays), reply_to=message)


if __name__ == "__main__":
    vars(launcher).update(app=app)
    launcher.main()
