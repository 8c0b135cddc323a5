"""`growth`: the same work with more processes, and with a second service on the same database."""

from contextlib import AsyncExitStack

from broker.bench.figures import Round
from broker.bench.http import BenchError
from broker.bench.parts import registered
from broker.bench.process import cpu_seconds
from broker.bench.scenarios import Scenario, Size, bulk, drain
from broker.bench.stage import Service, Stage

_TASKS = 5_000
_MANY_TASKS = 20_000
_TOOLS = 64
_WORKERS = (1, 2, 4)


async def _round(stage: Stage, size: Size) -> Round:
    """Drain tasks with each, and tell what that costs their processes and the database's."""
    if not stage.ours:
        raise BenchError("`growth` looks at the processes, so it takes services of its own; leave out --url.")
    found: Round = {}
    for workers in _WORKERS:
        async with stage.service(workers=workers) as service:
            name = "1 process" if workers == 1 else f"{workers} processes"
            found |= await _drain(stage, [service], name, size)
            if workers == 1:
                found |= await _bulk(stage, service, size)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(stage.database())
        services = [await stack.enter_async_context(stage.service(database)) for _ in range(2)]
        found |= await _drain(stage, services, "2 services", size)
    return found


async def _drain(stage: Stage, services: list[Service], name: str, size: Size) -> Round:
    urls = [service.url for service in services]
    tasks = size.of(_TASKS)
    async with registered(urls[0], _TOOLS) as tools:
        before = _cpu(stage, services)
        drained = await drain.drain(urls, tools, tasks)
        ours, databases = (after - first for first, after in zip(before, _cpu(stage, services), strict=True))
    return {
        f"{name}, tasks/s": drained["tasks/s"],
        f"{name}, service ms/task": 1000 * ours / tasks,
        f"{name}, database ms/task": 1000 * databases / tasks,
    }


async def _bulk(stage: Stage, service: Service, size: Size) -> Round:
    tasks = max(100, size.of(_MANY_TASKS) // 100 * 100)
    before = _cpu(stage, [service])
    await bulk.live(service.url, tasks)
    ours, databases = (after - first for first, after in zip(before, _cpu(stage, [service]), strict=True))
    return {
        "in batches, service ms/task": 1000 * ours / tasks,
        "in batches, database ms/task": 1000 * databases / tasks,
    }


def _cpu(stage: Stage, services: list[Service]) -> tuple[float, float]:
    """The CPU time of the services, and of the database."""
    return sum(cpu_seconds(service.pid or 0) for service in services), cpu_seconds(stage.postmaster)


SCENARIO = Scenario(
    name="growth",
    says="tasks one by one with 1, 2 and 4 processes, and with 2 services on one database",
    round=_round,
    ratios={
        "2 processes : 1": ("2 processes, tasks/s", "1 process, tasks/s"),
        "2 services : 1 process": ("2 services, tasks/s", "1 process, tasks/s"),
    },
)
