"""`broker top`: its content, its layout, safe output, and the state of the terminal afterwards."""

import asyncio
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

import asyncpg
import httpx
import msgspec
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as some
from rich.console import Console

from broker.client import Connection
from broker.schemas.overview import Queue, QueuedKind, ToolSummary, WaitingTask, WorkSummary
from broker.schemas.stats import LastMinute, Stats, TaskCounts, ToolCounts, WorkCounts
from broker.settings import Settings
from broker.texts import one_line
from broker.top.layout import fit
from broker.top.reader import Snapshot, TopReader
from broker.top.texts import safe, span
from broker.top.view import View
from tests.conftest import Running, running_broker, temporary_database
from tests.support.api import add_running_work, add_task, add_tasks, add_tool, assign, make_key
from tests.support.processes import clean_environment
from tests.support.shared import SHARED_BROKER
from tests.support.steps import open_store

pytestmark, database, broker, sql, http = SHARED_BROKER

NOW = datetime(2026, 7, 2, 9, 30, tzinfo=UTC)
NASTY = "\x1b[2J\x1b]0;title\x07 [bold red]x[/] :smile: \u202eback\nline\ttwo \x9b31m"
HEAD = 5


# Reading


class Counting(Connection):
    """A connection that records the paths of its requests."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.calls: list[str] = []

    async def call(self, method: str, path: str, *given: Any, **named: Any) -> Any:
        self.calls.append(path)
        return await super().call(method, path, *given, **named)


@pytest_asyncio.fixture(loop_scope="module")
async def connection(broker: Running, http: httpx.AsyncClient) -> AsyncIterator[Counting]:
    async with Counting(broker.url) as connection:
        yield connection


async def report(http: httpx.AsyncClient, work: str, **fields: Any) -> None:
    response = await http.post(f"/v1/work/{work}/reports", json=fields)
    assert response.status_code == 201, response.text


def drawn(
    snapshot: Snapshot | None, *, width: int = 160, height: int | None = None, **given: Any
) -> list[str]:
    """Return the drawn lines, on a screen of this height or without a screen."""
    console = Console(file=io.StringIO(), width=width, height=height or 1000, color_system=None)
    view = View("http://127.0.0.1:8000", snapshot, on_screen=height is not None, **given)
    lines = console.render_lines(view, console.options, pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


def spaced(lines: list[str]) -> list[str]:
    """Return the lines with single spaces between words."""
    return [" ".join(line.split()) for line in lines]


def row(lines: list[str], name: str) -> str:
    """Return the line that begins with a name."""
    [matching] = [line for line in spaced(lines) if line.split(" ")[0] == name]
    return matching


async def test_each_tool_is_shown_with_its_work(http: httpx.AsyncClient, connection: Counting) -> None:
    pair = await add_running_work(http, "job-1", "xrd-1")
    await report(http, pair.work, progress=0.5, message="half way")
    await add_tool(http, "sem", capacity=2)
    await add_task(http, "job-2")
    stopping = (await assign(http, "job-2", "sem"))["id"]
    await http.post(f"/v1/work/{stopping}/cancel")
    await add_tool(http, "rests")
    lines = drawn(await TopReader(connection).read(10))
    assert row(lines, "xrd-1") == "xrd-1 idle 1/100 job-1 ━━━━━ 50% 0 s half way"
    assert row(lines, "sem") == "sem idle 1/2 job-2 0 s stop requested assigned, not started"
    assert row(lines, "rests") == "rests idle 0/1"
    assert row(lines, "Tasks") == "Tasks 0 scheduled 0 available 1 assigned 1 running 0 failed"
    assert row(lines, "Tools") == "Tools 3 idle 0 busy 0 draining 0 offline free capacity: 101"
    assert "3 tools" in lines
    assert "No task is available." in lines


async def test_the_last_message_is_shown_among_thousands_of_reports(
    http: httpx.AsyncClient, sql: asyncpg.Connection, connection: Counting
) -> None:
    work = (await add_running_work(http)).work
    await sql.execute(
        "insert into work_reports (work_id, message, data)"
        " select $1, 'message ' || number, 'null' from generate_series(1, 2500) number",
        work,
    )
    reader = TopReader(connection)

    async def message() -> str | None:
        [tool] = (await reader.read(10)).tools
        return tool.work[0].message

    assert await message() == "message 2500"
    await report(http, work, progress=0.9)
    assert await message() == "message 2500", "a report without a message removes the last one"
    for number in range(3):
        await report(http, work, message=f"new {number}")
        assert await message() == f"new {number}"


async def test_waiting_tasks_are_counted_by_needs_and_the_first_show_their_remark(
    http: httpx.AsyncClient, connection: Counting
) -> None:
    await add_tasks(http, *(f"raw-{number}" for number in range(3)), needs={"b": 1, "a": "raw"}, priority=7)
    await add_tasks(http, *(f"cif-{number}" for number in range(2)), needs={"a": "cif"})
    await http.put("/v1/tasks/raw-0/remark", json={"text": "no tool reads raw"})
    lines = drawn(await TopReader(connection).read(10))
    assert "5 tasks available: grouped by needs, and the 5 oldest" in lines
    assert {'3 7 {"a": "raw", "b": 1}', '2 0 {"a": "cif"}'} <= set(spaced(lines))
    assert row(lines, "raw-0").endswith("s no tool reads raw")
    assert "No tool is registered." in lines


async def test_many_waiting_tasks_are_all_counted_by_needs(
    http: httpx.AsyncClient, connection: Counting
) -> None:
    await add_tasks(http, *(f"n{number}" for number in range(250)), needs={"n": 1})
    snapshot = await TopReader(connection).read(10)
    lines = drawn(snapshot)
    assert "250 tasks available: grouped by needs, and the 10 oldest" in lines
    assert '250 0 {"n": 1}' in spaced(lines)
    assert [task.id for task in snapshot.waiting] == [f"n{number}" for number in range(200)]
    few = msgspec.structs.replace(snapshot.queue, counted=200, more=True)
    assert ("250 tasks available: the first 200 grouped by needs, and the 10 oldest") in drawn(
        msgspec.structs.replace(snapshot, queue=few)
    )


async def test_scheduled_tasks_are_not_listed_as_waiting(
    http: httpx.AsyncClient, connection: Counting
) -> None:
    await add_task(http, "tomorrow", not_before="2999-01-01T00:00:00Z")
    await add_task(http, "now")
    assert [task.id for task in (await TopReader(connection).read(10)).waiting] == ["now"]


async def test_the_queue_shows_when_an_assigner_last_asked(
    http: httpx.AsyncClient, sql: asyncpg.Connection, connection: Counting
) -> None:
    async def queue() -> str:
        return row(drawn(await TopReader(connection).read(10)), "Queue")

    await sql.execute("delete from assigner")
    assert await queue() == "Queue empty; no assigner has ever asked for tasks"
    await sql.execute("insert into assigner (seen_at) values (now() - interval '125 s')")
    assert re.fullmatch("Queue empty; no assigner has asked for tasks for 2 min \\d+ s", await queue())
    await sql.execute("update assigner set seen_at = now()")
    await add_task(http)
    assert await queue() == "Queue the oldest has waited for 0 s; an assigner asked for tasks 0 s ago"


async def test_a_snapshot_of_two_thousand_tools_needs_four_requests(
    sql: asyncpg.Connection, connection: Counting
) -> None:
    await sql.execute(
        "insert into tools (id, skills, capacity, load)"
        " select 'tool-' || to_char(number, 'FM0000'), '1', 9, 9 from generate_series(1, 2000) number"
    )
    await sql.execute(
        "insert into tool_leases (tool_id, lease_seconds, expires_at)"
        " select id, 60, now() + interval '1 hour' from tools"
    )
    await sql.execute(
        "insert into tasks"
        " (id, needs, payload, priority, state, max_attempts, retry_backoff_seconds)"
        " select tools.id || '-' || number, '1', '2', 0, 'available', 3, 1"
        " from tools, generate_series(1, 9) number order by tools.id, number"
    )
    await sql.execute(
        "insert into work (id, task_id, tool_id, attempt, state, started_at)"
        " select uuid7(), id, left(id, 9), 1, 'running', now() from tasks"
    )
    await sql.execute(
        "insert into work_reports (work_id, message, data) select id, task_id, 'null' from work"
    )
    reader = TopReader(connection)
    snapshot = await reader.read(40)
    assert len(connection.calls) == 4
    assert all(work.message == work.task_id for tool in snapshot.tools for work in tool.work)
    lines = drawn(snapshot, height=40)
    assert "6 of 2,000 tools" in lines
    assert len([line for line in lines if "and 5 more" in line]) == 6


async def test_the_pages_show_all_tools_once(http: httpx.AsyncClient, connection: Counting) -> None:
    ids = [f"tool-{number:02}" for number in range(25)]
    for id_ in ids:
        await add_tool(http, id_)
    reader = TopReader(connection)
    pages = []
    for _ in range(6):
        snapshot = await reader.read(20)
        shown = [tool.id for tool in fit(snapshot, 10).tools]
        pages.append((snapshot.page, shown))
        await reader.turn(len(shown))
    assert pages[-1] == pages[-2], "there is a page after the last one"
    assert [id_ for number, shown in dict(pages).items() for id_ in shown] == ids
    last, shown = pages[-1]
    assert f"{len(shown)} of 25 tools, page {last + 1}" in drawn(snapshot)
    for _ in range(6):
        reader.turn_back()
    snapshot = await reader.read(20)
    assert (snapshot.page, [tool.id for tool in snapshot.tools]) == (0, ids[:20])


async def test_the_previous_page_is_shown_if_the_tools_of_a_page_were_deleted(
    http: httpx.AsyncClient, connection: Counting
) -> None:
    for id_ in ("a", "b", "c"):
        await add_tool(http, id_)
    reader = TopReader(connection)
    await reader.read(2)
    await reader.turn(2)
    assert [tool.id for tool in (await reader.read(2)).tools] == ["c"]
    await http.delete("/v1/tools/c")
    assert [tool.id for tool in (await reader.read(2)).tools] == ["a", "b"]


# Layout


def a_snapshot(works: list[int], waiting: int = 0, *, text: str = "a text", page: int = 0) -> Snapshot:
    """Return a snapshot with tools that have this much work, with waiting tasks, and with a client's text."""
    work = WorkSummary(
        id=UUID(int=1),
        task_id="job",
        tool_id="tool",
        attempt=1,
        state="running",
        progress=0.5,
        message=text,
        cancel_requested=True,
        assigned_at=NOW,
        started_at=NOW,
        deadline_at=None,
    )
    needs = [f"{text} {number % 7}" for number in range(waiting)]
    return Snapshot(
        stats=Stats(
            at=NOW + timedelta(seconds=200),
            tasks=TaskCounts(scheduled=1, available=waiting, assigned=2, running=3, failed=4),
            tools=ToolCounts(idle=len(works), busy=0, draining=0, offline=0, room=5),
            work=WorkCounts(assigned=2, running=3, cancel_requested=1),
            last_minute=LastMinute(
                submitted=6, succeeded=7, failed=0, cancelled=0, released=0, lost=8, timed_out=9
            ),
            oldest_available_seconds=200.0,
            assigner_seen_at=NOW,
        ),
        tools=[
            ToolSummary(
                id=f"tool-{number}",
                state="idle",
                load=load,
                capacity=99,
                skills="1",
                seen_at=NOW,
                work=[work] * load,
            )
            for number, load in enumerate(works)
        ],
        page=page,
        queue=Queue(
            at=NOW,
            counted=waiting,
            more=False,
            kinds=[
                QueuedKind(
                    needs=kind, priority=0, tasks=tasks, oldest_id="task-0", oldest_at=NOW, passed_by=0
                )
                for kind, tasks in Counter(needs).most_common()
            ],
            unasked=[],
        ),
        waiting=[
            WaitingTask(
                id=f"task-{number}",
                needs=kind,
                priority=0,
                state="available",
                attempt=0,
                max_attempts=3,
                created_at=NOW,
                verdict="waiting_for_assigner",
                detail="",
                remark=text,
            )
            for number, kind in enumerate(needs)
        ],
    )


