"""`broker archive export`: the archive, whole or not at all."""

import asyncio
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from click.testing import CliRunner

from broker.api import archive as archive_api
from broker.cli import main
from broker.errors import Unavailable
from broker.store import archive
from tests.conftest import Running
from tests.support.api import add_task, add_tool, assign, complete_work, get
from tests.support.cli import run, running
from tests.support.processes import clean_environment, names_in
from tests.support.proxy import Proxy
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER


async def end_some(http: httpx.AsyncClient, count: int = 3, **fields: Any) -> None:
    await add_tool(http, capacity=100)
    for number in range(count):
        await add_task(http, f"task-{number}", **fields)
        work = (await assign(http, f"task-{number}"))["id"]
        await complete_work(http, work, "failed" if number % 2 else "succeeded", retry=False)


def breaks_off(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Have the broker send a record at a time, and stop after so many."""
    monkeypatch.setattr(archive_api, "_PORTION", 1)
    page, left = archive.page, after

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if not left:
            raise Unavailable
        left -= 1
        return page(*args, **kwargs)

    monkeypatch.setattr(archive, "page", broken)


async def test_every_record_is_a_line_as_the_api_has_it(broker: Running, http: httpx.AsyncClient) -> None:
    digits = "[1.10, 123456789012345678901234567890]"
    await http.post("/v1/tasks", content=f'{{"id": "exact", "needs": 1, "payload": {digits}}}')
    await http.delete("/v1/tasks/exact")
    await end_some(http)
    told = await run(broker.url, "archive", "export")
    assert told.status == 0
    assert told.err == ""
    listed = (await get(http, "/v1/archive"))["items"]
    assert [json.loads(line) for line in told.out.splitlines()] == listed
    assert digits in told.out


async def test_an_empty_archive_is_no_lines(broker: Running, http: httpx.AsyncClient) -> None:
    assert await run(broker.url, "archive", "export") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "tasks"),
    [
        (["--task-id", "task-1"], ["task-1"]),
        (["--tool-id", "t", "--outcome", "succeeded"], ["task-2", "task-0"]),
        (["--since", "2h"], ["task-2", "task-1"]),
        (["--until", "2h"], ["task-0"]),
        (["--since", "1.5d", "--until", "90m"], ["task-0"]),
        (["--until", "2020-01-01"], []),
    ],
)
async def test_records_are_chosen_by_what_and_when(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, arguments: list[str], tasks: list[str]
) -> None:
    await end_some(http)
    await sql.execute("update work_archive set ended_at = now() - interval '1 day' where task_id = 'task-0'")
    told = await run(broker.url, "archive", "export", *arguments)
    assert [json.loads(line)["task_id"] for line in told.out.splitlines()] == tasks


async def test_a_date_begins_at_midnight_here(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await end_some(http, 1)
    await sql.execute("update work_archive set ended_at = '2026-07-01T23:30:00Z'")
    for zone, found in (("Europe/Paris", 1), ("UTC", 0)):
        told = await run(broker.url, "archive", "export", "--since", "2026-07-02", TZ=zone)
        assert len(told.out.splitlines()) == found


@pytest.mark.parametrize("time", ["yesterday", "2h30", "99999999999d", "0001-01-01", "-1h", ""])
async def test_what_is_no_time_is_refused(time: str) -> None:
    told = CliRunner().invoke(main, ["archive", "export", "--since", time])
    assert told.exit_code == 2
    assert "is no time: give one like" in told.stderr


async def test_a_file_is_written_and_not_overwritten_unless_it_is_wanted(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await end_some(http)
    file = tmp_path / "archive.ndjson"
    told = await run(broker.url, "archive", "export", "-o", str(file))
    assert (told.status, told.out) == (0, "")
    assert told.err.startswith("3 records (")
    whole = file.read_text()
    assert len(whole.splitlines()) == 3
    told = await run(broker.url, "archive", "export", "-o", str(file), "--task-id", "task-1")
    assert told.status == 1
    assert "--force" in told.err
    assert file.read_text() == whole
    told = await run(broker.url, "archive", "export", "-o", str(file), "--task-id", "task-1", "--force")
    assert told.status == 0
    assert len(file.read_text().splitlines()) == 1
    assert names_in(tmp_path) == ["archive.ndjson"]


@pytest.mark.parametrize("place", ["missing/a", "file/a", "."])
async def test_a_file_that_cannot_be_is_refused(broker: Running, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    told = await run(broker.url, "archive", "export", "-o", str(tmp_path / place))
    assert told.status in (1, 2)
    assert str(tmp_path) in told.err


async def test_no_device_is_replaced_by_a_file(broker: Running) -> None:
    told = await run(broker.url, "archive", "export", "-o", "/dev/null", "--force")
    assert told.status == 1
    assert await asyncio.to_thread(Path("/dev/null").is_char_device)


async def test_an_export_that_breaks_off_leaves_no_file_and_is_an_error(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await end_some(http)
    breaks_off(monkeypatch, after=2)
    told = await run(broker.url, "archive", "export", "-o", str(tmp_path / "archive.ndjson"))
    assert told.status == 1
    assert told.err.startswith("Error: The export broke off after 2 records (")
    assert names_in(tmp_path) == []


async def test_what_was_read_before_it_broke_off_is_no_success(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await end_some(http)
    breaks_off(monkeypatch, after=2)
    told = await run(broker.url, "archive", "export")
    assert told.status == 1
    assert len(told.out.splitlines()) == 2


async def test_told_to_stop_it_leaves_nothing_behind(broker: Running, tmp_path: Path) -> None:
    async with Proxy(broker.url) as proxy:
        proxy.silence()
        url = f"http://127.0.0.1:{proxy.port}"
        async with running(url, "archive", "export", "-o", str(tmp_path / "archive.ndjson")) as process:
            async with asyncio.timeout(20):
                # By then it handles the signal.
                while not proxy.is_connected:
                    await asyncio.sleep(0.01)
                assert names_in(tmp_path) != []
                process.send_signal(signal.SIGTERM)
                _, err = await process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert err == b""
    assert names_in(tmp_path) == []


async def test_a_reader_that_has_enough_ends_it_quietly(broker: Running, http: httpx.AsyncClient) -> None:
    # More than a pipe takes.
    await end_some(http, 3, payload="x" * 100_000)
    command = f"{shlex.quote(sys.executable)} -m broker.cli archive export | head -c 10"
    process = await asyncio.create_subprocess_shell(
        command,
        env=clean_environment(BROKER_URL=broker.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert out == b'{"work_id"'
    assert err == b""


async def test_a_broker_that_is_away_is_told() -> None:
    told = await run("http://127.0.0.1:9", "archive", "export")
    assert told.status == 1
    assert "No broker answers at http://127.0.0.1:9" in told.err
