"""The federation's public door: TLS, and of Flower's SuperLink only what platforms need.

A SuperLink serves platforms (Fleet API), whoever starts and stops runs (Control API) and the
programs that execute a run (Runtime API) on one port, the last two without authentication: whoever
reaches it can have any code executed at the coordinator. So the SuperLink listens on loopback, and
this program forwards the Fleet API alone, whose calls Flower checks against the platforms'
registered keys. What Flower leaves unchecked is checked here: requests have a limited size, and a
node sends one reply at a time, in its own name, that the SuperLink can store and read again.

    python -m server.gateway --listen 0.0.0.0:8000 --superlink 127.0.0.1:9000 \
        --certificate server.crt --key server.key --root-certificate ca.crt \
        --platform-keys platforms
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import ssl
from base64 import b64encode
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import httpx
import uvicorn
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from google.protobuf.message import DecodeError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from common.config import split_address
from common.errors import ConfigError
from common.keys import read_public_key
from common.logs import configure_child_logging

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

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

REQUEST_SECONDS = 15.0
"""Until a connection, or what follows on it, has sent the head of a request."""
BODY_SECONDS = 300.0
"""Until all of a request is there."""
CONNECTIONS_PER_ADDRESS = 32
"""Several platforms may share an address; each uses up to four."""

_KEY_HEADER = "flwr-public-key"
_PASSED_ON = frozenset({"content-type", "accept", "traceparent"})
_PASSED_ON_PREFIX = "flwr-"
_UNAUTHENTICATED = 401
_PATIENCE = httpx.Timeout(60.0, connect=5.0)

log = logging.getLogger(__name__)


def create_gateway(client: httpx.AsyncClient, keys: Collection[str]) -> Starlette:
    """The application that forwards Fleet calls.

    Args:
        client: reaches the SuperLink; its base URL is the SuperLink's.
        keys: of registered platforms, see :func:`read_keys`; whoever names another is refused
            before the body is read. That the key is the sender's own is Flower's to check.
    """

    async def fleet(request: Request) -> Response:
        call = request.path_params["call"]
        if call not in FLEET_CALLS:
            return _refusal(404, "no such call")
        body = await _checked_body(request, keys)
        if isinstance(body, Response):
            return body
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


async def _checked_body(request: Request, keys: Collection[str]) -> bytes | Response:
    """All of the request of a registered platform, or a refusal."""
    if request.headers.get(_KEY_HEADER) not in keys:
        log.warning("%s: a node without a registered key was refused", _address_of(request))
        return _refusal(_UNAUTHENTICATED, "this key is not registered here")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _body_of(request)
    except TimeoutError:
        return _refusal(408, "the request did not arrive in time")
    return _refusal(413, f"a request has at most {LARGEST_REQUEST} bytes") if body is None else body


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


def read_keys(folder: Path) -> frozenset[str]:
    """Every platform's public key in ``folder``, as a SuperNode writes it into a header."""
    found = set()
    for path in sorted(folder.glob("*.pub")):
        try:
            key = read_public_key(path)
        except ConfigError as error:
            log.warning("a platform's key is passed over: %s", error)
        else:
            found.add(b64encode(public_key_to_bytes(key)).decode("ascii"))
    return frozenset(found)


class Door(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """One connection; uvicorn's own lets a silent one stay for ever, and any number of them."""

    _open: ClassVar[Counter[str]] = Counter()

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take it, unless there are too many from its address."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._address = self.client[0] if self.client else ""
        self._open[self._address] += 1
        if self._open[self._address] > CONNECTIONS_PER_ADDRESS:
            log.warning("%s: too many connections", self._address)
            transport.abort()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        """Pass it on; a request that is being answered has all the time it needs."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room."""
        if self._timer is not None:
            self._timer.cancel()
        self._open[self._address] -= 1
        if not self._open[self._address]:
            del self._open[self._address]
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)


def main() -> None:
    """Listen until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--root-certificate", type=Path, required=True)
    parser.add_argument("--platform-keys", type=Path, required=True)
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
        create_gateway(client, read_keys(arguments.platform_keys)),
        http=Door,
        ws="none",
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