SNAPSHOTS = some.builds(a_snapshot, some.lists(some.integers(0, 9), max_size=60), some.integers(0, 100))


@given(SNAPSHOTS, some.integers(1, 80), some.integers(20, 200))
async def test_the_view_fits_the_screen(snapshot: Snapshot, height: int, width: int) -> None:
    lines = drawn(snapshot, height=height, width=width)
    assert len(lines) <= max(height, HEAD + 2)
    assert all(len(line) <= width for line in lines)


@given(SNAPSHOTS, some.integers(10, 80))
async def test_rows_that_do_not_fit_are_counted(snapshot: Snapshot, height: int) -> None:
    lines = drawn(snapshot, height=height)
    shown, total = len([line for line in lines if line.startswith("tool-")]), len(snapshot.tools)
    nouns = "tool" if total == 1 else "tools"
    expected = f"{shown} of {total} {nouns}" if shown < total else f"{total} {nouns}"
    assert (expected if total else "No tool is registered.") in lines
    waiting = len([line for line in lines if line.startswith("task-")])
    if waiting:
        number = "" if waiting == 1 else f"{waiting} "
        assert any(line.endswith(f"and the {number}oldest") for line in lines)


async def test_all_rows_are_shown_if_they_fit() -> None:
    lines = drawn(a_snapshot([0, 1, 2], 6), height=40)
    assert len([line for line in lines if line.startswith(("tool-", "task-"))]) == 9


