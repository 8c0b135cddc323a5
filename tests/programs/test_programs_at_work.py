"""Programs run by a tool: input, output, reports, scratch folders, and their end."""

import asyncio
import contextlib
import json
import os
import re
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from broker.client import Tool
from broker.programs import outcome, runner
from broker.programs.command import resolve
from broker.programs.folders import ToolFolder
from broker.programs.runner import Options, Runner
from broker.store import reports
from tests.conftest import Running
from tests.support import api
from tests.support.api import Json
from tests.support.processes import is_alive, make_executable
from tests.support.shared import SHARED_BROKER
from tests.support.waiting import wait_until

pytestmark, database, broker, sql, http = SHARED_BROKER


@asynccontextmanager
async def running_tool(
    broker: Running, folder: Path, command: Sequence[str], **options: Any
) -> AsyncIterator[None]:
    """Run a tool with this command during the block."""
    options = {"grace_seconds": 5.0} | options
    tool = Tool("t", {}, url=broker.url)
    running = Runner(command, ToolFolder("t", folder), Options(url=broker.url, **options))
    tool.handler(running.do)
    working = asyncio.create_task(tool.work())
    try:
        async with asyncio.timeout(10):
            while (await broker.client.get("/v1/tools/t")).status_code != 200:
                await asyncio.sleep(0.005)
        yield
    finally:
        working.cancel()
        try:
            async with asyncio.timeout(10):
                with contextlib.suppress(asyncio.CancelledError):
                    await working
        finally:
            running.kill()
    assert scratch_folders(folder) == [], "a scratch folder was left behind"


def scratch_folders(folder: Path) -> list[Path]:
    """Return the existing scratch folders and their records."""
    return list(folder.glob("t/work/*"))


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


async def do_task(http: httpx.AsyncClient, payload: str = "null", **fields: Any) -> list[Json]:
    """Let the tool do a task with this payload, and return its archive records, the newest first."""
    fields = {"max_attempts": 1, "retry_backoff_seconds": 0, "needs": {}} | fields
    body = json.dumps({"id": "a", **fields})[:-1] + f', "payload": {payload}}}'
    assert (await http.post("/v1/tasks", content=body)).status_code == 201
    async with asyncio.timeout(20):
        while True:
            task = await api.get(http, "/v1/tasks/a")
            if task["state"] == "available":
                await api.assign(http)
            elif task["state"] in ("succeeded", "failed", "cancelled"):
                return await api.get_records(http)
            else:
                await asyncio.sleep(0.005)


async def begin_work(http: httpx.AsyncClient, mark: Path, **fields: Any) -> str:
    """Assign a task, wait until its program has created a file, and return the id of the work."""
    await api.add_task(http, **fields)
    work = await api.assign(http)
    await wait_until(mark.exists)
    return str(work["id"])


