"""The costs that `broker bench` shows: CPU time, WAL, dead tuples."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import pytest
from rich.console import Console

from broker.bench.database import connected, execute
from broker.bench.display import costs_table, figures_table, number
from broker.bench.figures import Measured
from broker.bench.machine import machine, optimizations
from broker.bench.meter import COSTS, DEAD_TUPLES, LOAD, POSTGRES, SERVICE, WAL, Meter
from broker.bench.process import cpu_seconds
from broker.store.address import libpq_url

# Uses CPU in a thread and in a child, which both end, and prints their CPU time. Then waits for its input.
BUSY = """
import subprocess, sys, threading, time
spin = "import time\\nwhile time.process_time() < 0.2: pass\\nprint(time.process_time())"
def work():
    while time.process_time() < 0.2: pass
thread = threading.Thread(target=work)
thread.start()
thread.join()
child = subprocess.run([sys.executable, "-c", spin], capture_output=True, text=True, check=True)
print(time.process_time() + float(child.stdout), flush=True)
sys.stdin.read()
"""
TASKS = """
insert into tasks (id, needs, payload, priority, state, max_attempts, retry_backoff_seconds)
select number, '1', '1', 0, 'available', 1, 1 from generate_series(1, 4) number
"""


@contextmanager
def busy() -> Iterator[tuple[int, float]]:
    """Run a process that has used CPU, and yield its id and its CPU time."""
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.pid, float(process.stdout.readline())
        process.communicate()


def shown(table: object) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("platform", [sys.platform, "darwin"])
def test_cpu_time_contains_ended_threads_and_children(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with busy() as (pid, seconds):
        monkeypatch.setattr(sys, "platform", platform)
        # The rest is the start of the interpreters. Some clocks count steps of 10 ms.
        assert seconds - 0.05 <= cpu_seconds(pid) <= seconds + 0.5


def test_cpu_time_of_a_process_contains_its_running_children() -> None:
    before = cpu_seconds(os.getpid())
    with busy() as (_, seconds):
        assert cpu_seconds(os.getpid()) - before >= seconds - 0.05


def test_process_that_ended_has_no_cpu_time() -> None:
    with busy() as (pid, _):
        pass
    assert cpu_seconds(pid) == 0


async def test_meter_divides_the_costs_of_its_blocks_by_the_tasks(database: str) -> None:
    meter = Meter([], os.getpid(), libpq_url(database))
    await execute(libpq_url(database), TASKS)
    assert meter.figures() == {}
    with busy() as (pid, _):
        meter = Meter([pid], os.getpid(), libpq_url(database))
        for _ in range(2):
            async with meter.measuring(), connected(libpq_url(database)) as connection:
                await connection.execute("select pg_logical_emit_message(false, '', repeat('x', 100000))")
            meter.count(5)
    figures = meter.figures()
    # Ten tasks wrote 200,000 bytes, and a page header now and then.
    assert 20_000 <= figures[WAL] <= 30_000
    assert set(figures) == {SERVICE, POSTGRES, LOAD, WAL}
    assert figures[LOAD] > 0
    # The process had used its CPU before.
    assert 0 <= figures[SERVICE] < 20_000


async def test_dead_tuples_are_counted_when_the_connections_have_closed(database: str) -> None:
    url = libpq_url(database)
    meter = Meter([], os.getpid(), url)
    meter.count(1)
    connection = await asyncpg.connect(url)
    for statement in (
        TASKS,
        "update tasks set priority = 1 where id in ('1', '2')",
        "delete from tasks where id = '1'",
        "insert into tools (id, skills, capacity) values ('a', '{}', 1)",
        "delete from tools",
    ):
        await connection.execute(statement)
    reading = asyncio.create_task(meter.read_dead_tuples())
    await connection.fetchval("select pg_sleep(0.1)")
    assert not reading.done()
    await connection.close()
    await reading
    # Two updates and a deletion of four tasks. The deletion of the tool does not count.
    assert meter.figures()[DEAD_TUPLES] == 0.75


async def test_meter_of_a_given_service_measures_nothing() -> None:
    meter = Meter()
    async with meter.measuring():
        meter.count(5)
    await meter.read_dead_tuples()
    assert meter.figures() == {}


def measured(scenario: str, wanted: dict[str, str] | None = None, **figures: float) -> Measured:
    return Measured(scenario=scenario, says="", rounds=[figures], wanted=wanted or {})


def test_costs_have_a_table_of_their_own() -> None:
    costs = dict(zip(COSTS, (414.2, 400.6, 59.4, 4982.0, 6.09), strict=True))
    drain = measured("drain", {WAL: "≤ 3,500"}, **{"tasks/s": 1561.0}, **costs)
    results = [drain, measured("match", pairs=5000.0)]
    figures, table = shown(figures_table(results, title="a machine")), shown(costs_table(results))
    assert "a machine" in figures
    assert "1,561" in figures
    assert "414" not in figures
    [row] = [line for line in table.splitlines() if "drain" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["drain", "414", "401", "59.4", "4,982 (≤ 3,500)", "6.09"]
    assert "match" not in table


def test_costs_that_were_not_measured_have_no_table() -> None:
    assert costs_table([measured("match", pairs=5000.0)]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (0.00042, "0.0004"), (0.5, "0.50"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_figures_have_about_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({}, "built without PGO and LTO, so slower"),
        ({"CONFIG_ARGS": "'--enable-shared'"}, "built without PGO and LTO, so slower"),
        ({"CONFIG_ARGS": "'--enable-optimizations' '--with-lto'"}, "built with PGO and LTO"),
        ({"CONFIG_ARGS": "'--enable-optimizations'"}, "built with PGO"),
        ({"PY_LDFLAGS_NODIST": "-flto=auto", "PY_CFLAGS_NODIST": "-fprofile-use"}, "built with PGO and LTO"),
    ],
)
def test_machine_says_how_the_interpreter_was_optimized(variables: dict[str, str], text: str) -> None:
    assert optimizations(variables) == text


def test_machine_has_the_version_of_postgresql_unless_another_machine_runs_it() -> None:
    assert machine("18.4")["postgres"] == "PostgreSQL 18.4"
    assert "postgres" not in machine()