async def test_waiting_tasks_are_visible_next_to_many_tools() -> None:
    lines = drawn(a_snapshot([1] * 100, 100), height=30)
    assert len([line for line in lines if line.startswith("task-")]) >= 2
    assert len([line for line in lines if line.startswith("tool-")]) >= 10


async def test_the_last_minute_omits_zeros_except_submitted_and_succeeded() -> None:
    lines = drawn(a_snapshot([]))
    assert "Last minute 6 submitted 7 succeeded 8 lost 9 timed out" in spaced(lines)


async def test_texts_of_clients_contain_no_control_characters_or_markup() -> None:
    snapshot = a_snapshot([1], 1, text=NASTY)
    tool = msgspec.structs.replace(snapshot.tools[0], id=NASTY)
    written = drawn(msgspec.structs.replace(snapshot, tools=[tool]), trouble=NASTY, height=30)
    assert all(line.isprintable() for line in written)
    shown = "�[2J�]0;title� [bold red]x[/] :smile: �back line two �31m"
    assert sum(shown in line for line in written) == 4  # the trouble, the message, the needs, the remark


@given(some.text() | some.text(min_size=1).map(lambda text: 1000 * text))
async def test_any_text_is_shown_as_one_printable_line(text: str) -> None:
    shown = safe(text)
    assert shown.plain.isprintable()
    assert shown.plain == one_line(text[:300])
    assert len(shown.plain) <= 300
    assert not shown.spans


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (3600, "1 h 0 min"),
        (86_399, "23 h 59 min"),
        (90_000_000, "1,041 d 16 h"),
    ],
)
async def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