async def cancel_work(http: httpx.AsyncClient, work: str) -> Json:
    """Cancel work, and return its archive record."""
    assert (await http.delete("/v1/tasks/a")).status_code == 202
    await api.wait_for_state(http, f"/v1/work/{work}?wait=5", "cancelled")
    record: Json = await api.get(http, f"/v1/archive/{work}")
    return record


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client check for cancellation at once."""
    monkeypatch.setattr("broker.client.job_run._WATCH_AFTER_SECONDS", 0.05)


def messages(record: Json) -> list[str | None]:
    return [report["message"] for report in record["reports"]]


async def test_payload_and_result_keep_every_digit(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    payload = '{"a": [1.10, 123456789012345678901234567890], "b": "µ\\n"}'
    async with running_tool(broker, tmp_path, ["/bin/cat"]):
        await do_task(http, payload)
    response = await http.get("/v1/tasks/a")
    task = api.parse_exactly(response.text)
    assert task["result"] == task["payload"] == api.parse_exactly(payload)
    assert "1.10" in response.text.partition('"result"')[2]


async def test_program_gets_the_variables_of_its_work_and_no_key(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_KEY", "secret")
    monkeypatch.setenv("BROKER_ADMIN_KEY", "secret")
    monkeypatch.setenv("OTHER", "unchanged")
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    async with running_tool(broker, tmp_path, resolve(["python3", "-c", code])):
        (record,) = await do_task(http, needs={"can": 1.10})
    variables = record["result"]
    of_broker = {name: value for name, value in variables.items() if name.startswith("BROKER_")}
    scratch = f"{tmp_path}/t/work/{record['work_id']}"
    assert json.loads(of_broker.pop("BROKER_NEEDS")) == {"can": 1.10}
    assert of_broker == {
        "BROKER_URL": broker.url,
        "BROKER_TASK_ID": "a",
        "BROKER_WORK_ID": record["work_id"],
        "BROKER_TOOL_ID": "t",
        "BROKER_ATTEMPT": "1",
        "BROKER_SCRATCH": scratch,
    }
    assert (variables["TMPDIR"], variables["OTHER"]) == (scratch, "unchanged")


async def test_payload_in_a_file_leaves_stdin_empty(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with running_tool(broker, tmp_path, sh('cat; cat "$BROKER_INPUT"'), input="file"):
        (record,) = await do_task(http, '{"a": 1}')
    assert record["result"] == {"a": 1}


async def test_program_need_not_read_a_large_payload(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with running_tool(broker, tmp_path, sh("head -c 3")):
        (record,) = await do_task(http, json.dumps("x" * 4_000_000))
    assert record["result"] == '"xx'


async def test_program_runs_in_the_current_or_the_scratch_folder(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with running_tool(broker, tmp_path, sh("pwd")):
        (record,) = await do_task(http)
    assert record["result"] == str(Path.cwd())
    await http.delete("/v1/archive/" + record["work_id"])
    async with running_tool(
        broker, tmp_path, sh('test "$(pwd)" = "$BROKER_SCRATCH"; echo $?; ls'), in_scratch=True
    ):
        (record,) = await do_task(http, id="a", needs={})
    assert record["result"] == "0\npayload.json"


async def test_each_line_on_stderr_is_a_report_before_the_work_ends(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    script = "for n in 1 2 3 4 5; do echo progress: ${n}0% step $n >&2; done; printf 'no newline' >&2"
    async with running_tool(broker, tmp_path, sh(script)):
        (record,) = await do_task(http)
    reported = [(report["progress"], report["message"]) for report in record["reports"]]
    assert reported == [(n / 10, f"step {n}") for n in range(1, 6)] + [(None, "no newline")]
    assert record["outcome"] == "succeeded"


async def test_too_many_lines_do_not_block_the_program_and_are_counted(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    total = 200_000
    async with running_tool(broker, tmp_path, sh(f"seq {total} >&2; echo done")):
        (record,) = await do_task(http)
    lines, left_out = [], 0
    for message in messages(record):
        assert message is not None
        assert len(message) <= 10_000
        note = re.match(r"\((\d+) lines left out\)\n", message)
        left_out += int(note[1]) if note else 0
        lines += [int(line) for line in message[note.end() if note else 0 :].split("\n")]
    assert record["result"] == "done"
    assert len(record["reports"]) < 2_000
    assert lines == sorted(lines)
    assert lines[-1] == total
    assert len(lines) + left_out == total


async def test_program_continues_after_the_broker_refuses_reports(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, sql: asyncpg.Connection
) -> None:
    mark, go_on = tmp_path / "begun", tmp_path / "go on"
    script = (
        f"echo one >&2; touch {mark}; while test ! -e '{go_on}'; do sleep .01; done; seq 3 >&2; echo through"
    )
    async with running_tool(broker, tmp_path, sh(script)):
        work = await begin_work(http, mark)
        while not (await api.get(http, f"/v1/work/{work}?wait=1"))["reports"]:
            pass
        await sql.execute("update work set report_bytes = $1", reports._MOST_REPORT_BYTES)
        go_on.touch()
        await api.wait_for_state(http, f"/v1/work/{work}", "succeeded")
    record = await api.get(http, f"/v1/archive/{work}")
    assert (record["result"], messages(record)) == ("through", ["one"])


async def test_failure_has_the_last_lines_and_is_retried(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    script = 'test "$BROKER_ATTEMPT" = 2 && exit; seq 100 >&2; echo no such file >&2; exit 3'
    async with running_tool(broker, tmp_path, sh(script)):
        second, first = await do_task(http, max_attempts=3)
    assert (second["outcome"], first["outcome"]) == ("succeeded", "failed")
    reported = first["error"].splitlines()
    assert (reported[0], reported[-1], len(reported)) == ("exit status 3", "no such file", 21)


async def test_exit_status_in_the_give_up_on_option_is_not_retried(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with running_tool(broker, tmp_path, sh("exit 7"), give_up_on=(2, 7)):
        (record,) = await do_task(http, max_attempts=3)
    assert record["error"] == "exit status 7"
    assert (await api.get(http, "/v1/tasks/a"))["state"] == "failed"


async def test_program_with_endless_output_is_ended_and_its_work_fails(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "MOST_BYTES", 100_000)
    async with running_tool(broker, tmp_path, sh("yes")):
        (record,) = await do_task(http)
    assert "too large for a result" in record["error"]


@pytest.mark.parametrize(
    "script",
    [
        "sleep 60 & echo $!",
        "sleep 60 >/dev/null 2>&1 </dev/null & echo $!",
        "exec 2>&-; echo 1; exec >&-; sleep .1",
    ],
    ids=["holds the pipes", "holds nothing", "closes its pipes itself"],
)
async def test_work_ends_with_its_program_and_leaves_no_child_process(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr("broker.programs.process._MOMENT_SECONDS", 0.2)
    async with asyncio.timeout(10), running_tool(broker, tmp_path, sh(script)):
        (record,) = await do_task(http)
    assert record["outcome"] == "succeeded"
    assert record["result"] == 1 or not is_alive(record["result"])


async def test_process_in_its_own_session_does_not_delay_the_work(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.programs.process._MOMENT_SECONDS", 0.2)
    code = "import subprocess; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid)"
    async with asyncio.timeout(10), running_tool(broker, tmp_path, resolve(["python3", "-c", code])):
        (record,) = await do_task(http)
    assert is_alive(record["result"])
    os.kill(record["result"], 9)


@pytest.mark.usefixtures("quick_checks")
@pytest.mark.parametrize("pipes", ["", ">/dev/null 2>&1"], ids=["holds the pipes", "holds nothing"])
async def test_cancelled_program_and_its_children_have_time_to_end(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipes: str
) -> None:
    monkeypatch.setattr("broker.programs.process._MOMENT_SECONDS", 0.05)
    mark, end = tmp_path / "begun", tmp_path / "ended"
    child = (
        f"trap 'sleep .3; echo bye >&2; touch {end}; exit' TERM; touch {mark}; while :; do sleep .05; done"
    )
    async with running_tool(broker, tmp_path, sh(f"sh -c {shlex.quote(child)} {pipes} & exec sleep 60")):
        record = await cancel_work(http, await begin_work(http, mark))
    assert end.exists()
    assert ("bye" in messages(record)) is (pipes == "")


@pytest.mark.usefixtures("quick_checks")
@pytest.mark.parametrize(("does", "grace"), [("trap '' TERM", 0.2), ("kill -STOP $$", 60)])
async def test_program_that_ignores_sigterm_is_killed(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, does: str, grace: float
) -> None:
    mark = tmp_path / "begun"
    script = f"echo $$ > {mark}.pid; mv {mark}.pid {mark}; {does}; while :; do sleep .02; done"
    async with running_tool(broker, tmp_path, sh(script), grace_seconds=grace):
        record = await cancel_work(http, await begin_work(http, mark))
    assert record["outcome"] == "cancelled"
    assert not is_alive(int(mark.read_text()))


async def test_program_that_reports_constantly_can_be_cancelled(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    mark = tmp_path / "begun"
    script = f"while :; do echo still here >&2; touch {mark}; sleep .02; done"
    async with running_tool(broker, tmp_path, sh(script)):
        record = await cancel_work(http, await begin_work(http, mark))
    assert record["outcome"] == "cancelled"


@pytest.mark.parametrize("report_line", ["echo on it >&2;", ""])
@pytest.mark.usefixtures("quick_checks")
async def test_program_is_ended_at_its_timeout(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, report_line: str
) -> None:
    mark = tmp_path / "begun"
    script = f"echo $$ > {mark}.pid; mv {mark}.pid {mark}; while :; do {report_line} sleep .02; done"
    async with running_tool(broker, tmp_path, sh(script)):
        work = await begin_work(http, mark, timeout_seconds=0.3)
        await api.wait_for_state(http, f"/v1/work/{work}", "timed_out")
        await wait_until(lambda: not is_alive(int(mark.read_text())))


@pytest.mark.parametrize(
    ("keep", "script", "kept"),
    [
        ("never", "exit 1", False),
        ("failed", "exit 1", True),
        ("failed", "exit 0", False),
        ("always", "exit 0", True),
    ],
)
async def test_scratch_folders_are_kept_on_request(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, keep: str, script: str, kept: bool
) -> None:
    async with running_tool(broker, tmp_path, sh(f"touch $BROKER_SCRATCH/trace; {script}"), keep=keep):
        (record,) = await do_task(http)
    folder = tmp_path / "t" / "kept" / record["work_id"]
    assert (folder / "trace").exists() is kept
    if record["error"]:
        assert (str(folder) in record["error"]) is kept


@pytest.mark.parametrize(
    "script",
    [
        'rm -r "$BROKER_SCRATCH"',
        'cd "$BROKER_SCRATCH"; mkdir -p a/b; touch a/b/c; ln -s / d; chmod 0 a/b a .',
    ],
)
@pytest.mark.parametrize("keep", ["never", "always"])
async def test_work_succeeds_even_if_the_program_damages_its_scratch_folder(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, script: str, keep: str
) -> None:
    async with running_tool(broker, tmp_path, sh(script), keep=keep):
        (record,) = await do_task(http)
    assert record["outcome"] == "succeeded"


async def test_removed_scratch_folder_is_created_again(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with running_tool(
        broker, tmp_path / "root", sh(f"rm -r {tmp_path}/root; exit $((2 - BROKER_ATTEMPT))")
    ):
        second, first = await do_task(http, max_attempts=2)
    assert (second["outcome"], first["outcome"]) == ("succeeded", "failed")


async def test_tool_waits_for_a_removed_program_and_continues(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(runner, "_PAUSE_SECONDS", 0.02)
    program = make_executable(tmp_path / "program")
    async with running_tool(broker, tmp_path, [str(program)]):
        program.rename(tmp_path / "away")
        (record,) = await do_task(http)
        assert "Cannot start the program: There is no program" in record["error"]
        assert str(program) in record["error"]
        assert (await http.post("/v1/tasks/a/retry")).status_code == 200
        await api.assign(http)
        (tmp_path / "away").rename(program)
        await api.wait_for_state(http, "/v1/tasks/a", "succeeded")


async def test_field_of_the_payload_becomes_an_argument(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    command = ["/usr/bin/env", "printf", '{"file": "%s", "n": %s}', "{file}", "{n}"]
    async with running_tool(broker, tmp_path, command):
        (record,) = await do_task(http, '{"file": "a b; $(x).raw", "n": 1.10}')
    assert (record["outcome"], record["result"]) == ("succeeded", {"file": "a b; $(x).raw", "n": 1.10})


async def test_payload_without_the_field_fails_without_a_retry(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with running_tool(broker, tmp_path, ["/bin/echo", "{file}"]):
        (record,) = await do_task(http, '{"files": []}', max_attempts=3)
    assert (record["outcome"], record["error"]) == ("failed", "The payload has no field 'file'.")


async def test_process_group_of_a_program_is_ended_with_it(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """Shells with job control and `timeout` create such groups."""
    script = f"set -m; sleep 600 & echo $! > {tmp_path}/other; wait"
    async with running_tool(broker, tmp_path, sh(script), grace_seconds=0.2):
        (record,) = await do_task(http, timeout_seconds=0.5)
        other = int((tmp_path / "other").read_text())
        assert record["outcome"] == "timed_out"
        await wait_until(lambda: not is_alive(other))
