"""`bulk`: everything in batches of 100."""

import asyncio
import time

import msgspec

from broker.bench import pgbench
from broker.bench.clients import Fifo, registered
from broker.bench.figures import Figures
from broker.bench.http import HttpConnection
from broker.bench.load import background, connections
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import BenchService, Stage
from broker.bench.work import BenchItems, task

_TASKS = 20_000
_BATCH = 100
_SUBMITTERS = 2
_TOOLS = 4
_CAPACITY = 200
# A rate below this many tasks per second means that something hangs.
_SLOWEST = 100
_PGBENCH_CLIENTS = 4


async def _round(stage: Stage, size: Size) -> Figures:
    tasks = max(_BATCH, size.of(_TASKS) // _BATCH * _BATCH)
    async with stage.service() as service:
        figures = {"tasks/s": tasks / await run_life_cycles(service, tasks)}
    figures |= service.meter.figures()
    if stage.is_own:
        sets = await pgbench.run(
            stage, pgbench.life_cycle(_BATCH), clients=_PGBENCH_CLIENTS, seconds=size.seconds
        )
        figures["pgbench, same SQL, tasks/s"] = sets * _BATCH
    return figures


async def run_life_cycles(service: BenchService, tasks: int) -> float:
    """Submit, assign and complete a number of tasks, and return the duration in seconds."""
    body = msgspec.json.encode({"items": [task(number) for number in range(_BATCH)]})
    batches = iter(range(tasks // _BATCH))
    completed = 0
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def submit(connection: HttpConnection) -> None:
        for _ in batches:
            await connection.call("POST", "/v1/tasks/batch", body, into=None)

    async def work(connection: HttpConnection, tool: str) -> None:
        nonlocal completed
        while True:
            items = (await connection.call("GET", f"/v1/tools/{tool}/work?wait=30", into=BenchItems)).items
            for first in range(0, len(items), _BATCH):
                batch = [
                    {"work_id": item.id, "outcome": "succeeded"} for item in items[first : first + _BATCH]
                ]
                await connection.call("POST", "/v1/work/complete", {"items": batch}, into=None)
                completed += len(batch)
                if completed == tasks:
                    done.set_result(time.perf_counter())

    url = service.url
    async with (
        registered(url, _TOOLS, _CAPACITY) as tools,
        connections(url, number=_SUBMITTERS) as submitters,
        connections(url, number=_TOOLS) as open_,
    ):
        jobs = (Fifo(url).run(), *map(work, open_, tools))
        time_limit = asyncio.timeout(60 + tasks / _SLOWEST)
        async with time_limit, background(*jobs), service.meter.measuring():
            started_at = time.perf_counter()
            await asyncio.gather(*map(submit, submitters))
            seconds = await done - started_at
            service.meter.count(tasks)
    return seconds


SCENARIO = Scenario(
    name="bulk",
    says=f"submit, assign and complete tasks in batches of {_BATCH}",
    round=_round,
    ratios={"of pgbench": ("tasks/s", "pgbench, same SQL, tasks/s")},
    wanted={"of pgbench": "≥ 0.5"},
)
