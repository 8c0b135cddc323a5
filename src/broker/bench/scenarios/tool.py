"""`tool`: one process with the Python client and trivial work."""

import asyncio
import os
import time
from uuid import uuid4

from broker.bench import process
from broker.bench.clients import Fifo
from broker.bench.figures import Figures
from broker.bench.http import HttpConnection
from broker.bench.load import background, connections
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import Stage
from broker.bench.work import task
from broker.server.child_process import child_process

_TASKS = 4_000
_BATCH = 1_000
_CAPACITY = 16
# A rate below this many work items per second means that something hangs.
_SLOWEST = 20


async def _round(stage: Stage, size: Size) -> Figures:
    """Let one tool do the tasks, and measure from the end of the first task to the end of the last."""
    tasks = max(2, size.of(_TASKS))
    async with stage.service() as service, connections(service.url, number=1) as [connection]:
        ids = [f"bench-{uuid4()}" for _ in range(tasks)]
        for first in range(0, tasks, _BATCH):
            items = [task(number) | {"id": id_} for number, id_ in enumerate(ids[first : first + _BATCH])]
            await connection.call("POST", "/v1/tasks/batch", {"items": items}, into=None)
        tool = child_process("broker.bench.trivial_tool", service.url, str(_CAPACITY), environment=os.environ)
        async with asyncio.timeout(60 + tasks / _SLOWEST), background(Fifo(service.url).run()):
            with tool as pid:
                await _ended(connection, ids[0])
                async with service.meter.measuring():
                    started_at, spent = time.perf_counter(), process.cpu_seconds(pid)
                    # The last tasks may end in any order.
                    for id_ in ids[-_CAPACITY:]:
                        await _ended(connection, id_)
                    seconds = time.perf_counter() - started_at
                    spent = process.cpu_seconds(pid) - spent
                    service.meter.count(tasks)
    figures = {"works/s": tasks / seconds, "its process, ms a work": spent / tasks * 1000}
    return figures | service.meter.figures()


async def _ended(connection: HttpConnection, id_: str) -> None:
    while (await connection.call("GET", f"/v1/tasks/{id_}?wait=30"))["state"] != "succeeded":
        pass


SCENARIO = Scenario(
    name="tool",
    says=f"one process with the Python client does trivial work, {_CAPACITY} at once",
    round=_round,
)
