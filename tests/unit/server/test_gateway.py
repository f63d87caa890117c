from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.main import create_app
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common.messages import Reply
from common.wire import encode
from server import gateway
from server.gateway import FLEET_CALLS, Door, create_gateway, read_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


KEY = "a2V5"


class SuperLink:
    """Keeps what reaches it."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        return httpx.Response(
            self.status,
            content=b"answer",
            headers={"content-type": "application/x-protobuf", "set-cookie": "a=b"},
        )


def ask(
    superlink: Callable[[httpx.Request], httpx.Response],
    method: str,
    path: str,
    content: bytes | AsyncIterator[bytes] = b"",
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    headers = {"flwr-public-key": KEY, **(headers or {})}

    async def talk() -> httpx.Response:
        inner = httpx.AsyncClient(
            base_url="https://superlink", transport=httpx.MockTransport(superlink)
        )
        transport = httpx.ASGITransport(create_gateway(inner, {KEY}))
        async with inner, httpx.AsyncClient(transport=transport, base_url="https://door") as outer:
            return await outer.request(method, path, content=content, headers=headers)

    return asyncio.run(talk())


def test_the_calls_are_those_of_the_installed_flower() -> None:
    known = {route.path.removeprefix("/v1/fleet/") for route in fleet_router.routes}  # type: ignore[attr-defined]
    assert known == FLEET_CALLS


def test_a_fleet_call_is_passed_on_with_its_signature_and_nothing_else() -> None:
    superlink = SuperLink()
    answer = ask(
        superlink,
        "POST",
        "/v1/fleet/pull-messages",
        b"request",
        {
            "content-type": "application/x-protobuf",
            "flwr-signature": "signature",
            "cookie": "c=d",
            "authorization": "Bearer x",
        },
    )
    (seen,) = superlink.seen
    assert (seen.method, seen.url.path, seen.content) == (
        "POST",
        "/v1/fleet/pull-messages",
        b"request",
    )
    assert seen.headers["flwr-public-key"] == KEY
    assert seen.headers["flwr-signature"] == "signature"
    assert seen.headers["content-type"] == "application/x-protobuf"
    assert not {"cookie", "authorization"} & set(seen.headers)
    assert (answer.status_code, answer.content) == (200, b"answer")
    assert "set-cookie" not in answer.headers


def flower_paths() -> list[str]:
    """Every path that Flower's own SuperLink answers, the Fleet API aside."""
    paths = [getattr(route, "path", "") for route in create_app().routes]
    return sorted({p for p in paths if p and not p.startswith("/v1/fleet") and p != "/health"})


def test_control_and_runtime_calls_do_not_reach_the_superlink() -> None:
    others = [*flower_paths(), "/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/"]
    others += ["/v1/fleet/../control/start-run", "/v1/fleet/..%2fcontrol%2fstart-run"]
    others += ["/v1/fleet/start-run", "/v1/fleet//pull-messages", "/v1/fleet/pull-messages/x"]
    for path in others:
        for method in ("POST", "GET"):
            superlink = SuperLink()
            assert ask(superlink, method, path).status_code in {404, 405}, path
            assert not superlink.seen, path


def test_a_request_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "LARGEST_REQUEST", 1000)
    superlink = SuperLink()
    assert ask(superlink, "POST", "/v1/fleet/push-object", b"x" * 1000).status_code == 200
    assert ask(superlink, "POST", "/v1/fleet/push-object", b"x" * 1001).status_code == 413
    assert len(superlink.seen) == 1


def test_flower_cuts_arrays_into_pieces_that_pass() -> None:
    from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE

    assert 2 * FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE < gateway.LARGEST_REQUEST


MESSAGE_ID = "a" * 64
NOW = 1.8e9


def push(
    sender: int = 7,
    *,
    copies: int = 1,
    tree: ObjectTree | None = None,
    runtime: float = 1.0,
    **changes: Any,  # noqa: ANN401 - any field
) -> bytes:
    said: dict[str, Any] = {
        "message_id": MESSAGE_ID,
        "src_node_id": 7,
        "reply_to_message_id": "b" * 64,
        "created_at": NOW,
        "ttl": 60.0,
    }
    request = PushMessagesRequest(
        node=Node(node_id=sender),
        messages_list=[MessageProto(metadata=Metadata(**{**said, **changes}))] * copies,
        message_object_trees=[tree or of_size(3)] * copies,
        clientapp_runtime_list=[runtime],
    )
    content: bytes = request.SerializeToString()
    return content


def of_size(num_objects: int, root: str = MESSAGE_ID) -> ObjectTree:
    children = [ObjectTree(object_id=f"{k:064x}") for k in range(num_objects - 1)]
    return ObjectTree(object_id=root, children=children)


