"""What is read for whoever watches: things as they are now, with what changed together with them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from broker.schemas.overview import MOST_CHARS, ArchiveEvent, TaskEvent, ToolEvent
from broker.schemas.tools import ToolChange
from broker.schemas.work import NewReport
from broker.store import Store, acceptance, events, reports, tools
from broker.store.events import Events
from broker.texts import shorten_in_the_middle
from tests.support import steps
from tests.support.shared import SHARED_STORE

pytestmark, database, sql, store = SHARED_STORE


async def read(store: Store, known: dict[UUID, str] | None = None, **ids: Any) -> Events:
    given = {"tasks": (), "tools": (), "work": ()} | ids
    return await store.read(events.read, known=known or {}, **given)


async def test_new_work_comes_with_its_task_and_its_tool(store: Store) -> None:
    made = await steps.add_assigned_work(store, "a", "t", priority=3)
    found = await read(store, work=[made.id])
    assert found.tasks == [TaskEvent(id="a", state="assigned", priority=3, attempt=0)]
    assert found.tools == [ToolEvent(id="t", state="busy", load=1, capacity=1, skills="{}")]
    [told] = found.work
    assert {name: getattr(told, name) for name in told.__struct_fields__ if name != "message"} == {
        name: getattr(made, name) for name in told.__struct_fields__ if name != "message"
    }
    assert (told.message, found.records) == (None, [])


async def test_work_that_was_started_comes_with_its_task_and_a_report_on_it_alone(store: Store) -> None:
    made = await steps.add_running_work(store, "a")
    found = await read(store, {made.id: "assigned"}, work=[made.id])
    assert ([each.state for each in found.tasks], found.tools) == (["running"], [])
    await steps.report(store, made.id, progress=0.5, message="half")
    found = await read(store, {made.id: "running"}, work=[made.id])
    assert (found.tasks, found.tools, found.records) == ([], [], [])
    assert [(each.progress, each.message) for each in found.work] == [(0.5, "half")]


async def test_the_last_message_is_the_one_that_was_said_last_and_is_cut_where_it_is_long(
    store: Store,
) -> None:
    made = await steps.add_running_work(store)
    for message in ("first", "x" * (MOST_CHARS + 1), None):
        await steps.report(store, made.id, message=message, progress=0.1)
    [told] = (await read(store, work=[made.id])).work
    assert told.message == "x" * MOST_CHARS
    # Before the hundred last reports it is not looked for.
    await store.many(reports.write, [reports.ReportOf(made.id, NewReport(progress=0.2)) for _ in range(100)])
    [told] = (await read(store, work=[made.id])).work
    assert told.message is None


async def test_work_that_has_ended_is_its_record_with_its_task_and_its_tool(store: Store) -> None:
    made = await steps.add_running_work(store, "a", "t")
    error = "a" * MOST_CHARS + "b" * MOST_CHARS
    await steps.complete(store, made.id, "failed", error=error)
    found = await read(store, {made.id: "running"}, work=[made.id])
    assert [(each.id, each.state, each.attempt) for each in found.tasks] == [("a", "scheduled", 1)]
    assert found.tools == [ToolEvent(id="t", state="idle", load=0, capacity=1, skills="{}")]
    [record] = await steps.get_records(store)
    assert found.work == []
    assert found.records == [
        ArchiveEvent(
            work_id=made.id,
            task_id="a",
            tool_id="t",
            attempt=1,
            outcome="failed",
            error=shorten_in_the_middle(error, MOST_CHARS),
            assigned_at=record.assigned_at,
            started_at=record.started_at,
            ended_at=record.ended_at,
        )
    ]


@pytest.mark.parametrize("by", ["task", "work", "both"])
async def test_a_task_that_has_ended_is_told_with_its_last_record_and_once(store: Store, by: str) -> None:
    made = await steps.add_running_work(store, "a", "t")
    await steps.complete(store, made.id)
    ids: dict[str, Any] = {"tasks": ["a"] if by != "work" else (), "work": [made.id] if by != "task" else ()}
    found = await read(store, **ids)
    assert found.tasks == [TaskEvent(id="a", state="succeeded", priority=None, attempt=1)]
    assert [(each.work_id, each.outcome) for each in found.records] == [(made.id, "succeeded")]


async def test_a_task_that_was_deleted_without_work_is_told_with_its_record(store: Store) -> None:
    await steps.submit(store, "a")
    await steps.delete(store, "a")
    found = await read(store, tasks=["a"])
    assert found.tasks == [TaskEvent(id="a", state="cancelled", priority=None, attempt=0)]
    [record] = found.records
    assert (record.task_id, record.tool_id, record.outcome) == ("a", None, "cancelled")
    assert (record.assigned_at, record.started_at) == (None, None)


async def test_an_accepted_result_is_told_as_its_tasks_end(store: Store) -> None:
    made = await steps.add_running_work(store, "a", max_attempts=1)
    await steps.complete(store, made.id, "failed")
    await steps.complete(store, made.id)
    await store.one(acceptance.accept, made.id)
    found = await read(store, tasks=["a"])
    assert [each.state for each in found.tasks] == ["succeeded"]
    assert [(each.work_id, each.outcome) for each in found.records] == [(made.id, "succeeded")]


async def test_a_tool_that_is_gone_is_told_as_deleted_and_others_as_they_are(store: Store) -> None:
    await steps.register(store, "t", "u", "v", capacity=2)
    await store.many(tools.delete, [tools.ToolDeletion("u")])
    await store.one(tools.change, tools.Change("v", ToolChange(draining=True)))
    assert (await read(store, tools=["u", "t", "v"])).tools == [
        ToolEvent(id="t", state="idle", load=0, capacity=2, skills="{}"),
        ToolEvent(id="v", state="draining", load=0, capacity=2, skills="{}"),
        ToolEvent(id="u", state="deleted", load=0, capacity=0, skills=""),
    ]


async def test_a_task_in_whatever_state_is_told_as_it_is(store: Store) -> None:
    await steps.submit(store, "later", not_before=datetime.now(UTC) + timedelta(hours=1), priority=-1)
    await steps.add_running_work(store, "runs")
    failed = await steps.add_running_work(store, "failed", "another", max_attempts=1)
    await steps.complete(store, failed.id, "failed")
    found = (await read(store, tasks=["failed", "later", "runs"])).tasks
    assert found == [
        TaskEvent(id="later", state="scheduled", priority=-1, attempt=0),
        TaskEvent(id="runs", state="running", priority=0, attempt=0),
        TaskEvent(id="failed", state="failed", priority=0, attempt=1),
    ]


async def test_of_what_is_not_there_nothing_is_told(store: Store) -> None:
    assert await read(store, tasks=["nothing"], work=[uuid4()]) == Events([], [], [], [])
    assert await read(store) == Events([], [], [], [])
