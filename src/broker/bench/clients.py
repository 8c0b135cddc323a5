"""The tools and the assigner of the scenarios."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from broker.bench.http import HttpConnection
from broker.bench.load import connections
from broker.bench.work import BenchCandidates
from broker.schemas.candidates import AssignedPair, AssignedPairs, Pair
from broker.schemas.limits import LONGEST_WAIT_SECONDS

_WAIT_SECONDS = 30
_MOST_PAIRS = 100


class Fifo:
    """An assigner that ignores needs and skills: the next task goes to the next tool with free capacity.

    Args:
        url: The URL of the service.
        most_pairs: The maximum number of pairs in a request.
    """

    def __init__(self, url: str, most_pairs: int = _MOST_PAIRS) -> None:
        self._url = url
        self._most_pairs = most_pairs
        self._tasks: deque[str] = deque()
        self._room: dict[str, int] = {}

    async def run(self) -> None:
        """Assign tasks to tools until cancelled."""
        cursor = ""
        async with connections(self._url, number=2) as [first, second]:
            while True:
                path = f"/v1/candidates?wait={_WAIT_SECONDS}{cursor}"
                candidates = await first.call("GET", path, into=BenchCandidates)
                cursor = f"&cursor={candidates.cursor}"
                self._tasks.extend(task.id for task in candidates.tasks)
                self._room.update({tool.id: tool.capacity - tool.load for tool in candidates.tools})
                await asyncio.gather(self._post(first), self._post(second))

    async def _post(self, connection: HttpConnection) -> None:
        while pairs := self._pairs():
            assigned = await connection.call("POST", "/v1/work/batch", {"items": pairs}, AssignedPairs)
            for pair in assigned.items:
                self._learn(pair)

    def _learn(self, pair: AssignedPair) -> None:
        """Offer the task or the tool of a refused pair again."""
        if pair.status.startswith("tool"):
            self._room.pop(pair.tool_id, None)
            self._tasks.appendleft(pair.task_id)
        elif pair.status != "assigned":
            self._room[pair.tool_id] = self._room.get(pair.tool_id, 0) + 1

    def _pairs(self) -> list[Pair]:
        pairs: list[Pair] = []
        while self._tasks and self._room and len(pairs) < self._most_pairs:
            tool = next(iter(self._room))
            pairs.append(Pair(task_id=self._tasks.popleft(), tool_id=tool))
            self._room[tool] -= 1
            if not self._room[tool]:
                del self._room[tool]
        return pairs


@asynccontextmanager
async def registered(url: str, number: int, capacity: int = 1) -> AsyncIterator[list[str]]:
    """Register a number of tools during the block, and yield their ids."""
    run = uuid4().hex[:12]
    tools = [f"bench-{run}-{index}" for index in range(number)]
    async with connections(url, number=min(number, 16)) as open_:
        waiting = deque(tools)

        async def register(connection: HttpConnection) -> None:
            while waiting:
                tool = {"id": waiting.popleft(), "skills": {"can": ["render"]}, "capacity": capacity}
                await connection.call("POST", "/v1/tools", tool | {"lease_seconds": 3600}, into=None)

        await asyncio.gather(*(register(connection) for connection in open_))
    try:
        yield tools
    finally:
        async with connections(url, number=1) as [connection]:
            for tool in tools:
                await connection.send("DELETE", f"/v1/tools/{tool}")


async def keep_polling(connection: HttpConnection, tool: str) -> None:
    """Repeat the long poll of a tool that gets no work."""
    while True:
        await connection.call("GET", f"/v1/tools/{tool}/work?wait={LONGEST_WAIT_SECONDS}", into=None)
