"""Metrics: their names, help texts and values in /metrics."""

import asyncio
import re
from pathlib import Path

import asyncpg
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.store import group_commit
from broker.telemetry import metric_definitions
from broker.telemetry.metric_definitions import MetricDefinition
from broker.telemetry.metrics import SHARED_FOLDER, Metrics
from tests.conftest import Running, Serve
from tests.support import api
from tests.support.api import (
    add_assigned_work,
    add_running_work,
    add_task,
    add_tool,
    assign,
    complete_work,
    expire_deadline,
    finish_long_poll,
    start_long_poll,
    wait_for_state,
)
from tests.support.shared import SHARED_BROKER
from tests.support.steps import open_connection
from tests.support.waiting import wait_until

pytestmark, database, broker, sql, http = SHARED_BROKER

Values = dict[tuple[str, ...], float]


async def read(http: httpx.AsyncClient) -> Values:
    """Return the values of all metrics, by name and values of labels."""
    response = await http.get("/metrics")
    assert response.status_code == 200, response.text
    assert re.fullmatch(r"text/plain; version=[0-9.]+; charset=utf-8", response.headers["content-type"])
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def since(before: Values, after: Values, *name: str) -> float:
    return after[name] - before.get(name, 0)


async def test_each_metric_is_served_as_it_is_defined(http: httpx.AsyncClient) -> None:
    await complete_work(http, (await add_running_work(http)).work)
    await http.get("/nowhere")
    await http.get("/v1/candidates")
    text = (await http.get("/metrics")).text
    served = {family.name: family for family in text_string_to_metric_families(text)}
    defined = {
        each.name: each for each in vars(metric_definitions).values() if isinstance(each, MetricDefinition)
    }
    names = {name for name in served if name.startswith("broker_") and not name.endswith("_created")}
    # The first probe and the first tick may not have happened yet.
    assert set(defined) - {"broker_listener_probe_seconds", "broker_connections"} <= names <= set(defined)
    for name in names:
        family, metric = served[name], defined[name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(metric.labels), name


async def test_the_help_text_names_the_maximum_number_of_waiting_items() -> None:
    assert f"{group_commit._MOST_WAITING:,}" in metric_definitions.GROUP_COMMIT_WAITING.help


async def test_tasks_tools_and_work_are_counted_by_state(http: httpx.AsyncClient) -> None:
    await add_running_work(http, "runs", "t")
    await add_assigned_work(http, "assigned", "u")
    await add_task(http, "waits")
    await add_task(http, "later", not_before="2100-01-01T00:00:00Z")
    values = await read(http)
    states = ("scheduled", "available", "assigned", "running", "failed")
    assert [values["broker_tasks", state] for state in states] == [1, 1, 1, 1, 0]
    assert (values["broker_work", "assigned"], values["broker_work", "running"]) == (1, 1)
    assert values["broker_tools", "idle"] == 2
    assert values["broker_tools_room",] == 198
    assert 0 < values["broker_oldest_available_seconds",] < 60
    assert values["broker_database_up",] == 1
    assert 0 <= values["broker_notification_queue_usage",] < 1


async def test_the_oldest_transaction_of_any_database_of_the_server_counts(
    http: httpx.AsyncClient, postgres: str
) -> None:
    async with open_connection(postgres) as other, other.transaction():
        await other.execute("select pg_current_xact_id()")
        await other.execute("select pg_sleep(0.5)")
        assert (await read(http))["broker_oldest_transaction_seconds",] >= 0.5


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "released", "cancelled"])
async def test_ended_work_is_counted_with_its_waiting_and_running_time(
    http: httpx.AsyncClient, outcome: str
) -> None:
    before = await read(http)
    pair = await add_running_work(http, max_attempts=1)
    await complete_work(http, pair.work, outcome)
    after = await read(http)
    assert since(before, after, "broker_work_ended_total", outcome) == 1
    for name in ("broker_work_wait_seconds", "broker_work_run_seconds"):
        assert since(before, after, f"{name}_count", outcome) == 1
        assert 0 < since(before, after, f"{name}_sum", outcome) < 60
    assert since(before, after, "broker_work_start_seconds_count") == 1


