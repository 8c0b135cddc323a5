"""Upgrades: the previous version keeps working during the migration, and next to the new version.

The tests cover up to two upgrades. One is from this version to a made-up next version, whose migration is
typical: it adds columns and an index to tables in use. The other one is from the version before the newest
migration to this version. It exists once there is a migration after 0001.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests import ROOT
from tests.support.api import Json, add_tool, assign, complete, get
from tests.support.engines import requires_program
from tests.support.next_version import add_migration, copy_sources, migrations_in
from tests.support.processes import clean_environment, free_port, wait_until_ready
from tests.support.shared import THOROUGH

pytestmark = requires_program("git")

# The number of tasks to process after the migration.
TASKS = 200 if THOROUGH else 30

MADE_UP_MIGRATION = (
    "alter table tasks add column made_up text",
    "alter table work add column made_up integer not null default 0",
    "alter table work_archive add column made_up text",
    "create index tasks_made_up on tasks (made_up)",
)
UPGRADES = ["to a made-up version", "to this version"]


class Upgrade(NamedTuple):
    """The sources of two versions: folders with `src` and `migrations`."""

    before: Path
    after: Path


@pytest.fixture(scope="module", params=UPGRADES if len(migrations_in(ROOT)) > 1 else UPGRADES[:1])
def upgrade(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Upgrade:
    after = ROOT
    if request.param == "to a made-up version":
        after = tmp_path_factory.mktemp("after")
        make_next_version(after)
    newest = migrations_in(after)[-1]
    commit = commit_before(newest, after)
    if commit is None:
        pytest.skip("this checkout has no history with the previous version")
    before = tmp_path_factory.mktemp("before")
    archive = git(after, "archive", commit, "src", "migrations")
    subprocess.run(("tar", "-x", "-C", str(before)), input=archive, check=True)
    if request.param == "to a made-up version":
        # This keeps their times and bytecode, which saves a second for compilation.
        copy_sources(before, "src")
    return Upgrade(before, after)


def make_next_version(folder: Path) -> None:
    """Make a repository with two commits: this version, and the migration of a made-up next version."""
    copy_sources(folder, "src", "migrations")
    git(folder, "init", "--quiet")
    commit(folder, "this version")
    add_migration(folder, *MADE_UP_MIGRATION)
    commit(folder, "the next version")


def commit(checkout: Path, message: str) -> None:
    """Commit all files of a checkout."""
    git(checkout, "add", "--all", "--force")
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    git(checkout, *author, "commit", "--quiet", "--no-verify", "--message", message)


def commit_before(file: Path, checkout: Path) -> str | None:
    """Return the last commit without a file, or None if the history does not go back to it."""
    try:
        added = git(checkout, "log", "--diff-filter=A", "--format=%H %P", "-1", "--", str(file))
    except subprocess.CalledProcessError:
        return None
    if not added:  # It is not committed yet.
        return "HEAD"
    _, *parents = added.decode().split()
    return parents[0] if parents else None


def git(checkout: Path, *arguments: str) -> bytes:
    """Run git in a checkout, and return its output."""
    # Within a hook, git's own variables name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        ("git", *arguments), cwd=checkout, env=environment, capture_output=True, check=True
    ).stdout


@contextmanager
def broker_of(folder: Path, database: str) -> Iterator[str]:
    """Run a service from the sources in a folder, and yield its URL."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "broker.cli", "serve", "--port", str(port)],
        env=clean_environment(PYTHONPATH=str(folder / "src"), BROKER_DATABASE_URL=database),
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
        env=clean_environment(PYTHONPATH=str(folder / "src"), BROKER_DATABASE_URL=database),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    [version] = re.findall(r"version (\d+)", output.decode())
    return str(version)


@asynccontextmanager
async def processing(url: str, name: str) -> AsyncIterator[list[str]]:
    """Process tasks from submission to completion, one by one, and yield the list of finished tasks."""
    finished: list[str] = []

    async def live() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            await add_tool(http, name)
            while True:
                await process_task(http, f"{name}-{len(finished)}", name)
                finished.append(f"{name}-{len(finished)}")

    living = asyncio.create_task(live())
    try:
        yield finished
        assert not living.done(), living.result()
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)


async def process_task(http: httpx.AsyncClient, task: str, tool: str) -> None:
    made = await http.post("/v1/tasks", json={"id": task, "needs": {}, "payload": {"n": 1}})
    assert made.status_code == 201, made.text
    work: Json = await assign(http, task, tool)
    waiting = await get(http, f"/v1/tools/{tool}/work", wait=10)
    assert [item["id"] for item in waiting["items"]] == [work["id"]]
    reported = await http.post(f"/v1/work/{work['id']}/reports", json={"progress": 0.5})
    assert reported.status_code == 201, reported.text
    assert (await complete(http, work["id"], result=task)).status_code == 200


async def wait_for_tasks(finished: list[str], by: int) -> None:
    """Wait until this number of further tasks has finished."""
    goal = len(finished) + by
    async with asyncio.timeout(60):
        while len(finished) < goal:
            await asyncio.sleep(0.01)


async def test_the_previous_version_keeps_working_during_a_migration_and_can_restart(
    upgrade: Upgrade, empty_database: str
) -> None:
    old = await migrate_with(upgrade.before, empty_database)
    with broker_of(upgrade.before, empty_database) as url:
        await wait_until_ready(url)
        async with processing(url, "old") as finished:
            await wait_for_tasks(finished, 20)
            assert await migrate_with(upgrade.after, empty_database) > old
            await wait_for_tasks(finished, TASKS)
            with broker_of(upgrade.after, empty_database) as new_url:
                await wait_until_ready(new_url)
                # Both versions process the same tasks.
                async with processing(new_url, "new") as finished_by_new:
                    await wait_for_tasks(finished_by_new, 20)
                    await wait_for_tasks(finished, 20)
        async with httpx.AsyncClient(base_url=url) as http:
            for task in finished:
                assert (await get(http, f"/v1/tasks/{task}"))["state"] == "succeeded"
            assert (await http.get("/health/ready")).status_code == 200
    with broker_of(upgrade.before, empty_database) as url:
        await wait_until_ready(url)
