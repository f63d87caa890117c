"""Flower's SuperLink, which answers the programs of its own user only.

Flower asks nobody who starts a run, which is code, for a name: whoever reaches the SuperLink's port
may. On loopback that is every user of the machine, so a request is answered only if the program
that sent it runs as the coordinator's user (:mod:`common.peers`; known on Linux).

Takes the arguments of ``flower-superlink``.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from flwr.superlink import extensions
from flwr.superlink.cli.flower_superlink import flower_superlink
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from common.logs import configure_child_logging
from common.peers import peer_is_ours

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

_FORWARDED = b"x-forwarded-for"
_OTHER_DOORS = ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API")


class OwnUserOnly:
    """Refuses what comes from another user's program, before Flower sees it."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand before ``app``."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse."""
        if scope["type"] == "lifespan" or _is_ours(scope):
            await self._app(scope, receive, send)
            return
        log.warning("%s: refused, not known to be of this user", scope.get("client"))
        refusal = PlainTextResponse("this SuperLink answers programs of its own user only", 403)
        await refusal(scope, receive, send)


def _is_ours(scope: Scope) -> bool:
    peer, here = scope.get("client"), scope.get("server")
    # A web server may take the peer's address from this header, that is, from the peer.
    if not peer or not here or any(name == _FORWARDED for name, _ in scope["headers"]):
        return False
    return peer_is_ours((peer[0], peer[1]), (here[0], here[1]))


def main() -> None:
    """Run the SuperLink until it ends."""
    configure_child_logging()
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn: believe nobody's word for another address
    for name in _OTHER_DOORS:  # ports of Flower's former API, where nobody would be refused
        os.environ.pop(name, None)
    others = extensions.get_middleware
    # Flower has no option for it: one name of its module is replaced.
    vars(extensions).update(get_middleware=lambda: (Middleware(OwnUserOnly), *others()))
    flower_superlink()


if __name__ == "__main__":
    main()
