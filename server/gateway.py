"""The federation's public door: TLS, and of Flower's SuperLink only what platforms need.

A SuperLink serves platforms (Fleet API), whoever starts and stops runs (Control API) and the
programs that execute a run (Runtime API) on one port, the last two without authentication: whoever
reaches it can have any code executed at the coordinator. So the SuperLink listens on loopback, and
this program forwards the Fleet API alone, whose calls Flower checks against the platforms'
registered keys. What Flower leaves unchecked is checked here: requests have a limited size, and a
node sends one reply at a time, in its own name, that the SuperLink can store and read again.

    python -m server.gateway --listen 0.0.0.0:8000 --superlink 127.0.0.1:9000 \
        --certificate server.crt --key server.key --root-certificate ca.crt
"""

from __future__ import annotations

import argparse
import logging
import math
import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import uvicorn
from flwr.proto.fleet_pb2 import PushMessagesRequest
from google.protobuf.message import DecodeError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from common.config import split_address
from common.logs import configure_child_logging

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flwr.proto.message_pb2 import ObjectTree
    from starlette.requests import Request

FLEET_CALLS = frozenset(
    {
        "register-node",
        "activate-node",
        "deactivate-node",
        "unregister-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    }
)
"""Calls of Flower's Fleet API; a contract test compares them with the installed Flower."""

LARGEST_REQUEST = 32 * 2**20
"""Bytes; Flower cuts arrays into smaller pieces."""

LARGEST_TREE = 512
"""Objects of one reply: its records, its arrays, and their pieces of at most 5 MB."""

_LONGEST_TIME = 1e10
"""Seconds since 1970, or of a life time: three centuries."""

_PASSED_ON = frozenset({"content-type", "accept", "traceparent"})
_PASSED_ON_PREFIX = "flwr-"
_UNAUTHENTICATED = 401
_PATIENCE = httpx.Timeout(60.0, connect=5.0)

log = logging.getLogger(__name__)


def create_gateway(client: httpx.AsyncClient) -> Starlette:
    """The application that forwards Fleet calls.

    Args:
        client: reaches the SuperLink; its base URL is the SuperLink's.
    """

    async def fleet(request: Request) -> Response:
        call = request.path_params["call"]
        if call not in FLEET_CALLS:
            return _refusal(404, "no such call")
        body = await _body_of(request)
        if body is None:
            return _refusal(413, f"a request has at most {LARGEST_REQUEST} bytes")
        fault = _fault_of_reply(body) if call == "push-messages" else ""
        if fault:
            log.warning("%s: a reply was refused: %s", _address_of(request), fault)
            return _refusal(403, fault)
        # Not request.url.path: some versions of Starlette take part of it from the Host header.
        headers = {name: text for name, text in request.headers.items() if _is_passed_on(name)}
        try:
            answer = await client.post(f"/v1/fleet/{call}", content=body, headers=headers)
        except httpx.HTTPError as error:
            log.warning("the SuperLink did not answer (%s)", type(error).__name__)
            return _refusal(503, "the federation's SuperLink does not answer; try again")
        if answer.status_code == _UNAUTHENTICATED:
            log.warning("%s: a node without a registered key was refused", _address_of(request))
        kept = {name: value for name, value in answer.headers.items() if name == "content-type"}
        return Response(answer.content, answer.status_code, kept)

    async def health(_: Request) -> Response:
        try:
            answer = await client.get("/health")
            ready = answer.is_success
        except httpx.HTTPError:
            ready = False
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(
        routes=[
            Route("/v1/fleet/{call}", fleet, methods=["POST"]),
            Route("/health", health),
        ],
        lifespan=lifespan,
    )


async def _body_of(request: Request) -> bytes | None:
    """All of the request, or None as soon as it is too large."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_REQUEST:
            return None
    return bytes(body)


def _is_passed_on(header: str) -> bool:
    return header in _PASSED_ON or header.startswith(_PASSED_ON_PREFIX)


def _fault_of_reply(body: bytes) -> str:
    """Why a pushed reply is refused, or an empty text.

    Flower checks the sender's signature. It stores what else is wrong here, and then fails on each
    call of the run that meets it.
    """
    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError:
        return "it cannot be decoded"
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        return "expected one message and one object tree"
    said, tree = request.messages_list[0].metadata, request.message_object_trees[0]
    times, durations = (said.created_at, said.ttl), request.clientapp_runtime_list
    faults = {
        "a node replies in its own name": said.src_node_id != request.node.node_id,
        "it answers nothing": not said.reply_to_message_id,
        "its object tree is not that of the message": (
            not tree.object_id or tree.object_id != said.message_id
        ),
        "created_at and ttl: expected a time": not all(0 < t < _LONGEST_TIME for t in times),
        "clientapp_runtime: expected a number": not all(math.isfinite(d) for d in durations),
        f"its object tree has more than {LARGEST_TREE} objects": _is_larger(tree, LARGEST_TREE),
    }
    return next((fault for fault, is_so in faults.items() if is_so), "")


def _is_larger(tree: ObjectTree, most: int) -> bool:
    found, waiting = 0, [tree]
    while waiting and found <= most:
        found += 1
        waiting.extend(waiting.pop().children)
    return found > most


def _refusal(status: int, reason: str) -> Response:
    return PlainTextResponse(reason, status)


def _address_of(request: Request) -> str:
    return request.client.host if request.client else "unknown address"


def main() -> None:
    """Listen until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--root-certificate", type=Path, required=True)
    arguments = parser.parse_args()
    configure_child_logging()
    host, port = split_address(arguments.listen)
    client = httpx.AsyncClient(
        base_url=f"https://{arguments.superlink}",
        verify=ssl.create_default_context(cafile=arguments.root_certificate),
        timeout=_PATIENCE,
        limits=httpx.Limits(max_connections=256),
        trust_env=False,
    )
    uvicorn.run(
        create_gateway(client),
        host=host,
        port=port,
        ssl_certfile=arguments.certificate,
        ssl_keyfile=arguments.key,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=512,
        timeout_keep_alive=30,
    )


if __name__ == "__main__":
    main()
