"""The candidates cursor: it neither misses nor endlessly repeats rows, in any order of commits."""

import asyncio
import random
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from msgspec import Raw

from broker.errors import CursorExpired, ValidationFailed
from broker.postgres.cluster import EmbeddedPostgres
from broker.schemas.candidates import Candidates
from broker.schemas.tasks import TaskRemark
from broker.schemas.tools import ToolChange
from broker.store import Store, candidates, due, leases, migration, submission, tasks, tools
from broker.store.pages import seal
from tests.conftest import Serve, temporary_database
from tests.support import steps


class Reader:
    """An assigner that follows the cursor."""

    def __init__(self, store: Store, limit: int = 1000) -> None:
        self.store = store
        self.limit = limit
        self.cursor: str | None = None
        self.tasks: list[str] = []
        self.tools: list[str] = []

    async def read(self) -> Candidates:
        """Read one page."""
        page = await self.store.read(candidates.candidates, cursor=self.cursor, limit=self.limit)
        self.cursor = page.cursor
        self.tasks += [task.id for task in page.tasks]
        self.tools += [tool.id for tool in page.tools]
        return page

    async def news(self) -> tuple[list[str], list[str]]:
        """Read all pages to the end, and return the ids of the tasks and the tools."""
        ids: tuple[list[str], list[str]] = ([], [])
        async with asyncio.timeout(steps.PATIENCE_SECONDS):
            while True:
                page = await self.read()
                assert max(len(page.tasks), len(page.tools)) <= self.limit
                ids[0].extend(task.id for task in page.tasks)
                ids[1].extend(tool.id for tool in page.tools)
                if not page.more:
                    return ids


@pytest.fixture
def reader(store: Store) -> Reader:
    return Reader(store)


NOTHING: tuple[list[str], list[str]] = ([], [])


async def test_a_read_without_a_cursor_returns_everything_available(store: Store, reader: Reader) -> None:
    await steps.submit(store, "a", "b")
    await steps.submit(store, "later", not_before=datetime.now(UTC) + timedelta(hours=1))
    await steps.register(store, "t", "u", "full", "draining")
    await steps.add_assigned_work(store, "assigned", "full")
    await store.one(tools.change, tools.Change("draining", ToolChange(draining=True)))
    assert await reader.news() == (["a", "b"], ["t", "u"])


async def test_tasks_are_offered_by_priority_and_then_by_age(store: Store, reader: Reader) -> None:
    for number, priority in enumerate([0, 5, -32768, 32767, 5, 0]):
        await steps.submit(store, f"{number}", priority=priority)
    assert await reader.news() == (["3", "1", "4", "0", "5", "2"], [])


async def test_a_read_with_a_cursor_returns_only_new_rows(store: Store, reader: Reader) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t")
    await reader.news()
    assert await reader.news() == NOTHING
    await steps.submit(store, "c", "b")
    assert await reader.news() == (["c", "b"], [])
    await steps.register(store, "u")
    assert await reader.news() == ([], ["u"])
    assert await reader.news() == NOTHING


async def test_the_same_cursor_can_be_used_again(store: Store, reader: Reader) -> None:
    await reader.news()
    cursor = reader.cursor
    await steps.submit(store, "a")
    first = await reader.news()
    reader.cursor = cursor
    assert await reader.news() == first == (["a"], [])


async def test_the_next_page_continues_where_the_last_one_ended(store: Store) -> None:
    randomness = random.Random(1)
    ranks = {f"{number:03}": randomness.randrange(-3, 3) for number in range(47)}
    for id_, rank in ranks.items():
        await steps.submit(store, id_, priority=rank)
    homes = [f"tool-{number:03}" for number in range(23)]
    await steps.register(store, *homes)
    in_order = sorted(ranks, key=lambda id_: (-ranks[id_], id_))
    assert await Reader(store, limit=10).news() == (in_order, homes)
    assert await Reader(store, limit=47).news() == (in_order, homes)


async def test_new_tasks_on_several_pages_are_in_the_order_of_the_offer(store: Store) -> None:
    reader = Reader(store, limit=10)
    await steps.submit(store, *(f"old-{number}" for number in range(15)), priority=3)
    await reader.news()
    for rank in (1, 5, 3):
        await steps.submit(store, *(f"{rank}-{number:02}" for number in range(12)), priority=rank)
    ids, _ = await reader.news()
    assert ids == [f"{rank}-{number:02}" for rank in (5, 3, 1) for number in range(12)]
    assert await reader.news() == NOTHING


