"""`bulk`: everything in batches of 100."""

import asyncio
import time

import msgspec
from msgspec import Struct

from broker.bench import pgbench
from broker.bench.clients import Fifo, registered
from broker.bench.figures import Figures
from broker.bench.http import HttpConnection
from broker.bench.load import background, connections
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import BenchService, Stage
from broker.bench.work import BenchItems, task

_TASKS = 20_000
_TOOLS = 4
# A rate below this many tasks per second means that something hangs.
_SLOWEST = 100
_PGBENCH_CLIENTS = 4


class Batches(Struct, frozen=True, kw_only=True):
    """The size of batches.

    Args:
        size: The number of tasks in a request, in each step of their life.
        submitters: The number of clients that submit.
        capacity: The capacity of each tool.
    """

    size: int
    submitters: int
    capacity: int


_HUNDREDS = Batches(size=100, submitters=2, capacity=200)


async def _round(stage: Stage, size: Size) -> Figures:
    batch = _HUNDREDS.size
    tasks = max(batch, size.of(_TASKS) // batch * batch)
    async with stage.service() as service:
        figures = {"tasks/s": tasks / await run_life_cycles(service, tasks)}
    figures |= service.meter.figures()
    if stage.is_own:
        sets = await pgbench.run(
            stage, pgbench.life_cycle(batch), clients=_PGBENCH_CLIENTS, seconds=size.seconds
        )
        figures["pgbench, same SQL, tasks/s"] = sets * batch
    return figures


async def run_life_cycles(service: BenchService, tasks: int, batches: Batches = _HUNDREDS) -> float:
    """Submit, assign and complete a number of tasks, and return the duration in seconds."""
    size = batches.size
    body = msgspec.json.encode({"items": [task(number) for number in range(size)]})
    requests = iter(range(tasks // size))
    completed = 0
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def submit(connection: HttpConnection) -> None:
        for _ in requests:
            await connection.call("POST", "/v1/tasks/batch", body, into=None)

    async def work(connection: HttpConnection, tool: str) -> None:
        nonlocal completed
        while True:
            items = (await connection.call("GET", f"/v1/tools/{tool}/work?wait=30", into=BenchItems)).items
            for first in range(0, len(items), size):
                batch = [{"work_id": item.id, "outcome": "succeeded"} for item in items[first : first + size]]
                await connection.call("POST", "/v1/work/complete", {"items": batch}, into=None)
                completed += len(batch)
                if completed == tasks:
                    done.set_result(time.perf_counter())

    url = service.url
    async with (
        registered(url, _TOOLS, batches.capacity) as tools,
        connections(url, number=batches.submitters) as submitters,
        connections(url, number=_TOOLS) as open_,
    ):
        jobs = (Fifo(url, most_pairs=size).run(), *map(work, open_, tools))
        time_limit = asyncio.timeout(60 + tasks / _SLOWEST)
        async with time_limit, background(*jobs), service.meter.measuring():
            started_at = time.perf_counter()
            await asyncio.gather(*map(submit, submitters))
            seconds = await done - started_at
            service.meter.count(tasks)
    return seconds


SCENARIO = Scenario(
    name="bulk",
    says=f"submit, assign and complete tasks in batches of {_HUNDREDS.size}",
    round=_round,
    ratios={"of pgbench": ("tasks/s", "pgbench, same SQL, tasks/s")},
    wanted={"of pgbench": "≥ 0.5"},
)
