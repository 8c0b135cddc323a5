"""`broker tool` as a process: help, errors, signals and restarts."""

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
    """A running `broker tool`, with its output on stderr so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.printed = ""
        #: While this is cleared, nobody reads stderr.
        self.is_read = asyncio.Event()
        self.is_read.set()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self.printed += line.decode()
            await self.is_read.wait()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def wait_for_text(self, text: str) -> None:
        await wait_until(lambda: text in self.printed or self._reading.done())
        assert text in self.printed

    async def wait_for_exit(self, within: float = 10) -> int:
        """Wait for the end of the process, and return its exit status."""
        async with asyncio.timeout(within):
            await self._reading
            status = await self._process.wait()
        assert "Traceback" not in self.printed
        return status


@asynccontextmanager
async def started(
    broker: Running, folder: Path, *command: str, options: str = "", skills: str = "{}", key: str = ""
) -> AsyncIterator[Process]:
    """Run a `broker tool` with this command, and kill it after the block if it still runs."""
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
        await tool.wait_for_exit()


@asynccontextmanager
async def registered(*arguments: Any, **options: Any) -> AsyncIterator[Process]:
    """Run a `broker tool`, and yield it when it is registered."""
    async with started(*arguments, **options) as tool:
        await tool.wait_for_text("registered tool t")
        yield tool


async def begin_work(http: httpx.AsyncClient, mark: Path, task: str = "a") -> int:
    """Assign a task, wait until its program has written its process id into a file, and return the id."""
    await api.add_task(http, task)
    await api.assign(http, task)
    # The tool writes the record of the process just after the program has started.
    await wait_until(lambda: mark.exists() and any(path.suffix == ".json" for path in scratch(mark.parent)))
    (pid,) = read_numbers(mark.parent, mark.name)
    return pid


def waiting_program(folder: Path, *, first: str = ":") -> str:
    """Create a program that writes its process id into `begun` and runs until a file `go` exists."""
    lines = [
        "#!/bin/sh",
        first,
        "echo $$ > number; mv number begun",
        # The loop ends after 30 seconds, because a failing test would leave it running.
        "for n in $(seq 1500); do test -e go && break; sleep .02; done",
    ]
    return str(make_executable(folder / "stays", "\n".join([*lines, "echo 1"])))


def read_numbers(folder: Path, *names: str) -> list[int]:
    """Return the numbers in these files."""
    return [int((folder / name).read_text()) for name in names]


def scratch(folder: Path) -> list[Path]:
    """Return the scratch folders of work and the records next to them."""
    return list(folder.glob("scratch/t/work/*"))


async def test_programs_in_the_help_text_work(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    shown = CliRunner().invoke(main, ["tool", "--help"]).output
    blocks = dict(re.findall(r"^  .+, (count\.\w+):\n((?:    .+\n)+)", shown, re.MULTILINE))
    commands = re.findall(r"^    broker tool --id counter --skills '(.+)' -- (.+)$", shown, re.MULTILINE)
    assert (list(blocks), len(commands)) == (["count.sh", "count.py"], 2)
    for name, content in blocks.items():
        make_executable(tmp_path / name, re.sub(r"^    ", "", content, flags=re.MULTILINE))
    for number, (skills, command) in enumerate(commands):
        task = f"count-{number}"
        async with registered(broker, tmp_path, *command.split(), skills=skills) as tool:
            await api.add_task(http, task, payload="three small words")
            await api.assign(http, task)
            ended = await api.wait_for_state(http, f"/v1/tasks/{task}", "succeeded")
            assert ended["result"] == {"words": 3}
            assert (await api.get_records(http, task))[0]["reports"][-1]["progress"] >= 0.5
            assert (await api.get(http, "/v1/tools/t"))["skills"] == {"can": ["count"]}
            tool.signal(signal.SIGTERM)
            assert await tool.wait_for_exit() == 0
        assert f"{task}: progress: " in tool.printed


@pytest.mark.parametrize(
    ("command", "skills", "says"),
    [
        ("./nowhere", "{}", "There is no program ./nowhere"),
        ("/bin/true", "{can: count}", "is not JSON"),
        ("/bin/true", "@nowhere.json", "Cannot read 'nowhere.json'"),
    ],
)
async def test_unusable_command_is_reported_before_registration(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, command: str, skills: str, says: str
) -> None:
    async with started(broker, tmp_path, command, skills=skills) as tool:
        assert await tool.wait_for_exit() in (1, 2)
    assert says in tool.printed
    assert (await http.get("/v1/tools/t")).status_code == 404


async def test_skills_come_from_a_file_and_a_second_tool_with_the_id_is_refused(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "skills.json").write_text('{"can": [1]}\n')
    async with registered(
        broker, tmp_path, "/bin/true", skills="@skills.json", options="--capacity 3 --lease 2m"
    ):
        entry = await api.get(http, "/v1/tools/t")
        assert (entry["skills"], entry["capacity"], entry["lease_seconds"]) == ({"can": [1]}, 3, 120)
        async with started(broker, tmp_path, "/bin/true") as second:
            assert await second.wait_for_exit() == 1
        assert "already runs on this machine" in second.printed
        assert (await api.get(http, "/v1/tools/t"))["registered_at"] == entry["registered_at"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_stopped_tool_lets_its_program_finish(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, number: signal.Signals
) -> None:
    """A closed terminal sends SIGHUP twice."""
    async with registered(broker, tmp_path, waiting_program(tmp_path)) as tool:
        await begin_work(http, tmp_path / "begun")
        tool.signal(number)
        await api.wait_for_state(http, "/v1/tools/t", "draining")
        if number == signal.SIGHUP:
            tool.signal(number)
        (tmp_path / "go").touch()
        assert await tool.wait_for_exit() == 0
    assert (await api.get(http, "/v1/tasks/a"))["result"] == 1


async def test_stopped_tool_releases_its_work_if_asked_to(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    command = waiting_program(tmp_path, first="trap '' TERM")
    async with registered(broker, tmp_path, command, options="--on-stop release --grace 0.2") as tool:
        pid = await begin_work(http, tmp_path / "begun")
        tool.signal(signal.SIGTERM)
        assert await tool.wait_for_exit() == 0
    assert not is_alive(pid)
    task = await api.get(http, "/v1/tasks/a")
    assert (task["state"], task["attempt"]) == ("available", 0)
    assert scratch(tmp_path) == []


async def test_second_signal_ends_the_tool_and_its_programs_at_once(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with registered(broker, tmp_path, waiting_program(tmp_path, first="trap '' TERM")) as tool:
        pid = await begin_work(http, tmp_path / "begun")
        tool.signal(signal.SIGTERM)
        await api.wait_for_state(http, "/v1/tools/t", "draining")
        tool.signal(signal.SIGTERM)
        assert await tool.wait_for_exit(within=2) == 128 + signal.SIGTERM
    await wait_until(lambda: not is_alive(pid))


@pytest.mark.parametrize("environment", ["as it was", "its own"])
async def test_next_run_ends_programs_that_a_killed_run_left_running(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, environment: str
) -> None:
    """This holds for a program that ignores SIGTERM, its group, and a process with its own session."""
    program = waiting_program(
        tmp_path, first="trap '' TERM\nsleep 600 & echo $! > mate\nsetsid sleep 600 & echo $! > other"
    )
    command = ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", program] if environment == "its own" else [program]
    async with registered(broker, tmp_path, *command) as tool:
        left = [await begin_work(http, tmp_path / "begun"), *read_numbers(tmp_path, "mate", "other")]
        # The program starts before the tool writes the record of its process.
        await wait_until(lambda: any(map(ProcessRecord.read, scratch(tmp_path))))
        tool.signal(signal.SIGKILL)
        assert await tool.wait_for_exit() == -signal.SIGKILL
    assert all(map(is_alive, left))
    async with registered(broker, tmp_path, "/bin/true", options="--grace 0.2") as tool:
        # The tool cannot find a session without its environment.
        assert [is_alive(pid) for pid in left] == [False, False, environment == "its own"]
        assert "left running" in tool.printed
    assert scratch(tmp_path) == []
    with contextlib.suppress(ProcessLookupError):
        os.kill(left[-1], signal.SIGKILL)


@pytest.mark.parametrize("quiet", [False, True])
async def test_reports_are_copied_to_stderr_unless_quiet(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path, quiet: bool
) -> None:
    program = make_executable(tmp_path / "program", "#!/bin/sh\necho one >&2\necho progress: 20% two >&2\n")
    async with registered(broker, tmp_path, str(program), options="--quiet" if quiet else "") as tool:
        await api.add_task(http)
        await api.assign(http)
        await api.wait_for_state(http, "/v1/tasks/a", "succeeded")
        tool.signal(signal.SIGTERM)
        await tool.wait_for_exit()
    assert ("a: one\na: progress: 20% two\n" in tool.printed) is not quiet


async def test_control_characters_of_programs_and_payloads_are_replaced(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    program = make_executable(tmp_path / "program", '#!/bin/sh\nprintf "%s\\n" "$1" >&2\nexit 1\n')
    async with registered(broker, tmp_path, str(program), "{x}") as tool:
        await api.add_task(http, payload={"x": "\x1b[31mEVIL\x07"}, max_attempts=1)
        await api.assign(http)
        await api.wait_for_state(http, "/v1/tasks/a", "failed")
        tool.signal(signal.SIGTERM)
        await tool.wait_for_exit()
    assert "a: \ufffd[31mEVIL\ufffd\n" in tool.printed
    assert not {"\x1b", "\x07"} & set(tool.printed)


async def test_work_continues_if_nobody_reads_stderr(
    broker: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with registered(broker, tmp_path, "/bin/sh", "-c", "seq 100000 >&2; echo 1") as tool:
        tool.is_read.clear()
        await api.add_task(http)
        await api.assign(http)
        await api.wait_for_state(http, "/v1/tasks/a", "succeeded")
        tool.signal(signal.SIGTERM)
        tool.is_read.set()
        assert await tool.wait_for_exit() == 0
    assert re.search(r"lines are not shown|a: 100000\n", tool.printed)


async def test_tool_ends_with_one_line_if_another_program_registers_its_id(
    database: str, tmp_path: Path
) -> None:
    async with (
        running_broker(Settings(database_url=database, admin_key="a-key")) as broker,
        registered(broker, tmp_path, "/bin/true", key="a-key") as older,
    ):
        broker.client.headers.update(api.bearer("a-key"))
        await api.add_tool(broker.client, "t")
        assert await older.wait_for_exit() == 1
    last = older.printed.splitlines()[-1]
    assert last.startswith("Error: Tool t no longer belongs to this program: another program has registered")