@pytest.mark.parametrize("count", [9, 10, 11, 20, 21])
@pytest.mark.parametrize("new", [True, False])
async def test_a_read_around_the_size_of_a_page_returns_each_task_once(
    store: Store, count: int, new: bool
) -> None:
    reader = Reader(store, limit=10)
    if new:
        await reader.news()
    ids = [f"{number:02}" for number in range(count)]
    await steps.submit(store, *ids)
    assert await reader.news() == (ids, [])
    assert await reader.news() == NOTHING


async def test_a_task_that_sorts_before_the_position_is_in_the_next_read(store: Store) -> None:
    reader = Reader(store, limit=10)
    await steps.submit(store, *(f"{number:02}" for number in range(25)))
    await reader.read()
    await steps.submit(store, "urgent", priority=1)
    rest = (await reader.news())[0]
    assert "urgent" not in rest
    assert await reader.news() == (["urgent"], [])


@pytest.mark.parametrize("new", [True, False])
async def test_rows_written_during_a_long_read_are_returned_once(store: Store, new: bool) -> None:
    reader = Reader(store, limit=10)
    if new:
        await reader.news()
    before = [f"a-{number:02}" for number in range(25)]
    await steps.submit(store, *before)
    await reader.read()
    await steps.submit(store, "b")
    await steps.register(store, "tool")
    assert (await reader.news()) == (before[10:], [])
    assert await reader.news() == (["b"], ["tool"])
    assert await reader.news() == NOTHING


async def test_a_task_that_becomes_available_again_is_returned_again(
    store: Store, reader: Reader, sql: asyncpg.Connection
) -> None:
    await steps.register(store, "t")
    await steps.submit(store, "a", retry_backoff_seconds=100)
    await reader.news()
    for outcome in ("released", "failed"):
        [made] = await steps.assign_all(store, ("a", "t"))
        assert await reader.news() == NOTHING
        await steps.complete(store, made.id, outcome)
        if outcome == "failed":
            assert await reader.news() == ([], ["t"])
            await sql.execute("update tasks set due_at = now()")
            await store.run(due.make_available, 10)
            assert await reader.news() == (["a"], [])
        else:
            assert await reader.news() == (["a"], ["t"])
    assert await reader.news() == NOTHING


async def test_a_tool_that_changes_while_it_is_available_is_returned_again(
    store: Store, reader: Reader
) -> None:
    await steps.register(store, "t", capacity=2)
    await reader.news()
    for change in (
        ToolChange(skills=Raw(b"[1]")),
        ToolChange(capacity=3),
        ToolChange(draining=False),
    ):
        await store.one(tools.change, tools.Change("t", change))
        assert await reader.news() == ([], ["t"])
    await steps.submit(store, "a")
    await steps.assign_all(store, ("a", "t"))
    assert (await reader.news())[1] == ["t"]
    await store.one(tools.change, tools.Change("t", ToolChange(draining=True)))
    assert await reader.news() == NOTHING
    await store.one(tools.change, tools.Change("t", ToolChange(draining=False)))
    assert await reader.news() == ([], ["t"])


async def test_remarks_and_lease_renewals_are_no_change(store: Store, reader: Reader) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t")
    await reader.news()
    await store.many(tasks.remark, [TaskRemark(task_id="a", text="no room")])
    await store.many(leases.heartbeat, [leases.Beat("t")])
    assert await reader.news() == NOTHING


async def test_a_task_is_returned_after_its_transaction_commits(store: Store, reader: Reader) -> None:
    async with steps.OpenTransaction(store) as late:
        await late.run(submission.submit, [steps.new_task("late")])
        await steps.submit(store, "early")
        assert await reader.news() == (["early"], [])
        for _ in range(10):
            assert await reader.news() == NOTHING
        await steps.submit(store, "between")
        assert await reader.news() == (["between"], [])
    assert await reader.news() == (["late"], [])
    assert await reader.news() == NOTHING


async def test_a_rolled_back_task_is_never_returned(store: Store, reader: Reader) -> None:
    given_up = steps.OpenTransaction(store)
    await (await given_up.begin()).run(submission.submit, [steps.new_task("never")])
    assert await reader.news() == NOTHING
    await given_up.roll_back()
    assert await reader.news() == NOTHING


async def test_a_task_that_commits_during_a_read_is_not_missed(store: Store) -> None:
    reader = Reader(store, limit=10)
    await reader.news()
    async with steps.OpenTransaction(store) as late:
        await late.run(submission.submit, [steps.new_task("late", priority=9)])
        await steps.submit(store, *(f"{number:02}" for number in range(25)))
        await reader.read()
    await reader.news()
    assert "late" not in reader.tasks
    assert await reader.news() == (["late"], [])
    assert await reader.news() == NOTHING