# The command


async def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command without a terminal, and return its status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker.cli", "top", *arguments),
        env=clean_environment(**environment),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def test_without_a_terminal_the_command_prints_one_snapshot(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_running_work(http, "job-1", "xrd-1")
    status, output, errors = await run("--url", broker.url)
    assert (status, errors) == (0, "")
    assert output.startswith(f"broker top  {broker.url}  ")
    assert row(output.splitlines(), "xrd-1").startswith("xrd-1 idle 1/100 job-1 ")
    assert "\x1b" not in output


async def test_characters_outside_the_output_encoding_become_question_marks(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await report(http, (await add_running_work(http)).work, message="日本 ok")
    status, output, errors = await run("--url", broker.url, PYTHONIOENCODING="ascii")
    assert (status, errors) == (0, "")
    assert "?? ok" in output


def _terminal_environment(**given: str) -> dict[str, str]:
    """Return an environment without the size of the terminal, which a parallel test runner sets."""
    environment = clean_environment(TERM="xterm-256color", **given)
    return {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}


class Terminal:
    """A terminal on which the command runs, and the content of its screen.

    It is read frame by frame: each frame begins at the upper left and consists of whole lines.
    """

    def __init__(self, *arguments: str, lines: int = 24, columns: int = 100, **environment: str) -> None:
        self.keyboard, its_side = pty.openpty()
        self.resize(lines, columns)
        self.modes = termios.tcgetattr(self.keyboard)
        take_terminal = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{take_terminal} from broker.cli import main; main()", "top", *arguments],
            env=_terminal_environment(**environment),
            stdin=its_side,
            stdout=its_side,
            stderr=its_side,
            start_new_session=True,
        )
        os.close(its_side)
        self.written = ""
        os.set_blocking(self.keyboard, False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keyboard)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.keyboard, keys.encode())

    def read(self) -> None:
        try:
            while part := os.read(self.keyboard, 65_536):
                self.written += part.decode(errors="replace")
        except OSError:  # there is nothing to read, or the command has ended
            pass

    def screen(self) -> list[str]:
        """Return the lines of the last complete frame."""
        frames = re.sub(r"\x1b\[[0-9;]*m", "", self.written).split("\x1b[H")
        return frames[-2].replace("\r", "").split("\n") if len(frames) > 2 else []

    async def until(self, shows: str, within: float = 20) -> list[str]:
        """Wait until the screen shows a text, and return the screen."""
        end = time.monotonic() + within
        while shows not in "\n".join(self.screen()):
            assert self.process.poll() is None, self.written
            assert time.monotonic() < end, "\n".join(self.screen())
            await asyncio.sleep(0.01)
            self.read()
        return self.screen()

    async def ended(self, within: float = 10) -> int:
        """Wait until the command has ended and restored the terminal, and return its status."""
        async with asyncio.timeout(within):
            while (status := self.process.poll()) is None:
                await asyncio.sleep(0.01)
                self.read()
        self.read()
        assert self.is_restored()
        return status

    def is_restored(self) -> bool:
        """Return whether the terminal has its original modes, screen and cursor."""
        shown = self.written.count("\x1b[?1049h") == self.written.count("\x1b[?1049l")
        cursor = self.written.rfind("\x1b[?25h") >= self.written.rfind("\x1b[?25l")
        return shown and cursor and termios.tcgetattr(self.keyboard) == self.modes


