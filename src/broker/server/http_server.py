"""The uvicorn server. When it stops, it ends waiting requests first and then waits for all others."""

import asyncio
import contextlib
import gc
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import structlog
import uvicorn

from broker.app import create_app, create_service
from broker.errors import Unavailable
from broker.http.fast_path import FastPath
from broker.http.path_templates import PathTemplates
from broker.http.request_log import RequestLog
from broker.server.connections import ClientConnection, Connections
from broker.service import Service
from broker.settings import Settings
from broker.telemetry import metric_definitions
from broker.telemetry.tracing import traced

# The number of allocations that starts a garbage collection. Python's default would start one after a few
# requests.
_ALLOCATIONS_PER_COLLECTION = 20_000

log = structlog.get_logger(__name__)

# Without logging by uvicorn and without optional headers, because they would cost time in every request.
UVICORN: dict[str, Any] = {
    "loop": "uvloop",
    "http": "httptools",
    "ws": "none",
    "interface": "asgi3",
    "log_config": None,
    "access_log": False,
    "proxy_headers": False,
    # A pipelined request must not inherit the context of the one before it.
    "reset_contextvars": True,
    "server_header": False,
    # RFC 9110 requires this header from a server with a clock. uvicorn formats it once a second.
    "date_header": True,
    # Longer than clients (httpx: 5 s) and proxies (nginx: 60 s) keep an idle connection. If the server closed
    # it first, a request on its way would fail.
    "timeout_keep_alive": 75,
}


class Server(uvicorn.Server):
    """A uvicorn server that ends waiting requests when it stops.

    uvicorn runs the shutdown of the application only after all requests have ended, which would be too late.

    Args:
        config: uvicorn's configuration.
        service: The parts of the broker.
        parent: A file descriptor that becomes readable when the parent process of a worker process ends. The
            server then stops.
    """

    def __init__(self, config: uvicorn.Config, service: Service, *, parent: int | None = None) -> None:
        super().__init__(config)
        self._parent = parent
        self.service = service
        self.server_state: Connections = Connections(service.settings)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop the server on SIGTERM and SIGINT without raising the signal again.

        uvicorn would raise it at the end. Then the embedded database could not be stopped after the server.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with handling_stop(self.handle_exit):
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and log the URL."""
        self.server_state.raise_file_limit()
        if self._parent is not None:
            asyncio.get_running_loop().add_reader(self._parent, self._stop_without_parent)
        # uvicorn sets the headers of all responses at a tick, and its first one may follow the first request.
        await super().on_tick(0)
        await super().startup(sockets)
        await self._warn_if_open()
        _collect_garbage_rarely()
        for server in self.servers:
            for sock in server.sockets:
                host, port = sock.getsockname()[:2]
                url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
                log.info("service started", url=url, docs=f"{url}/docs", help=f"{url}/help/")

    async def _warn_if_open(self) -> None:
        with contextlib.suppress(Unavailable):
            await self.service.keyring.load()
            if self.service.keyring.is_open:
                log.warning(
                    "no keys exist, every program on this machine has full access",
                    advice="broker keys create --role admin --name ME",
                )

    async def on_tick(self, counter: int) -> bool:
        """Check the deadlines of connections every tenth tick, which is once a second."""
        if counter % 10 == 0:
            self.server_state.sweep()
            self.service.metrics.set(metric_definitions.CONNECTIONS, len(self.server_state.connections))
            if self._parent is not None:
                # Another worker process may respond to a request for metrics.
                self.service.update_metrics()
        return await super().on_tick(counter)

    def _stop_without_parent(self) -> None:
        self.should_exit = True
        if self._parent is not None:
            asyncio.get_running_loop().remove_reader(self._parent)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End waiting requests, let running requests finish, and close the connections."""
        self.service.waiters.release()
        await super().shutdown(sockets)
        self.server_state.abort()


def _collect_garbage_rarely() -> None:
    """Run the cyclic garbage collector rarely, and never on the objects that exist at the start.

    Requests leave few cycles, but `broker bench drain` spent 8 % of its time in the collector.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS_PER_COLLECTION)


@contextlib.contextmanager
def handling_stop(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals that stop a service, for the duration of a block."""
    before = {number: signal.signal(number, handler) for number in stopping_signals()}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def stopping_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that stop a service. SIGHUP is one of them unless it is ignored (nohup)."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGTERM, signal.SIGINT)
    return (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def create_server(
    settings: Settings, *, host: str = "127.0.0.1", port: int = 8000, parent: int | None = None
) -> Server:
    """Create a server of the broker. It requires keys unless its bind address is a loopback address.

    Args:
        settings: The settings, with a `database_url`.
        host: The bind address.
        port: The port. 0 selects a free port.
        parent: See `Server`.
    """
    service = create_service(settings, may_be_open=is_loopback(host))
    litestar = create_app(service)
    templates = PathTemplates(route.path_format for route in litestar.routes)
    app = RequestLog(FastPath(litestar, service, templates), templates, are_logged=settings.access_log)
    config = uvicorn.Config(
        traced(app, templates.match),
        host=host,
        port=port,
        lifespan="on",
        timeout_graceful_shutdown=settings.shutdown_seconds,
        # Browsers must not guess another type for JSON.
        headers=[("X-Content-Type-Options", "nosniff")],
        **UVICORN | {"http": ClientConnection},
    )
    return Server(config, service, parent=parent)
