"""What the README shows is true: its calls are made, its answers compared, its programs run."""

import asyncio
import json
import os
import re
import shutil
import sys
from typing import Any

import asyncpg
import pytest

from broker.settings import Settings, describe, variable_of
from tests import ROOT
from tests.conftest import Running
from tests.support import api, role_table

README = (ROOT / "README.md").read_text()

CALLS = re.findall(r"```console\n\$ (.+)\n(.+)\n```", README)
OTHER_CALLS = re.findall(r"^\| .+ \| `(curl .+)` \| (\d{3}) \|$", README, re.MULTILINE)
PROGRAMS = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
URL = "http://127.0.0.1:8000"

# What differs from one time to the next.
VARYING = [
    (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r'"token": ?"[^"]+"', '"token": "TOKEN"'),
    (r'"cursor": ?"[^"]+"', '"cursor": "CURSOR"'),
]


def alike(answer: str) -> Any:
    for pattern, name in VARYING:
        answer = re.sub(pattern, name, answer)
    return json.loads(answer)


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
async def test_the_eight_calls_are_answered_as_the_readme_says(broker: Running) -> None:
    assert (len(CALLS), len(OTHER_CALLS)) == (8, 14)
    environment = dict(os.environ)
    for call, promised in CALLS:
        shell = await asyncio.create_subprocess_shell(
            call.replace(URL, broker.url), stdout=asyncio.subprocess.PIPE, env=environment
        )
        answer = (await shell.communicate())[0].decode()
        assert alike(answer) == alike(promised), call
        if "/v1/work " in call:
            environment["WORK"] = json.loads(answer)["id"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
@pytest.mark.parametrize(("call", "status"), OTHER_CALLS)
async def test_the_other_calls_are_answered_as_the_readme_says(
    broker: Running, sql: asyncpg.Connection, call: str, status: str
) -> None:
    http = broker.client
    started = "cancel" in call or "released" in call
    pair = await (api.add_running_work if started else api.add_assigned_work)(
        http, "job-2", "counter", max_attempts=1
    )
    if call.endswith("/accept"):
        await api.expire_deadline(sql, pair.work)
        await api.wait_for_state(http, "/v1/tasks/job-2", "available")
        assert (await api.complete(http, pair.work)).status_code == 409
    elif call.endswith("/retry"):
        await api.complete_work(http, pair.work, "failed")
    shell = await asyncio.create_subprocess_shell(
        call.replace(URL, broker.url) + " -w '\n%{http_code}'",
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"WORK": pair.work},
    )
    answer, _, answered = (await shell.communicate())[0].decode().rpartition("\n")
    assert answered == status, answer


async def test_the_programs_do_what_the_readme_says(broker: Running) -> None:
    tool, assigner, submitter = PROGRAMS
    environment = {**os.environ, "BROKER_URL": broker.url}
    running = [await _program(code, environment) for code in (tool, assigner)]
    try:
        process = await _program(submitter, environment, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(30):
            printed = (await process.communicate())[0].decode()
    finally:
        for program in running:
            program.terminate()
        statuses = [await program.wait() for program in running]
    assert printed == "{'words': 3}\n"
    assert statuses == [0, 0], "a program that is told to stop ends in order"


async def _program(code: str, environment: dict[str, str], **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment, **options)


def test_every_setting_of_the_readme_exists() -> None:
    known = {variable_of(name) for name in Settings.__struct_fields__} | {"BROKER_URL", "BROKER_KEY"}
    named = set(re.findall(r"`(BROKER_\w+)`", README)) - {"BROKER_TEST_DATABASE_URL"}
    assert named <= known


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", "docs/guarantees.md"])
def test_every_test_that_is_named_exists(page: str) -> None:
    told = (ROOT / page).read_text()
    named = set(re.findall(r"`(test_\w+)`", told))
    there = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert len(named) > 10
    assert named <= there
    assert [path for path in re.findall(r"`(tests/[\w/.]+)`", told) if not (ROOT / path).exists()] == []


def test_help_tells_of_every_setting_once() -> None:
    told = re.findall(r"^ +(BROKER_\w+)  \[.+\n +\S.+", describe(), re.MULTILINE)
    assert told == [variable_of(name) for name in Settings.__struct_fields__]


def test_every_folder_of_the_readme_exists() -> None:
    folders = re.findall(r"^\| `([a-z/]+/)` \|", README, re.MULTILINE)
    assert folders
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []


def test_the_table_of_roles_is_that_of_the_guards() -> None:
    found = role_table.PLACE.search(README)
    assert found
    assert found[0] == role_table.table(role_table.make_app()), "run python -m tests.support.role_table"
