"""Subscribers of /v1/events: one that reads its events, and one that reads nothing."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple
from uuid import UUID

import httpx

from broker.background import event_stream
from broker.schemas.overview import WorkEvent
from tests.conftest import Running
from tests.support.api import Json
from tests.support.waiting import wait_until

WITHIN = 10


class Event(NamedTuple):
    """A received event. One that only sets the position has no name."""

    id: str
    name: str
    data: Json


class Subscriber:
    """A client that reads an event stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.position = ""
        self.raw = ""
        self._lines = response.aiter_lines()
        self._is_whole = True

    async def next(self) -> Event:
        """Return the next event, or the next position."""
        async with asyncio.timeout(WITHIN):
            while True:
                fields = await self._read_event()
                self.position = fields.get("id", self.position)
                self._is_whole = "id" in fields
                if "data" in fields:
                    return Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
                if "id" in fields:
                    return Event(fields["id"], "", {})

    async def _read_event(self) -> dict[str, str]:
        fields = {}
        async for line in self._lines:
            self.raw += f"{line}\n"
            if not line:
                return fields
            name, _, value = line.partition(": ")
            fields[name] = value
        raise EOFError

    async def wait_for(self, name: str, **fields: Any) -> list[Event]:
        """Return the events up to the first with this name and these fields."""
        events = []
        while True:
            events.append(await self.next())
            if events[-1].name == name and fields.items() <= events[-1].data.items():
                return events

    async def read_whole_batch(self) -> None:
        """Read the rest of the batch of the latest event. The last event of a batch sets the position."""
        while not self._is_whole:
            await self.next()

    async def wait_for_end(self) -> None:
        """Read until the broker ends the stream."""
        async with asyncio.timeout(WITHIN):
            with contextlib.suppress(EOFError):
                while True:
                    await self._read_event()


@contextlib.asynccontextmanager
async def subscribe(
    http: httpx.AsyncClient, after: str | None = None, **headers: str
) -> AsyncIterator[Subscriber]:
    """Subscribe, and wait for the first position unless `after` gives one."""
    if after is not None:
        headers["Last-Event-ID"] = after
    async with http.stream("GET", "/v1/events", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        subscriber = Subscriber(response)
        if after is None:
            first = await subscriber.next()
            assert (first.name, first.id) == ("", subscriber.position)
        yield subscriber


def summarize(events: list[Event]) -> set[tuple[Any, ...]]:
    """Return each event as a tuple of its name, the id of its subject and the subject's state."""
    return {
        (
            each.name,
            each.data.get("id", each.data.get("work_id")),
            each.data.get("state", each.data.get("outcome")),
        )
        for each in events
    }


async def wait_for_no_subscribers(broker: Running) -> None:
    """Wait until the broker has no subscribers."""

    async def no_subscribers() -> bool:
        return not broker.server.service.event_stream.subscriber_count

    await wait_until(no_subscribers)


@contextlib.contextmanager
def stuck_subscriber(broker: Running, **headers: str) -> Iterator[socket.socket]:
    """Subscribe with a client that reads nothing."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(broker.url.rsplit(":", 1)[1].strip("/"))))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        yield connection


def large_events(number: int) -> list[event_stream.NamedEvent]:
    """Return a hundred events of about 80 kB in total."""
    example = WorkEvent(
        id=UUID(int=7),
        task_id=f"{number}", tool_id="t", attempt=1, state="running", progress=0.5, message="x" * 500,
        cancel_requested=False, assigned_at=None, started_at=None, deadline_at=None,
    )  # fmt: skip
    return [("work", example)] * 100
