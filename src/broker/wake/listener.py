"""The listener: one connection that hears PostgreSQL's notifications and wakes who they concern."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from uuid import uuid4

import asyncpg
import structlog

from broker.wake.waiters import Waiter, Waiters

log = structlog.get_logger(__name__)

# The channels that the triggers notify, which are the topics to wait for.
CANDIDATES = "broker_candidates"
TASK = "broker_task"
TOOL = "broker_tool"
WORK = "broker_work"
UPKEEP = "broker_upkeep"
EVENTS = "broker_events"
CHANNELS = (CANDIDATES, TASK, TOOL, WORK, UPKEEP, EVENTS)

EVERYONE = "*"

Connect = Callable[..., Awaitable["asyncpg.Connection[Any]"]]

_TROUBLE = (
    OSError,  # a timeout is one, too
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 5.0
_PROBE_TIMEOUT_SECONDS = 5.0


class Audience(Protocol):
    """Whoever hears everything, for those who watch everything."""

    def hear(self, channel: str, payload: str) -> None:
        """This was notified."""

    def miss(self) -> None:
        """Something may have been notified that was not heard: it is only now that there is a connection."""


class Listener:
    """Listens as long as it runs, over a connection of its own, and connects again when that is lost.

    What is notified while there is no connection is lost, what is written is not: `turned` tells the sweep.
    That a connection is there does not mean that anything is heard over it: so now and then the listener
    notifies itself.

    Args:
        waiters: Whom to wake.
        connect: Connects to the database; not to a pooler in transaction mode, which cannot listen.
        probe_seconds: How often it is made sure that something can be heard.
        audience: Who hears everything, if anybody does.
    """

    def __init__(
        self,
        waiters: Waiters,
        connect: Connect,
        *,
        probe_seconds: float = 10.0,
        audience: Audience | None = None,
    ) -> None:
        self._waiters = waiters
        self._connect = connect
        self._audience = audience
        self._probe_seconds = probe_seconds
        self._task: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()
        # Woken whenever the connection comes or goes.
        self.turned = Waiter()
        # When the database was last lost or found again, by the loop's clock. An error that it reports over a
        # connection that lives is no loss.
        self.turned_at = -math.inf
        self._lost = True
        #: How often it has connected, and how many notifications it has heard.
        self.connects = 0
        self.heard = 0
        # Why it could not listen, as far as that was told since it was last connected.
        self._told = ""
        #: How long the last probe was on its way; None: none has come back yet.
        self.probe_latency_seconds: float | None = None

    async def start(self) -> None:
        """Begin to listen, in the background."""
        self._task = asyncio.create_task(self._run(), name="listener")

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        delay = _FIRST_RETRY_SECONDS
        while True:
            connects = self.connects
            try:
                await self._listen()
                log.warning("listener lost its connection")
            except _TROUBLE as error:
                self._lost = self._lost or isinstance(error, OSError)
                if (why := repr(error)) != self._told:  # once: a disk may be full all night
                    log.warning("listener is deaf; going on trying", error=why)
                    self._told = why
            if self.connects > connects:
                delay = _FIRST_RETRY_SECONDS
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - spreads load
            delay = min(2 * delay, _LAST_RETRY_SECONDS)

    async def _listen(self) -> None:
        """Listen over one connection until it is lost.

        Raises:
            TimeoutError: Nothing comes over it any more.
        """
        lost = asyncio.Event()
        connection = await self._connect(server_settings={"application_name": "broker listener"})
        lives = False
        try:
            connection.add_termination_listener(lambda _: lost.set())
            async with asyncio.timeout(_PROBE_TIMEOUT_SECONDS):
                await self._warn_of_pooler(connection)
                for channel in CHANNELS:
                    await connection.add_listener(channel, self._hear)
            await self._watch(connection, lost)
        except asyncpg.PostgresError:
            lives = not connection.is_closed()
            raise
        finally:
            self._lost = self._lost or not lives
            if self.connected.is_set():
                self.connected.clear()
                self._turn()
            connection.terminate()

    async def _warn_of_pooler(self, connection: "asyncpg.Connection[Any]") -> None:
        """Warn where somebody stands between us and the server, listens in our place, and tells nothing."""
        if connection.get_server_pid() != await connection.fetchval("select pg_backend_pid()"):
            log.warning(
                "listening through a pooler: in its transaction mode notifications are lost",
                to_change_that="set BROKER_LISTEN_URL to the database itself",
            )

    def _turn(self) -> None:
        if self._lost:
            self.turned_at = asyncio.get_running_loop().time()
        self.turned.wake()

    async def _watch(self, connection: "asyncpg.Connection[Any]", lost: asyncio.Event) -> None:
        """Return when the connection is lost, or find out that nothing comes over it."""
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
                # Not before: a pooler takes LISTEN, too, and nothing is heard over it.
                self.connects += 1
                self._told = ""
                self.connected.set()
                self._turn()
                self._lost = False
                if self._audience is not None:
                    self._audience.miss()
                log.info("listener connected")
            try:
                async with asyncio.timeout(self._probe_seconds):
                    await lost.wait()
            except TimeoutError:
                continue

    def _hear(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        self.heard += 1
        if self._audience is not None:
            self._audience.hear(channel, str(payload))
        if payload == EVERYONE:
            self._waiters.wake_topic(channel)
        else:
            self._waiters.wake(channel, str(payload).split(","))
