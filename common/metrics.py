"""Metrics over HTTP for a process's own operators, in the form that Prometheus scrapes."""

from __future__ import annotations

from contextlib import contextmanager
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client.registry import Collector

DEFAULT_METRICS_ADDRESS = "127.0.0.1:9464"
"""On this machine only. Whoever can reach the address can read everything there."""


@contextmanager
def serve_metrics(
    address: str, collector: Collector, problem: Callable[[], str | None]
) -> Iterator[int]:
    """Answer ``/metrics`` and ``/health`` in threads of their own until the context is left.

    ``/health`` says 200 while there is no problem, else 503 and what it is.

    Args:
        address: ``host:port``; port 0 takes a free one.
        collector: asked anew for each scrape.
        problem: what stops the work, or None; asked anew for each request.

    Yields:
        The port.

    Raises:
        ConfigError: if nothing can listen at ``address``.
    """
    host, _, port = address.rpartition(":")
    if not host:  # an empty one would be every address of the machine
        msg = f"metrics: found {address!r}, expected host:port, such as {DEFAULT_METRICS_ADDRESS}."
        raise ConfigError(msg)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    try:
        server = make_server(
            host,
            int(port),
            _application(make_wsgi_app(registry), problem),
            server_class=_Server,
            handler_class=_Handler,
        )
    except (OSError, ValueError, OverflowError) as error:
        msg = f"metrics: nothing can listen at {address!r} ({error}); expected host:port, free."
        raise ConfigError(msg) from error
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _application(metrics: WSGIApplication, problem: Callable[[], str | None]) -> WSGIApplication:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return metrics(environ, start_response)
        found = problem() if path == "/health" else None
        status = "503 Service Unavailable" if found else "200 OK"
        if path != "/health":
            status, found = "404 Not Found", "/metrics and /health are here"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{found or 'ok'}\n".encode()]

    return application


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Scrapes are not worth a line each."""
