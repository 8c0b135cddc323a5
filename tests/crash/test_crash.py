"""Whatever dies, at whatever moment: every acknowledged task ends exactly once."""

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
from tests.crash.customers import REPORTS
from tests.crash.faults import BACKENDS, END_BACKEND, END_LISTENERS
from tests.crash.laboratory import a_laboratory
from tests.crash.pair import a_pair
from tests.support import steps
from tests.support.proxy import Proxy
from tests.support.shared import THOROUGH


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedPostgres]:
    """A PostgreSQL of the test's own, with its durable settings."""
    with temporary_folder() as folder, EmbeddedPostgres(folder / "data") as postgres:
        await migration.migrate(postgres.url())
        yield postgres


async def test_the_broker_is_killed_under_load(database: str, tmp_path: Path) -> None:
    async with a_laboratory(database, tmp_path) as laboratory:
        [broker] = laboratory.brokers
        async with laboratory.customers.at_work():
            for _ in range(3):
                await broker.kill()
                broker.start()
                await laboratory.customers.more()
        await laboratory.audit()


@pytest.mark.thorough
async def test_one_of_two_brokers_is_killed_under_load(database: str, tmp_path: Path) -> None:
    async with a_laboratory(database, tmp_path, brokers=2) as laboratory:
        async with laboratory.customers.at_work():
            for broker in laboratory.brokers:
                await broker.kill()
                broker.start()
                await laboratory.customers.more(40)
        await laboratory.audit()


@pytest.mark.thorough
async def test_the_broker_is_told_to_stop_under_load(database: str, tmp_path: Path) -> None:
    async with a_laboratory(database, tmp_path) as laboratory:
        [broker] = laboratory.brokers
        async with laboratory.customers.at_work():
            for _ in range(2):
                async with asyncio.timeout(3):
                    assert await broker.terminate() == 0
                broker.start()
                await laboratory.customers.more()
        await laboratory.audit()


@pytest.mark.thorough
async def test_a_rolling_restart_of_two_brokers_loses_no_wake_up(database: str, tmp_path: Path) -> None:
    async with a_laboratory(database, tmp_path, brokers=2) as laboratory:
        async with laboratory.customers.at_work():
            for broker in laboratory.brokers * 2:
                assert await broker.terminate() == 0
                broker.start()
                await broker.until_ready()
                await laboratory.customers.more(10)
        await laboratory.audit()


async def test_tools_and_the_assigner_are_killed_under_load(database: str, tmp_path: Path) -> None:
    async with a_laboratory(database, tmp_path) as laboratory:
        async with laboratory.customers.at_work():
            first, second = laboratory.tools
            await first.kill()
            await laboratory.assigner.kill()
            laboratory.assigner.start()
            await laboratory.customers.more()
            # This one comes again at once: what it had started is lost, and goes back.
            await second.kill()
            second.start()
            await laboratory.customers.more()
        await laboratory.audit()


@pytest.mark.thorough
async def test_a_tool_is_told_to_stop_under_load(database: str, tmp_path: Path) -> None:
    async with a_laboratory(database, tmp_path) as laboratory:
        async with laboratory.customers.at_work():
            for tool in laboratory.tools:
                assert await tool.terminate() == 0
                await laboratory.customers.more()
                tool.start()
        await laboratory.audit()
        async with steps.open_connection(database) as sql:
            assert await sql.fetchval("select count(*) from work_archive where outcome = 'lost'") == 0


@pytest.mark.thorough
async def test_a_tool_that_stands_still_is_lost_and_comes_back(database: str, tmp_path: Path) -> None:
    async with a_laboratory(database, tmp_path, tools=1) as laboratory:
        [tool] = laboratory.tools
        async with laboratory.customers.at_work():
            os.kill(tool.pid, signal.SIGSTOP)
            async with steps.open_connection(database) as sql:
                await offline(sql)
            os.kill(tool.pid, signal.SIGCONT)
            await laboratory.customers.more()
        await laboratory.audit()


