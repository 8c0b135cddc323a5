"""Assigners against a real broker: assignments, remarks, and recovery from errors."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from broker.client import Assigner, MismatchError, remark_sender
from broker.schemas.candidates import AssignedPair
from broker.settings import Settings
from tests.conftest import Running, running_broker, temporary_database
from tests.support import api
from tests.support.api import add_task, add_tasks, add_tool, get, wait_for_state
from tests.support.shared import SHARED_BROKER
from tests.support.waiting import wait_until

pytestmark, database, broker, sql, http = SHARED_BROKER


@asynccontextmanager
async def assigning(assigner: Assigner) -> AsyncIterator[None]:
    """Run the assigner while the block runs, and raise its errors in the test."""
    task = asyncio.create_task(assigner.assign())
    try:
        yield
    finally:
        task.cancel()
        [error] = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(error, asyncio.CancelledError):
            raise error


async def assigned_to(http: httpx.AsyncClient, task: str) -> str:
    """Wait until a task is assigned, and return the id of its tool."""
    work = (await wait_for_state(http, f"/v1/tasks/{task}", "assigned"))["work_id"]
    return str((await get(http, f"/v1/work/{work}"))["tool_id"])


async def remark(http: httpx.AsyncClient, task: str, *, but: str | None = None) -> str:
    """Wait until a task has a remark other than `but`, and return it."""
    async with asyncio.timeout(10):
        while (text := (await get(http, f"/v1/tasks/{task}"))["remark"]) in (None, but):
            await asyncio.sleep(0.005)
    return str(text)


async def test_a_custom_match_function_decides_which_tool_gets_a_task(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http, "small", skills={"gpu": 1})
    await add_tool(http, "large", skills={"gpu": 4})
    await add_task(http, "a", needs={"gpu": 2})
    async with assigning(Assigner(lambda skills, needs: needs["gpu"] <= skills["gpu"], url=broker.url)):
        assert await assigned_to(http, "a") == "large"


@pytest.mark.parametrize(
    ("match", "needs"),
    [
        ("contains", {"can": "print"}),
        ("schema", {"properties": {"can": {"contains": {"const": "print"}}}, "required": ["can"]}),
    ],
)
async def test_a_strategy_is_selected_by_its_name(
    broker: Running, http: httpx.AsyncClient, match: str, needs: Any
) -> None:
    await add_tool(http, "counter", skills={"can": ["count"]})
    await add_tool(http, "printer", skills={"can": ["print"]})
    await add_task(http, "a", needs=needs)
    async with assigning(Assigner(match, url=broker.url)):
        assert await assigned_to(http, "a") == "printer"


async def test_a_tool_with_a_higher_rank_gets_a_task_first(broker: Running, http: httpx.AsyncClient) -> None:
    for id_, speed in (("slow", 1), ("fast", 3), ("middling", 2)):
        await add_tool(http, id_, skills={"speed": speed})
    await add_tasks(http, "a", "b")
    assigner = Assigner(rank=lambda skills, needs: skills["speed"], url=broker.url)
    async with assigning(assigner):
        assert [await assigned_to(http, id_) for id_ in "ab"] == ["fast", "middling"]


async def test_more_tasks_than_fit_into_a_request_are_all_assigned_and_reported(
    broker: Running, http: httpx.AsyncClient
) -> None:
    reported: list[AssignedPair] = []
    assigner = Assigner(on_assigned=reported.append, url=broker.url)
    await add_tasks(http, *(f"task-{number}" for number in range(1_500)))
    async with assigning(assigner):
        await wait_until(lambda: len(assigner._matcher) == 1_500)
        await add_tool(http, "t", capacity=2_000)
        await wait_until(lambda: len(reported) == 1_500)
        await add_task(http, "another")
        await wait_until(lambda: len(reported) == 1_501)
    assert len({pair.task_id for pair in reported}) == 1_501


async def test_a_waiting_task_is_assigned_to_a_tool_that_registers_later(
    broker: Running, http: httpx.AsyncClient
) -> None:
    async with assigning(Assigner(url=broker.url)):
        await add_task(http, "a", needs={"can": "print"})
        await add_tool(http, "scanner", skills={"can": "scan"})
        await add_tool(http, "printer", skills={"can": "print"})
        assert await assigned_to(http, "a") == "printer"


async def test_needs_that_cannot_be_compared_match_nothing_and_delay_no_other_task(
    broker: Running, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await add_tool(http, "counter", skills={"can": ["count"]}, capacity=5)
    await add_task(http, "odd", needs={"what": "ever"})
    async with assigning(Assigner(lambda skills, needs: needs["can"] in skills["can"], url=broker.url)):
        for id_ in ("a", "b"):
            await add_task(http, id_, needs={"can": "count"})
            assert await assigned_to(http, id_) == "counter"
    assert (await get(http, "/v1/tasks/odd"))["state"] == "available"
    messages = [record.message for record in caplog.records if "compared" in record.message]
    assert messages == ["task odd could not be compared with tool counter: KeyError('can')"]


async def test_the_assigner_forgets_tasks_and_tools_that_others_assigned_or_deleted(
    broker: Running, http: httpx.AsyncClient
) -> None:
    assigner = Assigner(reread_seconds=0.05, remarks=False, url=broker.url)
    async with assigning(assigner):
        await add_tasks(http, "deleted", "taken", "kept", needs={"can": "print"})
        await add_tool(http, "other", skills={"can": "nothing"}, capacity=5)
        await add_tool(http, "gone")
        await wait_until(lambda: len(assigner._matcher) == 5)
        await http.delete("/v1/tasks/deleted")
        await http.delete("/v1/tools/gone")
        await api.assign(http, "taken", "other")
        await wait_until(lambda: len(assigner._matcher) == 2)
        await add_tool(http, "printer", skills={"can": "print"})
        assert await assigned_to(http, "kept") == "printer"


async def test_the_assigner_reads_everything_again_when_the_broker_has_another_database(
    postgres: str, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        databases = [
            await stack.enter_async_context(temporary_database(postgres, template)) for _ in range(2)
        ]
        first = await stack.enter_async_context(running_broker(Settings(database_url=databases[0])))
        await add_task(first.client, "lost", needs={"can": "scan"})
        assigner = Assigner(remarks=False, url=first.url)
        await stack.enter_async_context(assigning(assigner))
        await wait_until(lambda: len(assigner._matcher) == 1)
        await first.stop()
        port = int(first.url.rpartition(":")[2])
        second = await stack.enter_async_context(
            running_broker(Settings(database_url=databases[1]), port=port)
        )
        await add_task(second.client, "new", needs={"can": "print"})
        await add_tool(second.client, "printer", skills={"can": "print"}, capacity=2)
        assert await assigned_to(second.client, "new") == "printer"
        await wait_until(lambda: len(assigner._matcher) == 1)
    assert "reading all candidates again" in caplog.text


async def test_an_assigner_stops_at_once_and_can_be_started_again(
    broker: Running, http: httpx.AsyncClient
) -> None:
    assigner = Assigner(url=broker.url)
    await add_tool(http, "t", capacity=2)
    for id_ in ("a", "b"):
        began = 0.0
        async with assigning(assigner):
            await add_task(http, id_)
            assert await assigned_to(http, id_) == "t"
            began = time.monotonic()
        assert time.monotonic() - began < 1


async def test_other_coroutines_run_while_many_needs_are_judged(
    broker: Running, http: httpx.AsyncClient
) -> None:
    judged: list[float] = []

    def slowly(skills: Any, needs: Any) -> bool:
        time.sleep(0.02)
        judged.append(time.monotonic())
        return False

    items = [{"id": f"task-{number}", "needs": number} for number in range(40)]
    await http.post("/v1/tasks/batch", json={"items": items})
    await add_tool(http)
    turns: list[float] = []
    async with assigning(Assigner(slowly, remarks=False, url=broker.url)):
        while len(judged) < 40:
            await asyncio.sleep(0)
            turns.append(time.monotonic())
    between = [turn for turn in turns if judged[0] < turn < judged[-1]]
    assert len(between) >= 20


@pytest.mark.parametrize(
    "options", [{"aging_seconds": 0}, {"reread_seconds": -1}, {"recheck_seconds": float("nan")}]
)
async def test_an_interval_that_is_not_above_zero_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="a number of seconds above 0"):
        Assigner(**options)


async def test_a_task_that_no_tool_can_do_gets_a_remark_with_the_reason(
    broker: Running, http: httpx.AsyncClient
) -> None:
    assigner = Assigner("schema", recheck_seconds=0.05, url=broker.url)
    async with assigning(assigner):
        await add_task(http, "a", needs={"required": ["gpu"], "properties": {"gpu": {"minimum": 2}}})
        first = await remark(http, "a")
        assert first == "No tool is registered."
        await add_tool(http, "gpu-1", skills={"gpu": 1})
        second = await remark(http, "a", but=first)
        assert second == "No tool has what the task needs: gpu ≥ 2. The closest match, gpu-1, has 1."
        explanation = await get(http, "/v1/tasks/a/explain")
        assert explanation["verdict"] == "refused_by_assigner"
        assert explanation["detail"] == f"The assigner says: {second}"
        await add_tool(http, "gpu-2", skills={"gpu": 2})
        assert await assigned_to(http, "a") == "gpu-2"
        assert (await get(http, "/v1/tasks/a"))["remark"] is None


async def test_the_remark_names_the_only_suitable_tool_while_it_is_offline_and_after_it_returns(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http, "xrd-1", skills={"can": "diffract"})
    await api.take_tool_offline(http, sql, "xrd-1")
    async with assigning(Assigner(recheck_seconds=0.05, url=broker.url)):
        await add_task(http, "a", needs={"can": "diffract"})
        offline = await remark(http, "a")
        assert offline.startswith("Only tool xrd-1 can do this task, and it has been offline since ")
        await add_task(http, "first", needs={"can": "diffract"}, priority=1)
        await http.post("/v1/tools/xrd-1/heartbeat")
        assert await assigned_to(http, "first") == "xrd-1"
        later = await remark(http, "a", but=offline)
        assert later == "Tool xrd-1 can do this task when it has free capacity."


async def test_the_remark_contains_the_message_of_a_mismatch_error(
    broker: Running, http: httpx.AsyncClient
) -> None:
    def match(skills: Any, needs: Any) -> bool:
        if skills["gpu"] < needs["gpu"]:
            raise MismatchError(f"wants {needs['gpu']} GPUs, has {skills['gpu']}")
        return True

    await add_tool(http, "gpu-1", skills={"gpu": 1})
    await add_task(http, "a", needs={"gpu": 2})
    async with assigning(Assigner(match, recheck_seconds=0.05, url=broker.url)):
        assert await remark(http, "a") == "No tool can do this task. gpu-1: wants 2 GPUs, has 1"


async def test_a_remark_is_written_only_once(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http, "t", skills={"can": "print"})
    await add_tasks(http, *(f"task-{number}" for number in range(50)), needs={"can": "scan"})

    assigner = Assigner(recheck_seconds=0.02, url=broker.url)
    async with assigning(assigner):
        async with asyncio.timeout(10):
            while await sql.fetchval("select count(remark_at) from tasks") < 50:
                await asyncio.sleep(0.005)
        [needs] = assigner._matcher.waiting
        at = await sql.fetchval("select max(remark_at) from tasks")
        checked_at = needs.checked_at
        await wait_until(lambda: (needs.checked_at or 0) > (checked_at or 0) + 0.2)
    # A new assigner finds the remarks on the tasks.
    async with assigning(Assigner(recheck_seconds=0.02, url=broker.url)):
        await add_task(http, "new", needs={"can": "scan"})
        assert (await remark(http, "new")).startswith('No tool has what the task needs: can = "scan".')
    assert await sql.fetchval("select count(*) from tasks where remark_at <= $1", at) == 50


async def test_an_assigner_without_remarks_writes_none(broker: Running, http: httpx.AsyncClient) -> None:
    await add_task(http, "a", needs={"can": "print"})
    async with assigning(Assigner(remarks=False, recheck_seconds=0.01, url=broker.url)):
        await add_tool(http, "t")
        await add_task(http, "b")
        assert await assigned_to(http, "b") == "t"
        await asyncio.sleep(0.1)
    assert (await get(http, "/v1/tasks/a"))["remark"] is None


async def test_an_error_in_remarks_does_not_stop_the_assignments(
    broker: Running,
    http: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = 0

    async def broken(connection: object) -> Any:
        nonlocal tried
        tried += 1
        raise RuntimeError("the list of tools is broken")

    monkeypatch.setattr(remark_sender, "_list_tools", broken)
    await add_task(http, "hopeless", needs={"can": "print"})
    await add_tool(http, "t", capacity=3)
    async with assigning(Assigner(recheck_seconds=0.01, url=broker.url)):
        await wait_until(lambda: tried > 3)
        await add_task(http, "a")
        assert await assigned_to(http, "a") == "t"
    assert [record.message for record in caplog.records if "remarks" in record.message] == [
        "remarks on waiting tasks could not be sent: the list of tools is broken"
    ]


async def test_unmatched_returns_needs_and_skills_that_never_match(
    broker: Running, http: httpx.AsyncClient
) -> None:
    assigner = Assigner(remarks=False, url=broker.url)
    await add_task(http, "hopeless", needs={"can": "print"})
    await add_tool(http, "busy", skills={"can": "count"}, capacity=100)
    await add_tool(http, "bored", skills={"can": "nothing"})
    async with assigning(assigner):
        await add_tasks(http, *(f"task-{number}" for number in range(12)), needs={"can": "count"})
        await assigned_to(http, "task-11")
        await wait_until(lambda: len(assigner._matcher) == 3)
    unmatched = assigner.unmatched()
    assert [(each.needs, each.waiting, each.oldest, each.passed_by) for each in unmatched.needs] == [
        ({"can": "print"}, 1, "hopeless", 12)
    ]
    assert [(each.skills, each.tools) for each in unmatched.skills] == [({"can": "nothing"}, ["bored"])]
