"""Archive records of the first version stay readable, whatever fields later versions add."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import Struct
from msgspec.json import Decoder

from broker.schemas.archive import LateResult
from broker.schemas.work import Report
from broker.settings import Settings
from broker.store import migration, records
from tests.conftest import run_sql, running_broker
from tests.support.api import get

# Records as the first version wrote them into schema 0001. Never change them. There is a record of failed
# work, and a record of a task that was deleted before it had work.
WORK = "01a22fa4-2936-7924-8f77-7a541e622ad3"
REPORT = "01a22fa4-2996-7f15-999a-a9c618d5854f"
WORK_THAT_FAILED = {
    "work_id": f"'{WORK}'",
    "task_id": "'sample-7'",
    "tool_id": "'xrd-1'",
    "attempt": "1",
    "outcome": "'failed'",
    "result": "'null'",
    "error": "'The lamp is dark.'",
    "late": """'{"outcome": "succeeded", "result": {"peak": 26.6}, "error": null,
                  "at": "2026-12-01T03:28:00+00:00"}'""",
    # Reports are stored as responses show them.
    "reports": (
        f"""'[{{"id":"{REPORT}","at":"2026-12-01T03:26:57.414702Z","progress":0.5,"message":"half","""
        """"data":{"counts": 12}}]'"""
    ),
    "version": "4",
    "assigned_at": "'2026-12-01 03:26:57.319174+00'",
    "started_at": "'2026-12-01 03:26:57.356322+00'",
    "deadline_at": "'2026-12-01 03:27:57.356322+00'",
    "ended_at": "'2026-12-01 03:26:57.462831+00'",
    "submitted_at": "'2026-12-01 03:26:57.263738+00'",
    "waiting_since": "'2026-12-01 03:26:57.263738+00'",
    "needs": """'{"xrd": true}'""",
    "payload": """'{"angle": [10, 80]}'""",
    "priority": "4",
    "task_state": "'running'",
    "task_attempt": "0",
    "max_attempts": "3",
    "retry_backoff_seconds": "1",
    "timeout_seconds": "60",
    "skills": """'{"xrd": true}'""",
    "capacity": "2",
    "load": "1",
    "tool_state": "'idle'",
    "lease_seconds": "60",
    "lease_expires_at": "'2026-12-01 03:27:57.414702+00'",
    "registered_at": "'2026-12-01 03:26:57.185583+00'",
    "seen_at": "'2026-12-01 03:26:57.414702+00'",
}
DELETED = "01a22fa4-0000-7000-8000-000000000000"
TASK_THAT_WAS_DELETED = {
    "work_id": f"'{DELETED}'",
    "task_id": "'sample-8'",
    "attempt": "0",
    "outcome": "'cancelled'",
    "result": "'null'",
    "reports": "'[]'",
    "ended_at": "'2026-12-01 03:26:30+00'",
    "submitted_at": "'2026-12-01 03:26:00+00'",
    "waiting_since": "'2026-12-01 03:26:00+00'",
    "needs": "'null'",
    "payload": "'null'",
    "priority": "0",
    "task_state": "'available'",
    "task_attempt": "0",
    "max_attempts": "3",
    "retry_backoff_seconds": "1",
}
# The task of the failed work, whose late result can still be accepted.
LIVE_TASK = """
insert into tasks (id, needs, payload, priority, state, attempt, max_attempts, retry_backoff_seconds,
                   timeout_seconds, created_at, ended_at, error)
values ('sample-7', '{"xrd": true}', '{"angle": [10, 80]}', 4, 'failed', 1, 1, 1, 60,
        '2026-12-01 03:26:57.263738+00', '2026-12-01 03:26:57.462831+00', 'The lamp is dark.')
"""

