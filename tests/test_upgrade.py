"""An upgrade under way: the version before goes on while the schema is migrated, and beside the new one."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from broker.store import migration
from tests.engines import free_port
from tests.helpers import THOROUGH, Json, add_tool, an_environment, assign, complete, get, until_ready

ROOT = Path(__file__).parents[1]
# How many tasks live on after the migration.
TASKS = 200 if THOROUGH else 50


def newest_migration() -> Path:
    return max((ROOT / "migrations" / "versions").glob("[0-9]*.py"))


def commit_before(file: Path) -> str | None:
    """The last commit that had no such file; None: this is no checkout that remembers."""
    command = ("git", "log", "--diff-filter=A", "--format=%P", "-1", "--", str(file))
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.split()[0] if found.returncode == 0 and found.stdout.strip() else None


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the version before: that of the last schema but one."""
    commit = commit_before(newest_migration())
    if commit is None:
        pytest.skip("there is no history here to take the version before from")
    folder = tmp_path_factory.mktemp("before")
    archive = subprocess.run(
        ("git", "archive", commit, "src", "migrations"), cwd=ROOT, capture_output=True, check=True
    )
    subprocess.run(("tar", "-x", "-C", str(folder)), input=archive.stdout, check=True)
    return folder


@contextmanager
def broker_of(folder: Path, database: str) -> Iterator[str]:
    """A service made of the sources in a folder; its URL."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "broker.cli", "serve", "--port", str(port)],
        env=an_environment(PYTHONPATH=str(folder / "src"), BROKER_DATABASE_URL=database),
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


async def migrate_with(folder: Path, database: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker.cli", "migrate"),
        env=an_environment(PYTHONPATH=str(folder / "src"), BROKER_DATABASE_URL=database),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    [version] = re.findall(r"version (\d+)", told.decode())
    return str(version)


@asynccontextmanager
async def a_life_after_the_other(url: str, name: str) -> AsyncIterator[list[str]]:
    """Tasks that go through all of their lives, without a break; those that are through."""
    through: list[str] = []

    async def live() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            await add_tool(http, name)
            while True:
                await one_life(http, f"{name}-{len(through)}", name)
                through.append(f"{name}-{len(through)}")

    living = asyncio.create_task(live())
    try:
        yield through
        assert not living.done(), living.result()
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)


async def one_life(http: httpx.AsyncClient, task: str, tool: str) -> None:
    made = await http.post("/v1/tasks", json={"id": task, "needs": {}, "payload": {"n": 1}})
    assert made.status_code == 201, made.text
    work: Json = await assign(http, task, tool)
    waiting = await get(http, f"/v1/tools/{tool}/work", wait=10)
    assert [item["id"] for item in waiting["items"]] == [work["id"]]
    told = await http.post(f"/v1/work/{work['id']}/reports", json={"progress": 0.5})
    assert told.status_code == 201, told.text
    assert (await complete(http, work["id"], result=task)).status_code == 200


async def grows(through: list[str], by: int) -> None:
    """Return when so many more are through."""
    goal = len(through) + by
    async with asyncio.timeout(60):
        while len(through) < goal:
            await asyncio.sleep(0.01)


async def test_the_version_before_goes_on_while_the_schema_is_migrated(
    before: Path, empty_database: str
) -> None:
    old = await migrate_with(before, empty_database)
    assert old < migration.needed()
    with broker_of(before, empty_database) as url:
        await until_ready(url)
        async with a_life_after_the_other(url, "old") as through:
            await grows(through, 20)
            assert await migrate_with(ROOT, empty_database) == migration.needed()
            await grows(through, TASKS)
            with broker_of(ROOT, empty_database) as new_url:
                await until_ready(new_url)
                # A task goes through the hands of both.
                async with a_life_after_the_other(new_url, "new") as too:
                    await grows(too, 20)
                    await grows(through, 20)
        async with httpx.AsyncClient(base_url=url) as http:
            for task in through:
                assert (await get(http, f"/v1/tasks/{task}"))["state"] == "succeeded"
            if old >= "0010":
                # It knows that it may go on; before that, it asked for its own schema and no other.
                assert (await http.get("/health/ready")).status_code == 200


async def test_the_version_before_can_be_started_again_after_that(before: Path, empty_database: str) -> None:
    if await migrate_with(before, empty_database) < "0010":
        pytest.skip("the version before asks for its own schema and no other")
    await migrate_with(ROOT, empty_database)
    with broker_of(before, empty_database) as url:
        await until_ready(url)