async def test_on_a_terminal_the_view_updates_turns_pages_and_follows_the_size(
    broker: Running, http: httpx.AsyncClient
) -> None:
    for number in range(40):
        await add_tool(http, f"tool-{number:02}")
    async with Terminal("--url", broker.url, "--every", "0.1", lines=20) as terminal:
        screen = await terminal.until("12 of 40 tools")
        assert len(screen) == 20
        assert not terminal.is_restored()
        await add_task(http, "comes-later")
        await terminal.until("comes-later")
        terminal.press("n")
        screen = await terminal.until(", page 2")
        assert not [line for line in screen if line.startswith("tool-00")]
        terminal.press("p")
        await terminal.until("\ntool-00")
        terminal.resize(60, 60)
        screen = await terminal.until("\n40 tools")
        assert (len(screen), {len(line) for line in screen}) == (60, {60})
        terminal.press("q")
        assert await terminal.ended() == 0


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
async def test_a_signal_ends_the_command_and_restores_the_terminal(
    broker: Running, http: httpx.AsyncClient, number: signal.Signals, status: int
) -> None:
    async with Terminal("--url", broker.url, "--every", "0.1") as terminal:
        await terminal.until("No tool is registered.")
        if number == signal.SIGINT:
            terminal.press("\x03")
        else:
            terminal.process.send_signal(number)
        assert await terminal.ended() == status


async def test_ctrl_z_restores_the_terminal_until_the_command_continues(
    broker: Running, http: httpx.AsyncClient
) -> None:
    async with Terminal("--url", broker.url, "--every", "0.1") as terminal:
        await terminal.until("No tool is registered.")
        terminal.process.send_signal(signal.SIGTSTP)
        async with asyncio.timeout(10):
            while not terminal.is_restored():
                await asyncio.sleep(0.01)
                terminal.read()
        await add_tool(http, "new")
        terminal.process.send_signal(signal.SIGCONT)
        await terminal.until("1 tool")
        terminal.press("q")
        assert await terminal.ended() == 0


async def test_the_view_waits_for_an_unreachable_broker(database: str, http: httpx.AsyncClient) -> None:
    settings = Settings(database_url=database)
    async with running_broker(settings) as first:
        port = int(first.url.rpartition(":")[2])
        async with Terminal("--url", first.url, "--every", "0.1") as terminal:
            await terminal.until("No tool is registered.")
            await first.stop()
            screen = await terminal.until("No response for")
            assert "No tool is registered." in "\n".join(screen), "the last snapshot is gone"
            async with running_broker(settings, port=port) as second:
                await add_tool(second.client, "back-again")
                screen = await terminal.until("back-again")
                assert "No response for" not in "\n".join(screen)
            terminal.press("q")
            assert await terminal.ended() == 0


async def test_a_key_without_the_role_gets_an_error_that_names_the_roles(
    postgres: str, template: str
) -> None:
    async with temporary_database(postgres, template) as url, open_store(url) as store:
        key = await make_key(store, "mine", "submitter")
        async with running_broker(Settings(database_url=url)) as broker:
            status, output, errors = await run("--once", "--url", broker.url, BROKER_KEY=key)
            assert (status, output) == (1, "")
            expected = "This request needs a key with the role operator or admin. Your key has: submitter."
            assert expected in errors
            async with Terminal("--url", broker.url, BROKER_KEY=key) as terminal:
                assert await terminal.ended(within=20) == 1
                assert "Your key has: submitter." in terminal.written.rpartition("\x1b[?1049l")[2]
