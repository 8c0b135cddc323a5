"""`drain`: tasks submitted one by one are assigned and completed, as fast as they come."""

import asyncio
import time
from collections.abc import Iterable, Sequence

from broker.bench.figures import Round, latencies
from broker.bench.http import BenchError, Connection
from broker.bench.load import connections
from broker.bench.parts import Fifo, background, registered
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import Stage
from broker.bench.work import Completed, Items, encoded

_TASKS = 5_000
_SUBMITTERS = 16
_TOOLS = 64
# Tasks a second; slower than this, something hangs.
_SLOWEST = 20
_SUCCEEDED = b'{"outcome": "succeeded", "next_wait_seconds": 30}'


async def _round(stage: Stage, size: Size) -> Round:
    """Drain the tasks of one round."""
    tasks = size.of(_TASKS)
    async with stage.service() as service, registered(service.url, _TOOLS) as tools:
        return await drain([service.url], tools, tasks)


async def drain(urls: Sequence[str], tools: list[str], tasks: int) -> Round:
    """Have so many tasks submitted, assigned and completed, each client by whichever service is next.

    Args:
        urls: The services, of one database.
        tools: Registered, and idle.
        tasks: How many.
    """
    url = urls[0]
    numbers = iter(range(tasks))
    received = 0
    last: dict[str, str] = {}
    took: list[float] = []
    all_received = asyncio.Event()

    async def submit(connection: Connection) -> None:
        for number in numbers:
            began = time.perf_counter()
            await connection.call("POST", "/v1/tasks", encoded(number), form=None)
            took.append(time.perf_counter() - began)

    async def work(connection: Connection, tool: str) -> None:
        nonlocal received
        while True:
            items = (await connection.call("GET", f"/v1/tools/{tool}/work?wait=30", form=Items)).items
            while items:
                last[tool] = items[0].id
                received += 1
                if received == tasks:
                    all_received.set()
                path = f"/v1/work/{items[0].id}/complete"
                items = (await connection.call("POST", path, _SUCCEEDED, Completed)).next

    async with connections(*urls, many=_SUBMITTERS + len(tools)) as others:
        workers = zip(others[_SUBMITTERS:], tools, strict=True)
        parts = [asyncio.create_task(work(connection, tool)) for connection, tool in workers]
        patience = asyncio.timeout(60 + tasks / _SLOWEST)
        async with patience, background(asyncio.create_task(Fifo(url).run()), *parts):
            began = time.perf_counter()
            await asyncio.gather(*(submit(connection) for connection in others[:_SUBMITTERS]))
            await all_received.wait()
            await _ended(others[0], last.values())
            seconds = time.perf_counter() - began
    async with connections(url, many=1) as [connection]:
        await _check(connection, tools, tasks)
    return {"tasks/s": tasks / seconds} | latencies(took, "submit ")


async def _ended(connection: Connection, works: Iterable[str]) -> None:
    """Return when the last work of each tool has ended: its tool already waits for more, in the same call."""
    for work in works:
        while (await connection.call("GET", f"/v1/work/{work}?wait=10"))["state"] in ("assigned", "running"):
            pass


async def _check(connection: Connection, tools: list[str], tasks: int) -> None:
    """Every task has exactly one record."""
    found: list[str] = []
    for tool in tools:
        after: str | None = ""
        while after is not None:
            path = f"/v1/archive?tool_id={tool}&outcome=succeeded&limit=1000{after}"
            page = await connection.call("GET", path)
            found += [record["task_id"] for record in page["items"]]
            after = f"&after={page['next']}" if page["next"] else None
    if len(found) != tasks or len(set(found)) != tasks:
        raise BenchError(f"{tasks} tasks were submitted; {len(found)} records are of {len(set(found))} tasks")


SCENARIO = Scenario(
    name="drain",
    says=f"{_SUBMITTERS} clients submit one by one, an assigner pairs, {_TOOLS} tools complete",
    round=_round,
    wanted={"tasks/s": "≥ 1,200"},
)