async def offline(sql: asyncpg.Connection) -> None:
    async with asyncio.timeout(15):
        while not await sql.fetchval("select bool_or(offline) from tools"):
            await asyncio.sleep(0.05)


async def test_backends_and_the_listener_are_killed_under_load(
    cluster: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with (
        a_laboratory(cluster.url(), tmp_path) as laboratory,
        steps.open_connection(cluster.url()) as sql,
    ):
        async with laboratory.customers.at_work():
            for _ in range(5):
                await sql.execute(END_LISTENERS)
                await laboratory.customers.more(10)
            for _ in range(3):
                await sql.execute(END_BACKEND)
                await laboratory.customers.more(10)
        await laboratory.audit()


async def test_the_postmaster_is_killed_under_load(cluster: EmbeddedPostgres, tmp_path: Path) -> None:
    async with a_laboratory(cluster.url(), tmp_path) as laboratory:
        async with laboratory.customers.at_work():
            postmaster = cluster.pid
            assert postmaster is not None
            os.kill(postmaster, signal.SIGKILL)
            await laboratory.customers.more()
        await laboratory.audit()


@pytest.mark.thorough
async def test_a_backend_that_crashes_takes_all_others_with_it(
    cluster: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with a_laboratory(cluster.url(), tmp_path) as laboratory:
        async with laboratory.customers.at_work():
            async with steps.open_connection(cluster.url()) as sql, asyncio.timeout(10):
                while (pid := await sql.fetchval(BACKENDS)) is None:
                    pass
            os.kill(pid, signal.SIGKILL)
            await laboratory.customers.more()
        await laboratory.audit()


@pytest.mark.thorough
async def test_the_way_to_the_database_goes_silent_under_load(database: str, tmp_path: Path) -> None:
    async with Proxy(database) as proxy, a_laboratory(database, tmp_path, through=proxy.url) as laboratory:
        async with laboratory.customers.at_work():
            proxy.silence()
            # Longer than the database may be silent: the service has given its connections up.
            await asyncio.sleep(4)
            proxy.restore()
            await laboratory.customers.more()
            await proxy.cut()
            await laboratory.customers.more()
        await laboratory.audit()


@pytest.mark.parametrize("how", ["it is killed", pytest.param("it is cut off", marks=pytest.mark.thorough)])
async def test_the_standby_takes_over_and_the_broker_follows(tmp_path: Path, how: str) -> None:
    with temporary_folder() as folder:
        async with (
            a_pair(folder) as pair,
            a_laboratory(pair.url, tmp_path) as laboratory,
        ):
            async with laboratory.customers.at_work():
                if how == "it is cut off":
                    # No connection is refused or ended: nothing comes through any more.
                    pair.ways[0].silence()
                await pair.fail_over()
                await laboratory.customers.more(60)
            await laboratory.audit()


@pytest.mark.parametrize(
    "page", [faults.PAGES[0], *(pytest.param(page, marks=pytest.mark.thorough) for page in faults.PAGES[1:])]
)
async def test_pages_of_a_proxy_end_no_client_and_lose_no_result(
    database: str, tmp_path: Path, page: tuple[str, str, str]
) -> None:
    async with a_laboratory(database, tmp_path, gateways=True) as laboratory:
        async with laboratory.customers.at_work():
            await faults.respond_by_itself(laboratory.gateways[0], *page)
            await laboratory.customers.more()
        await laboratory.audit()


async def test_work_with_many_reports_survives_the_death_of_its_broker(database: str, tmp_path: Path) -> None:
    kind = REPORTS if THOROUGH else REPORTS._replace(reports=30)
    async with a_laboratory(database, tmp_path, kinds=(kind,)) as laboratory:
        [broker] = laboratory.brokers
        async with laboratory.customers.at_work():
            await broker.kill()
            broker.start()
            await laboratory.customers.more()
        await laboratory.audit()
