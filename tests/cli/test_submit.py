"""`broker submit`: submitted tasks, printed results, and errors."""

import asyncio
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import httpx
import pytest
from click import ClickException
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from broker.cli import main
from broker.cli.submission import SubmitRun
from broker.cli.task_files import TaskInput, check_task, tasks_for_files
from broker.client import AsyncBroker
from tests.conftest import Running
from tests.support.api import (
    add_task,
    add_tool,
    assign,
    complete_work,
    get,
    ids,
    parse_exactly,
    waiting_count,
)
from tests.support.cli import CommandResult, run, running
from tests.support.processes import clean_environment
from tests.support.shared import SHARED_BROKER
from tests.support.waiting import wait_until

pytestmark, database, broker, sql, http = SHARED_BROKER

DIGITS = '[1.10, 123456789012345678901234567890, "é"]'


async def submit_tasks(broker: Running, *arguments: str, stdin: str | bytes = b"") -> list[str]:
    """Submit tasks, and return the ids that the command prints."""
    ended = await run(broker.url, "submit", *arguments, stdin=stdin)
    assert ended.status == 0, ended.err
    return ended.out.splitlines()


async def live_tasks(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = (await get(http, "/v1/tasks", limit=1000))["items"]
    return tasks


@asynccontextmanager
async def waiting_submit(broker: Running, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a `broker submit` that waits for its only task, with the id `a`."""
    before = waiting_count(broker)
    async with running(broker.url, "submit", "--id", "a", *arguments) as process:
        async with asyncio.timeout(20):
            while waiting_count(broker) <= before:
                await asyncio.sleep(0.005)
        yield process


async def result_of(process: asyncio.subprocess.Process) -> CommandResult:
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert process.returncode is not None
    return CommandResult(process.returncode, out.decode(), err.decode())


async def test_submitted_numbers_keep_every_digit(broker: Running, http: httpx.AsyncClient) -> None:
    [id_] = await submit_tasks(broker, "--needs", f'{{"a": {DIGITS}}}', "--payload", DIGITS)
    text = (await http.get(f"/v1/tasks/{id_}")).text
    assert parse_exactly(text)["needs"] == {"a": parse_exactly(DIGITS)}
    assert parse_exactly(text)["payload"] == parse_exactly(DIGITS)
    assert "1.10" in text


async def test_needs_come_from_a_file_and_the_payload_from_standard_input(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    needs = tmp_path / "needs.json"
    needs.write_bytes(b'\xef\xbb\xbf{"can":\r\n "count"}\n')
    [id_] = await submit_tasks(broker, "--needs", f"@{needs}", "--payload", "-", stdin=' "x"\n')
    task = await get(http, f"/v1/tasks/{id_}")
    assert (task["needs"], task["payload"]) == ({"can": "count"}, "x")


async def test_options_set_the_fields_of_the_task(broker: Running, http: httpx.AsyncClient) -> None:
    options = "--id a --priority -3 --not-before 2100-01-01T00:00:00+01:00 --timeout 10m --max-attempts 5"
    await submit_tasks(broker, "--needs", "1", *options.split(), "--retry-backoff", "1.5")
    task = await get(http, "/v1/tasks/a")
    names = ("priority", "not_before", "timeout_seconds", "max_attempts", "retry_backoff_seconds")
    assert [task[name] for name in names] == [-3, "2099-12-31T23:00:00Z", 600, 5, 1.5]


async def test_existing_task_is_counted_and_stays_unchanged(broker: Running, http: httpx.AsyncClient) -> None:
    await add_task(http, "old", payload="first")
    lines = '{"id": "old", "needs": 1}\n{"id": "new", "needs": 1}'
    ended = await run(broker.url, "submit", "--tasks", "-", stdin=lines)
    assert ended == (0, "old\nnew\n", "1 created, 1 existed already.\n")
    assert (await get(http, "/v1/tasks/old"))["payload"] == "first"


async def test_each_file_becomes_a_task(broker: Running, http: httpx.AsyncClient, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.raw", "b b.raw", "é.raw")]
    for file in files:
        file.touch()
    # Two names of the same file count once.
    again = str(tmp_path / "." / "a.raw")
    submitted_ids = await submit_tasks(
        broker, "--needs", '{"format": "raw"}', "--priority", "7", *map(str, files), again
    )
    tasks = await live_tasks(http)
    assert ids(tasks) == submitted_ids
    assert [task["payload"] for task in tasks] == [{"file": str(file)} for file in files]
    assert {(task["needs"]["format"], task["priority"]) for task in tasks} == {("raw", 7)}


async def test_unchanged_file_is_submitted_once(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    file = tmp_path / "a.raw"
    file.write_text("one")
    once = ["--once", str(file)]
    [first] = await submit_tasks(broker, "--needs", '{"a": 1}', *once)
    assert await submit_tasks(broker, "--needs", '{ "a":1 }', *once) == [first]
    [other_needs] = await submit_tasks(broker, "--needs", '{"a": 2}', *once)
    os.utime(file, ns=(0, 1))
    [touched] = await submit_tasks(broker, "--needs", '{"a": 1}', *once)
    file.write_text("three")
    os.utime(file, ns=(0, 1))
    [larger] = await submit_tasks(broker, "--needs", '{"a": 1}', *once)
    assert len({first, other_needs, touched, larger}) == 4
    assert len(await live_tasks(http)) == 4
    assert first.startswith("a.raw:")


@settings(max_examples=40)
@given(st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), min_size=1, max_size=60))
async def test_option_once_derives_a_valid_id_from_any_file_name(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{name}"
        other = Path(folder) / f"y{name}"
        for file in (path, other):
            file.touch()
        tasks = tasks_for_files([str(path), str(other)], {"needs": Raw(b"1")}, once=True)
        assert len({task.fields["id"] for task in tasks}) == 2


@pytest.mark.parametrize(
    "text",
    [
        f'{{"id": "a", "needs": {DIGITS}}}\n{{"id": "b", "payload": {DIGITS}, "priority": 2}}\n',
        f'\ufeff\r\n{{"id": "a", "needs": {DIGITS}}}\r\n\n {{"id": "b", "payload": {DIGITS}, "priority": 2}}',
        f'[{{"id": "a", "needs": {DIGITS}}},{{"id": "b", "payload": {DIGITS}, "priority": 2}}]',
        f'\n[\n{{"id": "a", "needs":\n{DIGITS}}},\n{{"id": "b", "payload": {DIGITS}, "priority": 2}}\n]\n',
    ],
)
async def test_file_of_tasks_has_one_task_per_line_or_is_an_array(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "tasks"
    file.write_text(text)
    options = ["--needs", '"default"', "--priority", "1"]
    assert await submit_tasks(broker, "--tasks", str(file), *options) == ["a", "b"]
    tasks = parse_exactly((await http.get("/v1/tasks")).text)["items"]
    given = parse_exactly(DIGITS)
    assert [(task["needs"], task["payload"], task["priority"]) for task in tasks] == [
        (given, None, 1),
        ("default", given, 2),
    ]


async def test_single_task_may_span_lines_and_have_no_id(broker: Running, http: httpx.AsyncClient) -> None:
    [id_] = await submit_tasks(broker, "--tasks", "-", stdin='{\n "needs": 1,\n "id": null\n}\n')
    assert ids(await live_tasks(http)) == [id_]


async def test_empty_file_submits_no_tasks(broker: Running) -> None:
    assert await run(broker.url, "submit", "--tasks", "-", stdin="\n\n") == (0, "", "0 created.\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"needs": 1}\n\n{"needs": 1,}\n', "line 3: is not JSON"),
        ('{"needs": 1}\n{"payload": 1}\n', "line 2: Object missing required field `needs`"),
        ('{"needs": 1}\n{"needs": 1, "prio": 1}\n', "line 2: Object contains unknown field `prio`"),
        ('{"needs": 1}\n{"needs": 1, "priority": "high"}\n', "line 2: priority: Expected `int`"),
        ('{"needs": 1}\n{"needs": 1, "id": "a b"}\n', "line 2: id: must be 1 to 128 characters"),
        ('{"needs": 1}\n[1]\n', "line 2: is not a JSON object"),
        ('{"needs": 1}\n{"needs": "\\u0000"}\n', "line 2: needs contains \\u0000"),
        ('{"needs": 1}\n{"needs": "\\ud800"}\n', "line 2: contains a lone surrogate"),
        ('{"needs": 1}\n{"needs": 1e999999}\n', "line 2: needs contains a number outside"),
        (b'{"needs": 1}\n{"needs": "\xff"}\n', "line 2: is not UTF-8"),
        ('{"needs": 1}\n{"needs": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "line 2: is nested too deeply"),
        ('[{"needs": 1},\n{"needs": 1\n]', "line 3: is not JSON"),
        ('[{"needs": 1}, 7]', "item 2: is not a JSON object"),
        ('{\n"needs": 1,\n}', "line 3: is not JSON"),
        ("count\n", "line 1: is not JSON"),
    ],
)
async def test_error_in_a_file_names_the_line(text: str | bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    ended = CliRunner().invoke(main, ["submit", "--url", "http://127.0.0.1:9", "--tasks", str(file)])
    assert ended.exit_code == 1
    assert ended.stderr.startswith(f"Error: {file}, {says}"), ended.stderr


async def test_file_with_an_invalid_task_submits_nothing(broker: Running, http: httpx.AsyncClient) -> None:
    lines = '{"needs": 1}\n' * 1_500 + "{}\n"
    ended = await run(broker.url, "submit", "--tasks", "-", stdin=lines)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("Error: standard input, line 1501: ")
    assert await live_tasks(http) == []


async def test_error_of_the_broker_names_the_line(broker: Running, http: httpx.AsyncClient) -> None:
    deep = "[" * 201 + "]" * 201
    lines = ['{"needs": 1}'] * 1_200 + [f'{{"needs": {deep}}}']
    ended = await run(broker.url, "submit", "--tasks", "-", stdin="\n".join(lines))
    assert ended.status == 1
    assert ended.err == (
        "Error: standard input, line 1201: needs: is nested deeper than 200\n"
        "At least 1,000 of 1,201 tasks were submitted.\n"
    )
    assert len(ended.out.splitlines()) == 1_000


async def test_all_tasks_are_submitted_if_the_reader_closes_the_pipe(
    broker: Running, sql: asyncpg.Connection, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    file = tmp_path / "tasks"
    file.write_text('{"needs": 1}\n' * 5_000)
    program = f"{shlex.quote(sys.executable)} -m broker.cli submit --tasks {shlex.quote(str(file))}"
    process = await asyncio.create_subprocess_shell(
        f"{program} | head -n 1",
        env=clean_environment(BROKER_URL=broker.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    ended = await result_of(process)
    assert (len(ended.out.splitlines()), ended.err) == (1, "5,000 created.\n")
    assert await sql.fetchval("select count(*) from tasks") == 5_000


async def test_printed_result_keeps_every_digit(broker: Running, http: httpx.AsyncClient) -> None:
    await add_tool(http)
    async with waiting_submit(broker, "--needs", "1", "--wait") as process:
        work = (await assign(http))["id"]
        body = f'{{"outcome": "succeeded", "result": {DIGITS}}}'
        assert (await http.post(f"/v1/work/{work}/complete", content=body)).status_code == 200
        ended = await result_of(process)
    assert ended == (0, f'{{"id":"a","state":"succeeded","result":{DIGITS},"error":null}}\n', "")


async def test_result_option_prints_only_the_result(broker: Running, http: httpx.AsyncClient) -> None:
    await add_tool(http)
    async with waiting_submit(broker, "--needs", "1", "--result") as process:
        await complete_work(http, (await assign(http))["id"], result={"words": 3})
        assert await result_of(process) == (0, '{"words":3}\n', "")
    again = await run(broker.url, "submit", "--id", "a", "--needs", "1", "--result")
    assert again == (0, '{"words":3}\n', "0 created, 1 existed already.\n")


async def test_submit_prints_why_a_task_waits_after_some_seconds(
    broker: Running,
    http: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("broker.cli.submission._SILENT_SECONDS", 0.01)
    given = check_task(TaskInput({"id": "a", "needs": Raw(b"1")}))
    async with AsyncBroker(broker.url) as client:
        submission = SubmitRun(client, [given], 1, wait=True)
        await submission.submit()
        waits = asyncio.create_task(submission.result(within=20))
        printed = ""

        async def is_explained() -> bool:
            nonlocal printed
            printed += capsys.readouterr().err
            return "Waiting for task a. " in printed

        await wait_until(is_explained)
        await http.delete("/v1/tasks/a")
        with pytest.raises(ClickException, match="was cancelled"):
            await waits
    assert "assigner" in printed


async def test_failed_task_prints_its_error_and_no_result(broker: Running, http: httpx.AsyncClient) -> None:
    await add_tool(http)
    async with waiting_submit(broker, "--needs", "1", "--result") as process:
        work = (await assign(http))["id"]
        await complete_work(http, work, "failed", error="no disk\x1b[31m", retry=False)
        assert await result_of(process) == (1, "", "Error: Task a failed: no disk\ufffd[31m\n")


async def test_exit_status_is_0_only_if_all_tasks_succeeded(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await add_tool(http, capacity=10)
    files = [tmp_path / name for name in ("good", "bad", "gone")]
    for file in files:
        file.touch()
    once = [*map(str, files), "--needs", "1", "--once"]
    good, bad, gone = await submit_tasks(broker, *once)
    await complete_work(http, (await assign(http, good))["id"], result="fine")
    await complete_work(http, (await assign(http, bad))["id"], "failed", error="no disk", retry=False)
    await http.delete(f"/v1/tasks/{gone}")
    ended = await run(broker.url, "submit", *once, "--wait")
    assert ended.status == 1
    assert "0 created, 3 existed already.\n" in ended.err
    ended = {line["file"]: line for line in map(json.loads, ended.out.splitlines())}
    assert [(ended[str(file)]["state"], ended[str(file)]["error"]) for file in files] == [
        ("succeeded", None),
        ("failed", "no disk"),
        ("cancelled", None),
    ]
    assert ended[str(files[0])] == {
        "id": good, "state": "succeeded", "result": "fine", "error": None, "file": str(files[0]),
    }  # fmt: skip


async def test_each_of_many_tasks_is_printed_once(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    names = [f"task-{number}" for number in range(300)]
    file = tmp_path / "tasks"
    # A task that is given twice counts once.
    file.write_text("".join(f'{{"id": "{name}"}}\n' for name in [*names, "task-0"]))
    await submit_tasks(broker, "--needs", "1", "--tasks", str(file))
    await add_tool(http, capacity=1000)
    pairs = {"items": [{"task_id": name, "tool_id": "t"} for name in names]}
    works = ids((await http.post("/v1/work/batch", json=pairs)).json()["items"], "work_id")
    done = {"items": [{"work_id": work, "outcome": "succeeded"} for work in works]}
    assert (await http.post("/v1/work/complete", json=done)).status_code == 200
    ended = await run(broker.url, "submit", "--needs", "1", "--tasks", str(file), "--wait")
    assert ended.status == 0
    assert sorted(json.loads(line)["id"] for line in ended.out.splitlines()) == sorted(names)
    assert ended.err.endswith("\n300 succeeded.\n")


async def test_task_continues_after_the_time_limit(broker: Running, http: httpx.AsyncClient) -> None:
    ended = await run(broker.url, "submit", "--needs", "1", "--id", "a", "--within", "0.2")
    assert (ended.status, ended.out) == (124, "")
    assert ended.err == (
        "The wait timed out. The task continues. `broker explain a` says why a task waits."
        " To wait again, repeat the command. It does not submit the same ids twice.\n"
    )
    assert ids(await live_tasks(http)) == ["a"]


@pytest.mark.parametrize(
    ("key", "header"), [({}, ""), ({"BROKER_KEY": "k"}, ' -H "Authorization: Bearer $BROKER_KEY"')]
)
async def test_message_shows_how_to_wait_again_for_a_task_without_a_chosen_id(
    broker: Running, http: httpx.AsyncClient, key: dict[str, str], header: str
) -> None:
    ended = await run(broker.url, "submit", "--needs", "1", "--within", "0.2", **key)
    [id_] = ids(await live_tasks(http))
    assert (
        f"curl{header} '{broker.url}/v1/tasks/ID?wait=60', with one of these ids as ID:\n{id_}\n" in ended.err
    )


async def test_task_continues_after_ctrl_c(broker: Running, http: httpx.AsyncClient) -> None:
    async with waiting_submit(broker, "--needs", "1", "--wait") as process:
        process.send_signal(signal.SIGINT)
        ended = await result_of(process)
    assert (ended.status, ended.out) == (130, "")
    assert ended.err.strip().startswith("Stopped. The task continues. `broker explain a` says why")
    assert ids(await live_tasks(http)) == ["a"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Use --needs or --tasks."),
        ([__file__], "Use --needs or --tasks."),
        (["--needs", "1", "--tasks", __file__, __file__], "not both"),
        (["--needs", "1", "--payload", "1", __file__], "--payload cannot be used with"),
        (["--id", "a", "--tasks", __file__], "--id accepts one task only"),
        (["--needs", "1", "--once"], "--once derives ids from files"),
        (["--needs", "1", "--once", "--id", "a", __file__], "--once derives ids from files"),
        (["--needs", "1", "--result", __file__, sys.executable], "--result accepts one task"),
        (["--needs", "1", "no-such-file"], "'no-such-file' does not exist"),
        (["--needs", "count"], """A JSON text needs quotes: '"count"'"""),
        (["--needs", "@no-such-file"], "Cannot read 'no-such-file'"),
        (["--needs", '{"a":'], "is not JSON"),
        (["--needs", "1", "--timeout", "1y"], "'1y' is not a duration"),
        (["--needs", "1", "--not-before", "soon"], "'soon' is not a time"),
    ],
)
async def test_invalid_combination_of_options_is_refused(arguments: list[str], says: str) -> None:
    ended = CliRunner().invoke(main, ["submit", "--url", "http://127.0.0.1:9", *arguments])
    assert ended.exit_code == 2
    assert says in ended.stderr


@pytest.mark.parametrize("arguments", [["--needs", "1", "--payload", "-"], ["--tasks", "-"]])
async def test_closed_standard_input_is_an_error(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("broker.cli.option_types.sys", SimpleNamespace(stdin=None))
    ended = CliRunner().invoke(main, ["submit", "--url", "http://127.0.0.1:9", *arguments])
    assert ended.exit_code == 2
    assert "Standard input is closed" in ended.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="there every name is UTF-8")
async def test_file_name_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff.raw")
    file.touch()
    ended = CliRunner().invoke(main, ["submit", "--url", "http://127.0.0.1:9", "--needs", "1", str(file)])
    assert ended.exit_code == 1
    assert "the name is not UTF-8" in ended.stderr
