"""`broker tool` as its users run it: from a shell, told to stop, killed, started again."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from broker.cli import main
from broker.programs.orphans import ProcessRecord
from broker.settings import Settings
from tests.conftest import Running, running_broker
from tests.support import api
from tests.support.processes import clean_environment, is_alive, make_executable
from tests.support.shared import SHARED_BROKER
from tests.support.waiting import wait_until

pytestmark, database, broker, sql, http = SHARED_BROKER


class Process:
    """A `broker tool`, and what it has written to stderr so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said = ""
        #: Cleared, nobody reads what it writes.
        self.is_read = asyncio.Event()
        self.is_read.set()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self.said += line.decode()
            await self.is_read.wait()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def until_it_says(self, text: str) -> None:
        await wait_until(lambda: text in self.said or self._reading.done())
        assert text in self.said

    async def ended(self, within: float = 10) -> int:
        """Its exit status."""
        async with asyncio.timeout(within):
            await self._reading
            status = await self._process.wait()
        assert "Traceback" not in self.said
        return status


@asynccontextmanager
async def started(
    broker: Running, folder: Path, *command: str, options: str = "", skills: str = "{}", key: str = ""
) -> AsyncIterator[Process]:
    """A `broker tool` with these options that runs this command, for as long as the block takes at most."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "broker.cli",
            "tool",
            "--id",
            "t",
            "--skills",
            skills,
            "--scratch",
            "scratch",
        ),
        *options.split(),
        *("--", *command),
        cwd=folder,
        env=clean_environment(BROKER_URL=broker.url, BROKER_KEY=key),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    tool = Process(process)
    try:
        yield tool
    finally:
        if process.returncode is None:
            process.kill()
        await tool.ended()


@asynccontextmanager
async def registered(*given: Any, **how: Any) -> AsyncIterator[Process]:
    """The same, when the broker knows of it."""
    async with started(*given, **how) as tool:
        await tool.until_it_says("registered tool t")
        yield tool


async def begun(http: httpx.AsyncClient, mark: Path, task: str = "a") -> int:
    """A task that a program is at, which has written its number into this file; the number."""
    await api.add_task(http, task)
    await api.assign(http, task)
    # Where it runs is written down just after it has begun.
    await wait_until(lambda: mark.exists() and any(each.suffix == ".json" for each in scratch(mark.parent)))
    (pid,) = numbers(mark.parent, mark.name)
    return pid


def stays(folder: Path, *, first: str = ":") -> str:
    """A program that writes its number into the file `begun`, and goes on until there is a file `go`."""
    lines = [
        "#!/bin/sh",
        first,
        "echo $$ > number; mv number begun",
        # Not for ever: a test that fails leaves it running.
        "for n in $(seq 1500); do test -e go && break; sleep .02; done",
    ]
    return str(make_executable(folder / "stays", "\n".join([*lines, "echo 1"])))


def numbers(folder: Path, *names: str) -> list[int]:
    """The numbers in these files."""
    return [int((folder / name).read_text()) for name in names]


def scratch(folder: Path) -> list[Path]:
    """The scratch folders of work, and the records beside them."""
    return list(folder.glob("scratch/t/work/*"))


async def test_the_programs_of_the_help_do_what_it_says(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    shown = CliRunner().invoke(main, ["tool", "--help"]).output
    blocks = dict(re.findall(r"^  .+, (count\.\w+):\n((?:    .+\n)+)", shown, re.MULTILINE))
    calls = re.findall(r"^    broker tool --id counter --skills '(.+)' -- (.+)$", shown, re.MULTILINE)
    assert (list(blocks), len(calls)) == (["count.sh", "count.py"], 2)
    for name, content in blocks.items():
        make_executable(tmp_path / name, re.sub(r"^    ", "", content, flags=re.MULTILINE))
    for number, (skills, command) in enumerate(calls):
        task = f"count-{number}"
        async with registered(broker, tmp_path, *command.split(), skills=skills) as tool:
            await api.add_task(http, task, payload="three small words")
            await api.assign(http, task)
            ended = await api.wait_for_state(http, f"/v1/tasks/{task}", "succeeded")
            assert ended["result"] == {"words": 3}
            assert (await api.get_records(http, task))[0]["reports"][-1]["progress"] >= 0.5
            assert (await api.get(http, "/v1/tools/t"))["skills"] == {"can": ["count"]}
            tool.signal(signal.SIGTERM)
            assert await tool.ended() == 0
        assert f"{task}: progress: " in tool.said


@pytest.mark.parametrize(
    ("command", "skills", "says"),
    [
        ("./nowhere", "{}", "There is no program ./nowhere"),
        ("/bin/true", "{can: count}", "is no JSON"),
        ("/bin/true", "@nowhere.json", "'nowhere.json' cannot be read"),
    ],
)
async def test_what_cannot_be_is_told_at_once_and_nothing_is_registered(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, command: str, skills: str, says: str
) -> None:
    async with started(broker, tmp_path, command, skills=skills) as tool:
        assert await tool.ended() in (1, 2)
    assert says in tool.said
    assert (await http.get("/v1/tools/t")).status_code == 404


async def test_skills_may_come_from_a_file_and_a_tool_runs_once_on_a_machine(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "skills.json").write_text('{"can": [1]}\n')
    async with registered(
        broker, tmp_path, "/bin/true", skills="@skills.json", options="--capacity 3 --lease 2m"
    ):
        entry = await api.get(http, "/v1/tools/t")
        assert (entry["skills"], entry["capacity"], entry["lease_seconds"]) == ({"can": [1]}, 3, 120)
        async with started(broker, tmp_path, "/bin/true") as second:
            assert await second.ended() == 1
        assert "runs on this machine already" in second.said
        assert (await api.get(http, "/v1/tools/t"))["registered_at"] == entry["registered_at"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_told_to_stop_it_lets_its_program_finish(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, number: signal.Signals
) -> None:
    """A terminal that is closed says so twice."""
    async with registered(broker, tmp_path, stays(tmp_path)) as tool:
        await begun(http, tmp_path / "begun")
        tool.signal(number)
        await api.wait_for_state(http, "/v1/tools/t", "draining")
        if number == signal.SIGHUP:
            tool.signal(number)
        (tmp_path / "go").touch()
        assert await tool.ended() == 0
    assert (await api.get(http, "/v1/tasks/a"))["result"] == 1


async def test_told_to_stop_it_may_give_its_work_back(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    command = stays(tmp_path, first="trap '' TERM")
    async with registered(broker, tmp_path, command, options="--on-stop release --grace 0.2") as tool:
        pid = await begun(http, tmp_path / "begun")
        tool.signal(signal.SIGTERM)
        assert await tool.ended() == 0
    assert not is_alive(pid)
    task = await api.get(http, "/v1/tasks/a")
    assert (task["state"], task["attempt"]) == ("available", 0)
    assert scratch(tmp_path) == []


async def test_told_to_stop_twice_it_ends_at_once_and_its_programs_with_it(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with registered(broker, tmp_path, stays(tmp_path, first="trap '' TERM")) as tool:
        pid = await begun(http, tmp_path / "begun")
        tool.signal(signal.SIGTERM)
        await api.wait_for_state(http, "/v1/tools/t", "draining")
        tool.signal(signal.SIGTERM)
        assert await tool.ended(within=2) == 128 + signal.SIGTERM
    await wait_until(lambda: not is_alive(pid))


@pytest.mark.parametrize("environment", ["as it was", "its own"])
async def test_what_a_killed_run_has_left_is_ended_before_the_next_one_takes_work(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, environment: str
) -> None:
    """The program, which does not want to end, its group, and what has made a session of its own."""
    program = stays(
        tmp_path, first="trap '' TERM\nsleep 600 & echo $! > mate\nsetsid sleep 600 & echo $! > other"
    )
    command = ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", program] if environment == "its own" else [program]
    async with registered(broker, tmp_path, *command) as tool:
        left = [await begun(http, tmp_path / "begun"), *numbers(tmp_path, "mate", "other")]
        # The program has begun before the tool writes down which process it is.
        await wait_until(lambda: any(map(ProcessRecord.read, scratch(tmp_path))))
        tool.signal(signal.SIGKILL)
        assert await tool.ended() == -signal.SIGKILL
    assert all(map(is_alive, left))
    async with registered(broker, tmp_path, "/bin/true", options="--grace 0.2") as tool:
        # Of a session that knows nothing of us, we know nothing.
        assert [is_alive(pid) for pid in left] == [False, False, environment == "its own"]
        assert "has left running" in tool.said
    assert scratch(tmp_path) == []
    with contextlib.suppress(ProcessLookupError):
        os.kill(left[-1], signal.SIGKILL)


@pytest.mark.parametrize("quiet", [False, True])
async def test_what_programs_report_is_written_to_stderr_unless_that_is_unwanted(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, quiet: bool
) -> None:
    program = make_executable(tmp_path / "program", "#!/bin/sh\necho one >&2\necho progress: 20% two >&2\n")
    async with registered(broker, tmp_path, str(program), options="--quiet" if quiet else "") as tool:
        await api.add_task(http)
        await api.assign(http)
        await api.wait_for_state(http, "/v1/tasks/a", "succeeded")
        tool.signal(signal.SIGTERM)
        await tool.ended()
    assert ("a: one\na: progress: 20% two\n" in tool.said) is not quiet


async def test_what_programs_and_payloads_say_steers_no_terminal(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    program = make_executable(tmp_path / "program", '#!/bin/sh\nprintf "%s\\n" "$1" >&2\nexit 1\n')
    async with registered(broker, tmp_path, str(program), "{x}") as tool:
        await api.add_task(http, payload={"x": "\x1b[31mEVIL\x07"}, max_attempts=1)
        await api.assign(http)
        await api.wait_for_state(http, "/v1/tasks/a", "failed")
        tool.signal(signal.SIGTERM)
        await tool.ended()
    assert "a: \ufffd[31mEVIL\ufffd\n" in tool.said
    assert not {"\x1b", "\x07"} & set(tool.said)


async def test_work_goes_on_when_nobody_reads_what_is_written_to_stderr(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with registered(broker, tmp_path, "/bin/sh", "-c", "seq 100000 >&2; echo 1") as tool:
        tool.is_read.clear()
        await api.add_task(http)
        await api.assign(http)
        await api.wait_for_state(http, "/v1/tasks/a", "succeeded")
        tool.signal(signal.SIGTERM)
        tool.is_read.set()
        assert await tool.ended() == 0
    assert re.search(r"lines are not shown|a: 100000\n", tool.said)


async def test_a_tool_whose_id_another_program_has_ends_with_one_line(database: str, tmp_path: Path) -> None:
    async with (
        running_broker(Settings(database_url=database, admin_key="a-key")) as broker,
        registered(broker, tmp_path, "/bin/true", key="a-key") as older,
    ):
        broker.client.headers.update(api.bearer("a-key"))
        await api.add_tool(broker.client, "t")
        assert await older.ended() == 1
    last = older.said.splitlines()[-1]
    assert last.startswith("Error: Tool t no longer belongs to this program: another program has registered")