async def test_an_open_transaction_of_another_session_neither_hides_nor_repeats_rows(
    store: Store, reader: Reader, sql: asyncpg.Connection
) -> None:
    async with sql.transaction():
        await sql.execute("select pg_current_xact_id()")
        for number in range(5):
            await steps.submit(store, f"{number}")
            assert await reader.news() == ([f"{number}"], [])
            assert await reader.news() == NOTHING


@pytest.mark.parametrize("limit", [1000, 7])
async def test_a_reader_of_eight_writers_gets_everything_at_most_twice(
    database: str, sql: asyncpg.Connection, limit: int
) -> None:
    async with steps.open_store(database, pool_size=12) as store:
        reader = Reader(store, limit)
        commits = 0
        readings = 0
        news = 0

        async def write(writer: int) -> None:
            nonlocal commits
            for number in range(25):
                await steps.submit(
                    store, *(f"{writer}-{number}-{part}" for part in range(4)), priority=writer
                )
                commits += 1

        async def follow(writers: "asyncio.Future[object]") -> None:
            nonlocal readings, news
            while not writers.done():
                readings += 1
                news += bool((await reader.news())[0])

        async with steps.OpenTransaction(store) as late:
            await late.run(submission.submit, [steps.new_task("late-1"), steps.new_task("late-2")])
            writers = asyncio.gather(*(write(writer) for writer in range(8)))
            await follow(writers)
            await writers
            await reader.news()
            # Only the long transaction is open now.
            for _ in range(10):
                assert await reader.news() == NOTHING
        assert sorted((await reader.news())[0]) == ["late-1", "late-2"]
        assert await reader.news() == NOTHING
        everything = {row["id"] for row in await sql.fetch("select id from tasks")}
        assert set(reader.tasks) == everything
        assert commits == 200
        # A read may return a task that commits during the read, and so may the next one.
        assert news <= 2 * commits
        assert max(reader.tasks.count(id_) for id_ in everything) <= 2
        assert readings > 1
        await steps.check_invariants(sql)


