"""An export needs little memory, even if the archive is large and the client reads slowly."""

import asyncio
import socket
from typing import Any

import asyncpg
import httpx
import psutil
import pytest

from broker.store import archive
from tests.conftest import Running, Serve
from tests.support import api, steps
from tests.support.processes import serving, wait_until_ready

MIB = 2**20
RECORDS = 60
# 64 kB as PostgreSQL stores it, 5.6 MB in a response.
FILL = f"""
with value as materialized (
    select json_agg(cast('1e99' as numeric)) as result from generate_series(1, 55000)
)
insert into work_archive (work_id, task_id, attempt, outcome, result, reports, bytes, submitted_at,
                          {steps.TASK_COLUMNS})
select uuid7(), 'task-' || n, 1, 'succeeded', value.result, '[]', octet_length(cast(value.result as text)),
       now(), {steps.TASK_VALUES}
from generate_series(1, {RECORDS}) n, value
"""


async def test_an_export_of_321_mib_needs_less_than_100_mib(database: str, sql: asyncpg.Connection) -> None:
    await sql.execute(FILL)
    with serving(BROKER_DATABASE_URL=database) as (process, url):
        await wait_until_ready(url)
        server = psutil.Process(process.pid)
        before = most = server.memory_info().rss
        exported = lines = 0
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as client,
            client.stream("GET", "/v1/archive/export") as response,
        ):
            async for chunk in response.aiter_bytes(MIB):
                exported += len(chunk)
                lines += chunk.count(b"\n")
                most = max(most, server.memory_info().rss)
    assert lines == RECORDS
    assert exported > 320 * MIB
    assert most - before < 100 * MIB


async def test_an_export_waits_for_a_slow_client(
    serve: Serve, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sql.execute(FILL)
    portions = 0
    original = archive.page

    def count_portions(*args: Any, **kwargs: Any) -> Any:
        nonlocal portions
        portions += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(archive, "page", count_portions)
    broker: Running = await serve()
    address = httpx.URL(broker.url)
    with socket.create_connection((address.host, address.port or 80)) as reader:
        reader.sendall(b"GET /v1/archive/export HTTP/1.1\r\nHost: localhost\r\n\r\n")
        last, unchanged = 0, 0
        async with asyncio.timeout(60):
            while unchanged < 50:
                # The broker responds to other requests meanwhile, and does not read ahead of the client.
                await api.get(broker.client, "/v1/tasks")
                await asyncio.sleep(0)
                is_waiting = last == portions > 0 and broker.server.service.store.in_use() == 0
                unchanged = unchanged + 1 if is_waiting else 0
                last = portions
        assert portions <= 3
