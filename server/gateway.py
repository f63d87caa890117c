"""The federation's public door: TLS, and of Flower's SuperLink only what platforms need.

A SuperLink serves platforms (Fleet API), whoever starts and stops runs (Control API) and the
programs that execute a run (Runtime API) on one port, the last two without authentication: whoever
reaches it can have any code executed at the coordinator. So the SuperLink listens on loopback, and
this program forwards the Fleet API alone, whose calls Flower checks against the platforms'
registered keys. Requests have a limited size, and a node sends replies in its own name only, which
Flower leaves unchecked.

    python -m server.gateway --listen 0.0.0.0:8000 --superlink 127.0.0.1:9000 \
        --certificate server.crt --key server.key --root-certificate ca.crt
"""

from __future__ import annotations

import argparse
import logging
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
        if call == "push-messages" and not _is_own(body):
            log.warning("%s: a node sent a reply in another's name", _address_of(request))
            return _refusal(403, "a node replies in its own name")
        headers = {name: text for name, text in request.headers.items() if _is_passed_on(name)}
        try:
            answer = await client.post(request.url.path, content=body, headers=headers)
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


def _is_own(body: bytes) -> bool:
    """Whether every reply comes from the node that sends it, whose signature Flower checks."""
    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError:
        return False
    sender = request.node.node_id
    return all(message.metadata.src_node_id == sender for message in request.messages_list)


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
