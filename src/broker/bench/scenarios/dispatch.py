"""`dispatch`: how soon a waiting tool gets its work."""

import asyncio
import time
from collections.abc import Sequence

from msgspec import Struct

from broker.bench.clients import Fifo, registered
from broker.bench.figures import Figures, latencies
from broker.bench.http import HttpConnection
from broker.bench.load import background, connections
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import Stage
from broker.bench.work import BenchItem, encoded
from broker.schemas.candidates import Pair
from broker.schemas.limits import LONGEST_WAIT_SECONDS

_TOOLS = 1_000
_TIMES = 300
_SUCCEEDED = b'{"outcome": "succeeded"}'


class _Work(Struct):
    id: str
    task_id: str


class _Works(Struct):
    items: list[_Work]


class _Waited(Struct):
    """The times of a task: when the tool receives it, and when the tool has completed it."""

    arrived: "asyncio.Future[float]"
    done: "asyncio.Future[None]"


async def _round(stage: Stage, size: Size) -> Figures:
    """Measure both paths, first the one without an assigner."""
    async with (
        stage.service() as service,
        registered(service.url, size.of(_TOOLS)) as tools,
        connections(service.url, many=len(tools) + 1) as [ours, *others],
    ):
        waited: dict[str, _Waited] = {}
        workers = zip(others, tools, strict=True)
        async with background(*(_work(connection, tool, waited) for connection, tool in workers)):
            await asyncio.sleep(1)
            times = size.of(_TIMES)
            assigned = [await _assign(ours, tools[n % len(tools)], waited) for n in range(times)]
            async with background(Fifo(service.url).run()):
                await asyncio.sleep(1)
                submitted = [await _submit(ours, waited) for _ in range(times)]
    return latencies(assigned, "assign → tool ") | latencies(submitted, "submit → assigner → tool ")


async def _assign(connection: HttpConnection, tool: str, waited: dict[str, _Waited]) -> float:
    """Return the time from the assignment to the tool, in seconds."""
    task = await connection.call("POST", "/v1/tasks", encoded(1), BenchItem)
    waiting = _wait(task.id, waited)
    began = time.perf_counter()
    await connection.call("POST", "/v1/work", Pair(task_id=task.id, tool_id=tool), into=None)
    took = await waiting.arrived - began
    await waiting.done
    return took


async def _submit(connection: HttpConnection, waited: dict[str, _Waited]) -> float:
    """Return the time from the submission through the assigner to the tool, in seconds."""
    began = time.perf_counter()
    task = await connection.call("POST", "/v1/tasks", encoded(1), BenchItem)
    waiting = _wait(task.id, waited)
    took = await waiting.arrived - began
    await waiting.done
    return took


def _wait(task_id: str, waited: dict[str, _Waited]) -> _Waited:
    """Return the times of a task. The tool may receive it before the submitter has its response."""
    if task_id not in waited:
        loop = asyncio.get_running_loop()
        waited[task_id] = _Waited(loop.create_future(), loop.create_future())
    return waited[task_id]


async def _work(connection: HttpConnection, tool: str, waited: dict[str, _Waited]) -> None:
    while True:
        path = f"/v1/tools/{tool}/work?wait={LONGEST_WAIT_SECONDS}"
        items: Sequence[_Work] = (await connection.call("GET", path, into=_Works)).items
        now = time.perf_counter()
        for work in items:
            waiting = _wait(work.task_id, waited)
            waiting.arrived.set_result(now)
            await connection.call("POST", f"/v1/work/{work.id}/complete", _SUCCEEDED, into=None)
            waiting.done.set_result(None)


SCENARIO = Scenario(
    name="dispatch",
    says=f"{_TOOLS:,} parked tools, one at a time gets work",
    round=_round,
    wanted={
        "assign → tool p50 ms": "≤ 4",
        "assign → tool p99 ms": "≤ 15",
        "submit → assigner → tool p50 ms": "≤ 8",
    },
)
