"""Reports: their limits, their counts, and that reading work does not depend on their number."""

from uuid import UUID

import asyncpg
import pytest
from msgspec import Raw

from broker.schemas.work import NewReport, Work
from broker.store import Store, completion, reports, tools, work
from tests.conftest import Running
from tests.support import steps
from tests.support.api import add_task, add_tool, assert_problem, assign, get

FILL = """
with made as (
    insert into work_reports (work_id, progress, message, data)
    select $1, case when g = 1 then 0.5 end, g::text, '{}' from generate_series(1, $2::integer) g
)
update work set report_count = report_count + $2::integer, version = version + $2::integer where id = $1
"""
SHAPES = {
    "nothing": Raw(b"null"),
    "small numbers": Raw(b"[" + b",".join([b"1"] * 1000) + b"]"),
    "long numbers": Raw(b"[" + b",".join([b"1e99"] * 1000) + b"]"),
    "objects": Raw(b"[" + b",".join([b'{"a":{}}'] * 1000) + b"]"),
    "escapes": Raw(b'"' + rb"\u0001" * 1000 + b'"'),
    "text": Raw(b'"' + "\N{GREEK SMALL LETTER MU}".encode() * 1000 + b'"'),
}


async def add_report(store: Store, new_work: Work, **fields: object) -> reports.WrittenReport:
    written = await steps.report(store, new_work.id, **fields)
    assert written is not None
    return written