class Interleaving:
    """Transactions that begin and end in any order next to a reader, and the ids that it must still get."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.randomness = random.Random(seed)
        self.reader = Reader(store, limit=self.randomness.choice([1, 2, 3, 5, 1000]))
        self.writers: list[tuple[steps.OpenTransaction, set[str]]] = []
        self.at_work: dict[str, UUID] = {}
        self.available: set[str] = set()
        self.owed: set[str] = set()
        self.moves = [self.begin, self.begin, self.commit, self.roll_back, self.assign, self.release]
        self.moves += [self.look, self.look]

    async def move(self) -> None:
        await self.randomness.choice(self.moves)()

    async def begin(self) -> None:
        if len(self.writers) < 5:
            writer = steps.OpenTransaction(self.store)
            new = [
                steps.new_task(priority=self.randomness.randrange(-2, 3))
                for _ in range(self.randomness.randrange(1, 4))
            ]
            written = await (await writer.begin()).run(submission.submit, new)
            self.writers.append((writer, {task.id for task, _ in written}))

    async def commit(self) -> None:
        if self.writers:
            writer, new = self.writers.pop(self.randomness.randrange(len(self.writers)))
            await writer.commit()
            self.available |= new
            self.owed |= new

    async def roll_back(self) -> None:
        if self.writers:
            writer, _ = self.writers.pop(self.randomness.randrange(len(self.writers)))
            await writer.roll_back()

    async def assign(self) -> None:
        if self.available:
            id_ = self.randomness.choice(sorted(self.available))
            [made] = await steps.assign_all(self.store, (id_, "t"))
            self.at_work[id_] = made.id
            self.available.discard(id_)
            self.owed.discard(id_)

    async def release(self) -> None:
        if self.at_work:
            id_, work_id = self.at_work.popitem()
            await steps.complete(self.store, work_id, "released")
            self.available.add(id_)
            self.owed.add(id_)

    async def look(self) -> bool:
        page = await self.reader.read()
        ids = {task.id for task in page.tasks}
        assert ids <= self.available
        self.owed -= ids
        return page.more

    async def end(self) -> None:
        while self.writers:
            await self.commit()
        # Finish the current read, and then read once more. After that, nothing may be left.
        for _ in range(2):
            while await self.look():
                pass


@pytest.mark.parametrize("seed", range(12))
async def test_no_interleaving_hides_an_available_task(
    store: Store, sql: asyncpg.Connection, seed: int
) -> None:
    await steps.register(store, "t", capacity=1000)
    interleaving = Interleaving(store, seed)
    for _ in range(120):
        await interleaving.move()
    await interleaving.end()
    assert interleaving.owed == set()
    assert await interleaving.reader.news() == NOTHING
    assert set((await Reader(store).news())[0]) == interleaving.available
    await steps.check_invariants(sql)


async def test_the_cursor_of_another_database_is_expired(store: Store, postgres: str, template: str) -> None:
    async with temporary_database(postgres, template) as url, steps.open_store(url) as other:
        page = await other.run(candidates.candidates, cursor=None, limit=10)
    with pytest.raises(CursorExpired):
        await store.run(candidates.candidates, cursor=page.cursor, limit=10)


async def test_a_cursor_stays_valid_after_vacuum(
    reader: Reader, store: Store, sql: asyncpg.Connection
) -> None:
    await reader.news()
    await sql.execute("vacuum analyze tasks, tools")
    await steps.submit(store, "a")
    assert await reader.news() == (["a"], [])


@pytest.mark.parametrize("cursor", ["x", "!!!!", "AAAA", seal(17), seal(["home", 1]), "é", "a" * 500])
async def test_a_damaged_cursor_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(ValidationFailed):
        await store.run(candidates.candidates, cursor=cursor, limit=10)


async def test_rows_from_a_dump_of_a_database_with_a_longer_history_are_returned_once(
    reader: Reader, store: Store, sql: asyncpg.Connection
) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t")
    # pg_dump copies the columns unchanged, but a new cluster counts its transactions from the start.
    await sql.execute("update tasks set changed = cast('99999999' as xid8)")
    await sql.execute("update tools set changed = cast('99999999' as xid8)")
    assert await reader.news() == (["a"], ["t"])
    assert await reader.news() == NOTHING


@pytest.mark.parametrize(("restored", "times"), [(False, 2), (True, 1)], ids=["by hand", "by broker restore"])
async def test_rows_from_a_dump_are_returned_at_most_once_more_when_this_history_reaches_their_ids(
    reader: Reader, store: Store, sql: asyncpg.Connection, database: str, restored: bool, times: int
) -> None:
    await steps.submit(store, "a")
    await steps.register(store, "t")
    soon = "cast(cast(cast(cast(changed as text) as bigint) + 30 as text) as xid8)"
    await sql.execute(f"update tasks set changed = {soon}")
    await sql.execute("update tools set changed = (select changed from tasks)")
    if restored:
        await migration.finish_restore(database)
    readings = [await reader.news()]
    for _ in range(40):
        await sql.execute("select pg_current_xact_id()")
        readings.append(await reader.news())
    assert [each for each in readings if each != NOTHING] == [(["a"], ["t"])] * times
    assert readings[0] != NOTHING


async def test_a_cursor_expires_when_a_copy_of_the_database_files_is_restored(data_dir: Path) -> None:
    """Otherwise the broker would mistake new rows for rows of the lost history."""
    postgres = EmbeddedPostgres(data_dir, durable=False)
    with postgres:
        await migration.migrate(postgres.url())
    copy = data_dir.with_name("copy")
    await asyncio.to_thread(subprocess.run, ["cp", "-a", data_dir, copy], check=True)
    with postgres:
        async with steps.open_store(postgres.url()) as store:
            await steps.submit(store, "lost")
            page = await store.run(candidates.candidates, cursor=None, limit=10)
            assert [task.id for task in page.tasks] == ["lost"]
    await asyncio.to_thread(data_dir.rename, data_dir.with_name("lost"))
    await asyncio.to_thread(copy.rename, data_dir)
    with postgres:
        async with steps.open_store(postgres.url()) as store:
            await steps.submit(store, "new")
            with pytest.raises(CursorExpired):
                await store.run(candidates.candidates, cursor=page.cursor, limit=10)


async def test_a_waiting_reader_on_its_last_page_gets_a_task_that_sorts_before_its_position(
    serve: Serve, store: Store
) -> None:
    broker = await serve()
    await steps.submit(store, "a", "b", "c")
    await steps.register(store, "t")
    first = (await broker.client.get("/v1/candidates", params={"limit": 2})).json()
    assert (len(first["tasks"]), first["more"]) == (2, True)
    # Another assigner gets the only task of the second page.
    await steps.assign_all(store, ("c", "t"))
    waiting = asyncio.create_task(
        broker.client.get("/v1/candidates", params={"cursor": first["cursor"], "limit": 2, "wait": 5})
    )
    await steps.wait_for_long_polls(broker, 1)
    await steps.submit(store, "urgent", priority=1)
    page = (await waiting).json()
    assert [task["id"] for task in page["tasks"]] == ["urgent"]
