"""`drain`: tasks submitted one by one are assigned and completed as they arrive."""

import asyncio
import time
from collections.abc import Iterable, Sequence

from broker.bench.clients import Fifo, registered
from broker.bench.figures import Figures, latencies
from broker.bench.http import BenchError, HttpConnection
from broker.bench.load import background, connections
from broker.bench.meter import WAL, Meter
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import Stage
from broker.bench.work import BenchCompletion, BenchItems, encode_task
from broker.schemas.limits import MOST_ON_PAGE

_TASKS = 5_000
_SUBMITTERS = 16
_TOOLS = 64
# A rate below this many tasks per second means that something hangs.
_SLOWEST = 20
_SUCCEEDED = b'{"outcome": "succeeded", "next_wait_seconds": 30}'


async def _round(stage: Stage, size: Size) -> Figures:
    tasks = size.of(_TASKS)
    async with stage.service() as service, registered(service.url, _TOOLS) as tools:
        figures = await drain([service.url], tools, tasks, service.meter)
    return figures | service.meter.figures()


async def drain(urls: Sequence[str], tools: list[str], tasks: int, meter: Meter) -> Figures:
    """Submit, assign and complete tasks. The clients use the services of one database in turn."""
    url = urls[0]
    numbers = iter(range(tasks))
    received = 0
    last: dict[str, str] = {}
    durations: list[float] = []
    all_received = asyncio.Event()

    async def submit(connection: HttpConnection) -> None:
        for number in numbers:
            started_at = time.perf_counter()
            await connection.call("POST", "/v1/tasks", encode_task(number), into=None)
            durations.append(time.perf_counter() - started_at)

    async def work(connection: HttpConnection, tool: str) -> None:
        nonlocal received
        while True:
            items = (await connection.call("GET", f"/v1/tools/{tool}/work?wait=30", into=BenchItems)).items
            while items:
                last[tool] = items[0].id
                received += 1
                if received == tasks:
                    all_received.set()
                path = f"/v1/work/{items[0].id}/complete"
                items = (await connection.call("POST", path, _SUCCEEDED, BenchCompletion)).next

    async with (
        connections(*urls, number=_SUBMITTERS) as submitters,
        connections(*urls, number=len(tools)) as open_,
    ):
        jobs = (Fifo(url).run(), *map(work, open_, tools))
        async with asyncio.timeout(60 + tasks / _SLOWEST), background(*jobs), meter.measuring():
            started_at = time.perf_counter()
            await asyncio.gather(*map(submit, submitters))
            await all_received.wait()
            await _ended(submitters[0], last.values())
            seconds = time.perf_counter() - started_at
            meter.count(tasks)
    async with connections(url, number=1) as [connection]:
        await _check(connection, tools, tasks)
    return {"tasks/s": tasks / seconds} | latencies(durations, "submit ")


async def _ended(connection: HttpConnection, works: Iterable[str]) -> None:
    """Wait until the last work item of each tool has ended. The request that ends it also waits for more."""
    for work in works:
        while (await connection.call("GET", f"/v1/work/{work}?wait=10"))["state"] in ("assigned", "running"):
            pass


async def _check(connection: HttpConnection, tools: list[str], tasks: int) -> None:
    """Check that every task has exactly one record."""
    task_ids: list[str] = []
    for tool in tools:
        after: str | None = ""
        while after is not None:
            path = f"/v1/archive?tool_id={tool}&outcome=succeeded&limit={MOST_ON_PAGE}{after}"
            page = await connection.call("GET", path)
            task_ids += [record["task_id"] for record in page["items"]]
            after = f"&after={page['next']}" if page["next"] else None
    if len(task_ids) != tasks or len(set(task_ids)) != tasks:
        raise BenchError(
            f"{tasks} tasks were submitted, but {len(task_ids)} records exist for {len(set(task_ids))} tasks"
        )


SCENARIO = Scenario(
    name="drain",
    says=f"{_SUBMITTERS} clients submit tasks one by one, an assigner pairs them, {_TOOLS} tools complete"
    " them",
    round=_round,
    wanted={WAL: "≤ 3,500"},
)
