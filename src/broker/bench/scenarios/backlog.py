"""`backlog`: the effect of a long queue and a full archive on the duration of requests."""

import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from broker.bench.clients import registered
from broker.bench.database import connected
from broker.bench.figures import Figures
from broker.bench.http import BenchError, HttpConnection
from broker.bench.load import connections
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import BenchService, Stage
from broker.bench.work import SUCCEEDED, BenchItem, BenchItems, encode_task
from broker.schemas.candidates import Pair

_WAITING = 1_000_000
_ARCHIVED = 10_000_000
_PORTION = 500_000
_TIMES = 400
_Timed = Callable[[str, Awaitable[Any]], Awaitable[Any]]
_REQUESTS = ("submit", "assign", "poll", "complete")

FILL_TASKS = """
insert into tasks (id, needs, payload, priority, state, max_attempts, retry_backoff_seconds)
select cast(uuid7() as text), '{{"skill": "nobody has"}}',
       json_build_object('i', number, 'note', repeat('x', 200)),
       number % 10, 'available', 3, 1
from generate_series(1, {portion}) number
"""
# Records of a year. The id of each contains its month.
FILL_ARCHIVE = """
insert into work_archive (work_id, task_id, tool_id, attempt, outcome, result, reports, assigned_at,
                          started_at, ended_at, submitted_at, needs, payload, priority, task_state,
                          task_attempt, max_attempts, retry_backoff_seconds, skills, capacity, load,
                          tool_state, lease_seconds, lease_expires_at, registered_at, seen_at)
select cast(overlay(cast(uuid7_floor(at) as text)
                    placing '8000-' || lpad(to_hex(number), 12, '0') from 20) as uuid),
       'archived-' || number, 'tool-' || number % 500,
       1, 'succeeded', '1', '[]', at, at, at, at, '1', 'null', 0, 'running', 0, 3, 1,
       '{{}}', 1, 1, 'busy', 60, at, at, at
from (select number, now() - interval '360 days' * (1 - number / {total}.0) as at
      from generate_series({first} + 1, {first} + {portion}) number) n
"""
_PREPARE = """
-- This role turns off notifications. It is faster to build an index at the end than to fill it row by row.
set session_replication_role = replica;
set maintenance_work_mem = '1GB';
select create_archive_partition(cast(now() - number * interval '1 month' as date))
from generate_series(0, 12) number;
drop index {indexes};
"""
_INDEXES = """
select cast(cast(indexrelid as regclass) as text) as name,
       replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ') as definition
from pg_index
where indrelid = cast('work_archive' as regclass) and not indisunique
"""
_FINISH = """
insert into ended_tasks (task_id, work_id) select task_id, work_id from work_archive order by task_id;
{definitions};
"""


async def _round(stage: Stage, size: Size) -> Figures:
    if not stage.is_own:
        raise BenchError("`backlog` needs its own database. Omit --url.")
    full = await stage.shared_database("backlog", partial(_fill, size=size))
    figures: Figures = {}
    for name, database in (("empty", None), ("full", full)):
        async with stage.service(database) as service:
            figures |= {f"{call} {name} ms": value for call, value in (await _measure(service)).items()}
    return figures


async def _fill(database: str, size: Size) -> None:
    async with connected(database) as connection:
        indexes = await connection.fetch(_INDEXES)
        await connection.execute(_PREPARE.format(indexes=", ".join(row["name"] for row in indexes)))
        for total, statement in ((size.of(_WAITING), FILL_TASKS), (size.of(_ARCHIVED), FILL_ARCHIVE)):
            for first in range(0, total, _PORTION):
                portion = min(_PORTION, total - first)
                await connection.execute(statement.format(first=first, portion=portion, total=total))
        await connection.execute(_FINISH.format(definitions=";".join(row["definition"] for row in indexes)))
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")


async def _measure(service: BenchService) -> Figures:
    """Return the median duration of each request, in milliseconds."""
    durations: dict[str, list[float]] = {call: [] for call in _REQUESTS}

    async def timed(call: str, request: Awaitable[Any]) -> Any:
        started_at = time.perf_counter()
        response = await request
        durations[call].append(time.perf_counter() - started_at)
        return response

    async with registered(service.url, 1) as [tool], connections(service.url, number=1) as [connection]:
        for _ in range(_TIMES):
            await _life(connection, tool, timed)
    return {call: statistics.median(seconds) * 1000 for call, seconds in durations.items()}


async def _life(connection: HttpConnection, tool: str, timed: _Timed) -> None:
    call = connection.call
    task = await timed("submit", call("POST", "/v1/tasks", encode_task(1), BenchItem))
    pair = Pair(task_id=task.id, tool_id=tool)
    work = await timed("assign", call("POST", "/v1/work", pair, BenchItem))
    await timed("poll", call("GET", f"/v1/tools/{tool}/work", into=BenchItems))
    path = f"/v1/work/{work.id}/complete"
    await timed("complete", call("POST", path, SUCCEEDED, into=None))


SCENARIO = Scenario(
    name="backlog",
    says=f"requests on an empty database, and with {_WAITING:,} tasks and {_ARCHIVED:,} records",
    round=_round,
    ratios={f"{call}, full : empty": (f"{call} full ms", f"{call} empty ms") for call in _REQUESTS},
    wanted={f"{call}, full : empty": "≤ 1.25" for call in _REQUESTS},
)
