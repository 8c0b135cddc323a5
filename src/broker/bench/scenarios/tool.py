"""`tool`: one process with the Python client, and trivial work."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from broker.bench import process
from broker.bench.figures import Round
from broker.bench.http import Connection
from broker.bench.load import connections
from broker.bench.parts import Fifo, background
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import Stage
from broker.bench.work import task

_TASKS = 4_000
_BATCH = 1_000
_CAPACITY = 16
# Work a second; slower than this, something hangs.
_SLOWEST = 20


async def _round(stage: Stage, size: Size) -> Round:
    """Have one tool do the tasks of one round; measured from the end of the first to that of the last."""
    tasks = max(2, size.of(_TASKS))
    async with stage.service() as service, connections(service.url, many=1) as [connection]:
        ids = [f"bench-{uuid4()}" for _ in range(tasks)]
        for first in range(0, tasks, _BATCH):
            items = [task(number) | {"id": id_} for number, id_ in enumerate(ids[first : first + _BATCH])]
            await connection.call("POST", "/v1/tasks/batch", {"items": items}, form=None)
        async with (
            asyncio.timeout(60 + tasks / _SLOWEST),
            background(asyncio.create_task(Fifo(service.url).run())),
            _trivial(service.url) as pid,
        ):
            await _ended(connection, ids[0])
            began, spent = time.perf_counter(), process.cpu_seconds(pid)
            # The last that were begun may end in any order.
            for id_ in ids[-_CAPACITY:]:
                await _ended(connection, id_)
            seconds = time.perf_counter() - began
            spent = process.cpu_seconds(pid) - spent
    return {"works/s": tasks / seconds, "its process, ms a work": spent / tasks * 1000}


async def _ended(connection: Connection, id_: str) -> None:
    while (await connection.call("GET", f"/v1/tasks/{id_}?wait=30"))["state"] != "succeeded":
        pass


@asynccontextmanager
async def _trivial(url: str) -> AsyncIterator[int]:
    """The tool, for the length of the block; its process."""
    command = [sys.executable, "-m", "broker.bench.trivial", url, str(_CAPACITY)]
    running = await asyncio.create_subprocess_exec(*command)
    try:
        yield running.pid
    finally:
        running.terminate()
        await running.wait()


SCENARIO = Scenario(
    name="tool",
    says=f"one process with the Python client does trivial work, {_CAPACITY} at once",
    round=_round,
    wanted={"works/s": "≥ 300"},
)
