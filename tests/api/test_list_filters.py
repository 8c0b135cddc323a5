"""Filtered lists return every match, even if their pages examine many rows."""

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from broker.store import Store, archive, tasks, tools, work
from broker.store.pages import MOST_EXAMINED
from tests.support import steps

# More rows of each kind than two pages examine.
MANY = 2 * MOST_EXAMINED + 1_000

FILL = f"""
insert into tools (id, skills, capacity, registered_by, offline)
select 'tool-' || number, '{{}}', 10000, 'key-' || number % 2, number % 3 = 0
from generate_series(1, {MANY}) number;
insert into tool_leases (tool_id, lease_seconds, expires_at) select id, 60, now() from tools;

insert into tasks (id, needs, payload, priority, state, max_attempts, retry_backoff_seconds, created_by,
                   created_at, due_at, ended_at)
select 'task-' || number, jsonb_build_object('kind', number % 5, 'rare', number % 7000 = 6999), '0', 0,
       case when state = 'assigned' then 'available' else state end, 3, 1,
       'key-' || number % 2, now() - make_interval(hours => number % 3),
       case when state = 'scheduled' then now() end,
       case when state = 'failed' then now() end
from generate_series(1, 4 * {MANY}) number,
     lateral (
         select (array['available', 'scheduled', 'assigned', 'failed'])[1 + number / {MANY + 1}]
     ) of_kind (state);

insert into work (id, task_id, tool_id, attempt, state, started_at)
select uuid7(), id, 'tool-' || seq % 2, 1, case when seq % 3 = 0 then 'running' else 'assigned' end,
       case when seq % 3 = 0 then now() end
from tasks
where cast(substr(id, 6) as integer) / {MANY + 1} = 2;

insert into work_archive (work_id, task_id, tool_id, attempt, outcome, result, reports, created_by, ended_at,
                          submitted_at, {steps.TASK_COLUMNS}, skills, capacity, load, tool_state,
                          lease_seconds, lease_expires_at, registered_at, seen_at)
select uuid7(), 'task-' || number % 2, 'tool-' || number % 2, 1,
       case when number % 11000 = 10999 then 'lost' when number % 2 = 0 then 'failed' else 'succeeded' end,
       '0', '[]', 'key-' || number % 3, now() - make_interval(secs => number / 10),
       now(), {steps.TASK_VALUES}, '{{}}', 1, 1, 'busy', 60, now(), now(), now()
from generate_series(1, {MANY}) number;
"""


@pytest.fixture
async def filled_store(store: Store, sql: asyncpg.Connection) -> Store:
    await sql.execute(FILL)
    await sql.execute("analyze")
    return store


async def list_ids(store: Store, page: Callable[..., Any], *row_filter: Any, **filters: Any) -> list[Any]:
    """Return the ids of all pages, in order."""
    item_ids: list[Any] = []
    after: str | None = None
    for _ in range(1_000):
        page_of_rows = await store.read(page, *row_filter, **filters, limit=700, after=after)
        item_ids += [item.work_id if hasattr(item, "late") else item.id for item in page_of_rows.items]
        if (after := page_of_rows.next) is None:
            return item_ids
    raise AssertionError("the list has no end")


async def test_filtered_lists_of_tasks_are_complete(filled_store: Store, sql: asyncpg.Connection) -> None:
    for filters, condition in {
        (): "true",
        (("state", "available"),): "state = 'available' and id not in (select task_id from work)",
        (("state", "scheduled"),): "state = 'scheduled'",
        (("state", "failed"), ("needs", '{"kind": 3}')): """state = 'failed' and needs @> '{"kind": 3}'""",
        (("state", "running"),): "id in (select task_id from work where state = 'running')",
        (("state", "assigned"), ("created_by", "key-1")): """
            created_by = 'key-1' and id in (select task_id from work where state = 'assigned')""",
        (("needs", '{"rare": true}'),): """needs @> '{"rare": true}'""",
        (("needs", "7"),): "false",
        (("older_than_seconds", 5_400.0),): "created_at < now() - interval '90 minutes'",
        (("created_by", "key-0"), ("needs", '{"rare": true}')): """
            created_by = 'key-0' and needs @> '{"rare": true}'""",
    }.items():
        expected = await sql.fetch(f"select id from tasks where {condition} order by seq")
        row_filter = tasks.TaskFilter(**dict(filters))
        assert await list_ids(filled_store, tasks.page, row_filter) == [row[0] for row in expected], filters


async def test_filtered_lists_of_records_are_complete(filled_store: Store, sql: asyncpg.Connection) -> None:
    for filters in (
        {},
        {"outcome": "succeeded"},
        {"outcome": "failed"},
        {"outcome": "lost"},
        {"task_id": "task-1", "outcome": "lost"},
        {"tool_id": "tool-0", "task_id": "task-0"},
        {"tool_id": "tool-1", "created_by": "key-2"},
        {"created_by": "key-1", "outcome": "succeeded"},
        {"task_id": "task-1", "tool_id": "tool-0"},
    ):
        condition = " and ".join(f"{name} = '{value}'" for name, value in filters.items()) or "true"
        expected = await sql.fetch(
            f"select work_id from work_archive where {condition} order by ended_at desc, work_id desc"
        )
        row_filter = archive.ArchiveFilter(**filters)
        assert await list_ids(filled_store, archive.page, row_filter) == [row[0] for row in expected], filters


async def test_filtered_lists_of_work_and_tools_are_complete(
    filled_store: Store, sql: asyncpg.Connection
) -> None:
    for filters, condition in (
        ({}, "true"),
        ({"state": "running"}, "state = 'running'"),
        ({"tool_id": "tool-1", "state": "running"}, "tool_id = 'tool-1' and state = 'running'"),
        ({"tool_id": "tool-1", "task_id": "nothing"}, "false"),
        ({"registered_by": "key-1"}, "tool_id in (select id from tools where registered_by = 'key-1')"),
    ):
        expected = await sql.fetch(f"select id from work where {condition} order by id")
        row_filter = work.WorkFilter(**filters)
        assert await list_ids(filled_store, work.page, row_filter) == [row[0] for row in expected], filters
    for state, key, condition in (
        (None, None, "true"),
        ("offline", None, "offline"),
        ("idle", "key-1", "not offline and registered_by = 'key-1'"),
        ("busy", None, "false"),
    ):
        expected = await sql.fetch(f"select id from tools where {condition} order by id")
        item_ids = await list_ids(filled_store, tools.page, state=state, registered_by=key)
        assert item_ids == [row[0] for row in expected], (state, key)


async def test_a_page_examines_a_limited_number_of_rows_and_returns_a_cursor(filled_store: Store) -> None:
    row_filter = tasks.TaskFilter(needs='{"rare": true}')
    first = await filled_store.read(tasks.page, row_filter, limit=100, after=None)
    assert first.items == []
    assert first.next is not None
    second = await filled_store.read(tasks.page, row_filter, limit=100, after=first.next)
    assert [task.id for task in second.items] == ["task-6999"]
