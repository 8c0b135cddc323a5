"""Clients that watch /v1/events, one that reads what it is told and one that does not."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple
from uuid import UUID

import httpx

from broker.background import event_stream as feeds
from broker.schemas.overview import WorkEvent
from tests.conftest import Running
from tests.support.api import Json
from tests.support.waiting import wait_until

WITHIN = 10


class Event(NamedTuple):
    """An event as it came; what only sets the position has no name."""

    id: str
    name: str
    data: Json


class Subscriber:
    """A client that watches."""

    def __init__(self, answer: httpx.Response) -> None:
        self.response = answer
        self.position = ""
        self.raw = ""
        self._lines = answer.aiter_lines()
        self._is_whole = True

    async def next(self) -> Event:
        """The next event, or position."""
        async with asyncio.timeout(WITHIN):
            while True:
                fields = await self._block()
                self.position = fields.get("id", self.position)
                self._is_whole = "id" in fields
                if "data" in fields:
                    return Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
                if "id" in fields:
                    return Event(fields["id"], "", {})

    async def _block(self) -> dict[str, str]:
        fields = {}
        async for line in self._lines:
            self.raw += f"{line}\n"
            if not line:
                return fields
            name, _, value = line.partition(": ")
            fields[name] = value
        raise EOFError

    async def wait_for(self, name: str, **fields: Any) -> list[Event]:
        """The events up to one of this name that has these fields."""
        seen = []
        while True:
            seen.append(await self.next())
            if seen[-1].name == name and fields.items() <= seen[-1].data.items():
                return seen

    async def read_whole_batch(self) -> None:
        """Return when everything that was sent together has come: its last event sets the position."""
        while not self._is_whole:
            await self.next()

    async def wait_for_end(self) -> None:
        """Return when the service has ended it in good order."""
        async with asyncio.timeout(WITHIN):
            with contextlib.suppress(EOFError):
                while True:
                    await self._block()


@contextlib.asynccontextmanager
async def subscribe(
    http: httpx.AsyncClient, after: str | None = None, **headers: str
) -> AsyncIterator[Subscriber]:
    """Somebody watches, who has been told where they are."""
    if after is not None:
        headers["Last-Event-ID"] = after
    async with http.stream("GET", "/v1/events", headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        watcher = Subscriber(answer)
        if after is None:
            first = await watcher.next()
            assert (first.name, first.id) == ("", watcher.position)
        yield watcher


def summarize(events: list[Event]) -> set[tuple[Any, ...]]:
    """Each event by its name, what it is about, and the state of that."""
    return {
        (
            each.name,
            each.data.get("id", each.data.get("work_id")),
            each.data.get("state", each.data.get("outcome")),
        )
        for each in events
    }


async def wait_for_no_subscribers(broker: Running) -> None:
    """Return when nobody watches any more."""

    async def nobody() -> bool:
        return not broker.server.service.event_stream.subscriber_count

    await wait_until(nobody)


@contextlib.contextmanager
def stuck_subscriber(broker: Running, **headers: str) -> Iterator[socket.socket]:
    """Somebody watches and reads nothing."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(broker.url.rsplit(":", 1)[1].strip("/"))))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        yield connection


def large_events(number: int) -> list[feeds.NamedEvent]:
    """A hundred events, about 80 kB."""
    example = WorkEvent(
        id=UUID(int=7),
        task_id=f"{number}", tool_id="t", attempt=1, state="running", progress=0.5, message="x" * 500,
        cancel_requested=False, assigned_at=None, started_at=None, deadline_at=None,
    )  # fmt: skip
    return [("work", example)] * 100
