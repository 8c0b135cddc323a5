"""The parts that the scenarios with tools and an assigner are played by."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from broker.bench.http import Connection
from broker.bench.load import connections
from broker.bench.work import Candidates, Pair, PairAnswer, PairAnswers

_WAIT_SECONDS = 30


class Fifo:
    """An assigner that looks at nothing: the next task goes to the next tool that has room.

    Args:
        url: The service.
        largest: How many pairs it posts at a time, at most; more than that it posts over two connections.
    """

    def __init__(self, url: str, *, largest: int = 100) -> None:
        self._url = url
        self._largest = largest
        self._tasks: deque[str] = deque()
        self._room: dict[str, int] = {}

    async def run(self) -> None:
        """Assign until cancelled."""
        cursor = ""
        async with connections(self._url, many=2) as [first, second]:
            while True:
                path = f"/v1/candidates?wait={_WAIT_SECONDS}{cursor}"
                found = await first.call("GET", path, form=Candidates)
                cursor = f"&cursor={found.cursor}"
                self._tasks.extend(task.id for task in found.tasks)
                self._room.update({tool.id: tool.capacity - tool.load for tool in found.tools})
                await asyncio.gather(self._post(first), self._post(second))

    async def _post(self, connection: Connection) -> None:
        while pairs := self._pairs():
            answers = await connection.call("POST", "/v1/work/batch", {"items": pairs}, PairAnswers)
            for answer in answers.items:
                self._learn(answer)

    def _learn(self, answer: PairAnswer) -> None:
        """What came twice, or changed meanwhile, has to be given back."""
        if answer.status.startswith("tool"):
            self._room.pop(answer.tool_id, None)
            self._tasks.appendleft(answer.task_id)
        elif answer.status != "assigned":
            self._room[answer.tool_id] = self._room.get(answer.tool_id, 0) + 1

    def _pairs(self) -> list[Pair]:
        pairs: list[Pair] = []
        while self._tasks and self._room and len(pairs) < self._largest:
            tool = next(iter(self._room))
            pairs.append(Pair(task_id=self._tasks.popleft(), tool_id=tool))
            self._room[tool] -= 1
            if not self._room[tool]:
                del self._room[tool]
        return pairs


@asynccontextmanager
async def registered(url: str, many: int, capacity: int = 1) -> AsyncIterator[list[str]]:
    """So many tools, registered for the length of the block; their ids."""
    run = uuid4().hex[:12]
    tools = [f"bench-{run}-{number}" for number in range(many)]
    async with connections(url, many=min(many, 16)) as open_:
        waiting = deque(tools)

        async def register(connection: Connection) -> None:
            while waiting:
                tool = {"id": waiting.popleft(), "skills": {"can": ["render"]}, "capacity": capacity}
                await connection.call("POST", "/v1/tools", tool | {"lease_seconds": 3600}, form=None)

        await asyncio.gather(*(register(connection) for connection in open_))
    try:
        yield tools
    finally:
        async with connections(url, many=1) as [connection]:
            for tool in tools:
                await connection.send("DELETE", f"/v1/tools/{tool}")


@asynccontextmanager
async def background(*parts: "asyncio.Task[None]") -> AsyncIterator[None]:
    """Parts that run for the length of the block; should one fail, so does the block."""
    block = asyncio.current_task()
    failed: list[BaseException] = []

    def look(part: "asyncio.Task[None]") -> None:
        if not part.cancelled() and (error := part.exception()) is not None:
            failed.append(error)
            if block is not None:
                block.cancel()

    for part in parts:
        part.add_done_callback(look)
    try:
        yield
    except asyncio.CancelledError:
        if failed:
            raise failed[0] from None
        raise
    finally:
        for part in parts:
            part.remove_done_callback(look)
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
