"""The listener: one connection that hears PostgreSQL's notifications and wakes who they concern."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

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
CHANNELS = (CANDIDATES, TASK, TOOL, WORK, UPKEEP)

EVERYONE = "*"

_CLIENT_ERRORS = (asyncpg.InterfaceError, asyncpg.InternalClientError)

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 5.0


class Listener:
    """Listens as long as it runs, over a connection of its own, and connects again when that is lost.

    What is notified while there is no connection is lost, what is written is not: `turned` tells the sweep.

    Args:
        waiters: Whom to wake.
        dsn: The database; not a pooler in transaction mode, which cannot listen.
    """

    def __init__(self, waiters: Waiters, dsn: str) -> None:
        self._waiters = waiters
        self._dsn = dsn
        self._task: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()
        # Woken whenever the connection comes or goes.
        self.turned = Waiter()

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
            try:
                await self._listen()
                delay = _FIRST_RETRY_SECONDS
                log.warning("listener lost its connection")
            except (OSError, TimeoutError, asyncpg.PostgresError, *_CLIENT_ERRORS) as error:
                log.warning("listener cannot connect", error=str(error), retry_in_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_RETRY_SECONDS)

    async def _listen(self) -> None:
        """Listen over one connection until it is lost."""
        lost = asyncio.Event()
        connection = await asyncpg.connect(
            self._dsn, timeout=5, server_settings={"application_name": "broker listener"}
        )
        try:
            _keep_alive(connection)
            connection.add_termination_listener(lambda _: lost.set())
            for channel in CHANNELS:
                await connection.add_listener(channel, self._heard)
            self.connected.set()
            self.turned.wake()
            log.info("listener connected")
            await lost.wait()
        finally:
            self.connected.clear()
            self.turned.wake()
            connection.terminate()

    def _heard(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        if payload == EVERYONE:
            self._waiters.wake_topic(channel)
        else:
            self._waiters.wake(channel, str(payload).split(","))


def _keep_alive(connection: "asyncpg.Connection[Any]") -> None:
    """Have the kernel find out, within some ten seconds, that the other side is gone."""
    found: Callable[[str], Any] = connection._transport.get_extra_info
    sock = found("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # Linux has them all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
