"""`dispatch`: the time until a waiting tool gets its work."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import repeat

from msgspec import Struct

from broker.bench.clients import Fifo, registered
from broker.bench.figures import Figures, latencies
from broker.bench.http import HttpConnection
from broker.bench.load import background, connections
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import Stage
from broker.bench.work import SUCCEEDED, BenchItem, encode_task
from broker.schemas.candidates import Pair
from broker.schemas.limits import LONGEST_WAIT_SECONDS

_TOOLS = 1_000
_TIMES = 300


class _Work(Struct):
    id: str
    task_id: str


class _Works(Struct):
    items: list[_Work]


class _Events:
    """The times at which the tool receives and completes a task."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.arrived: asyncio.Future[float] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()


# By the id of the task. The tool may receive a task before the submitter gets the response.
_Waiting = defaultdict[str, _Events]


async def _round(stage: Stage, size: Size) -> Figures:
    async with (
        stage.service() as service,
        registered(service.url, size.of(_TOOLS)) as tools,
        connections(service.url, number=len(tools) + 1) as [ours, *others],
    ):
        waiting: _Waiting = defaultdict(_Events)
        async with background(*map(_work, others, tools, repeat(waiting))):
            await asyncio.sleep(1)
            times = size.of(_TIMES)
            assigned = [await _assign(ours, tools[n % len(tools)], waiting) for n in range(times)]
            async with background(Fifo(service.url).run()):
                await asyncio.sleep(1)
                async with service.meter.measuring():
                    submitted = [await _submit(ours, waiting) for _ in range(times)]
                    service.meter.count(times)
    figures = latencies(assigned, "assign → tool ") | latencies(submitted, "submit → assigner → tool ")
    return figures | service.meter.figures()


async def _assign(connection: HttpConnection, tool: str, waiting: _Waiting) -> float:
    """Return the time from the assignment to the tool, in seconds."""
    task = await connection.call("POST", "/v1/tasks", encode_task(1), BenchItem)
    started_at = time.perf_counter()
    await connection.call("POST", "/v1/work", Pair(task_id=task.id, tool_id=tool), into=None)
    duration = await waiting[task.id].arrived - started_at
    await waiting[task.id].done
    return duration


async def _submit(connection: HttpConnection, waiting: _Waiting) -> float:
    """Return the time from the submission through the assigner to the tool, in seconds."""
    started_at = time.perf_counter()
    task = await connection.call("POST", "/v1/tasks", encode_task(1), BenchItem)
    duration = await waiting[task.id].arrived - started_at
    await waiting[task.id].done
    return duration


async def _work(connection: HttpConnection, tool: str, waiting: _Waiting) -> None:
    while True:
        path = f"/v1/tools/{tool}/work?wait={LONGEST_WAIT_SECONDS}"
        items: Sequence[_Work] = (await connection.call("GET", path, into=_Works)).items
        now = time.perf_counter()
        for work in items:
            waiting[work.task_id].arrived.set_result(now)
            await connection.call("POST", f"/v1/work/{work.id}/complete", SUCCEEDED, into=None)
            waiting[work.task_id].done.set_result(None)


SCENARIO = Scenario(
    name="dispatch",
    says=f"{_TOOLS:,} tools wait in long polls, and one at a time gets work",
    round=_round,
)
