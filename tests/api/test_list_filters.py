"""A filtered list leads to every match, however many rows its pages examine for them."""

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from broker.store import Store, archive, rows, tasks, tools, work
from broker.store.pages import MOST_EXAMINED

# Of each kind more than two pages examine.
MANY = 2 * MOST_EXAMINED + 1_000

FILL = f"""
insert into tools (id, skills, capacity, registered_by, offline)
select 'tool-' || number, '{{}}', 10000, 'key-' || number % 2, number % 3 = 0
from generate_series(1, {MANY}) number;
insert into tool_leases (tool_id, lease_seconds, expires_at) select id, 60, now() from tools;

insert into tasks (id, needs, payload, priority, state, max_attempts, retry_backoff_seconds, created_by,
                   created_at, work_id, due_at, ended_at)
select 'task-' || number, jsonb_build_object('kind', number % 5, 'rare', number % 7000 = 6999), '0', 0, state,
       3, 1, 'key-' || number % 2, now() - make_interval(hours => number % 3),
       case when state = 'assigned' then uuid7() end, case when state = 'scheduled' then now() end,
       case when state = 'failed' then now() end
from generate_series(1, 4 * {MANY}) number,
     lateral (
         select (array['available', 'scheduled', 'assigned', 'failed'])[1 + number / {MANY + 1}]
     ) of_kind (state);

insert into work (id, task_id, tool_id, attempt, state, started_at)
select work_id, id, 'tool-' || seq % 2, 1, case when seq % 3 = 0 then 'running' else 'assigned' end,
       case when seq % 3 = 0 then now() end
from tasks
where state = 'assigned';

insert into work_archive (work_id, task_id, tool_id, task, attempt, outcome, result, reports, created_by,
                          ended_at)
select uuid7(), 'task-' || number % 2, 'tool-' || number % 2, task, 1,
       case when number % 11000 = 10999 then 'lost' when number % 2 = 0 then 'failed' else 'succeeded' end,
       '0', '[]', 'key-' || number % 3, now() - make_interval(secs => number / 10)
from generate_series(1, {MANY}) number,
     (select {rows.TASK.json()} from tasks t left join work w on false limit 1) one (task);
"""


@pytest.fixture
async def filled(store: Store, sql: asyncpg.Connection) -> Store:
    await sql.execute(FILL)
    await sql.execute("analyze")
    return store


async def listed(store: Store, page: Callable[..., Any], *which: Any, **filters: Any) -> list[Any]:
    """The ids on all pages, in their order."""
    found: list[Any] = []
    after: str | None = None
    for _ in range(1_000):
        read = await store.read(page, *which, **filters, limit=700, after=after)
        found += [item.work_id if hasattr(item, "late") else item.id for item in read.items]
        if (after := read.next) is None:
            return found
    raise AssertionError("the list has no end")


async def test_filtered_lists_of_tasks_are_complete(filled: Store, sql: asyncpg.Connection) -> None:
    for filters, condition in {
        (): "true",
        (("state", "available"),): "state = 'available'",
        (("state", "scheduled"),): "state = 'scheduled'",
        (("state", "failed"), ("needs", '{"kind": 3}')): """state = 'failed' and needs @> '{"kind": 3}'""",
        (("state", "running"),): "work_id in (select id from work where state = 'running')",
        (("state", "assigned"), ("created_by", "key-1")): """
            created_by = 'key-1' and work_id in (select id from work where state = 'assigned')""",
        (("needs", '{"rare": true}'),): """needs @> '{"rare": true}'""",
        (("needs", "7"),): "false",
        (("older_than_seconds", 5_400.0),): "created_at < now() - interval '90 minutes'",
        (("created_by", "key-0"), ("needs", '{"rare": true}')): """
            created_by = 'key-0' and needs @> '{"rare": true}'""",
    }.items():
        expected = await sql.fetch(f"select id from tasks where {condition} order by seq")
        which = tasks.TaskFilter(**dict(filters))
        assert await listed(filled, tasks.page, which) == [row[0] for row in expected], filters


async def test_filtered_lists_of_records_are_complete(filled: Store, sql: asyncpg.Connection) -> None:
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
        which = archive.ArchiveFilter(**filters)
        assert await listed(filled, archive.page, which) == [row[0] for row in expected], filters


async def test_filtered_lists_of_work_and_tools_are_complete(filled: Store, sql: asyncpg.Connection) -> None:
    for filters, condition in (
        ({}, "true"),
        ({"state": "running"}, "state = 'running'"),
        ({"tool_id": "tool-1", "state": "running"}, "tool_id = 'tool-1' and state = 'running'"),
        ({"tool_id": "tool-1", "task_id": "nothing"}, "false"),
        ({"registered_by": "key-1"}, "tool_id in (select id from tools where registered_by = 'key-1')"),
    ):
        expected = await sql.fetch(f"select id from work where {condition} order by id")
        which = work.WorkFilter(**filters)
        assert await listed(filled, work.page, which) == [row[0] for row in expected], filters
    for state, key, condition in (
        (None, None, "true"),
        ("offline", None, "offline"),
        ("idle", "key-1", "not offline and registered_by = 'key-1'"),
        ("busy", None, "false"),
    ):
        expected = await sql.fetch(f"select id from tools where {condition} order by id")
        found = await listed(filled, tools.page, state=state, registered_by=key)
        assert found == [row[0] for row in expected], (state, key)


async def test_a_page_examines_no_more_than_it_may_and_says_where_to_go_on(filled: Store) -> None:
    which = tasks.TaskFilter(needs='{"rare": true}')
    first = await filled.read(tasks.page, which, limit=100, after=None)
    assert first.items == []
    assert first.next is not None
    second = await filled.read(tasks.page, which, limit=100, after=first.next)
    assert [task.id for task in second.items] == ["task-6999"]
