"""The uvicorn server that lets go of parked requests before it waits for them to end."""

import asyncio
import contextlib
import gc
import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
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
from broker.telemetry import definitions
from broker.telemetry.tracing import traced

# Python's own is 700, which a few requests reach.
_ALLOCATIONS_PER_COLLECTION = 20_000

log = structlog.get_logger(__name__)

# Nothing that costs a request time and says nothing: no line of log, no header that HTTP does not ask for.
UVICORN: dict[str, Any] = {
    "loop": "uvloop",
    "http": "httptools",
    "ws": "none",
    "interface": "asgi3",
    "log_config": None,
    "access_log": False,
    "proxy_headers": False,
    # A request that comes while one before is answered is not that one's.
    "reset_contextvars": True,
    "server_header": False,
    # RFC 9110 requires it of a server with a clock; uvicorn makes it once a second.
    "date_header": True,
    # Longer than clients (httpx: 5 s) and proxies (nginx: 60 s) keep a connection that is idle: whoever
    # lets go first must not be us, or a request that is just on its way finds nobody.
    "timeout_keep_alive": 75,
}


class Server(uvicorn.Server):
    """A uvicorn server whose parked requests are answered when it is told to stop.

    uvicorn waits for every request to end before it runs the application's shutdown, so that would
    be too late.

    Args:
        config: uvicorn's configuration.
        service: The broker that it serves.
        parent: What can be read from once the process that it is a worker of is gone: then it stops.
    """

    def __init__(self, config: uvicorn.Config, service: Service, *, parent: int | None = None) -> None:
        super().__init__(config)
        self._parent = parent
        self.service = service
        self.server_state: Connections = Connections(service.settings)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop in order on SIGTERM and SIGINT, and end like a program that was meant to.

        uvicorn would raise the signal once more at the end, and nothing after the server would run:
        there is an embedded database to stop.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in stopping_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where."""
        self.server_state.make_room()
        if self._parent is not None:
            asyncio.get_running_loop().add_reader(self._parent, self._leave)
        await super().startup(sockets)
        await self._say_who_may_call()
        _collect_garbage_seldom()
        for server in self.servers:
            for sock in server.sockets:
                host, port = sock.getsockname()[:2]
                url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
                log.info("serving", url=url, docs=f"{url}/docs")

    async def _say_who_may_call(self) -> None:
        with contextlib.suppress(Unavailable):
            await self.service.keyring.know()
            if self.service.keyring.is_open:
                log.warning(
                    "there are no keys: everybody on this machine may do everything",
                    to_change_that="broker keys create --role admin --name ME",
                )

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections once a second, of ten ticks."""
        if counter % 10 == 0:
            self.server_state.sweep()
            self.service.metrics.set(definitions.CONNECTIONS, len(self.server_state.connections))
            if self._parent is not None:
                # Another worker may be asked how we are.
                self.service.update_metrics()
        return await super().on_tick(counter)

    def _leave(self) -> None:
        self.should_exit = True
        if self._parent is not None:
            asyncio.get_running_loop().remove_reader(self._parent)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer who waits, let writes under way finish, and go."""
        self.service.waiters.release()
        await super().shutdown(sockets)
        self.server_state.abort()


def _collect_garbage_seldom() -> None:
    """Look for garbage in cycles once in a while, and never among the modules that stay anyway.

    Requests leave hardly any: `broker bench drain` spent 8 % of its time on looking.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS_PER_COLLECTION)


def stopping_signals() -> tuple[signal.Signals, ...]:
    """What tells a service to stop; that its terminal is gone, too, unless that is not to matter (nohup)."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGTERM, signal.SIGINT)
    return (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def is_loopback(host: str) -> bool:
    """Whether this machine alone can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def create_server(
    settings: Settings, *, host: str = "127.0.0.1", port: int = 8000, parent: int | None = None
) -> Server:
    """A server of the broker; at an address that others can reach nobody may do anything without a key.

    Args:
        settings: The settings; `database_url` is given.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        parent: What can be read from once the process that it is to be a worker of is gone.
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
        # What is JSON is to be taken for nothing else.
        headers=[("X-Content-Type-Options", "nosniff")],
        **UVICORN | {"http": ClientConnection},
    )
    return Server(config, service, parent=parent)
