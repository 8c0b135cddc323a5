"""`broker serve --workers`: several processes serve one address as one would."""

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


def workers(parent: int) -> set[int]:
    """The processes that serve; multiprocessing has one more, which looks after what they share."""
    found = set()
    for child in psutil.Process(parent).children():
        with contextlib.suppress(psutil.Error):  # it has ended
            if "spawn_main" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def holes(folder: Path) -> list[str]:
    """Files of metrics that are smaller on the disk than they say."""
    files = list(folder.glob("broker-metrics-*/*.db"))
    assert files
    return [file.name for file in files if file.stat().st_blocks * 512 < file.stat().st_size]


async def serve(http: httpx.AsyncClient, workers: int) -> None:
    """Return when so many serve: each has a listener."""

    async def all_there() -> bool:
        return (await metrics(http)).get("broker_database_connections_max") == 8 * workers

    await wait_until(all_there)


async def metrics(http: httpx.AsyncClient) -> dict[str, float]:
    answer = await http.get("/metrics")
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_tools_that_wait_in_either_are_woken_whoever_pairs_them(database: str) -> None:
    with serving(*WORKERS, BROKER_DATABASE_URL=database, BROKER_FALLBACK_SECONDS="60") as (process, url):
        await wait_until_ready(url)
        assert len(workers(process.pid)) == 2
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=70) as http:
            await serve(http, 2)
            tools = [f"t{n}" for n in range(30)]
            for tool in tools:
                await add_tool(http, tool)
                await add_task(http, f"of-{tool}")
            parked = [asyncio.create_task(http.get(f"/v1/tools/{tool}/work?wait=50")) for tool in tools]

            async def all_wait() -> bool:
                return (await metrics(http))["broker_parked_requests tool"] == len(tools)

            await wait_until(all_wait)
            for tool in tools:
                await assign(http, f"of-{tool}", tool)
            async with asyncio.timeout(20):
                answers = await asyncio.gather(*parked)
            [works] = zip(*(answer.json()["items"] for answer in answers), strict=True)
            assert [work["tool_id"] for work in works] == tools
            for work in works:
                assert (await complete(http, work["id"])).status_code == 200
            found = await metrics(http)
            assert found["broker_work_ended_total succeeded"] == len(tools)
            assert found["broker_dispatch_seconds_count"] == len(tools)
            assert found["broker_listener_connected"] == 1
            # Of their files that which is nearest to its limit; of their memory all.
            assert 0 < found["process_open_fds"] < found["process_max_fds"]
            assert found["process_resident_memory_bytes"] > 2 * 30 * 2**20
            assert found["process_cpu_seconds_total"] > 0


async def test_one_that_is_killed_is_replaced_and_nothing_that_was_acknowledged_is_missing(
    database: str,
) -> None:
    with serving(*WORKERS, BROKER_DATABASE_URL=database) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as http:
            await serve(http, 2)
            await add_task(http)
            before = workers(process.pid)
            os.kill(min(before), signal.SIGKILL)

            async def another() -> bool:
                return len(workers(process.pid) - {min(before)}) == 2

            await wait_until(another)
            await serve(http, 2)
        async with httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/v1/tasks/a")).json()["state"] == "available"


async def test_told_to_stop_they_answer_who_waits_and_are_gone_within_two_seconds(database: str) -> None:
    with serving(*WORKERS, BROKER_DATABASE_URL=database) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url, timeout=70) as http:
            await serve(http, 2)
            await add_tool(http)
            parked = [asyncio.create_task(http.get("/v1/tools/t/work?wait=60")) for _ in range(20)]

            async def all_wait() -> bool:
                return (await metrics(http))["broker_parked_requests tool"] == 20

            await wait_until(all_wait)
            they = workers(process.pid)
            process.terminate()
            began = time.monotonic()
            assert {(await answer).status_code for answer in parked} == {200}
            assert await asyncio.to_thread(process.wait, 5) == 0
            assert time.monotonic() - began < 2
            assert not any(map(psutil.pid_exists, they))


async def test_to_count_is_no_risk_where_the_disk_is_full_and_without_their_parent_they_leave_nothing(
    database: str, tmp_path: Path
) -> None:
    with serving(*WORKERS, BROKER_DATABASE_URL=database, TMPDIR=str(tmp_path)) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as http:
            await serve(http, 2)
        assert holes(tmp_path) == []
        they = workers(process.pid)
        process.kill()

        async def all_gone() -> bool:
            return not any(map(psutil.pid_exists, they))

        await wait_until(all_gone)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", httpx.URL(url).port or 0))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("raise RuntimeError('it is not to be')", "RuntimeError: it is not to be"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with status -11"),
    ],
)
def test_workers_that_cannot_start_are_given_up(tmp_path: Path, fails: str, says: str) -> None:
    program = f"""
import os, signal
from broker.server import worker_processes
from broker.settings import Settings

def fail(*_, **__):
    {fails}

# Workers begin by reading this, too.
worker_processes.create_server = fail
if __name__ == "__main__":
    worker_processes.WorkerProcesses(Settings(), host="127.0.0.1", port=0, count=2).run()
"""
    file = tmp_path / "serve.py"
    file.write_text(program)
    ended = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "WorkerProcessesError: A worker process could not start" in ended.stderr
    assert says in ended.stderr


async def test_a_terminal_that_is_closed_stops_them(database: str) -> None:
    with serving(*WORKERS, BROKER_DATABASE_URL=database) as (process, url):
        await wait_until_ready(url)
        they = workers(process.pid)
        process.send_signal(signal.SIGHUP)
        assert await asyncio.to_thread(process.wait, 10) == 0
        assert not any(map(psutil.pid_exists, they))


async def test_they_share_the_database_that_comes_along(data_dir: Path) -> None:
    with serving(*WORKERS, BROKER_DATA_DIR=str(data_dir)) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as http:
            await serve(http, 2)
            await add_task(http)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 10) == 0
