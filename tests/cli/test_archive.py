"""`broker archive export`: complete exports, filters, and errors."""

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


async def end_tasks(http: httpx.AsyncClient, count: int = 3, **fields: Any) -> None:
    await add_tool(http, capacity=100)
    for number in range(count):
        await add_task(http, f"task-{number}", **fields)
        work = (await assign(http, f"task-{number}"))["id"]
        await complete_work(http, work, "failed" if number % 2 else "succeeded", retry=False)


def fail_export(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Let the broker send one record at a time, and fail after a number of records."""
    monkeypatch.setattr(archive_api, "_PORTION", 1)
    page, left = archive.page, after

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if not left:
            raise Unavailable
        left -= 1
        return page(*args, **kwargs)

    monkeypatch.setattr(archive, "page", broken)


async def test_export_writes_each_record_as_a_line_of_json(broker: Running, http: httpx.AsyncClient) -> None:
    digits = "[1.10, 123456789012345678901234567890]"
    await http.post("/v1/tasks", content=f'{{"id": "exact", "needs": 1, "payload": {digits}}}')
    await http.delete("/v1/tasks/exact")
    await end_tasks(http)
    result = await run(broker.url, "archive", "export")
    assert result.status == 0
    assert result.err == ""
    listed = (await get(http, "/v1/archive"))["items"]
    assert [json.loads(line) for line in result.out.splitlines()] == listed
    assert digits in result.out


async def test_export_of_an_empty_archive_writes_nothing(broker: Running, http: httpx.AsyncClient) -> None:
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
async def test_options_filter_the_exported_records(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, arguments: list[str], tasks: list[str]
) -> None:
    await end_tasks(http)
    await sql.execute("update work_archive set ended_at = now() - interval '1 day' where task_id = 'task-0'")
    result = await run(broker.url, "archive", "export", *arguments)
    assert [json.loads(line)["task_id"] for line in result.out.splitlines()] == tasks


async def test_date_means_midnight_in_the_local_time_zone(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await end_tasks(http, 1)
    await sql.execute("update work_archive set ended_at = '2026-07-01T23:30:00Z'")
    for zone, number in (("Europe/Paris", 1), ("UTC", 0)):
        result = await run(broker.url, "archive", "export", "--since", "2026-07-02", TZ=zone)
        assert len(result.out.splitlines()) == number


@pytest.mark.parametrize("time", ["yesterday", "2h30", "99999999999d", "0001-01-01", "-1h", ""])
async def test_invalid_time_is_refused(time: str) -> None:
    result = CliRunner().invoke(main, ["archive", "export", "--since", time])
    assert result.exit_code == 2
    assert "is not a time. Examples: " in result.stderr


async def test_export_replaces_an_existing_file_only_with_force(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await end_tasks(http)
    file = tmp_path / "archive.ndjson"
    result = await run(broker.url, "archive", "export", "-o", str(file))
    assert (result.status, result.out) == (0, "")
    assert result.err.startswith("3 records (")
    content = file.read_text()
    assert len(content.splitlines()) == 3
    result = await run(broker.url, "archive", "export", "-o", str(file), "--task-id", "task-1")
    assert result.status == 1
    assert "--force" in result.err
    assert file.read_text() == content
    result = await run(broker.url, "archive", "export", "-o", str(file), "--task-id", "task-1", "--force")
    assert result.status == 0
    assert len(file.read_text().splitlines()) == 1
    assert names_in(tmp_path) == ["archive.ndjson"]


@pytest.mark.parametrize("place", ["missing/a", "file/a", "."])
async def test_error_about_an_unusable_output_file_names_it(
    broker: Running, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    result = await run(broker.url, "archive", "export", "-o", str(tmp_path / place))
    assert result.status in (1, 2)
    assert str(tmp_path) in result.err


async def test_export_never_replaces_a_device(broker: Running) -> None:
    result = await run(broker.url, "archive", "export", "-o", "/dev/null", "--force")
    assert result.status == 1
    assert await asyncio.to_thread(Path("/dev/null").is_char_device)


async def test_incomplete_export_fails_and_leaves_no_file(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await end_tasks(http)
    fail_export(monkeypatch, after=2)
    result = await run(broker.url, "archive", "export", "-o", str(tmp_path / "archive.ndjson"))
    assert result.status == 1
    assert result.err.startswith("Error: The export ended early, after 2 records (")
    assert names_in(tmp_path) == []


async def test_incomplete_export_to_standard_output_fails(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await end_tasks(http)
    fail_export(monkeypatch, after=2)
    result = await run(broker.url, "archive", "export")
    assert result.status == 1
    assert len(result.out.splitlines()) == 2


async def test_stopped_export_leaves_no_file(broker: Running, tmp_path: Path) -> None:
    async with Proxy(broker.url) as proxy:
        proxy.silence()
        url = f"http://127.0.0.1:{proxy.port}"
        async with running(url, "archive", "export", "-o", str(tmp_path / "archive.ndjson")) as process:
            async with asyncio.timeout(20):
                # The command handles the signal from this moment on.
                while not proxy.is_connected:
                    await asyncio.sleep(0.01)
                assert names_in(tmp_path) != []
                process.send_signal(signal.SIGTERM)
                _, err = await process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert err == b""
    assert names_in(tmp_path) == []


async def test_export_ends_quietly_if_its_reader_closes_the_pipe(
    broker: Running, http: httpx.AsyncClient
) -> None:
    # More than the buffer of a pipe.
    await end_tasks(http, 3, payload="x" * 100_000)
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


async def test_error_about_an_unreachable_broker_names_its_url() -> None:
    result = await run("http://127.0.0.1:9", "archive", "export")
    assert result.status == 1
    assert "No broker responds at http://127.0.0.1:9" in result.err
