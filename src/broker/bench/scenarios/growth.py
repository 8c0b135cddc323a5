"""`growth`: the same work with more processes, and with a second service on the same database."""

import asyncio
from collections.abc import Sequence

import msgspec

from broker.bench import pgbench
from broker.bench.clients import registered
from broker.bench.database import connected
from broker.bench.figures import Figures
from broker.bench.http import BenchError, HttpConnection
from broker.bench.load import connections
from broker.bench.meter import POSTGRES, SERVICE, Meter
from broker.bench.process import memory
from broker.bench.scenarios import Scenario, Size, bulk, drain
from broker.bench.stage import BenchService, Stage
from broker.bench.work import HALF_WAY, SUCCEEDED, BenchItem, encode_task
from broker.schemas.candidates import Pair

_TASKS = 5_000
_BATCHED_TASKS = 20_000
_TOOLS = 64
_WORKERS = (1, 2, 4)
_REPORTS = 10_000
_PGBENCH_CLIENTS = 16

# Transactions per second without and with a notification. PostgreSQL commits those with a notification one by
# one.
_WRITE = """
update tool_leases set seen_at = now() where tool_id = concat('tool-', cast(:client_id as text))"""
_COMMITS = {
    "commits/s": f"{_WRITE};\n",
    "commits that notify/s": f"""
with written as ({_WRITE} returning tool_id) select pg_notify('broker_bench', '') from written;\n""",
}

_ARCHIVE_BYTES = """
select (pg_total_relation_size('ended_tasks')
        + (select sum(pg_total_relation_size(inhrelid)) from pg_inherits
           where inhparent = cast('work_archive' as regclass)))
       / (select cast(count(*) as double precision) from work_archive)
"""


async def _round(stage: Stage, size: Size) -> Figures:
    if not stage.is_own:
        raise BenchError("`growth` measures the processes of its own services. Omit --url.")
    figures: Figures = {}
    for workers in _WORKERS:
        async with stage.service(workers=workers) as service:
            name = "1 process" if workers == 1 else f"{workers} processes"
            figures |= await _drain(stage, [service], name, size)
            if workers == 1:
                figures |= await _bulk(stage, service, size)
                figures |= await _reports(stage, service, size)
                figures["archive bytes/task"] = await _archive_bytes(service)
                figures["MiB a process"] = memory(service.pid) / 2**20
    async with stage.database() as database, stage.service(database) as one, stage.service(database) as two:
        figures |= await _drain(stage, [one, two], "2 services", size)
    for name, script in _COMMITS.items():
        figures[name] = await pgbench.run(stage, script, clients=_PGBENCH_CLIENTS, seconds=size.seconds)
    return figures


async def _drain(stage: Stage, services: list[BenchService], name: str, size: Size) -> Figures:
    urls = [service.url for service in services]
    tasks = size.of(_TASKS)
    async with registered(urls[0], _TOOLS) as tools:
        meter = _meter(stage, services)
        drained = await drain.drain(urls, tools, tasks, meter)
    costs = _costs(meter, f"{name}, ", "task")
    return {f"{name}, tasks/s": drained["tasks/s"]} | costs | {f"{name}, ms/task": sum(costs.values())}


async def _bulk(stage: Stage, service: BenchService, size: Size) -> Figures:
    tasks = max(100, size.of(_BATCHED_TASKS) // 100 * 100)
    service = msgspec.structs.replace(service, meter=_meter(stage, [service]))
    await bulk.run_life_cycles(service, tasks)
    return _costs(service.meter, "in batches, ", "task")


async def _reports(stage: Stage, service: BenchService, size: Size) -> Figures:
    """Measure the cost of a report. Several tools each send reports one by one."""
    reports = max(1, size.of(_REPORTS) // _TOOLS)

    async def report(connection: HttpConnection, work: str) -> None:
        for _ in range(reports):
            await connection.call("POST", f"/v1/work/{work}/reports", HALF_WAY, into=None)

    async with registered(service.url, _TOOLS) as tools, connections(service.url, number=_TOOLS) as open_:
        works = []
        for tool in tools:
            task = await open_[0].call("POST", "/v1/tasks", encode_task(0), BenchItem)
            work = await open_[0].call("POST", "/v1/work", Pair(task_id=task.id, tool_id=tool), BenchItem)
            works.append(work.id)
        meter = _meter(stage, [service])
        async with meter.measuring():
            await asyncio.gather(*map(report, open_, works))
            meter.count(reports * _TOOLS)
        for work_id in works:
            await open_[0].call("POST", f"/v1/work/{work_id}/complete", SUCCEEDED, into=None)
    return _costs(meter, "", "report")


async def _archive_bytes(service: BenchService) -> float:
    """Return the disk space of a record, with its indexes and its row in `ended_tasks`."""
    async with connected(service.database) as connection:
        return float(await connection.fetchval(_ARCHIVE_BYTES))


def _meter(stage: Stage, services: Sequence[BenchService]) -> Meter:
    return Meter([service.pid for service in services], stage.postmaster, services[0].database)


def _costs(meter: Meter, prefix: str, unit: str) -> Figures:
    """Return the CPU time of the services and the database per unit, in milliseconds."""
    costs = meter.figures()
    names = {"service": SERVICE, "database": POSTGRES}
    return {f"{prefix}{name} ms/{unit}": costs[cost] / 1000 for name, cost in names.items()}


SCENARIO = Scenario(
    name="growth",
    says="tasks one by one with 1, 2 and 4 processes, and with 2 services on one database",
    round=_round,
    ratios={
        "2 processes : 1": ("2 processes, tasks/s", "1 process, tasks/s"),
        "2 services : 1 process": ("2 services, tasks/s", "1 process, tasks/s"),
        "CPU a task, 2 processes : 1": ("2 processes, ms/task", "1 process, ms/task"),
        "CPU a task, 4 processes : 1": ("4 processes, ms/task", "1 process, ms/task"),
    },
    wanted={"CPU a task, 2 processes : 1": "≤ 1.15", "CPU a task, 4 processes : 1": "≤ 1.3"},
)
