from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata
from flwr.proto.node_pb2 import Node
from flwr.superlink.main import create_app
from flwr.superlink.routers.fleet.router import router as fleet_router

from server import gateway
from server.gateway import FLEET_CALLS, create_gateway

if TYPE_CHECKING:
    from collections.abc import Callable


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
    content: bytes = b"",
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    async def talk() -> httpx.Response:
        inner = httpx.AsyncClient(
            base_url="https://superlink", transport=httpx.MockTransport(superlink)
        )
        transport = httpx.ASGITransport(create_gateway(inner))
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
            "flwr-public-key": "key",
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
    assert seen.headers["flwr-public-key"] == "key"
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


def replies(sender: int, *claimed: int) -> bytes:
    messages = [MessageProto(metadata=Metadata(src_node_id=node)) for node in claimed]
    request = PushMessagesRequest(node=Node(node_id=sender), messages_list=messages)
    content: bytes = request.SerializeToString()
    return content


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (replies(7), 200),
        (replies(7, 7, 7), 200),
        (replies(7, 8), 403),
        (replies(7, 7, 8), 403),
        (b"\xff\xff no message", 403),
    ],
)
def test_a_node_replies_in_its_own_name(body: bytes, status: int) -> None:
    superlink = SuperLink()
    assert ask(superlink, "POST", "/v1/fleet/push-messages", body).status_code == status
    assert len(superlink.seen) == (status == 200)


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
