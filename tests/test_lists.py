"""A hot standby takes the reading of lists off the database, and nothing depends on it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.settings import Settings
from tests.conftest import Running, a_broker
from tests.crash.pair import Pair, a_pair
from tests.helpers import add_task, completed, get, ids, started
from tests.store_helpers import until


@asynccontextmanager
async def beside_a_copy(folder: Path) -> AsyncIterator[tuple[Running, Pair]]:
    async with a_pair(folder) as pair:
        # What is acknowledged waits for the standby, which is to stand still here.
        pair.primary.sql("alter system set synchronous_standby_names = ''")
        pair.primary.sql("select pg_reload_conf()")
        settings = Settings(database_url=pair.primary.url, read_url=pair.standby.url)
        async with a_broker(settings) as broker:
            yield broker, pair


@pytest.fixture
def folder(data_dir: Path) -> Path:
    return data_dir.parent


async def test_lists_are_the_copys_and_all_else_is_not(folder: Path) -> None:
    async with beside_a_copy(folder) as (broker, pair):
        http = broker.client
        pair.standby.sql("select pg_wal_replay_pause()")
        ended = await started(http, "ended")
        await completed(http, ended.work)
        await add_task(http, "waits")
        lists = ("/v1/tasks", "/v1/archive", "/v1/overview/timeline")
        for path in lists:
            found = await get(http, path)
            assert (found.get("items") or found.get("attempts") or []) == [], path
        assert (await http.get("/v1/archive/export")).text == ""
        # What somebody asks for by its id is there at once, and so is what assigners and tools live on.
        assert (await get(http, "/v1/tasks/waits"))["state"] == "available"
        assert (await get(http, f"/v1/archive/{ended.work}"))["outcome"] == "succeeded"
        assert ids((await get(http, "/v1/candidates"))["tasks"]) == ["waits"]
        pair.standby.sql("select pg_wal_replay_resume()")

        async def all_there() -> bool:
            tasks = ids((await get(http, "/v1/tasks"))["items"])
            records = ids((await get(http, "/v1/archive"))["items"], "task_id")
            return (tasks, records) == (["waits"], ["ended"])

        await until(all_there)


async def test_without_the_copy_the_database_itself_is_read(folder: Path) -> None:
    async with beside_a_copy(folder) as (broker, pair):
        http = broker.client
        await add_task(http, "waits")
        await pair.standby.kill()
        assert ids((await get(http, "/v1/tasks"))["items"]) == ["waits"]
        assert broker.server.service.lists.missed == 1
