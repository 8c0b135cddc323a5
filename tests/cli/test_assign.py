"""`broker assign`: help, errors, assignments and log."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from broker.cli import main
from tests.conftest import Running
from tests.support.api import add_task, add_tool, get, wait_for_state
from tests.support.processes import clean_environment
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

LAB = """
from broker.client import MismatchError

def fits(skills, needs):
    if skills["gpu"] < needs["gpu"]:
        raise MismatchError(f"wants {needs['gpu']} GPUs, has {skills['gpu']}")
    return True

def speed(skills, needs):
    return skills["clock"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with a module of the user."""
    (tmp_path / "lab.py").write_text(LAB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("BROKER_URL", "BROKER_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refused(*arguments: str) -> Result:
    """Run the command with invalid arguments."""
    result = CliRunner().invoke(main, ["assign", *arguments], prog_name="broker")
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result


class Assigning:
    """A running `broker assign`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def stop(self, number: signal.Signals) -> list[dict[str, Any]]:
        """Stop the command by a signal, and return the lines that it logged."""
        self._process.send_signal(number)
        _, errors = await asyncio.wait_for(self._process.communicate(), 10)
        assert self._process.returncode == 0, errors.decode()
        return [json.loads(line) for line in errors.splitlines()]


@asynccontextmanager
async def assigning(*arguments: str, **environment: str) -> AsyncIterator[Assigning]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker.cli", "assign", *arguments),
        env=clean_environment(**environment),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Assigning(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_help_shows_how_to_match_and_rank(folder: Path) -> None:
    result = CliRunner().invoke(main, ["assign", "--help"], prog_name="broker")
    for text in (
        "contains|schema|MODULE:FUNCTION",
        "broker assign --match schema",
        "--match lab:fits --rank lab:speed",
        "BROKER_KEY",
        "MismatchError",
    ):
        assert text in result.output
    assert "assign   Assign tasks to tools" in CliRunner().invoke(main, ["--help"]).output


async def test_module_in_the_help_text_works(folder: Path) -> None:
    output = CliRunner().invoke(main, ["assign", "--help"], prog_name="broker").output
    shown = output.partition("--rank lab:speed:\n")[2].partition("  The functions receive")[0]
    program: dict[str, Any] = {}
    exec("\n".join(line.removeprefix("    ") for line in shown.splitlines()), program)
    assert program["fits"]({"gpu": 2}, {"gpu": 1}) is True
    assert program["speed"]({"clock": 3}, {}) == 3


@pytest.mark.parametrize(
    ("source", "match", "says"),
    [
        ("", "magic", "'magic' must be contains, schema, or a function: MODULE:FUNCTION"),
        ("", "nomodule:fits", "There is no module 'nomodule'"),
        ("", "no.module:fits", "There is no module 'no.module'"),
        ("", "{}:fits", "has no 'fits'"),
        ("fits = 3", "{}:fits", "is not a function, but 3"),
        ("import nothing_there", "{}:fits", "No module named 'nothing_there' ("),
        ("def fits(:", "{}:fits", "SyntaxError"),
        ("\nx = 1 / 0", "{}:fits", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "{}:fits", "SystemExit"),
        ("async def fits(skills, needs): ...", "{}:fits", "an ordinary function, not `async def`"),
    ],
)
async def test_error_about_an_unusable_function_says_why(
    folder: Path, request: pytest.FixtureRequest, source: str, match: str, says: str
) -> None:
    # A process imports a module only once.
    module = f"lab_{request.node.callspec.indices['source']}"
    (folder / f"{module}.py").write_text(source)
    assert says in refused("--match", match.format(module)).output.replace("\n", " ")


async def test_error_in_a_module_names_file_and_line(folder: Path) -> None:
    (folder / "wrong.py").write_text("x = 1\ny = x / 0\n")
    assert f"{folder / 'wrong.py'}, line 2" in refused("--rank", "wrong:y").output.replace("\n", "")
    (folder / "misspelt.py").write_text("x = 1\ny = = x\n")
    assert f"{folder / 'misspelt.py'}, line 2" in refused("--rank", "misspelt:y").output.replace("\n", "")


@pytest.mark.parametrize("aging", ["0", "-5", "nan", "inf", "soon", ""])
async def test_invalid_aging_is_refused(folder: Path, aging: str) -> None:
    assert "must be a number of seconds above 0, or `off`" in refused(f"--aging={aging}").output


async def test_assigner_uses_the_functions_of_the_user_and_stops_at_once(
    folder: Path, broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http, "old", skills={"gpu": 2, "clock": 1})
    await add_tool(http, "new", skills={"gpu": 2, "clock": 2})
    await add_tool(http, "none", skills={"gpu": 0, "clock": 9})
    await add_task(http, "hopeless", needs={"gpu": 8})
    await add_task(http, "a", needs={"gpu": 1})
    options = ("--match", "lab:fits", "--rank", "lab:speed", "--aging", "off", "--no-remarks")
    async with assigning(*options, BROKER_URL=broker.url) as assigner:
        work = (await wait_for_state(http, "/v1/tasks/a", "assigned"))["work_id"]
        assert (await get(http, f"/v1/work/{work}"))["tool_id"] == "new"
        for number in range(10):
            await add_tool(http, f"tool-{number}", skills={"gpu": 1, "clock": 3})
            await add_task(http, f"task-{number}", needs={"gpu": 1})
        await wait_for_state(http, "/v1/tasks/task-9", "assigned")
        started_at = time.monotonic()
        logged = await assigner.stop(signal.SIGINT)
        assert time.monotonic() - started_at < 2
    first, *others = logged
    assert (first["event"], first["broker"]) == ("assigner configured", broker.url)
    assert (first["match"], first["rank"], first["aging_seconds"]) == ("lab:fits", "lab:speed", None)
    # The signal may come before the response about the last task.
    assert sum(line["tasks"] for line in others if line["event"] == "assigned") in (10, 11)
    [overtaken] = [line for line in others if line["event"] == "needs overtaken"]
    assert overtaken["needs"] == '{"gpu": 8}'
    assert overtaken["passed_by"] in (10, 11)


async def test_assigner_logs_its_count_at_a_bounded_rate(
    folder: Path, broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http, "t", capacity=100)
    async with assigning(BROKER_URL=broker.url) as assigner:
        for number in range(30):
            await add_task(http, f"task-{number}")
            await wait_for_state(http, f"/v1/tasks/task-{number}", "assigned")
        logged = await assigner.stop(signal.SIGTERM)
    counts = [line["tasks"] for line in logged if line["event"] == "assigned"]
    assert sum(counts) in (29, 30)
    assert len(counts) <= 3
