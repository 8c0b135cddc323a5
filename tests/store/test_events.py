"""Events for the event stream: the current state of changed rows and of rows that changed with them."""

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


async def test_new_work_also_sends_events_of_its_task_and_its_tool(store: Store) -> None:
    made = await steps.add_assigned_work(store, "a", "t", priority=3)
    changes = await read(store, work=[made.id])
    assert changes.tasks == [TaskEvent(id="a", state="assigned", priority=3, attempt=0)]
    assert changes.tools == [ToolEvent(id="t", state="busy", load=1, capacity=1, skills="{}")]
    [event] = changes.work
    assert {name: getattr(event, name) for name in event.__struct_fields__ if name != "message"} == {
        name: getattr(made, name) for name in event.__struct_fields__ if name != "message"
    }
    assert (event.message, changes.records) == (None, [])


async def test_started_work_also_sends_an_event_of_its_task_but_a_report_does_not(store: Store) -> None:
    made = await steps.add_running_work(store, "a")
    changes = await read(store, {made.id: "assigned"}, work=[made.id])
    assert ([each.state for each in changes.tasks], changes.tools) == (["running"], [])
    await steps.report(store, made.id, progress=0.5, message="half")
    changes = await read(store, {made.id: "running"}, work=[made.id])
    assert (changes.tasks, changes.tools, changes.records) == ([], [], [])
    assert [(each.progress, each.message) for each in changes.work] == [(0.5, "half")]


async def test_an_event_has_the_last_message_shortened(
    store: Store,
) -> None:
    made = await steps.add_running_work(store)
    for message in ("first", "x" * (MOST_CHARS + 1), None):
        await steps.report(store, made.id, message=message, progress=0.1)
    [event] = (await read(store, work=[made.id])).work
    assert event.message == "x" * MOST_CHARS
    # The search covers only the last hundred reports.
    await store.many(reports.write, [reports.ReportOf(made.id, NewReport(progress=0.2)) for _ in range(100)])
    [event] = (await read(store, work=[made.id])).work
    assert event.message is None


async def test_ended_work_sends_events_of_its_record_its_task_and_its_tool(store: Store) -> None:
    made = await steps.add_running_work(store, "a", "t")
    error = "a" * MOST_CHARS + "b" * MOST_CHARS
    await steps.complete(store, made.id, "failed", error=error)
    changes = await read(store, {made.id: "running"}, work=[made.id])
    assert [(each.id, each.state, each.attempt) for each in changes.tasks] == [("a", "scheduled", 1)]
    assert changes.tools == [ToolEvent(id="t", state="idle", load=0, capacity=1, skills="{}")]
    [record] = await steps.get_records(store)
    assert changes.work == []
    assert changes.records == [
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
async def test_an_ended_task_sends_one_event_of_the_task_and_one_of_its_last_record(
    store: Store, by: str
) -> None:
    made = await steps.add_running_work(store, "a", "t")
    await steps.complete(store, made.id)
    ids: dict[str, Any] = {"tasks": ["a"] if by != "work" else (), "work": [made.id] if by != "task" else ()}
    changes = await read(store, **ids)
    assert changes.tasks == [TaskEvent(id="a", state="succeeded", priority=None, attempt=1)]
    assert [(each.work_id, each.outcome) for each in changes.records] == [(made.id, "succeeded")]


async def test_a_task_deleted_without_work_sends_events_of_the_task_and_its_record(store: Store) -> None:
    await steps.submit(store, "a")
    await steps.delete(store, "a")
    changes = await read(store, tasks=["a"])
    assert changes.tasks == [TaskEvent(id="a", state="cancelled", priority=None, attempt=0)]
    [record] = changes.records
    assert (record.task_id, record.tool_id, record.outcome) == ("a", None, "cancelled")
    assert (record.assigned_at, record.started_at) == (None, None)


async def test_an_accepted_result_sends_events_of_the_ended_task_and_its_record(store: Store) -> None:
    made = await steps.add_running_work(store, "a", max_attempts=1)
    await steps.complete(store, made.id, "failed")
    await steps.complete(store, made.id)
    await store.one(acceptance.accept, made.id)
    changes = await read(store, tasks=["a"])
    assert [each.state for each in changes.tasks] == ["succeeded"]
    assert [(each.work_id, each.outcome) for each in changes.records] == [(made.id, "succeeded")]


async def test_the_event_of_a_tool_has_its_state_or_deleted_if_it_does_not_exist(store: Store) -> None:
    await steps.register(store, "t", "u", "v", capacity=2)
    await store.many(tools.delete, [tools.ToolDeletion("u")])
    await store.one(tools.change, tools.Change("v", ToolChange(draining=True)))
    assert (await read(store, tools=["u", "t", "v"])).tools == [
        ToolEvent(id="t", state="idle", load=0, capacity=2, skills="{}"),
        ToolEvent(id="v", state="draining", load=0, capacity=2, skills="{}"),
        ToolEvent(id="u", state="deleted", load=0, capacity=0, skills=""),
    ]


async def test_the_event_of_a_live_task_has_its_state(store: Store) -> None:
    await steps.submit(store, "later", not_before=datetime.now(UTC) + timedelta(hours=1), priority=-1)
    await steps.add_running_work(store, "runs")
    failed = await steps.add_running_work(store, "failed", "another", max_attempts=1)
    await steps.complete(store, failed.id, "failed")
    changes = (await read(store, tasks=["failed", "later", "runs"])).tasks
    assert changes == [
        TaskEvent(id="later", state="scheduled", priority=-1, attempt=0),
        TaskEvent(id="runs", state="running", priority=0, attempt=0),
        TaskEvent(id="failed", state="failed", priority=0, attempt=1),
    ]


async def test_unknown_ids_have_no_events(store: Store) -> None:
    assert await read(store, tasks=["nothing"], work=[uuid4()]) == Events([], [], [], [])
    assert await read(store) == Events([], [], [], [])
