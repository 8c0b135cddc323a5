"""`bulk`: everything in batches of 100."""

import asyncio
import time

import msgspec

from broker.bench import pgbench
from broker.bench.figures import Round
from broker.bench.http import Connection
from broker.bench.load import connections
from broker.bench.parts import Fifo, background, registered
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import Stage
from broker.bench.work import Items, task

_TASKS = 20_000
_BATCH = 100
_SUBMITTERS = 2
_TOOLS = 4
_CAPACITY = 200
# Tasks a second; slower than this, something hangs.
_SLOWEST = 100
_PGBENCH_CLIENTS = 4


async def _round(stage: Stage, size: Size) -> Round:
    """Measure the service, and beside it pgbench."""
    tasks = max(_BATCH, size.of(_TASKS) // _BATCH * _BATCH)
    async with stage.service() as service:
        found = {"tasks/s": tasks / await live(service.url, tasks)}
    if stage.ours:
        sets = await pgbench.run(
            stage, pgbench.life_cycle(_BATCH), clients=_PGBENCH_CLIENTS, seconds=size.seconds
        )
        found["pgbench, same SQL, tasks/s"] = sets * _BATCH
    return found


async def live(url: str, tasks: int) -> float:
    """Have so many tasks submitted, assigned and completed; the seconds that this took."""
    body = msgspec.json.encode({"items": [task(number) for number in range(_BATCH)]})
    batches = iter(range(tasks // _BATCH))
    completed = 0
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def submit(connection: Connection) -> None:
        for _ in batches:
            await connection.call("POST", "/v1/tasks/batch", body, form=None)

    async def work(connection: Connection, tool: str) -> None:
        nonlocal completed
        while True:
            items = (await connection.call("GET", f"/v1/tools/{tool}/work?wait=30", form=Items)).items
            for first in range(0, len(items), _BATCH):
                batch = [
                    {"work_id": item.id, "outcome": "succeeded"} for item in items[first : first + _BATCH]
                ]
                await connection.call("POST", "/v1/work/complete", {"items": batch}, form=None)
                completed += len(batch)
                if completed == tasks:
                    done.set_result(time.perf_counter())

    async with (
        registered(url, _TOOLS, _CAPACITY) as tools,
        connections(url, many=_SUBMITTERS + _TOOLS) as others,
    ):
        workers = zip(others[_SUBMITTERS:], tools, strict=True)
        parts = [asyncio.create_task(work(connection, tool)) for connection, tool in workers]
        assigner = asyncio.create_task(Fifo(url, largest=_BATCH).run())
        async with asyncio.timeout(60 + tasks / _SLOWEST), background(assigner, *parts):
            began = time.perf_counter()
            await asyncio.gather(*(submit(connection) for connection in others[:_SUBMITTERS]))
            return await done - began


SCENARIO = Scenario(
    name="bulk",
    says=f"everything in batches of {_BATCH}: submitted, assigned and completed",
    round=_round,
    ratios={"of pgbench": ("tasks/s", "pgbench, same SQL, tasks/s")},
    wanted={"tasks/s": "≥ 9,300", "of pgbench": "≥ 0.5"},
)
