"""`broker serve --workers`: several worker processes serve one address like a single process."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.api import add_task, add_tool, assign, complete
from tests.support.processes import names_in, serving, wait_until_ready
from tests.support.waiting import wait_until

WORKERS = ("--workers", "2")


def worker_pids(parent: int) -> set[int]:
    """Return the ids of the worker processes, without the resource tracker of multiprocessing."""
    pids = set()
    for child in psutil.Process(parent).children():
        # The process may have ended.
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                pids.add(child.pid)
    return pids


def sparse_files(folder: Path) -> list[str]:
    """Return the files of metrics that occupy less space on the disk than their size."""
    files = list(folder.glob("broker-metrics-*/*.db"))
    assert files
    return [file.name for file in files if file.stat().st_blocks * 512 < file.stat().st_size]


async def wait_until_all_serve(http: httpx.AsyncClient, workers: int) -> None:
    """Wait until this many worker processes serve."""

    async def all_serve() -> bool:
        return (await read_metrics(http)).get("broker_database_connections_max") == 8 * workers

    await wait_until(all_serve)


async def read_metrics(http: httpx.AsyncClient) -> dict[str, float]:
    response = await http.get("/metrics")
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_assignment_in_any_process_wakes_tools_that_wait_in_any_process(database: str) -> None:
    with serving(*WORKERS, BROKER_DATABASE_URL=database, BROKER_FALLBACK_SECONDS="60") as (process, url):
        await wait_until_ready(url)
        assert len(worker_pids(process.pid)) == 2
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=70) as http:
            await wait_until_all_serve(http, 2)
            tools = [f"t{n}" for n in range(30)]
            for tool in tools:
                await add_tool(http, tool)
                await add_task(http, f"of-{tool}")
            long_polls = [asyncio.create_task(http.get(f"/v1/tools/{tool}/work?wait=50")) for tool in tools]

            async def all_wait() -> bool:
                return (await read_metrics(http))["broker_parked_requests tool"] == len(tools)

            await wait_until(all_wait)
            for tool in tools:
                await assign(http, f"of-{tool}", tool)
            async with asyncio.timeout(20):
                responses = await asyncio.gather(*long_polls)
            [works] = zip(*(response.json()["items"] for response in responses), strict=True)
            assert [work["tool_id"] for work in works] == tools
            for work in works:
                assert (await complete(http, work["id"])).status_code == 200
            metrics = await read_metrics(http)
            assert metrics["broker_work_ended_total succeeded"] == len(tools)
            assert metrics["broker_dispatch_seconds_count"] == len(tools)
            assert metrics["broker_listener_connected"] == 1
            # The open files are those of the process nearest to its limit. The memory is the sum.
            assert 0 < metrics["process_open_fds"] < metrics["process_max_fds"]
            assert metrics["process_resident_memory_bytes"] > 2 * 30 * 2**20
            assert metrics["process_cpu_seconds_total"] > 0


async def test_killed_worker_process_is_replaced_and_loses_no_acknowledged_task(
    database: str,
) -> None:
    with serving(*WORKERS, BROKER_DATABASE_URL=database) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as http:
            await wait_until_all_serve(http, 2)
            await add_task(http)
            before = worker_pids(process.pid)
            os.kill(min(before), signal.SIGKILL)

            async def is_replaced() -> bool:
                return len(worker_pids(process.pid) - {min(before)}) == 2

            await wait_until(is_replaced)
            await wait_until_all_serve(http, 2)
        async with httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/v1/tasks/a")).json()["state"] == "available"


async def test_sigterm_ends_long_polls_and_all_worker_processes_within_two_seconds(database: str) -> None:
    with serving(*WORKERS, BROKER_DATABASE_URL=database) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url, timeout=70) as http:
            await wait_until_all_serve(http, 2)
            await add_tool(http)
            long_polls = [asyncio.create_task(http.get("/v1/tools/t/work?wait=60")) for _ in range(20)]

            async def all_wait() -> bool:
                return (await read_metrics(http))["broker_parked_requests tool"] == 20

            await wait_until(all_wait)
            pids = worker_pids(process.pid)
            process.terminate()
            began = time.monotonic()
            assert {(await long_poll).status_code for long_poll in long_polls} == {200}
            assert await asyncio.to_thread(process.wait, 5) == 0
            assert time.monotonic() - began < 2
            assert not any(map(psutil.pid_exists, pids))


async def test_metrics_files_are_allocated_and_removed_when_the_parent_is_killed(
    database: str, tmp_path: Path
) -> None:
    with serving(*WORKERS, BROKER_DATABASE_URL=database, TMPDIR=str(tmp_path)) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as http:
            await wait_until_all_serve(http, 2)
        assert sparse_files(tmp_path) == []
        pids = worker_pids(process.pid)
        process.kill()

        async def all_ended() -> bool:
            return not any(map(psutil.pid_exists, pids))

        await wait_until(all_ended)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", httpx.URL(url).port or 0))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("raise RuntimeError('startup failed')", "RuntimeError: startup failed"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with status -11"),
    ],
)
def test_service_ends_if_its_worker_processes_cannot_start(
    tmp_path: Path, failure: str, message: str
) -> None:
    program = f"""
import os, signal
from broker.server import worker_processes
from broker.settings import Settings

def fail(*_, **__):
    {failure}

# Worker processes import this module, too.
worker_processes.create_server = fail
if __name__ == "__main__":
    worker_processes.WorkerProcesses(Settings(), host="127.0.0.1", port=0, count=2).run()
"""
    file = tmp_path / "serve.py"
    file.write_text(program)
    ended = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "WorkerProcessesError: A worker process could not start" in ended.stderr
    assert message in ended.stderr


async def test_closing_the_terminal_stops_the_worker_processes(database: str) -> None:
    with serving(*WORKERS, BROKER_DATABASE_URL=database) as (process, url):
        await wait_until_ready(url)
        pids = worker_pids(process.pid)
        process.send_signal(signal.SIGHUP)
        assert await asyncio.to_thread(process.wait, 10) == 0
        assert not any(map(psutil.pid_exists, pids))


async def test_worker_processes_share_the_embedded_database(data_dir: Path) -> None:
    with serving(*WORKERS, BROKER_DATA_DIR=str(data_dir)) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as http:
            await wait_until_all_serve(http, 2)
            await add_task(http)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 10) == 0