async def test_work_that_the_broker_ends_is_counted(http: httpx.AsyncClient, sql: asyncpg.Connection) -> None:
    before = await read(http)
    late = await add_running_work(http, "slow", "t", timeout_seconds=3600, max_attempts=1)
    await expire_deadline(sql, late.work)
    await wait_for_state(http, "/v1/tasks/slow", "failed")
    gone = await add_running_work(http, "gone", "u")
    assert (await http.delete("/v1/tools/u?force=true")).status_code == 204
    taken = await add_assigned_work(http, "taken", "v")
    assert (await http.delete("/v1/tasks/taken")).status_code == 204
    after = await read(http)
    for outcome in ("timed_out", "lost", "cancelled"):
        assert since(before, after, "broker_work_ended_total", outcome) == 1, outcome
    # The cancelled work was never started.
    assert since(before, after, "broker_work_run_seconds_count", "cancelled") == 0
    assert len({late.work, gone.work, taken.work}) == 3


async def test_the_time_until_a_waiting_tool_gets_its_work_is_measured(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http)
    await add_task(http)
    waiting = await start_long_poll(broker, "GET", "/v1/tools/t/work?wait=30")
    before = await read(http)
    assert before["broker_parked_requests", "tool"] == 1
    await assign(http)
    assert (await finish_long_poll(waiting))["items"]
    after = await read(http)
    assert since(before, after, "broker_dispatch_seconds_count") == 1
    assert 0 < since(before, after, "broker_dispatch_seconds_sum") < 5
    assert after["broker_parked_requests", "tool"] == 0


async def test_a_request_that_returns_at_once_is_no_dispatch(http: httpx.AsyncClient) -> None:
    await add_assigned_work(http)
    before = await read(http)
    assert (await http.get("/v1/tools/t/work?wait=30")).json()["items"]
    assert since(before, await read(http), "broker_dispatch_seconds_count") == 0


async def test_the_items_of_a_transaction_are_counted(http: httpx.AsyncClient) -> None:
    before = await read(http)
    await add_task(http)
    after = await read(http)
    step = "submission.submit"
    assert since(before, after, "broker_group_commit_set_size_count", step) == 1
    assert since(before, after, "broker_group_commit_set_size_sum", step) == 1
    assert since(before, after, "broker_group_commit_seconds_count", step) == 1
    assert after["broker_group_commit_waiting", step] == 0


async def test_error_responses_are_counted_by_code(http: httpx.AsyncClient) -> None:
    before = await read(http)
    await http.post("/v1/tasks", json={"needs": {}, "colour": "red"})
    await http.get("/v1/tasks/nothing")
    await http.get("/nowhere")
    after = await read(http)
    for code in ("validation_failed", "task_not_found", "not_found"):
        assert since(before, after, "broker_problems_total", code) == 1, code


async def test_expired_leases_are_counted(http: httpx.AsyncClient, sql: asyncpg.Connection) -> None:
    before = await read(http)
    await add_tool(http, "silent")
    await api.take_tool_offline(http, sql, "silent")

    async def counted() -> bool:
        return since(before, await read(http), "broker_leases_expired_total") == 1

    await wait_until(counted)
    assert (await read(http))["broker_tools", "offline"] == 1


async def test_metrics_of_the_process_are_served(http: httpx.AsyncClient) -> None:
    values = await read(http)
    assert values["broker_listener_connected",] == 1
    assert values["broker_database_connections_max",] == 8
    assert values["broker_lists_waiting",] == 0
    assert values["broker_parked_requests_max",] == 16_000
    assert values["process_resident_memory_bytes",] > 0


@pytest.mark.asyncio(loop_scope="function")
async def test_metrics_without_a_database_report_that_and_the_rest(serve: Serve) -> None:
    running = await serve()
    # This request also loads the keys, of which there are none.
    assert (await read(running.client))["broker_database_up",] == 1

    async def refuse(**_: object) -> None:
        raise OSError

    for store in (running.server.service.store, running.server.service.primary_reads.store):
        store.abort_connections()
        store._address.connect = refuse  # type: ignore[method-assign,assignment]
    values = await read(running.client)
    assert values["broker_database_up",] == 0
    assert ("broker_tasks", "available") not in values
    assert "broker_listener_connected" in {name for name, *_ in values}


@pytest.mark.asyncio(loop_scope="function")
async def test_metrics_wait_for_the_file_of_a_starting_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    monkeypatch.setenv(SHARED_FOLDER, str(tmp_path))
    # A starting process has created its file and has not written to it yet.
    begun = tmp_path / "counter_1.db"
    begun.touch()
    reading = asyncio.create_task(metrics.exposition())
    done, _ = await asyncio.wait([reading], timeout=0.2)
    assert not done
    begun.write_bytes(bytes(1024))
    assert await asyncio.wait_for(reading, 5) == b""