@pytest.mark.parametrize("body", [push(), push(tree=of_size(1)), push(tree=of_size(512))])
def test_a_reply_is_passed_on(body: bytes) -> None:
    superlink = SuperLink()
    assert ask(superlink, "POST", "/v1/fleet/push-messages", body).status_code == 200
    assert [request.content for request in superlink.seen] == [body]


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (push(8), "own name"),
        (push(src_node_id=8), "own name"),
        (push(copies=0), "one message"),
        (push(copies=2), "one message"),
        (push(reply_to_message_id=""), "answers nothing"),
        (push(message_id=""), "object tree"),
        (push(message_id="", tree=of_size(3, root="")), "object tree"),
        (push(tree=of_size(3, root="c" * 64)), "object tree"),
        (push(tree=of_size(513)), "512 objects"),
        (push(created_at=math.nan), "created_at"),
        (push(created_at=math.inf), "created_at"),
        (push(created_at=1e300), "created_at"),
        (push(created_at=-1.0), "created_at"),
        (push(ttl=math.nan), "ttl"),
        (push(ttl=math.inf), "ttl"),
        (push(ttl=0.0), "ttl"),
        (push(runtime=math.nan), "clientapp_runtime"),
        (b"\xff\xff no message", "decoded"),
    ],
)
def test_a_reply_that_flower_could_not_read_again_is_refused(
    body: bytes, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    superlink = SuperLink()
    answer = ask(superlink, "POST", "/v1/fleet/push-messages", body)
    assert answer.status_code == 403
    assert cause in answer.text
    assert cause in caplog.text
    assert not superlink.seen


def test_an_honest_reply_has_what_the_gateway_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 7)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    asked = Message(RecordDict(), 7, "train.round")
    asked.metadata.__dict__["_message_id"] = "b" * 64
    reply = Message(encode(Reply(**REPLY), {"a": np.zeros(3)}), reply_to=asked)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    request = PushMessagesRequest(
        node=Node(node_id=7),
        messages_list=[message_to_proto(remove_content_from_message(reply))],
        message_object_trees=[get_object_tree(reply)],
    )
    body = request.SerializeToString()
    assert ask(SuperLink(), "POST", "/v1/fleet/push-messages", body).status_code == 200


REPLY: dict[str, Any] = {
    "platform": "north",
    "run_id": "spring",
    "round_number": 1,
    "outcome": "released",
}


def test_the_host_header_is_no_part_of_what_is_asked_for() -> None:
    superlink = SuperLink()
    headers = {"host": "door/v1/control/start-run?x="}
    ask(superlink, "POST", "/v1/fleet/pull-messages", headers=headers)
    assert {request.url.path for request in superlink.seen} <= {"/v1/fleet/pull-messages"}


def test_an_unregistered_node_is_refused_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(SuperLink(401), "POST", "/v1/fleet/activate-node", b"x")
    assert answer.status_code == 401
    assert "without a registered key" in caplog.text


def test_a_superlink_that_is_away_is_a_passing_trouble() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    assert ask(away, "POST", "/v1/fleet/pull-messages").status_code == 503
    answer = ask(away, "GET", "/health")
    assert (answer.status_code, answer.json()) == (503, {"ready": False})


def test_health_is_the_superlinks() -> None:
    superlink = SuperLink()
    assert ask(superlink, "GET", "/health").json() == {"ready": True}
    assert [request.url.path for request in superlink.seen] == ["/health"]


@pytest.mark.parametrize("key", ["", "b3RoZXI="])
def test_a_key_that_nobody_registered_is_refused_before_the_body_is_read(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield b"x" * 1000

    superlink = SuperLink()
    answer = ask(
        superlink, "POST", "/v1/fleet/push-object", body(), headers={"flwr-public-key": key}
    )
    assert answer.status_code == 401
    assert "without a registered key" in caplog.text
    assert not superlink.seen
    assert not read


def test_keys_are_read_as_supernodes_send_them(
    tmp_path: Path, public_key: Callable[..., Path]
) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    public_key("north.pub", key)
    (tmp_path / "notes.pub").write_text("no key")
    sent: list[httpx.Request] = []

    def send(context: ProtobufRequestContext) -> httpx.Response:
        sent.append(context.request)
        return httpx.Response(200)

    request = httpx.Request("POST", "https://door")
    context = ProtobufRequestContext("x", PushMessagesRequest(), request)
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(context, send)
    assert read_keys(tmp_path) == {sent[0].headers["flwr-public-key"]}


@contextmanager
def listening() -> Iterator[int]:
    """A gateway on loopback, without TLS; yields its port."""
    inner = httpx.AsyncClient(
        base_url="https://superlink", transport=httpx.MockTransport(SuperLink())
    )
    with socket.create_server(("127.0.0.1", 0)) as place:
        config = uvicorn.Config(
            create_gateway(inner, {KEY}), http=Door, ws="none", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([place],), daemon=True)
        thread.start()
        try:
            yield place.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)


def asked(port: int) -> int:
    url = f"http://127.0.0.1:{port}/v1/fleet/get-run"
    return httpx.post(url, headers={"flwr-public-key": KEY}, trust_env=False).status_code


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(10)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


HEAD = b"POST /v1/fleet/get-run HTTP/1.1\r\nhost: door\r\n"
WHOLE = HEAD + b"flwr-public-key: " + KEY.encode() + b"\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("before", [b"", WHOLE], ids=["first", "second"])
@pytest.mark.parametrize("sent", [b"", b"POST /v1", HEAD])
def test_a_connection_that_asks_nothing_is_closed(
    before: bytes, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before and not sent:
        return  # an idle connection is kept for the next request, for uvicorn's half a minute
    monkeypatch.setattr(gateway, "REQUEST_SECONDS", 0.3)
    with listening() as port, socket.create_connection(("127.0.0.1", port)) as silent:
        if before:
            silent.sendall(before)
            assert silent.recv(1 << 16).startswith(b"HTTP/1.1 200")
        silent.sendall(sent)
        start = time.monotonic()
        assert is_closed(silent)
        assert time.monotonic() - start < 5
        assert asked(port) == 200


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "BODY_SECONDS", 0.3)
    with listening() as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(WHOLE.replace(b"content-length: 0", b"content-length: 9") + b"x")
        slow.settimeout(10)
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 408")


def test_one_address_has_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "CONNECTIONS_PER_ADDRESS", 3)
    with listening() as port:
        first = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        with socket.create_connection(("127.0.0.1", port)) as one_more:
            assert is_closed(one_more)
        for connection in first:
            connection.close()
        time.sleep(0.2)
        assert asked(port) == 200
