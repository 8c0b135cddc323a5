"""Crashes under load: every acknowledged task still ends exactly once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from broker.postgres.cluster import EmbeddedPostgres
from broker.store import migration
from tests.conftest import temporary_folder
from tests.crash import faults
from tests.crash.faults import BACKENDS, END_BACKEND, END_LISTENERS
from tests.crash.laboratory import running_laboratory
from tests.crash.pair import running_pair
from tests.crash.submitters import REPORTS
from tests.support import steps
from tests.support.proxy import Proxy
from tests.support.shared import THOROUGH


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedPostgres]:
    """Run a separate PostgreSQL with durable settings."""
    with temporary_folder() as folder, EmbeddedPostgres(folder / "data") as postgres:
        await migration.migrate(postgres.url())
        yield postgres


async def test_no_task_is_lost_when_the_broker_is_killed_under_load(database: str, tmp_path: Path) -> None:
    async with running_laboratory(database, tmp_path) as laboratory:
        [broker] = laboratory.brokers
        async with laboratory.submitters.at_work():
            for _ in range(3):
                await broker.kill()
                broker.start()
                await laboratory.submitters.wait_for_outcomes()
        await laboratory.audit()


@pytest.mark.thorough
async def test_no_task_is_lost_when_one_of_two_brokers_is_killed(database: str, tmp_path: Path) -> None:
    async with running_laboratory(database, tmp_path, brokers=2) as laboratory:
        async with laboratory.submitters.at_work():
            for broker in laboratory.brokers:
                await broker.kill()
                broker.start()
                await laboratory.submitters.wait_for_outcomes(40)
        await laboratory.audit()


@pytest.mark.thorough
async def test_no_task_is_lost_when_the_broker_stops_under_load(database: str, tmp_path: Path) -> None:
    async with running_laboratory(database, tmp_path) as laboratory:
        [broker] = laboratory.brokers
        async with laboratory.submitters.at_work():
            for _ in range(2):
                async with asyncio.timeout(3):
                    assert await broker.terminate() == 0
                broker.start()
                await laboratory.submitters.wait_for_outcomes()
        await laboratory.audit()


@pytest.mark.thorough
async def test_a_rolling_restart_of_two_brokers_loses_no_notification(database: str, tmp_path: Path) -> None:
    async with running_laboratory(database, tmp_path, brokers=2) as laboratory:
        async with laboratory.submitters.at_work():
            for broker in laboratory.brokers * 2:
                assert await broker.terminate() == 0
                broker.start()
                await broker.until_ready()
                await laboratory.submitters.wait_for_outcomes(10)
        await laboratory.audit()


async def test_no_task_is_lost_when_tools_and_the_assigner_are_killed(database: str, tmp_path: Path) -> None:
    async with running_laboratory(database, tmp_path) as laboratory:
        async with laboratory.submitters.at_work():
            first, second = laboratory.tools
            await first.kill()
            await laboratory.assigner.kill()
            laboratory.assigner.start()
            await laboratory.submitters.wait_for_outcomes()
            # This tool restarts at once. Its started work is lost, and the task is available again.
            await second.kill()
            second.start()
            await laboratory.submitters.wait_for_outcomes()
        await laboratory.audit()


@pytest.mark.thorough
async def test_a_tool_that_stops_under_load_loses_no_work(database: str, tmp_path: Path) -> None:
    async with running_laboratory(database, tmp_path) as laboratory:
        async with laboratory.submitters.at_work():
            for tool in laboratory.tools:
                assert await tool.terminate() == 0
                await laboratory.submitters.wait_for_outcomes()
                tool.start()
        await laboratory.audit()
        async with steps.open_connection(database) as sql:
            assert await sql.fetchval("select count(*) from work_archive where outcome = 'lost'") == 0


@pytest.mark.thorough
async def test_a_suspended_tool_goes_offline_and_comes_back_online(database: str, tmp_path: Path) -> None:
    async with running_laboratory(database, tmp_path, tools=1) as laboratory:
        [tool] = laboratory.tools
        async with laboratory.submitters.at_work():
            os.kill(tool.pid, signal.SIGSTOP)
            async with steps.open_connection(database) as sql:
                await offline(sql)
            os.kill(tool.pid, signal.SIGCONT)
            await laboratory.submitters.wait_for_outcomes()
        await laboratory.audit()


async def offline(sql: asyncpg.Connection) -> None:
    async with asyncio.timeout(15):
        while not await sql.fetchval("select bool_or(offline) from tools"):
            await asyncio.sleep(0.05)


async def test_no_task_is_lost_when_backends_and_the_listener_are_killed(
    cluster: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with (
        running_laboratory(cluster.url(), tmp_path) as laboratory,
        steps.open_connection(cluster.url()) as sql,
    ):
        async with laboratory.submitters.at_work():
            for _ in range(5):
                await sql.execute(END_LISTENERS)
                await laboratory.submitters.wait_for_outcomes(10)
            for _ in range(3):
                await sql.execute(END_BACKEND)
                await laboratory.submitters.wait_for_outcomes(10)
        await laboratory.audit()


async def test_no_task_is_lost_when_the_postmaster_is_killed(
    cluster: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with running_laboratory(cluster.url(), tmp_path) as laboratory:
        async with laboratory.submitters.at_work():
            postmaster = cluster.pid
            assert postmaster is not None
            os.kill(postmaster, signal.SIGKILL)
            await laboratory.submitters.wait_for_outcomes()
        await laboratory.audit()


@pytest.mark.thorough
async def test_no_task_is_lost_when_a_backend_crash_resets_postgresql(
    cluster: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with running_laboratory(cluster.url(), tmp_path) as laboratory:
        async with laboratory.submitters.at_work():
            async with steps.open_connection(cluster.url()) as sql, asyncio.timeout(10):
                while (pid := await sql.fetchval(BACKENDS)) is None:
                    pass
            os.kill(pid, signal.SIGKILL)
            await laboratory.submitters.wait_for_outcomes()
        await laboratory.audit()


@pytest.mark.thorough
async def test_no_task_is_lost_when_the_database_connection_goes_silent(
    database: str, tmp_path: Path
) -> None:
    async with (
        Proxy(database) as proxy,
        running_laboratory(database, tmp_path, through=proxy.url) as laboratory,
    ):
        async with laboratory.submitters.at_work():
            proxy.silence()
            # This is longer than the database may be silent, so the service has closed its connections.
            await asyncio.sleep(4)
            proxy.restore()
            await laboratory.submitters.wait_for_outcomes()
            await proxy.cut()
            await laboratory.submitters.wait_for_outcomes()
        await laboratory.audit()


@pytest.mark.parametrize("how", ["killed", pytest.param("unreachable", marks=pytest.mark.thorough)])
async def test_the_broker_follows_when_the_standby_takes_over(tmp_path: Path, how: str) -> None:
    with temporary_folder() as folder:
        async with (
            running_pair(folder) as pair,
            running_laboratory(pair.url, tmp_path) as laboratory,
        ):
            async with laboratory.submitters.at_work():
                if how == "unreachable":
                    # No connection is refused or closed, but no data pass any more.
                    pair.proxies[0].silence()
                await pair.fail_over()
                await laboratory.submitters.wait_for_outcomes(60)
            await laboratory.audit()


@pytest.mark.parametrize(
    "page", [faults.PAGES[0], *(pytest.param(page, marks=pytest.mark.thorough) for page in faults.PAGES[1:])]
)
async def test_error_pages_of_a_proxy_stop_no_client_and_lose_no_result(
    database: str, tmp_path: Path, page: tuple[str, str, str]
) -> None:
    async with running_laboratory(database, tmp_path, gateways=True) as laboratory:
        async with laboratory.submitters.at_work():
            await faults.respond_by_itself(laboratory.gateways[0], *page)
            await laboratory.submitters.wait_for_outcomes()
        await laboratory.audit()


async def test_work_with_many_reports_survives_when_its_broker_is_killed(
    database: str, tmp_path: Path
) -> None:
    kind = REPORTS if THOROUGH else REPORTS._replace(reports=30)
    async with running_laboratory(database, tmp_path, kinds=(kind,)) as laboratory:
        [broker] = laboratory.brokers
        async with laboratory.submitters.at_work():
            await broker.kill()
            broker.start()
            await laboratory.submitters.wait_for_outcomes()
        await laboratory.audit()
