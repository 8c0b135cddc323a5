"""The listener: a connection that receives PostgreSQL's notifications and wakes the requests they name."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from uuid import uuid4

import asyncpg
import structlog

from broker.wake.background_task import BackgroundTask, TroubleLog
from broker.wake.waiters import Waiter, Waiters

log = structlog.get_logger(__name__)

# The channels that the database's triggers notify. Each is a topic that requests wait for.
CANDIDATES = "broker_candidates"
TASK = "broker_task"
TOOL = "broker_tool"
WORK = "broker_work"
UPKEEP = "broker_upkeep"
EVENTS = "broker_events"
CHANNELS = (CANDIDATES, TASK, TOOL, WORK, UPKEEP, EVENTS)

#: The payload of a notification without ids: everything on its channel may have changed.
EVERYONE = "*"

Connect = Callable[..., Awaitable["asyncpg.Connection[Any]"]]

_TROUBLE = (
    OSError,  # `TimeoutError`, too
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 5.0
_PROBE_TIMEOUT_SECONDS = 5.0


class NotificationSink(Protocol):
    """Receives all notifications."""

    def receive(self, channel: str, payload: str) -> None:
        """Process the payload of a notification on a channel."""

    def miss(self) -> None:
        """Process a gap: the listener was not connected, so notifications may be lost."""


class Listener(BackgroundTask):
    """Listens over its own connection, and reconnects when the connection is lost.

    Without a connection, notifications are lost, but the rows that they refer to are not. So
    `connection_changed` starts a sweep. Even an open connection may deliver nothing. So the listener
    regularly sends itself a notification, the probe. It must not connect to a pooler in transaction mode,
    which cannot listen.
    """

    def __init__(
        self,
        waiters: Waiters,
        connect: Connect,
        *,
        probe_seconds: float = 10.0,
        sink: NotificationSink | None = None,
    ) -> None:
        super().__init__("listener")
        self._waiters = waiters
        self._connect = connect
        self._sink = sink
        self._probe_seconds = probe_seconds
        self.connected = asyncio.Event()
        #: Woken when the connection is established or lost.
        self.connection_changed = Waiter()
        #: When the database last became reachable or unreachable, by the loop's clock. An error that the
        #: database reports over a live connection does not count.
        self.reachability_changed_at = -math.inf
        self._lost = True
        #: The number of connections so far.
        self.connects = 0
        #: The number of notifications received so far.
        self.received = 0
        self._trouble = TroubleLog(log, "listener failed; retrying")
        #: How long the last probe took, or None before the first one.
        self.probe_latency_seconds: float | None = None

    async def _run(self) -> None:
        delay = _FIRST_RETRY_SECONDS
        while True:
            connects = self.connects
            try:
                await self._listen()
                log.warning("listener lost its connection")
            except _TROUBLE as error:
                self._lost = self._lost or isinstance(error, OSError)
                self._trouble.note(error)
            if self.connects > connects:
                delay = _FIRST_RETRY_SECONDS
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - spreads load
            delay = min(2 * delay, _LAST_RETRY_SECONDS)

    async def _listen(self) -> None:
        """Listen over one connection until it is lost, or no longer delivers anything (`TimeoutError`)."""
        lost = asyncio.Event()
        connection = await self._connect(server_settings={"application_name": "broker listener"})
        is_alive = False
        try:
            connection.add_termination_listener(lambda _: lost.set())
            async with asyncio.timeout(_PROBE_TIMEOUT_SECONDS):
                await self._warn_of_pooler(connection)
                for channel in CHANNELS:
                    await connection.add_listener(channel, self._receive)
            await self._probe(connection, lost)
        except asyncpg.PostgresError:
            is_alive = not connection.is_closed()
            raise
        finally:
            self._lost = self._lost or not is_alive
            if self.connected.is_set():
                self.connected.clear()
                self._note_change()
            connection.terminate()

    async def _warn_of_pooler(self, connection: "asyncpg.Connection[Any]") -> None:
        """Warn if the connection leads to a pooler, which does not deliver notifications."""
        if connection.get_server_pid() != await connection.fetchval("select pg_backend_pid()"):
            log.warning(
                "listener connected to a pooler, which loses notifications in transaction mode",
                advice="set BROKER_LISTEN_URL to PostgreSQL itself",
            )

    def _note_change(self) -> None:
        if self._lost:
            self.reachability_changed_at = asyncio.get_running_loop().time()
        self.connection_changed.wake()

    async def _probe(self, connection: "asyncpg.Connection[Any]", lost: asyncio.Event) -> None:
        """Send probes over the connection until it is lost, or one does not come back (`TimeoutError`)."""
        echo = asyncio.Event()
        channel = f"broker_probe_{uuid4().hex}"
        async with asyncio.timeout(_PROBE_TIMEOUT_SECONDS):
            await connection.add_listener(channel, lambda *_: echo.set())
        while not lost.is_set():
            began = time.perf_counter()
            echo.clear()
            async with asyncio.timeout(_PROBE_TIMEOUT_SECONDS):
                await connection.execute(f"notify {channel}")
                await echo.wait()
            self.probe_latency_seconds = time.perf_counter() - began
            if not self.connected.is_set():
                # Without a successful probe, the listener is not connected: a pooler accepts LISTEN, but it
                # delivers nothing.
                self.connects += 1
                self._trouble.clear()
                self.connected.set()
                self._note_change()
                self._lost = False
                if self._sink is not None:
                    self._sink.miss()
                log.info("listener connected")
            try:
                async with asyncio.timeout(self._probe_seconds):
                    await lost.wait()
            except TimeoutError:
                continue

    def _receive(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        self.received += 1
        if self._sink is not None:
            self._sink.receive(channel, str(payload))
        if payload == EVERYONE:
            self._waiters.wake_topic(channel)
        else:
            self._waiters.wake(channel, str(payload).split(","))