@pytest.mark.parametrize("data", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("message", [None, "\x01" * 1000], ids=["no message", "message"])
async def test_the_counted_size_of_reports_is_at_least_their_size_in_the_archive(
    store: Store, sql: asyncpg.Connection, data: Raw, message: str | None
) -> None:
    new_work = await steps.add_running_work(store)
    for _ in range(3):
        await add_report(store, new_work, data=data, message=message, progress=0.1234567890123456)
    counted = await sql.fetchval("select report_bytes from work")
    assert counted == await sql.fetchval("select sum(size) from work_reports")
    await steps.complete(store, new_work.id)
    archived = await sql.fetchval("select octet_length(cast(reports as text)) from work_archive")
    assert archived <= counted <= archived + 3 * 256


async def test_a_repeated_report_counts_once(store: Store, sql: asyncpg.Connection) -> None:
    new_work = await steps.add_running_work(store)
    same = reports.ReportOf(new_work.id, NewReport(id=UUID(int=1), data=Raw(b'"x"')))
    for batch in ([same, same], [same]):
        await store.many(reports.write, batch)
    row = await sql.fetchrow("select report_count, report_bytes from work")
    assert tuple(row) == (1, await sql.fetchval("select sum(size) from work_reports"))


async def test_a_work_item_accepts_a_hundred_thousand_reports_and_continues(
    broker: Running, sql: asyncpg.Connection
) -> None:
    await add_tool(broker.client)
    await add_task(broker.client)
    new_work = UUID((await assign(broker.client))["id"])
    await sql.execute(FILL, new_work, 99_999)
    last = {"id": str(UUID(int=1)), "message": "last"}
    for status in (201, 200):
        assert (await broker.client.post(f"/v1/work/{new_work}/reports", json=last)).status_code == status
    refused = await broker.client.post(f"/v1/work/{new_work}/reports", json={})
    assert_problem(refused, 413, "payload_too_large")

    current = await get(broker.client, f"/v1/work/{new_work}")
    assert (current["state"], current["report_count"], len(current["reports"])) == ("running", 100_000, 1_000)
    assert [report["message"] for report in current["reports"]] == [*map(str, range(99_001, 100_000)), "last"]
    done = await broker.client.post(f"/v1/work/{new_work}/complete", json={"outcome": "succeeded"})
    assert done.status_code == 200
    ended = await get(broker.client, f"/v1/work/{new_work}")
    assert ended["reports"] == current["reports"]
    assert (ended["state"], ended["report_count"], ended["progress"]) == ("succeeded", 100_000, 0.5)
    record = await get(broker.client, f"/v1/archive/{new_work}")
    assert len(record["reports"]) == 100_000


@pytest.mark.parametrize("end", ["restart", "force"])
async def test_a_tool_whose_work_has_the_most_reports_can_be_restarted_and_deleted(
    store: Store, sql: asyncpg.Connection, end: str
) -> None:
    new_work = await steps.add_running_work(store)
    await sql.execute(FILL, new_work.id, 100_000)
    if end == "restart":
        await steps.register(store, "tool")
    else:
        assert await store.many(tools.delete, [tools.ToolDeletion("tool", force=True)]) == ["deleted"]
    assert await sql.fetchval("select outcome from work_archive") == "lost"
    await steps.check_invariants(sql)


async def test_work_returns_the_same_reports_before_and_after_its_end(
    store: Store, sql: asyncpg.Connection
) -> None:
    new_work = await steps.add_running_work(store)
    await sql.execute(FILL, new_work.id, 2_500)
    live = await store.read(work.with_reports, new_work.id)
    assert live is not None
    assert (len(live.work.reports), live.work.report_count) == (1_000, 2_500)
    before = await read_all_messages(store, new_work.id)
    await store.many(completion.complete, [steps.new_ending(new_work.id)])
    ended = await store.read(work.with_reports, new_work.id)
    assert ended is not None
    assert (ended.work.reports, ended.work.report_count) == (live.work.reports, 2_500)
    assert await read_all_messages(store, new_work.id) == before
    assert before == [str(number) for number in range(1, 2_501)]


@pytest.mark.parametrize(
    ("reported", "last"),
    [([], None), ([None, None], None), ([0.25, 0.5, None, None], 0.5), ([0.5, 0.0], 0.0)],
)
async def test_the_progress_of_ended_work_is_that_of_its_last_report_with_progress(
    store: Store, reported: list[float | None], last: float | None
) -> None:
    new_work = await steps.add_running_work(store)
    for progress in reported:
        await steps.report(store, new_work.id, progress=progress)
    await steps.complete(store, new_work.id)
    ended = await store.read(work.with_reports, new_work.id)
    assert ended is not None
    assert (ended.work.progress, ended.work.report_count) == (last, len(reported))


@pytest.mark.thorough
async def test_work_with_the_largest_values_can_be_ended_and_read(store: Store) -> None:
    """PostgreSQL needs the most time for many small numbers."""
    largest = Raw(b"[" + b"1," * (2**24 - 1_000) + b"1]")
    new_work = await steps.add_running_work(store, payload=largest)
    for number in range(4):
        written = await steps.report(store, new_work.id, data=largest, progress=number / 4)
        assert written is not None
        assert written.is_stored
    record = (await steps.complete(store, new_work.id, "failed", result=largest, retry=False)).record
    assert record is not None
    assert (record.task.payload, record.result) == (largest, largest)
    assert [report.data for report in steps.reports_of(record)] == [largest] * 4
    current = await store.read(work.with_reports, new_work.id)
    assert current is not None
    assert (current.work.progress, current.work.report_count) == (0.75, 4)
    assert [report.data for report in current.work.reports] == [largest]


async def read_all_messages(store: Store, work_id: UUID) -> list[str | None]:
    """Return the messages of all reports, read page by page."""
    messages: list[str | None] = []
    after = None
    while True:
        page = await store.read(reports.page, work_id, limit=700, after=after)
        assert page is not None
        messages += [report.message for report in page.items]
        if (after := page.next) is None:
            return messages


@pytest.mark.parametrize("ends", [False, True], ids=["live", "ended"])
async def test_large_reports_are_paged_and_work_contains_only_the_latest(
    store: Store, sql: asyncpg.Connection, ends: bool
) -> None:
    new_work = await steps.add_running_work(store)
    large = Raw(b'"' + b"x" * 3 * 2**20 + b'"')
    for number in range(6):
        await add_report(store, new_work, data=large, message=str(number))
    if ends:
        await store.many(completion.complete, [steps.new_ending(new_work.id)])
    current = await store.read(work.with_reports, new_work.id)
    assert current is not None
    assert ([each.message for each in current.work.reports], current.work.report_count) == (
        ["3", "4", "5"],
        6,
    )
    assert await read_all_messages(store, new_work.id) == [str(number) for number in range(6)]


async def test_unknown_work_has_no_reports(store: Store) -> None:
    assert await store.read(reports.page, UUID(int=1), limit=10, after=None) is None