# The record in responses.
READ = {
    "work_id": WORK,
    "task_id": "sample-7",
    "tool_id": "xrd-1",
    "task": {
        "id": "sample-7",
        "needs": {"xrd": True},
        "payload": {"angle": [10, 80]},
        "priority": 4,
        "state": "running",
        "attempt": 0,
        "max_attempts": 3,
        "retry_backoff_seconds": 1.0,
        "timeout_seconds": 60.0,
        "not_before": None,
        "created_at": "2026-12-01T03:26:57.263738Z",
        "work_id": WORK,
        "remark": None,
        "result": None,
        "error": None,
        "ended_at": None,
    },
    "tool": {
        "id": "xrd-1",
        "skills": {"xrd": True},
        "capacity": 2,
        "load": 1,
        "state": "idle",
        "lease_seconds": 60.0,
        "lease_expires_at": "2026-12-01T03:27:57.414702Z",
        "registered_at": "2026-12-01T03:26:57.185583Z",
        "seen_at": "2026-12-01T03:26:57.414702Z",
    },
    "attempt": 1,
    "outcome": "failed",
    "result": None,
    "error": "The lamp is dark.",
    "late": {
        "outcome": "succeeded",
        "result": {"peak": 26.6},
        "error": None,
        "at": "2026-12-01T03:28:00Z",
    },
    "reports": [
        {
            "id": REPORT,
            "at": "2026-12-01T03:26:57.414702Z",
            "progress": 0.5,
            "message": "half",
            "data": {"counts": 12},
        }
    ],
    "assigned_at": "2026-12-01T03:26:57.319174Z",
    "started_at": "2026-12-01T03:26:57.356322Z",
    "ended_at": "2026-12-01T03:26:57.462831Z",
}

# The fields that the first version wrote. Every other field needs a default in the struct for decoding.
FIRST_FIELDS: list[tuple[Decoder[Any], type[Struct], str]] = [
    (records.REPORT, Report, "id at progress message data"),
    (records.LATE_RESULT, LateResult, "outcome result error at"),
]


@pytest.fixture
async def http(empty_database: str) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of a broker with a database of the first version that was migrated since."""
    await migration.migrate(empty_database, "0001")
    await run_sql(
        empty_database,
        LIVE_TASK,
        *(
            f"insert into work_archive ({', '.join(columns)}) values ({', '.join(columns.values())})"
            for columns in (WORK_THAT_FAILED, TASK_THAT_WAS_DELETED)
        ),
        f"insert into ended_tasks values ('sample-8', '{DELETED}')",
    )
    await migration.migrate(empty_database)
    async with running_broker(Settings(database_url=empty_database)) as running:
        yield running.client


async def test_records_of_the_first_version_are_readable_alone_in_lists_and_in_exports(
    http: httpx.AsyncClient,
) -> None:
    assert await get(http, f"/v1/archive/{WORK}") == READ
    deleted = await get(http, f"/v1/archive/{DELETED}")
    assert (deleted["task"]["id"], deleted["tool"], deleted["reports"]) == ("sample-8", None, [])
    assert (await get(http, "/v1/archive"))["items"] == [READ, deleted]
    export = await http.get("/v1/archive/export")
    assert list(map(msgspec.json.decode, export.content.splitlines())) == [READ, deleted]


async def test_ended_work_and_tasks_of_the_first_version_are_readable(http: httpx.AsyncClient) -> None:
    work = await get(http, f"/v1/work/{WORK}")
    assert (work["state"], work["progress"], work["reports"]) == ("failed", 0.5, READ["reports"])
    assert (await get(http, f"/v1/work/{WORK}/reports"))["items"] == READ["reports"]
    task = await get(http, "/v1/tasks/sample-8")
    assert (task["state"], task["ended_at"]) == ("cancelled", "2026-12-01T03:26:30Z")


async def test_a_late_result_of_the_first_version_can_be_accepted(http: httpx.AsyncClient) -> None:
    accepted = await http.post(f"/v1/archive/{WORK}/accept")
    assert accepted.status_code == 200, accepted.text
    assert accepted.json() == READ | {"outcome": "succeeded", "result": {"peak": 26.6}, "error": None}
    assert (await get(http, "/v1/tasks/sample-7"))["result"] == {"peak": 26.6}


def unreadable_fields(stored: type[Struct], written: str) -> set[str]:
    """Return the fields that have no value in a record with only the written fields."""
    return {field.name for field in msgspec.structs.fields(stored) if field.required} - {*written.split()}


@pytest.mark.parametrize(("decoder", "response", "written"), FIRST_FIELDS)
def test_every_field_was_in_the_first_version_or_has_a_default(
    decoder: Decoder[Any], response: type[Struct], written: str
) -> None:
    assert issubclass(decoder.type, response)
    assert unreadable_fields(decoder.type, written) == set()
    # A response has all stored fields.
    assert set(written.split()) <= set(response.__struct_fields__)


def test_a_later_field_without_a_default_is_detected() -> None:
    class LaterReport(Report, kw_only=True):
        color: str | None

    class ReadableReport(LaterReport, kw_only=True):
        color: str | None = None

    written = " ".join(Report.__struct_fields__)
    assert unreadable_fields(LaterReport, written) == {"color"}
    assert unreadable_fields(ReadableReport, written) == set()
